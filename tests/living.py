"""Processes that look like those of a local run, without its Ray."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cluster.local import clear, scratch_folder

SLEEPER = "import time; time.sleep(600)"


@contextlib.contextmanager
def process_in(folder: Path, *arguments: str, script: str = SLEEPER) -> Iterator[subprocess.Popen[bytes]]:
    """Have a process work in a folder, as a run's processes do."""
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=folder)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def scratch_of(run_id: str) -> Iterator[Path]:
    """Make the folder that a run has on this machine."""
    folder = scratch_folder(run_id)
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        clear(folder)


@contextlib.contextmanager
def living(run_id: str) -> Iterator[subprocess.Popen[bytes]]:
    """Let a run have a driver on this machine, which does nothing."""
    with scratch_of(run_id) as folder, process_in(folder, "trainers.main") as process:
        yield process
