"""What a sweep costs beside its training: Optuna, Ray Tune with and without reused actors, and raylift.

python -m benchmarks.sweep_overhead --repeats 3
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.report import RESULTS, Target, table, targets_table
from benchmarks.sweep_overhead.contestants import CONTESTANTS, Contestant
from benchmarks.sweep_overhead.measure import Measured, measure_all, spread_of


def main() -> None:
    args = parse()
    chosen = [CONTESTANTS[name] for name in args.only]
    measured, path = measure_all("sweep_overhead", chosen, args)
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
    parser.set_defaults(data=None, memory=False)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the raw numbers")
    return parser.parse_args()


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


if __name__ == "__main__":
    main()
