"""A limit to the memory of processes, as a container has one."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


class Limited:
    """A control group; the processes that are put into it, and all that they start, share its memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, pid: int) -> None:
        (self._folder / "cgroup.procs").write_text(str(pid))


@contextmanager
def memory_limit(size: int) -> Iterator[Limited]:
    """Make a control group of so many bytes for the length of the block; skip the test where that is impossible."""
    if os.geteuid() != 0:
        pytest.skip("a limit to the memory of several processes is a control group: this needs root")
    root, limit = (_V1, "memory.limit_in_bytes") if _V1.is_dir() else (_V2, "memory.max")
    folder = root / f"raylift-{secrets.token_hex(3)}"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(size))
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"a control group with a limit to memory cannot be made here: {error}")
    try:
        yield Limited(folder)
    finally:
        while (folder / "cgroup.procs").read_text():
            time.sleep(0.1)
        folder.rmdir()
