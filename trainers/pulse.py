"""A sign of life of each rank, in a small file that the watchdog of its machine reads."""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import json
import mmap
import os
import shutil
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from trainers.memory import peak_memory

ENDED = "rank.ended"  # an event: the watchdog of a machine has ended a rank
_LAYOUT = struct.Struct("<6q5d3q")  # then the URI of the run
_BEAT = 0.5  # seconds
STEP_TIMEOUT = 8.0  # seconds that a step may take in any case, unless `train.step_timeout` says
TIMES = 5.0  # the longest step so far, that one may take in any case
TIMES_SILENT = 2.0  # the longest silence so far, that one may last in any case
SILENT_AT_FIRST = 20.0  # seconds without a beat in the first steps
_WARM_UP = 2  # steps, or waits of an evaluation, that compile, connect and load, and so tell nothing of the others
_FADES = 0.999  # a step: what was slow long ago stops counting


class Phase(IntEnum):
    """What a rank is at."""

    STARTING = 0  # imports, loads, and builds the model
    COMPUTING = 1  # reads a batch and computes on it, alone
    WAITING = 2  # for the other ranks, at the end of a step
    EVALUATING = 3
    SAVING = 4
    ENDING = 5
    AGREEING = 6  # waits for the other ranks within an evaluation
    MEETING = 7  # waits for other ranks that may still load or compile
    WARMING_UP = 8  # its first steps
    COMPILING = 9  # at any step: of a shape not seen before, say


_WAITS = (Phase.WAITING, Phase.AGREEING, Phase.MEETING)


@dataclass(frozen=True)
class Reading:
    """A rank as its file shows it; durations in seconds, memory in bytes."""

    rank: int
    pid: int
    beats: int  # it has a thread that counts them
    phase: Phase
    entries: int  # how often it has entered a phase
    peak_bytes: int
    longest_step: float
    longest_evaluation: float  # between two times that the ranks of one wait for each other
    longest_compilation: float = 0.0
    longest_silence: float = 0.0  # between two beats, since its first step: code may keep the interpreter's lock
    step_timeout: float = STEP_TIMEOUT  # that a step may take in any case
    attempt: int = 0
    step: int = 0  # the last one that is done
    evaluations: int = 0  # that are over
    run_uri: str = ""

    @property
    def whose(self) -> tuple[int, str, int]:
        """Which process shows this, and for which attempt of which run: of trials, one process has many."""
        return self.pid, self.run_uri, self.attempt

    def packed(self) -> bytes:
        *numbers, _ = vars(self).values()
        return _LAYOUT.pack(*numbers) + self.run_uri.encode()


class Pulse:
    """Beats in a thread, and says what the main thread is at."""

    def __init__(
        self,
        rank: int,
        folder: Path | None = None,
        *,
        run_uri: str = "",
        attempt: int = 0,
        at_each_beat: Callable[[], None] = lambda: None,
    ) -> None:
        """Write into `folder`, or where nobody looks; `attempt` is the run's one that the rank trains in."""
        self.step_timeout = STEP_TIMEOUT
        self._at_each_beat = at_each_beat
        self._run_uri, self._attempt = run_uri, attempt
        self._path = folder / f"rank-{rank}" if folder is not None else None
        self._memory = self._map()
        self._rank = rank
        self._pid = os.getpid()
        self._peak = peak_memory()
        self._beats = self._entries = self._steps = self._step = self._evaluations = self._waits = 0
        self._phase = Phase.STARTING
        self._since = time.monotonic()
        self._spent = dict.fromkeys(Phase, 0.0)  # in each phase, during this step
        self._longest_step = self._longest_evaluation = self._longest_compilation = self._longest_silence = 0.0
        self._compiling_since: float | None = None
        self._has_compiled = False  # since the last beat
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()

    def enter(self, phase: Phase) -> None:
        """Say what comes now; a step is over where the next one begins to compute."""
        now = time.monotonic()
        self._spent[self._phase] += now - self._since
        if self._phase is Phase.EVALUATING:
            self._longest_evaluation = max(self._longest_evaluation, now - self._since)
            self._evaluations += phase is not Phase.AGREEING
        if phase is Phase.COMPUTING:
            self._end_step()
        self._phase, self._since = phase, now
        self._entries += 1
        self._write()

    def goes_on(self) -> None:
        """Say that what it is at has made headway, however long it takes as a whole."""
        self._entries += 1
        self._write()

    @contextlib.contextmanager
    def agreeing(self) -> Iterator[None]:
        """Wait for the other ranks within an evaluation."""
        self._waits += 1
        self.enter(Phase.AGREEING)
        yield
        self.enter(Phase.EVALUATING)

    @contextlib.contextmanager
    def meeting(self) -> Iterator[None]:
        """Wait for the other ranks before the first step."""
        self.enter(Phase.MEETING)
        yield
        self.enter(Phase.STARTING)

    def compiles(self) -> None:
        """Say that what it is at goes on once something is compiled; the time of that is no step's."""
        self._compiling_since = time.monotonic()
        self._entries += 1
        self._write()

    def has_compiled(self) -> None:
        if self._compiling_since is None:
            return
        now = time.monotonic()
        took, self._compiling_since = now - self._compiling_since, None
        self._longest_compilation = max(self._longest_compilation, took)
        self._has_compiled = True
        self._since = min(self._since + took, now)
        self._entries += 1
        self._write()

    def reached(self, step: int) -> None:
        """Say which step is done, for the next write: whoever looks after a kill may find no row of it."""
        self._step = step

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self._path.parent.rmdir()  # the last one out, where nothing is left to tell the driver

    def _end_step(self) -> None:
        self._steps += 1
        if self._steps > _WARM_UP + 1:  # the first call comes before the first step
            took = self._spent[Phase.COMPUTING] + self._spent[Phase.WAITING]
            self._longest_step *= _FADES
            is_first = self._steps == _WARM_UP + 2
            if is_first or took <= max(self.step_timeout, TIMES * self._longest_step):  # else it waited for others
                self._longest_step = max(took, self._longest_step)
        self._longest_silence *= _FADES
        self._spent = dict.fromkeys(Phase, 0.0)

    def _beat(self) -> None:
        last = time.monotonic()
        while not self._closed.wait(_BEAT):
            now = time.monotonic()
            self._learn_silence(now - last)
            last = now
            self._beats += 1
            self._peak = peak_memory()
            self._write()
            self._at_each_beat()

    def _learn_silence(self, seconds: float) -> None:
        """Take a time between two beats in; imports and compilation tell nothing of steps, and a machine that slept."""
        compiled = self._has_compiled or self._compiling_since is not None
        self._has_compiled = False
        survivable = max(SILENT_AT_FIRST, self.step_timeout, TIMES_SILENT * self._longest_silence)
        if self._steps and not compiled and seconds <= survivable:
            self._longest_silence = max(self._longest_silence, seconds)

    def _write(self) -> None:
        """Show all, in one go. It is done twice a step, and is to cost next to nothing."""
        with self._lock:
            self._memory[: _LAYOUT.size] = _LAYOUT.pack(
                self._rank,
                self._pid,
                self._beats,
                self._shown(),
                self._entries,
                self._peak,
                self._longest_step,
                self._longest_evaluation,
                self._longest_compilation,
                self._longest_silence,
                self.step_timeout,
                self._attempt,
                self._step,
                self._evaluations,
            )

    def _shown(self) -> Phase:
        """Return the phase that its limit goes by: what comes first takes longer, here or elsewhere."""
        if self._compiling_since is not None:
            return Phase.COMPILING
        if self._steps <= _WARM_UP + 1:
            beginning = Phase.WARMING_UP if self._steps else Phase.STARTING
            return Phase.MEETING if self._phase in _WAITS else beginning
        if self._phase is Phase.AGREEING and not self._evaluations and self._waits <= _WARM_UP:
            return Phase.MEETING
        return self._phase

    def _map(self) -> mmap.mmap:
        beginning = bytes(_LAYOUT.size) + self._run_uri.encode()
        if self._path is None:
            return mmap.mmap(-1, len(beginning))
        self._path.write_bytes(beginning)
        with self._path.open("r+b") as file:
            return mmap.mmap(file.fileno(), len(beginning))


def read(path: Path) -> Reading | None:
    """Return what a rank's file shows; None where it is gone or not written yet."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < _LAYOUT.size:
        return None
    rank, pid, beats, phase, *others = _LAYOUT.unpack(data[: _LAYOUT.size])
    if not pid:
        return None
    others.append(data[_LAYOUT.size :].decode())
    return Reading(rank, pid, beats, Phase(phase), *others)


def readings(temporary: Path, run_uri: str) -> list[Reading]:
    """Return what the ranks of a run, and of its trials, show on this machine."""
    found = map(read, temporary.glob(f"raylift-pulse-{os.getuid()}-*/rank-*"))
    return [each for each in found if each is not None and f"{each.run_uri}/".startswith(f"{run_uri}/")]


def pulse_folder(temporary: Path, run_uri: str, attempt: int) -> Path:
    """Return where the ranks of an attempt have their files on this machine, in its folder for temporary ones."""
    name = hashlib.sha256(run_uri.encode()).hexdigest()[:12]
    return temporary / f"raylift-pulse-{os.getuid()}-{name}-{attempt}"


def forget_attempts(temporary: Path, run_uri: str, *, up_to: int) -> None:
    """Remove what the ranks of attempts left on this machine, also of those whose driver was killed or is elsewhere."""
    for attempt in range(1, up_to + 1):
        shutil.rmtree(pulse_folder(temporary, run_uri, attempt), ignore_errors=True)


def verdicts(folder: Path) -> dict[int, str]:
    """Return why the watchdog ended which rank."""
    try:
        lines = (folder / "verdicts.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {row["rank"]: row["reason"] for row in map(json.loads, lines)}


def show_stacks_when_asked() -> None:
    """Have this process print where each thread is on SIGUSR1, which the watchdog sends to one that hangs."""
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
