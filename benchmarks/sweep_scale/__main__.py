"""What more trials cost the driver of a sweep: Ray Tune with reused actors, and raylift.

python -m benchmarks.sweep_scale --trials 100 1000
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import RESULTS, table
from benchmarks.sweep_overhead.contestants import CONTESTANTS
from benchmarks.sweep_overhead.measure import Measured, measure_all

_DRIVERS = {"tune-reuse": "command", "raylift": "driver"}  # the role of the process that decides about trials


def main() -> None:
    args = parse()
    chosen = [CONTESTANTS[name] for name in args.only]
    found, paths = [], []
    for trials in args.numbers:
        args.trials = trials
        measured, path = measure_all("sweep_scale", chosen, args)
        found += measured
        paths.append(path.name)
    print(f"\n{summary(found)}\n")
    print(f"Trials of {args.steps} steps, {args.slots} at once. Raw numbers: {', '.join(paths)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep_scale", description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000], dest="numbers", metavar="N")
    parser.add_argument("--only", nargs="+", choices=list(_DRIVERS), default=list(_DRIVERS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=2, help="of each trial")
    parser.add_argument("--slots", type=int, default=2, help="trials that run at once, on as many cores")
    parser.add_argument("--limit", type=float, default=1800, metavar="SECONDS", help="the longest that a run may take")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the raw numbers")
    parser.set_defaults(data=None, repeats=1, memory=True)
    return parser.parse_args()


def driver_peak(one: Measured) -> int:
    """Return the most memory, in bytes, that the process held which decides about trials."""
    assert one.ran.memory is not None, "it is watched"
    return max(peak.pss for peak in one.ran.memory.processes if peak.role == _DRIVERS[one.contestant])


def summary(found: Sequence[Measured]) -> str:
    rows = [
        [
            CONTESTANTS[one.contestant].title,
            f"{len(one.trained):,}",
            f"{one.whole:,.1f}",
            f"{one.sweep / len(one.trained) * 1000:,.0f}",
            f"{driver_peak(one) / 1e6:,.0f}",
        ]
        for one in found
    ]
    return table(["", "trials", "whole command, s", "a trial, ms", "driver, MB"], rows)


if __name__ == "__main__":
    main()
