"""Those that are compared: how each is started, and how its marks are read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cache import environment, program

_HERE = Path(__file__).resolve().parent
_RUN_ID = "bench"
_TENSORFLOW = ("tensorflow-cpu==2.21.0", "keras==3.15.1")


@dataclass(frozen=True)
class Setting:
    """One run of one contestant."""

    data: Path
    scratch: Path  # a folder of its own
    epochs: int
    seed: int


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data; `seconds` are those of training alone."""

    samples: int
    seconds: float
    accuracy: float  # of the test images, after it


@dataclass(frozen=True)
class Marks:
    """What a contestant left behind; `first_step` is a time of day."""

    first_step: float
    epochs: tuple[Epoch, ...]
    own_peaks: tuple[dict[str, Any], ...] = ()  # what its processes say of their memory themselves


@dataclass(frozen=True)
class Contestant:
    name: str
    title: str
    python: Callable[[], Path]
    packages: Sequence[str]  # whose versions matter
    command: Callable[[Path, Setting], list[str]]
    marks: Callable[[Setting], Marks]


def this_python() -> Path:
    return Path(sys.executable)


def keras_python() -> Path:
    return environment("tensorflow-2.21", _TENSORFLOW)  # apart: its protobuf is not Ray's


def script(module: str, *more: str) -> Callable[[Path, Setting], list[str]]:
    def command(python: Path, setting: Setting) -> list[str]:
        return [
            *(str(python), "-m", f"benchmarks.cnn.{module}"),
            *("--data", str(setting.data), "--marks", str(_marks_file(setting)), "--scratch", str(setting.scratch)),
            *("--epochs", str(setting.epochs), "--seed", str(setting.seed), *more),
        ]

    return command


def raylift_command(_python: Path, setting: Setting) -> list[str]:
    sets = {
        "data.train": setting.data,
        "data.eval": setting.data,
        "train.epochs": setting.epochs,
        "train.seed": setting.seed,
    }
    options = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    return [
        str(program("raylift")),
        "run",
        str(_HERE / "mnist.yaml"),
        "--id",
        _RUN_ID,
        "--storage",
        str(_runs(setting)),
        *options,
    ]


def read_marks(setting: Setting) -> Marks:
    """Read what a script has marked."""
    rows = [json.loads(line) for line in _marks_file(setting).read_text().splitlines()]
    first = next(row["time"] for row in rows if row["mark"] == "first step")
    epochs = [Epoch(row["samples"], row["seconds"], row["accuracy"]) for row in rows if row["mark"] == "epoch"]
    return Marks(first, tuple(epochs))


def read_run(setting: Setting) -> Marks:
    """Read the rows of raylift's run folder.

    An epoch's training begins when the evaluation before it has ended (so it holds the saving of a checkpoint,
    which no other contestant is charged with) and ends with its last step.
    """
    from cluster.runs import Run
    from cluster.storage.open import open_storage

    run = Run(open_storage(str(_runs(setting))), _RUN_ID)
    if run.attempts() != [1]:
        raise RuntimeError(f"raylift needed the attempts {run.attempts()}: no fair measurement")
    events, metrics = run.rows("events"), run.rows("metrics")
    samples = next(int(row["train"]) for row in events if row["event"] == "data.ready")
    begin = next(float(row["time"]) for row in events if row["event"] == "training")
    steps = [row for row in metrics if row["kind"] == "step"]
    epochs = []
    for evaluation in (row for row in metrics if row["kind"] == "eval"):
        last = max(float(row["time"]) for row in steps if row["epoch"] == evaluation["epoch"])
        epochs.append(Epoch(samples, last - begin, evaluation["eval_accuracy"]))
        begin = float(evaluation["time"])
    peaks = [{key: row[key] for key in ("process", "peak_bytes")} for row in events if row["event"] == "memory"]
    return Marks(float(steps[0]["time"]), tuple(epochs), tuple(peaks))


def _marks_file(setting: Setting) -> Path:
    return setting.scratch / "marks.jsonl"


def _runs(setting: Setting) -> Path:
    return setting.scratch / "runs"


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("keras", "Keras fit", keras_python, ("tensorflow-cpu", "keras"), script("keras_fit"), read_marks),
        Contestant("pytorch", "plain PyTorch", this_python, ("torch",), script("pytorch_example"), read_marks),
        Contestant(
            "pytorch-inline",
            "plain PyTorch, no loader process",
            this_python,
            ("torch",),
            script("pytorch_example", "--loader-workers", "0"),
            read_marks,
        ),
        Contestant("ray", "Ray Train TorchTrainer", this_python, ("ray", "torch"), script("torch_trainer"), read_marks),
        Contestant("raylift", "raylift", this_python, ("raylift", "ray", "torch"), raylift_command, read_run),
    )
}
