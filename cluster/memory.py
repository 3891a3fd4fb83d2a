"""Whether the system kills processes for lack of memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

SHORT_OF_MEMORY = "; the system killed a process for lack of memory: try fewer cluster.workers, or smaller batches"


def kills_for_memory() -> int:
    """Return how many processes the system has killed for lack of memory in this container; 0 where it counts none."""
    for events in (
        *_own_groups(),
        Path("/sys/fs/cgroup/memory.events"),
        Path("/sys/fs/cgroup/memory/memory.oom_control"),
    ):
        with contextlib.suppress(OSError, ValueError, KeyError):
            return int(dict(line.split() for line in events.read_text().splitlines())["oom_kill"])
    return 0


def _own_groups() -> Iterator[Path]:
    """Return where the control group of this process counts; both versions of them name it in one file."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                yield Path(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
            elif not controllers:
                yield Path(f"/sys/fs/cgroup{path}/memory.events")
