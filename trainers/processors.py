"""How many processors there are for this process."""

from __future__ import annotations

import os


def cpu_count() -> int:
    """Return the processors of this machine, or those of the pod, which a provider tells: a machine has many pods."""
    return int(os.environ.get("RAYLIFT_CPUS") or os.cpu_count() or 1)


def is_shared() -> bool:
    """Whether this process may use a part of the machine alone."""
    return "RAYLIFT_CPUS" in os.environ
