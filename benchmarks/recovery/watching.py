"""What a contestant has done so far, and where its processes are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

RUN_ID = "bench"


@dataclass(frozen=True)
class Step:
    """A step that was done; `life` is another one after every restart."""

    number: int
    time: float
    life: int


class Watch(Protocol):
    """Looks at one run of a contestant."""

    def read(self) -> list[Step]:
        """Return the steps that were done since the last call."""
        ...

    def lost(self, newest: list[Step], at: float) -> float:
        """Return how many steps were done between the last of `newest` and `at` that left no trace."""
        ...

    def victim(self, what: str, rank: int) -> psutil.Process:
        """Return a process: `worker` is the rank's, `driver` and `raylet` are those of raylift."""
        ...


class ScriptWatch:
    """Reads the marks of a script."""

    def __init__(self, marks: Path) -> None:
        self._marks = marks
        self._read = 0
        self._pids: dict[int, int] = {}  # of the ranks

    def read(self) -> list[Step]:
        if not self._marks.exists():
            return []
        with self._marks.open("rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0]
        self._read += len(whole) + bool(whole)
        rows: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
        self._pids |= {row["rank"]: row["pid"] for row in rows if row["mark"] == "start"}
        return [Step(row["step"], row["time"], row["pid"]) for row in rows if row["mark"] == "step"]

    def lost(self, newest: list[Step], at: float) -> float:  # noqa: ARG002
        return 0.0  # a mark is on disk as soon as it is made

    def victim(self, what: str, rank: int) -> psutil.Process:
        assert what == "worker", f"a script has no {what}"
        return psutil.Process(self._pids[rank])


class RunWatch:
    """Reads the rows and the pulses of raylift's run."""

    def __init__(self, runs: Path) -> None:
        from cluster.runs import Run
        from cluster.storage.open import open_storage

        self._run = Run(open_storage(str(runs)), RUN_ID)
        self._readers: dict[int, Any] = {}  # by attempt

    def read(self) -> list[Step]:
        from cluster.segments import SegmentReader

        for attempt in self._run.attempts():
            self._readers.setdefault(attempt, SegmentReader(self._run, attempt, "metrics", "rank-0"))
        return [
            Step(int(row["step"]), float(row["time"]), attempt)
            for attempt, reader in self._readers.items()
            for row in reader.read_rows()
            if row["kind"] == "step"
        ]

    def lost(self, newest: list[Step], at: float) -> float:
        """Reckon, at the pace of the last steps: rows are written once a second, and are lost with their rank."""
        first, last = newest[-100:][0], newest[-1]
        pace = (last.number - first.number) / max(last.time - first.time, 1e-3)
        return max(0.0, pace * (at - last.time))

    def victim(self, what: str, rank: int) -> psutil.Process:
        from cluster.local import processes_of, scratch_folder
        from trainers.pulse import read

        scratch = scratch_folder(RUN_ID)
        if what == "worker":
            folders = (scratch / "tmp").resolve().glob("raylift-pulse-*")
            newest = max(folders, key=lambda folder: int(folder.name.rpartition("-")[2]))
            reading = read(newest / f"rank-{rank}")
            assert reading is not None, f"rank {rank} shows no pulse"
            return psutil.Process(reading.pid)
        for process in processes_of(scratch):
            if process.name() == what or (what == "driver" and "trainers.main" in process.cmdline()):
                return process
        raise RuntimeError(f"there is no {what}")
