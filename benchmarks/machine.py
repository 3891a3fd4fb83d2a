"""What a measurement was taken on, in words that say nothing about whose machine it is."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

_ROOT = Path(__file__).resolve().parent.parent
_VERSIONS = """
import json, sys
from importlib.metadata import distributions
found = {d.name.lower().replace("-", "_"): d.version for d in distributions()}
print(json.dumps({name: found.get(name.replace("-", "_"), "not installed") for name in sys.argv[1:]}))
"""


def describe_machine() -> dict[str, Any]:
    """Return processor, cores that we may use, memory, system, and how busy it was just now."""
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def versions(python: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the versions of packages in an environment, asked of its own Python."""
    done = subprocess.run([python, "-c", _VERSIONS, *names], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def use_cores(count: int) -> None:
    """Keep this process and all that it starts on `count` cores. Raises SystemExit where there are fewer."""
    there = sorted(os.sched_getaffinity(0))
    if len(there) < count:
        raise SystemExit(f"the benchmark takes {count} cores, this machine has {len(there)}: --cores {len(there)}")
    os.sched_setaffinity(0, there[:count])


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=_ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
