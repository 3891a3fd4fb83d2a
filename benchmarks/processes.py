"""Run a command as a shell would, and know when the last of its processes is gone.

Linux only: this process adopts the orphans of what it starts, so that a daemon whose parent has died is still
ours to wait for, and a wait that finds no child left means that nothing of the command is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from benchmarks.memory import MemoryWatch, Peaks

_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE = 60.0  # seconds that processes may outlive their command before they are killed and named


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What came of a command. Durations in seconds, all since `started` (time.time())."""

    started: float
    exit_code: int
    command: float  # until the command itself had returned
    gone: float  # until the last of its processes was gone
    leftovers: tuple[str, ...]  # what was killed because it stayed
    memory: Peaks | None

    @property
    def whole(self) -> float:
        return max(self.command, self.gone)


def run(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path, limit: float, memory: bool = False
) -> Ran:
    """Run a command, its output in `log`; blocks until it and all that it started are gone.

    With `memory`, the memory of its processes is sampled meanwhile, which costs a little of the machine. Whatever
    ends this call early (Ctrl-C, or TimeoutError after `limit` seconds) ends the processes too.
    """
    _prepare()
    begun, clock = time.time(), time.perf_counter()
    root = _start(command, cwd, env, log)
    watch = MemoryWatch(root.pid) if memory else None
    try:
        with _at_most(limit):
            root.returncode = _wait_for(root.pid)
        seconds = time.perf_counter() - clock
        leftovers = _wait_for_all()
        gone = time.perf_counter() - clock
    finally:
        _kill_all()
        peaks = watch.stop() if watch is not None else None
    return Ran(started=begun, exit_code=root.returncode, command=seconds, gone=gone, leftovers=leftovers, memory=peaks)


@contextlib.contextmanager
def started(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command, its output in `log`; with the block end all the processes that it started."""
    _prepare()
    root = _start(command, cwd, env, log)
    try:
        yield root
    finally:
        _kill_all()
        root.returncode = root.returncode or 0  # it was reaped with the others


def clean_environment(**extra: str) -> dict[str, str]:
    """Return this shell's environment without what would change how a contestant runs."""
    # no bytecode would make every import slow; the others would lead it to code or clusters that are not its own
    unwanted = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONSTARTUP", "RAY_ADDRESS", "RAYLIFT_STORAGE"}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**kept, "RAY_USAGE_STATS_ENABLED": "0", **extra}


def _start(command: Sequence[str], cwd: Path, env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )


def _prepare() -> None:
    """Have the kernel hand us every process that outlives its parent, and a SIGTERM go by way of `finally`.

    Raises SystemExit where it cannot.
    """
    if sys.platform != "linux":
        sys.exit(f"the benchmarks run on Linux, this is {sys.platform}: elsewhere nobody can wait for orphans")
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _wait_for(pid: int) -> int:
    """Wait for a child, taking leave of adopted ones meanwhile; return its exit code."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def _wait_for_all() -> tuple[str, ...]:
    """Wait until no child is left; return the names of those that had to be killed."""
    with contextlib.suppress(TimeoutError), _at_most(_PATIENCE):
        _reap_all()
        return ()
    names = tuple(_name(process) for process in psutil.Process().children(recursive=True))
    _kill_all()
    return names


def _reap_all() -> None:
    with contextlib.suppress(ChildProcessError):  # that says: none is left
        while True:
            os.waitpid(-1, 0)


def _kill_all() -> None:
    while children := psutil.Process().children(recursive=True):
        for process in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _reap_all()


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.name()
    return "?"


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread if the block takes longer."""

    def expire(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"still running after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
