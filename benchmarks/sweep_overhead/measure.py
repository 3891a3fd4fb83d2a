"""Run a contestant once, and read what its trials did."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.cache import ROOT, compile_everything
from benchmarks.machine import describe_machine, use_cores, versions
from benchmarks.processes import Ran, clean_environment, run
from benchmarks.report import Spread, write_results
from benchmarks.sweep_overhead.contestants import Contestant, Setting, Trained

_LOG_LINES = 30


@dataclass(frozen=True)
class Measured:
    """What one run showed; all in seconds."""

    contestant: str
    round: int
    slots: int
    ran: Ran
    trained: tuple[Trained, ...]

    @property
    def sweep(self) -> float:
        """From the first trial's beginning to the last one's end."""
        return max(one.ended for one in self.trained) - min(one.began for one in self.trained)

    @property
    def training(self) -> float:
        """What the trials took themselves, in the median, were there nothing between them."""
        return Spread.of([one.ended - one.began for one in self.trained]).median * len(self.trained) / self.slots

    @property
    def whole(self) -> float:
        return self.ran.whole

    def as_dict(self) -> dict[str, Any]:
        times = [[round(one.began - self.ran.started, 3), round(one.ended - one.began, 4)] for one in self.trained]
        derived = {"sweep_s": self.sweep, "training_s": self.training, "whole_s": self.whole}
        rounded = {key: round(value, 3) for key, value in derived.items()}
        return {"contestant": self.contestant, "round": self.round, **rounded, "ran": asdict(self.ran), "trials": times}


def measure_all(name: str, chosen: Sequence[Contestant], args: argparse.Namespace) -> tuple[list[Measured], Path]:
    """Run every contestant in each round, one after another; return what was measured, and the file with all of it."""
    use_cores(args.slots)
    compile_everything()
    packages = sorted({package for contestant in chosen for package in contestant.packages})
    machine = describe_machine() | {"packages": versions(Path(sys.executable), packages)}
    measured: list[Measured] = []
    for round_ in range(args.repeats):
        first = round_ % len(chosen)
        for contestant in [*chosen[first:], *chosen[:first]]:
            measured.append(measure(contestant, args, round_))
            print(progress_line(measured[-1]), file=sys.stderr, flush=True)
    settings = {"repeats": args.repeats, "trials": args.trials, "slots": args.slots, "steps": args.steps}
    runs = [one.as_dict() for one in measured]
    document = {"benchmark": name, "machine": machine, "settings": settings, "runs": runs}
    return measured, write_results(name, document, args.out)


def measure(contestant: Contestant, args: argparse.Namespace, round_: int) -> Measured:
    """Run a contestant once. Raises SystemExit, with the end of its output, where it fails."""
    with tempfile.TemporaryDirectory(prefix="rb-") as folder:
        scratch, log = Path(folder) / "run", Path(folder) / "output.log"
        scratch.mkdir()
        setting = Setting(scratch, args.trials, args.slots, args.steps, seed=round_ + 1, data=args.data)
        # Ray keeps its sessions here; not in /tmp/ray, where it would find those of others
        env = clean_environment(RAY_TMPDIR=folder)
        try:
            command = contestant.command(setting)
            ran = run(command, cwd=ROOT, env=env, log=log, limit=args.limit, memory=args.memory)
        except TimeoutError:
            sys.exit(f"{contestant.title} was still running after {args.limit:g} s: allow it more by --limit")
        if ran.exit_code != 0:
            end = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            sys.exit(f"{contestant.title} failed with exit code {ran.exit_code}:\n" + "\n".join(end))
        trained = contestant.trained(setting)
    if len(trained) != args.trials:
        sys.exit(f"{contestant.title} trained {len(trained)} trials of {args.trials}")
    return Measured(contestant.name, round_, args.slots, ran, tuple(trained))


def spread_of(measured: Sequence[Measured], name: str, value: Callable[[Measured], float]) -> Spread:
    return Spread.of([value(one) for one in measured if one.contestant == name])


def progress_line(measured: Measured) -> str:
    accuracy = max(one.accuracy for one in measured.trained)
    left = f", left behind: {', '.join(measured.ran.leftovers)}" if measured.ran.leftovers else ""
    return (
        f"{time.strftime('%H:%M:%S')} round {measured.round + 1} {measured.contestant:<11} "
        f"whole {measured.whole:6.1f} s, sweep {measured.sweep:6.1f} s, training {measured.training:6.1f} s, "
        f"best accuracy {accuracy:.3f}{left}"
    )
