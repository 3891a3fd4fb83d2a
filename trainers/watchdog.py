"""Ends ranks that hang, so that the run goes on without them: one process a machine.

    python -P -m trainers.watchdog FOLDER RANKS_OF_THE_RUN PARENT HOST_OF_WHO_READS_THE_VERDICTS

Ray and torch notice a rank that hangs after minutes; this does so within seconds. It learns from the run's own steps
how long one may take: a rank is ended that takes five times as long as its longest, and no less than eight seconds, or
what `train.step_timeout` says. Without a sign of life it may be for eight seconds, for what `train.step_timeout` says,
or for twice as long as it has been: code that keeps the interpreter's lock does so in each step.
Compilation, at any step, and the first collective, evaluation and saves have limits of their own; of an evaluation,
what counts is the time between two waits for the other ranks, which come about once a second. A rank that waits for
those of other machines, whose own watchdogs may be cut off from us, is given time for what these would end, for a save,
and, where it has ever compiled, for that; in the first steps, in which they may still load or compile, a quarter of an
hour. It counts only the time in which it runs itself, so that a machine that sleeps, or has no time for anybody, ends
nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import RayliftError
from trainers.pulse import ENDED, SILENT_AT_FIRST, TIMES, TIMES_SILENT, Phase, Reading, read

POLL = 0.25  # seconds
SILENT = 8.0  # seconds without a beat: stopped, or held by code that never lets go of the interpreter
_SILENT_IN = {  # those may hold it long
    Phase.STARTING: 60.0,  # imports
    Phase.COMPILING: 60.0,
    Phase.MEETING: 60.0,  # what a GPU and its network are set up by
    Phase.WARMING_UP: SILENT_AT_FIRST,  # libraries that are loaded where they are first used
}
_LEAST_EVALUATION = 30.0
_LEAST_AGREEING = 15.0  # that others may take longer for their part of it
_FIRST = 30 * 60.0  # seconds for what has not been seen yet: first evaluation and start, or headway of a restore
_MEETING = 15 * 60.0  # seconds that ranks on other machines may load or compile longer than those here
_FAR_COMPILATION = 5 * 60.0  # seconds that another machine may compile, without what this one has in a cache
_SAVE = 60 * 60.0  # without headway: a storage that is away holds up a save; see trainers.checkpoint for how long
_FAR_SAVE = 30.0  # seconds that a save on another machine may hold up training: see trainers.checkpoint
_FOR_OTHERS = (Phase.WAITING, Phase.AGREEING, Phase.MEETING)
_LAST_WORDS = 0.3  # seconds for a rank to print where it hangs


@dataclass
class Watched:
    """A rank, and for how many seconds nothing of it has changed."""

    now: Reading
    silent: float = 0.0  # without a beat
    still: float = 0.0  # in the same phase

    def update(self, reading: Reading, awake: float, *, is_held: bool) -> None:
        """Take in what its file shows now; while it `is_held` up by another rank the time in its phase stands still."""
        is_alive = (reading.beats, reading.entries) != (self.now.beats, self.now.entries)
        self.silent = 0.0 if is_alive else self.silent + awake
        self.still = 0.0 if reading.entries != self.now.entries else self.still + awake * (not is_held)
        self.now = reading


class Watchdog:
    """Looks at the files of a machine's ranks and says which to end, and why."""

    def __init__(self, folder: Path, world_size: int) -> None:
        self._folder = folder
        self._world_size = world_size
        self._ranks: dict[int, Watched] = {}

    def look(self, awake: float) -> dict[int, tuple[Reading, str]]:
        """Read the files, `awake` seconds after the last time; return the ranks to end, and why."""
        there = [reading for path in self._folder.glob("rank-*") if (reading := read(path)) is not None]
        compiles = any(reading.phase is Phase.COMPILING for reading in there)
        for reading in there:
            known = self._ranks.get(reading.rank)
            if known is None or known.now.whose != reading.whose:
                self._ranks[reading.rank] = Watched(reading)
            else:
                is_held = compiles and reading.phase is Phase.COMPUTING  # a forward pass may wait for buffers
                known.update(reading, awake, is_held=is_held)
        self._ranks = {reading.rank: self._ranks[reading.rank] for reading in there}
        frozen = {rank: self._silence(watched) for rank, watched in self._ranks.items()}
        found = {rank: reason for rank, reason in frozen.items() if reason} or self._hanging()
        return {rank: (self._ranks[rank].now, reason) for rank, reason in found.items()}

    def _silence(self, watched: Watched) -> str:
        now = watched.now
        limit = max(_SILENT_IN.get(now.phase, SILENT), now.step_timeout, TIMES_SILENT * now.longest_silence)
        return f"it froze: no sign of life for {watched.silent:.0f} s" if watched.silent > limit else ""

    def _hanging(self) -> dict[int, str]:
        """Return the ranks that hang by themselves; where all wait for each other in vain, the first."""
        late = {
            rank: watched
            for rank, watched in self._ranks.items()
            if watched.still > _limit(watched.now)  # waiting is not its own fault, unless all do
        }
        alone = {rank: watched for rank, watched in late.items() if watched.now.phase not in _FOR_OTHERS}
        if alone:
            return {rank: _describe(watched) for rank, watched in alone.items()}
        if len(late) == self._world_size:
            first = min(late)
            return {first: f"the ranks wait for each other in vain: no step for {late[first].still:.0f} s"}
        if len(self._ranks) < self._world_size and all(map(_waits_in_vain, self._ranks.values())):
            return {
                rank: f"it waited in vain for ranks on other machines: no step for {watched.still:.0f} s"
                for rank, watched in self._ranks.items()
            }
        return {}


def _limit(reading: Reading) -> float:
    """Return the seconds that a rank may stay in its phase."""
    match reading.phase:
        case Phase.STARTING | Phase.WARMING_UP | Phase.COMPILING:
            return max(_FIRST, reading.step_timeout)
        case Phase.MEETING:  # the wait after a first step has this rank's own backward pass in it
            return _FIRST
        case Phase.EVALUATING if not reading.evaluations:
            return max(_FIRST, reading.step_timeout)
        case Phase.EVALUATING:
            return max(_LEAST_EVALUATION, reading.step_timeout, TIMES * reading.longest_evaluation)
        case Phase.AGREEING:
            return max(_LEAST_AGREEING, reading.step_timeout, TIMES * reading.longest_evaluation)
        case Phase.SAVING | Phase.ENDING:  # at the end all wait for the rank that saves
            return _SAVE
        case _:
            return max(reading.step_timeout, TIMES * reading.longest_step)


def _waits_in_vain(watched: Watched) -> bool:
    """Whether a rank has waited so long that one that hangs on another machine has been ended there by now."""
    if watched.now.phase is Phase.MEETING:
        return watched.still > max(_MEETING, watched.now.step_timeout)
    compiled = watched.now.longest_compilation
    patience = 2 * _limit(watched.now) + _FAR_SAVE + (max(_FAR_COMPILATION, 2 * compiled) if compiled else 0.0)
    return watched.now.phase in _FOR_OTHERS and watched.still > patience


def _describe(watched: Watched) -> str:
    now = watched.now
    longest = {Phase.EVALUATING: now.longest_evaluation, Phase.COMPILING: now.longest_compilation}
    usual = longest.get(now.phase, now.longest_step)
    doing = now.phase.name.lower().replace("_", " ")
    return f"it hung: {doing} for {watched.still:.0f} s (the longest before took {usual:.1f} s)"


def end_rank(folder: Path, reading: Reading, reason: str) -> None:
    """Write down why, let the rank print where it hangs, and kill it."""
    with (folder / "verdicts.jsonl").open("a") as file:
        file.write(json.dumps({"rank": reading.rank, "reason": reason}) + "\n")
    with contextlib.suppress(ProcessLookupError):
        os.kill(reading.pid, signal.SIGUSR1)
        time.sleep(_LAST_WORDS)
        os.kill(reading.pid, signal.SIGKILL)


def tell(reading: Reading, reason: str) -> None:
    """Write down in storage whom it has ended: the driver may be on another machine."""
    from cluster.runs import Run
    from cluster.segments import SegmentWriter

    by = f"watchdog-{socket.gethostname()}-{os.getpid()}-{reading.rank}"
    with contextlib.suppress(RayliftError):
        writer = SegmentWriter(Run.at(reading.run_uri), reading.attempt, "events", by)
        writer.append({"event": ENDED, "rank": reading.rank, "reason": reason})
        writer.close()


class Keeper:
    """Starts the watchdog of this machine, and again where it is gone; it ends with this process."""

    def __init__(self, folder: Path, world_size: int, driver_host: str = "") -> None:
        """Verdicts stay for a driver on `driver_host`."""
        self._command = [sys.executable, "-P", "-m", "trainers.watchdog", str(folder), str(world_size)]
        self._command += [str(os.getpid()), driver_host]
        self.process = self._start()

    def look(self) -> None:
        """Start it anew if somebody has ended it; to be called now and then."""
        if self.process.poll() is not None:
            self.process = self._start()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdin=subprocess.DEVNULL, start_new_session=True)


def main(arguments: Sequence[str]) -> None:
    folder, world_size, parent, driver_host = Path(arguments[0]), int(arguments[1]), int(arguments[2]), arguments[3]
    watchdog, ended = Watchdog(folder, world_size), set[int]()
    last = time.monotonic()
    while os.getppid() == parent:
        time.sleep(POLL)
        now = time.monotonic()
        told: list[tuple[Reading, str]] = []
        for reading, reason in watchdog.look(min(now - last, 2 * POLL)).values():
            if reading.pid not in ended:
                ended.add(reading.pid)
                print(f"rank {reading.rank} is ended: {reason}", file=sys.stderr, flush=True)
                end_rank(folder, reading, reason)
                told.append((reading, reason))
        for reading, reason in told:  # once all are ended: storage may be slow
            tell(reading, reason)
        last = now
    if driver_host != socket.gethostname():  # else the driver reads what is there, and takes it away
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
