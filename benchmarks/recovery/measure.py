"""One run of one contestant, its processes killed again and again."""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cache import ROOT
from benchmarks.processes import clean_environment, started
from benchmarks.recovery.contestants import Contestant, Setting
from benchmarks.recovery.watching import Step, Watch

_POLL = 0.1  # seconds
_LIMIT = 180.0  # seconds for a start or a recovery
_LOG_LINES = 30


@dataclass(frozen=True)
class Kill:
    """One kill, and what came after it; durations in seconds since the signal was sent."""

    contestant: str
    round: int
    rank: int
    step: float  # done by then
    first_step: float  # until a process that was not there before has done a step
    new_step: float  # until it has done one that nobody had done before

    @property
    def title(self) -> str:
        return f"{self.contestant:<14} rank {self.rank}: step {self.first_step:5.2f} s, new {self.new_step:5.2f} s"


def measure(contestant: Contestant, data: Path, *, round_: int, kills: int, save_every: int) -> list[Kill]:
    """Start a contestant, kill `kills` of its processes one after the other, and end it.

    Moments and ranks are those of the round, the same for every contestant. Raises SystemExit, with the end of its
    output, where it ends itself or does not recover.
    """
    chance = random.Random(round_)
    with tempfile.TemporaryDirectory(prefix="rb-") as folder:
        setting = Setting(data=data, scratch=Path(folder) / "run", save_every=save_every, seed=round_ + 1)
        setting.scratch.mkdir()
        log = Path(folder) / "output.log"
        environment = clean_environment(RAY_TMPDIR=folder, **contestant.env)
        with started(contestant.command(setting), cwd=ROOT, env=environment, log=log) as process:
            run = _Run(contestant, contestant.watch(setting), lambda: process.poll() is None, log)
            run.wait(lambda: bool(run.steps), "its first step")
            time.sleep(contestant.settled)
            found = []
            for _ in range(kills):
                time.sleep(chance.uniform(*contestant.pause))
                found.append(run.kill(round_, chance.randrange(2)))
            return found


class _Run:
    """A contestant that runs, with all steps that it has done."""

    def __init__(self, contestant: Contestant, watch: Watch, is_alive: Callable[[], bool], log: Path) -> None:
        self.contestant = contestant
        self.steps: list[Step] = []
        self._watch = watch
        self._is_alive = is_alive
        self._log = log

    def kill(self, round_: int, rank: int) -> Kill:
        self.steps += self._watch.read()
        old = {step.life for step in self.steps}
        victim = self._watch.victim(self.contestant.victim, rank)
        at = time.time()
        victim.send_signal(self.contestant.signal)
        self.wait(lambda: self._after(old, 0.0) is not None, "its first step after a kill")
        before = [step for step in self.steps if step.life in old]
        newest = [step for step in before if step.life == before[-1].life]
        done = max(step.number for step in before) + self._watch.lost(newest, at)
        self.wait(lambda: self._after(old, done) is not None, "a new step after a kill")
        first, new = self._after(old, 0.0), self._after(old, done)
        assert first is not None
        assert new is not None
        return Kill(self.contestant.name, round_, rank, round(done, 1), first.time - at, new.time - at)

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _LIMIT
        while not condition():
            if not self._is_alive() or time.monotonic() > deadline:
                end = self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
                sys.exit(f"{self.contestant.title} did not come to {what}:\n" + "\n".join(end))
            time.sleep(_POLL)
            self.steps += self._watch.read()

    def _after(self, old: set[int], number: float) -> Step | None:
        """Return the first step above a number by processes that are none of the old ones."""
        return next((step for step in self.steps if step.life not in old and step.number > number), None)
