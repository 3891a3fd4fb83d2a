"""The peak memory of a tree of processes, sampled while it runs."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass

import psutil

_EVERY = 0.2  # seconds
_ROLES = (  # the first whose words stand in a process's title
    ("worker", ("TrainWorker",)),
    ("driver", ("trainers.main",)),
    ("supervisor", ("cluster.supervisor",)),
    ("ray", ("ray::", "raylet", "gcs_server", "/ray/")),
)


@dataclass(frozen=True)
class ProcessPeak:
    """The most that one process held, in bytes. `pss` counts a page shared by n processes as 1/n of it."""

    role: str  # command (what was typed), driver, worker, supervisor, ray, or helper
    rss: int
    pss: int


@dataclass(frozen=True)
class Peaks:
    """The most that all processes held at one moment, in bytes, and each of them in its own time."""

    rss: int
    pss: int
    processes: tuple[ProcessPeak, ...]


class MemoryWatch:
    """Samples all processes below this one, from now until `stop`."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._total = (0, 0)
        self._found: dict[int, ProcessPeak] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample_now_and_then, name="memory", daemon=True)
        self._thread.start()

    def stop(self) -> Peaks:
        self._stopped.set()
        self._thread.join()
        processes = sorted(self._found.values(), key=lambda peak: -peak.pss)
        return Peaks(*self._total, tuple(processes))

    def _sample_now_and_then(self) -> None:
        while not self._stopped.wait(_EVERY):
            self._sample()

    def _sample(self) -> None:
        rss = pss = 0
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                held = process.memory_full_info()
                rss, pss = rss + held.rss, pss + held.pss
                self._note(process.pid, role_of(process, self._root), held.rss, held.pss)
        self._total = (max(self._total[0], rss), max(self._total[1], pss))

    def _note(self, pid: int, role: str, rss: int, pss: int) -> None:
        before = self._found.get(pid, ProcessPeak(role, 0, 0))
        if before.role == "worker":
            role = before.role  # Ray renames its processes after what they do at the moment
        self._found[pid] = ProcessPeak(role, max(before.rss, rss), max(before.pss, pss))


def role_of(process: psutil.Process, root: int) -> str:
    """Say what a process is there for, by its title."""
    title = " ".join(process.cmdline())
    for role, words in _ROLES:
        if any(word in title for word in words):
            return role
    return "command" if process.pid == root else "helper"
