"""How many epochs a search trains until it is near the best: random search, Ray Tune, Optuna, and raylift.

python -m benchmarks.sweep_quality --seeds 20
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cache import ROOT, compile_everything, program
from benchmarks.machine import describe_machine, use_cores, versions
from benchmarks.processes import clean_environment, run
from benchmarks.report import RESULTS, Target, table, targets_table, write_results
from benchmarks.sweep_quality.shared import DATA, settings

_NEAR = 0.005  # of the best accuracy that any reached on a seed, which has a split of its own
_LESS_NEAR = 0.01
_LOG_LINES = 30
_SLOTS = 2


@dataclass(frozen=True)
class Searched:
    """The accuracy after each epoch that a contestant trained, in the order of time."""

    contestant: str
    seed: int
    accuracies: tuple[float, ...]

    def epochs_until(self, accuracy: float) -> float:
        """Return how many epochs it took to come to an accuracy; infinity where it never did."""
        return next((count for count, one in enumerate(self.accuracies, 1) if one >= accuracy), math.inf)


@dataclass(frozen=True)
class Contestant:
    name: str
    title: str
    command: Callable[[str, Path, int, int], list[str]]  # of the data, a folder, a number of trials, and a seed
    read: Callable[[Path], list[float]]


def script(module: str, *more: str) -> Callable[[str, Path, int, int], list[str]]:
    def command(data: str, scratch: Path, trials: int, seed: int) -> list[str]:
        paths = {"marks": scratch / "marks.jsonl", "scratch": scratch}
        options = {"data": data, **paths, "trials": trials, "seed": seed}
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        return [sys.executable, "-m", f"benchmarks.sweep_quality.{module}", *words, *more]

    return command


def read_marks(scratch: Path) -> list[float]:
    rows = [json.loads(line) for line in (scratch / "marks.jsonl").read_text().splitlines()]
    return [row["accuracy"] for row in sorted(rows, key=lambda row: row["time"])]


def raylift(*more: str) -> Callable[[str, Path, int, int], list[str]]:
    """Return raylift's command, with `more` --set in the job file."""

    def command(data: str, scratch: Path, trials: int, seed: int) -> list[str]:
        file, sets = settings(data, seed)
        sets = [f"tune.trials={trials}", f"tune.search.seed={seed}", *more, *sets]
        options = [word for one in sets for word in ("--set", one)]
        return [str(program("raylift")), "run", str(file), "--id", f"bench-{data}", "--storage", str(scratch), *options]

    return command


def read_trials(scratch: Path) -> list[float]:
    """Read every evaluation of every trial from the trials' own folders."""
    from cluster.runs import list_runs
    from cluster.storage.open import open_storage
    from cluster.trials import read_trials, trial_run

    (sweep,) = list_runs(open_storage(str(scratch)))
    trials = [trial_run(sweep, trial.id) for trial in read_trials(sweep.rows("events"))]
    rows = [row for trial in trials for row in trial.rows("metrics") if row["kind"] == "eval"]
    return [row["eval_accuracy"] for row in sorted(rows, key=lambda row: row["time"])]


CONTESTANTS = {
    one.name: one
    for one in (
        Contestant("random", "random search", script("optuna_sweep", "--random"), read_marks),
        Contestant("tune", "Ray Tune, ASHA", script("tune_sweep"), read_marks),
        Contestant("optuna", "Optuna, TPE and Hyperband", script("optuna_sweep"), read_marks),
        Contestant("raylift", "raylift, its defaults: TPE and ASHA", raylift(), read_trials),
        Contestant("raylift-gp", "raylift, `search: gp`", raylift("tune.search.name=gp"), read_trials),
    )
}


def main() -> None:
    args = parse()
    use_cores(_SLOTS)
    compile_everything()
    machine = describe_machine() | {"packages": versions(Path(sys.executable), ["raylift", "ray", "optuna", "torch"])}
    found = list(_searched(args))
    args.seeds = max((one.seed for one in found), default=0)
    if not found:
        sys.exit("it was ended before all had searched once")
    setting = {"data": args.data, "seeds": args.seeds, "trials": args.trials, "near": _NEAR}
    runs = [{"contestant": one.contestant, "seed": one.seed, "accuracies": one.accuracies} for one in found]
    document = {"benchmark": "sweep_quality", "machine": machine, "settings": setting, "runs": runs}
    path = write_results(f"sweep_quality-{args.data}", document, args.out)
    print(f"\n{summary(found)}\n\n{targets_table(targets(found))}\n")
    print(f"{args.seeds} seeds of {args.trials} trials of up to 9 epochs; near is within {_NEAR}, less near within")
    print(
        f"{_LESS_NEAR} of the best accuracy that any reached on the seed. In brackets the 95 % interval of the median."
    )
    print(f"Raw numbers: {path.name}")


def _searched(args: argparse.Namespace) -> Iterator[Searched]:
    """Yield what came of each seed; Ctrl-C ends it with those that all contestants have done."""
    with suppress(KeyboardInterrupt):
        for seed in range(1, args.seeds + 1):
            yield from [search(CONTESTANTS[name], seed, args) for name in args.only]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep_quality", description=__doc__)
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS), metavar="NAME")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument(
        "--limit", type=float, default=900, metavar="SECONDS", help="the longest that a search may take"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the raw numbers")
    return parser.parse_args()


def search(contestant: Contestant, seed: int, args: argparse.Namespace) -> Searched:
    """Have a contestant search once. Raises SystemExit, with the end of its output, where it fails."""
    with tempfile.TemporaryDirectory(prefix="rb-") as folder:
        scratch, log = Path(folder) / "run", Path(folder) / "output.log"
        scratch.mkdir()
        command, env = contestant.command(args.data, scratch, args.trials, seed), clean_environment(RAY_TMPDIR=folder)
        ran = run(command, cwd=ROOT, env=env, log=log, limit=args.limit)
        if ran.exit_code != 0:
            end = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            sys.exit(f"{contestant.title} failed with exit code {ran.exit_code}:\n" + "\n".join(end))
        accuracies = contestant.read(scratch)
    told = f"{len(accuracies):4d} epochs, best accuracy {max(accuracies):.4f}, {ran.whole:.0f} s"
    print(f"{time.strftime('%H:%M:%S')} seed {seed:2d} {contestant.name:<10} {told}", file=sys.stderr, flush=True)
    return Searched(contestant.name, seed, tuple(accuracies))


def epochs_of(found: Sequence[Searched], name: str, near: float = _NEAR) -> list[float]:
    """Return, sorted, the epochs that a contestant took on each seed until it was near the best."""
    best = {one.seed: 0.0 for one in found}
    for one in found:
        best[one.seed] = max(best[one.seed], *one.accuracies)
    return sorted(one.epochs_until(best[one.seed] - near) for one in found if one.contestant == name)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval of the median of sorted values that holds it in 95 of 100 cases, from their ranks alone.

    Between the k-th smallest and the k-th largest of n values lies the median with probability
    1 - 2 P(B < k), B binomial of n and a half (Conover, Practical Nonparametric Statistics, section 3.2).
    """
    count = len(values)
    k, below = 0, 0.0
    while (below := below + math.comb(count, k) / 2**count) <= 0.025:
        k += 1
    k = max(k, 1)
    return values[k - 1], values[count - k]


def summary(found: Sequence[Searched]) -> str:
    rows = []
    for name in dict.fromkeys(one.contestant for one in found):
        never = sum(math.isinf(one) for one in epochs_of(found, name))
        best = statistics.median(max(one.accuracies) for one in found if one.contestant == name)
        spent = statistics.median(len(one.accuracies) for one in found if one.contestant == name)
        medians = [_median(epochs_of(found, name, near)) for near in (_NEAR, _LESS_NEAR)]
        rows.append([CONTESTANTS[name].title, medians[0], str(never), medians[1], f"{spent:,.0f}", f"{best:.4f}"])
    header = ["", "epochs until near the best", "never", "less near", "epochs in all", "best accuracy"]
    return table(header, rows)


def _median(epochs: Sequence[float]) -> str:
    low, high = interval(epochs)
    return f"{statistics.median(epochs):,.0f} ({low:,.0f} – {high:,.0f})".replace("inf", "never")


def targets(found: Sequence[Searched]) -> list[Target]:
    def ratio(*others: str) -> float | None:
        if not {"raylift", *others} <= {one.contestant for one in found}:
            return None
        own, *theirs = (statistics.median(epochs_of(found, name)) for name in ("raylift", *others))
        return own / min(theirs)

    return [
        Target("epochs × random search", ratio("random"), 0.5, at_least=False),
        Target("epochs × the better of Ray Tune and Optuna", ratio("tune", "optuna"), 1.0, at_least=False),
    ]


if __name__ == "__main__":
    main()
