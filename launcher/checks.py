"""What a run needs of this machine, each asked for real."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import psutil

from cluster.errors import RayliftError
from cluster.local import scratch_folder
from launcher.text import size

_NEEDED = {"ray": (2, 56), "torch": (2, 10)}
_MEMORY = 4e9  # bytes: Ray, its agents and two small ranks
_DISK = 2e9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool | None  # None where it could not be told
    detail: str


def check_machine(storage: str) -> list[Finding]:
    """Look at Python, packages, processors, memory, disk, accelerators and storage."""
    return [
        _python(),
        *(_package(name, least) for name, least in _NEEDED.items()),
        Finding("processors", True, f"{os.cpu_count()} cores, {platform.machine()}"),
        _memory(),
        _disk(),
        _accelerators(),
        check_storage_at(storage),
    ]


def _python() -> Finding:
    ok = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding("python", ok, f"{platform.python_version()}{'' if ok else '; raylift needs 3.11 to 3.13'}")


def _package(name: str, least: tuple[int, int]) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(name, False, "not installed: pip install 'raylift[train]'")
    ok = tuple(int(part) for part in found.split(".")[:2]) >= least
    return Finding(name, ok, found if ok else f"{found}; at least {least[0]}.{least[1]}: pip install -U '{name}'")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    ok = memory.available >= _MEMORY
    return Finding("memory", ok, f"{size(memory.available)} free of {size(memory.total)}, {size(_MEMORY)} needed")


def _disk() -> Finding:
    folder = scratch_folder("x").parent.parent
    free = shutil.disk_usage(folder).free
    return Finding("disk", free >= _DISK, f"{size(free)} free in {folder}, {size(_DISK)} needed")


def _accelerators() -> Finding:
    """Ask the driver's own tool: torch takes seconds to import."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding("accelerators", True, "none found: ranks train on the CPU")
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (subprocess.SubprocessError, OSError) as error:
        return Finding("accelerators", False, f"nvidia-smi failed: {error}")
    return Finding("accelerators", True, "; ".join(found.splitlines()))


def check_storage_at(uri: str) -> Finding:
    """Write to a storage, and read it back."""
    from cluster.storage.open import check_storage, open_storage

    try:
        check_storage(open_storage(uri))
    except RayliftError as error:
        return Finding("storage", False, str(error))
    return Finding("storage", True, f"{uri} can be written and read")
