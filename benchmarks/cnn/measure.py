"""One run of one contestant, from an empty folder to numbers."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.cache import ROOT
from benchmarks.cnn.contestants import Contestant, Epoch, Marks, Setting
from benchmarks.processes import Ran, clean_environment, run

_LOG_LINES = 30


@dataclass(frozen=True)
class Measured:
    """What one run showed."""

    contestant: str
    round: int
    seed: int
    ran: Ran
    marks: Marks

    @property
    def samples_per_s(self) -> float:
        """Samples a second of training, without evaluation, over all epochs but the first (unless it is all)."""
        steady: tuple[Epoch, ...] = self.marks.epochs[1:] or self.marks.epochs
        return sum(epoch.samples for epoch in steady) / sum(epoch.seconds for epoch in steady)

    @property
    def first_step(self) -> float:
        return self.marks.first_step - self.ran.started

    @property
    def whole(self) -> float:
        return self.ran.whole

    @property
    def accuracy(self) -> float:
        return self.marks.epochs[-1].accuracy

    def as_dict(self) -> dict[str, Any]:
        derived = {"samples_per_s": self.samples_per_s, "first_step_s": self.first_step, "whole_s": self.whole}
        values: dict[str, Any] = _rounded({**asdict(self), **derived, "accuracy": self.accuracy})
        return values


def measure(contestant: Contestant, data: Path, *, round_: int, epochs: int, limit: float, memory: bool) -> Measured:
    """Run a contestant once. Raises SystemExit, with the end of its output, where it fails."""
    python = contestant.python()
    seed = round_ + 1
    with tempfile.TemporaryDirectory(prefix="rb-") as folder:
        setting = Setting(data=data, scratch=Path(folder) / "run", epochs=epochs, seed=seed)
        setting.scratch.mkdir()
        log = Path(folder) / "output.log"
        try:
            ran = run(
                contestant.command(python, setting),
                cwd=ROOT,
                # Ray keeps its sessions here; not in /tmp/ray, where it would find those of others
                env=clean_environment(RAY_TMPDIR=folder),
                log=log,
                limit=limit,
                memory=memory,
            )
        except TimeoutError:
            sys.exit(f"{contestant.title} was still running after {limit:g} s: allow it more by --limit")
        if ran.exit_code != 0:
            end = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            sys.exit(f"{contestant.title} failed with exit code {ran.exit_code}:\n" + "\n".join(end))
        marks = contestant.marks(setting)
    if len(marks.epochs) != epochs:
        sys.exit(f"{contestant.title} marked {len(marks.epochs)} epochs of {epochs}")
    return Measured(contestant.name, round_, seed, ran, marks)


def progress_line(measured: Measured) -> str:
    left = f", left behind: {', '.join(measured.ran.leftovers)}" if measured.ran.leftovers else ""
    return (
        f"{time.strftime('%H:%M:%S')} round {measured.round + 1} {measured.contestant:<14} "
        f"{measured.samples_per_s:8,.0f} samples/s, first step {measured.first_step:5.1f} s, "
        f"whole {measured.whole:6.1f} s, accuracy {measured.accuracy:.4f}{left}"
    )


def _rounded(value: Any) -> Any:
    """Return plain values with four decimals: finer than any of the measurements."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value
