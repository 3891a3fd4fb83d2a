"""Those that are compared: how each is started, and when its trials trained."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cache import program

_HERE = Path(__file__).resolve().parent
_RUN_ID = "bench"


@dataclass(frozen=True)
class Setting:
    """One run of one contestant."""

    scratch: Path  # a folder of its own
    trials: int
    slots: int
    steps: int
    seed: int
    data: Path | None = None  # a folder with MNIST, for those that train on it


@dataclass(frozen=True)
class Trained:
    """When a trial trained, in seconds since the epoch, and what came of it."""

    began: float
    ended: float
    accuracy: float


@dataclass(frozen=True)
class Contestant:
    name: str
    title: str
    packages: Sequence[str]  # whose versions matter
    command: Callable[[Setting], list[str]]
    trained: Callable[[Setting], list[Trained]]


def script(module: str, *more: str) -> Callable[[Setting], list[str]]:
    def command(setting: Setting) -> list[str]:
        options = {
            "marks": _marks_file(setting),
            "scratch": setting.scratch,
            "trials": setting.trials,
            "slots": setting.slots,
            "steps": setting.steps,
            "seed": setting.seed,
        }
        if setting.data is not None:
            options["data"] = setting.data
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        return [sys.executable, "-m", f"benchmarks.{module}", *words, *more]

    return command


def raylift_command(setting: Setting) -> list[str]:
    sets: dict[str, object] = {
        "tune.trials": setting.trials,
        "train.max_steps": setting.steps,
        "train.seed": setting.seed,
        "cluster.workers": setting.slots,
    }
    if setting.data is not None:
        sets |= {"data.train": setting.data, "data.eval": setting.data}
    options = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    command = [str(program("raylift")), "run", str(_HERE / "sweep.yaml"), "--id", _RUN_ID]
    return [*command, "--storage", str(_runs(setting)), *options]


def read_marks(setting: Setting) -> list[Trained]:
    return [Trained(**json.loads(line)) for line in _marks_file(setting).read_text().splitlines()]


def read_trials(setting: Setting) -> list[Trained]:
    """Read from each trial's own folder when it began to train, and when its evaluation was done."""
    from cluster.runs import Run
    from cluster.storage.open import open_storage
    from cluster.trials import read_trials, trial_run

    sweep = Run(open_storage(str(_runs(setting))), _RUN_ID)
    if sweep.attempts() != [1]:
        raise RuntimeError(f"raylift needed the attempts {sweep.attempts()}: no fair measurement")
    found = []
    for trial in read_trials(sweep.rows("events")):
        run = trial_run(sweep, trial.id)
        began = next(float(row["time"]) for row in run.rows("events") if row["event"] == "training")
        (evaluation,) = [row for row in run.rows("metrics") if row["kind"] == "eval"]
        found.append(Trained(began, float(evaluation["time"]), evaluation["eval_accuracy"]))
    return found


def _marks_file(setting: Setting) -> Path:
    return setting.scratch / "marks.jsonl"


def _runs(setting: Setting) -> Path:
    return setting.scratch / "runs"


_TUNE = ("ray", "torch")
CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant(
            "optuna", "Optuna, in one process", ("optuna", "torch"), script("sweep_overhead.optuna_sweep"), read_marks
        ),
        Contestant("tune", "Ray Tune", _TUNE, script("sweep_overhead.tune_sweep"), read_marks),
        Contestant(
            "tune-reuse", "Ray Tune, actors reused", _TUNE, script("sweep_overhead.tune_sweep", "--reuse"), read_marks
        ),
        Contestant("raylift", "raylift", ("raylift", "ray", "torch"), raylift_command, read_trials),
    )
}
