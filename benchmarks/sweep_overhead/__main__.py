"""What a sweep costs beside its training: Optuna, Ray Tune with and without reused actors, and raylift.

python -m benchmarks.sweep_overhead --repeats 3
"""

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
from benchmarks.report import RESULTS, Spread, Target, table, targets_table, write_results
from benchmarks.sweep_overhead.contestants import CONTESTANTS, Contestant, Setting, Trained

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


def main() -> None:
    args = parse()
    use_cores(args.slots)
    chosen = [CONTESTANTS[name] for name in args.only]
    compile_everything()
    packages = sorted({name for contestant in chosen for name in contestant.packages})
    machine = describe_machine() | {"packages": versions(Path(sys.executable), packages)}
    measured: list[Measured] = []
    for round_ in range(args.repeats):
        first = round_ % len(chosen)
        for contestant in [*chosen[first:], *chosen[:first]]:
            measured.append(measure(contestant, args, round_))
            print(progress_line(measured[-1]), file=sys.stderr, flush=True)
    settings = {"repeats": args.repeats, "trials": args.trials, "slots": args.slots, "steps": args.steps}
    document = {
        "benchmark": "sweep_overhead",
        "machine": machine,
        "settings": settings,
        "runs": [one.as_dict() for one in measured],
    }
    path = write_results("sweep_overhead", document, args.out)
    ideal = ideal_of(measured)
    print(f"\n{summary(chosen, measured, ideal)}\n\n{targets_table(targets(measured, ideal))}\n")
    print(f"{args.repeats} repeats of {args.trials} trials of {args.steps} steps, {args.slots} at once: median")
    print(f"(least – most) in seconds. The training alone takes {ideal:.1f} s. Raw numbers: {path.name}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep_overhead", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="rounds; each runs every contestant once")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS), metavar="NAME")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40, help="of each trial")
    parser.add_argument("--slots", type=int, default=2, help="trials that run at once, on as many cores")
    parser.add_argument("--limit", type=float, default=1800, metavar="SECONDS", help="the longest that a run may take")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the raw numbers")
    return parser.parse_args()


def measure(contestant: Contestant, args: argparse.Namespace, round_: int) -> Measured:
    """Run a contestant once. Raises SystemExit, with the end of its output, where it fails."""
    with tempfile.TemporaryDirectory(prefix="rb-") as folder:
        scratch, log = Path(folder) / "run", Path(folder) / "output.log"
        scratch.mkdir()
        setting = Setting(scratch, args.trials, args.slots, args.steps, seed=round_ + 1)
        # Ray keeps its sessions here; not in /tmp/ray, where it would find those of others
        env = clean_environment(RAY_TMPDIR=folder)
        try:
            ran = run(contestant.command(setting), cwd=ROOT, env=env, log=log, limit=args.limit)
        except TimeoutError:
            sys.exit(f"{contestant.title} was still running after {args.limit:g} s: allow it more by --limit")
        if ran.exit_code != 0:
            end = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            sys.exit(f"{contestant.title} failed with exit code {ran.exit_code}:\n" + "\n".join(end))
        trained = contestant.trained(setting)
    if len(trained) != args.trials:
        sys.exit(f"{contestant.title} trained {len(trained)} trials of {args.trials}")
    return Measured(contestant.name, round_, args.slots, ran, tuple(trained))


def ideal_of(measured: Sequence[Measured]) -> float:
    """Return what the training takes at least: the shortest that anybody's did."""
    return min(one.training for one in measured)


def summary(chosen: Sequence[Contestant], measured: Sequence[Measured], ideal: float) -> str:
    rows = []
    for contestant in chosen:
        columns: list[Callable[[Measured], float]] = [
            lambda one: one.whole,
            lambda one: one.sweep,
            lambda one: one.training,
            lambda one: one.sweep - ideal,
        ]
        rows.append([contestant.title, *(spread_of(measured, contestant.name, column).text(1) for column in columns)])
    return table(
        ["", "whole command, s", "first trial to last, s", "its training, s", "more than the training, s"], rows
    )


def targets(measured: Sequence[Measured], ideal: float) -> list[Target]:
    """Return what is to be reached, with what was: a ratio of medians."""

    def overhead(one: Measured) -> float:
        return one.sweep - ideal

    ratio = None
    if {"raylift", "tune-reuse"} <= {one.contestant for one in measured}:
        own, other = (spread_of(measured, name, overhead).median for name in ("raylift", "tune-reuse"))
        ratio = own / other
    return [Target("more than the training × Ray Tune, actors reused", ratio, 1.0, at_least=False)]


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


if __name__ == "__main__":
    main()
