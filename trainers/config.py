"""What a job file says about training: frozen, validated, and free of torch and ray."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from cluster.config import Block, Words

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]


class Every(Block):
    """How often something happens: a number of epochs, steps or minutes."""

    count: Positive
    unit: Literal["epoch", "step", "min"]

    def __str__(self) -> str:
        plural = "s" if self.unit != "min" and self.count != 1 else ""
        number = f"{Decimal(repr(self.count)):f}".removesuffix(".0")  # every digit, and no exponent
        return f"{number} {self.unit}{plural}"


_INTERVAL = r"(\d+(?:\.\d+)?)\s*(epoch|step|min)(?:ute)?s?"


def _parse_every(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(_INTERVAL, value.strip())
    if match is None:
        raise ValueError(f"{value!r} is no interval: write for example 1 epoch, 500 steps or 15 min")
    if match[2] == "step" and not float(match[1]).is_integer():
        raise ValueError(f"{value!r}: steps are whole numbers")
    return {"count": float(match[1]), "unit": match[2]}


Interval = Annotated[
    Every,
    BeforeValidator(_parse_every, json_schema_input_type=Annotated[str, Field(pattern=f"^{_INTERVAL}$")]),
    PlainSerializer(str, return_type=str),
]


def name_alone(value: object) -> object:
    """Let `optimizer: adamw` mean `optimizer: {name: adamw}`."""
    return {"name": value} if isinstance(value, str) else value


class Model(Block):
    """The network to train."""

    name: Literal["cnn"] = "cnn"
    dropout: Fraction = Field(default=0.0, description="share of the dense layer's units dropped while training")


class Split(Block):
    """Hold out a share of the training data."""

    split: Annotated[float, Field(gt=0, lt=1)] = Field(description="share of the samples that evaluation gets")


class Clean(Block):
    """What is taken out of the data before training; all of it is counted and listed."""

    drop_duplicates: bool = Field(default=True, description="identical images; those of the eval data leave train")
    drop_unreadable: bool = Field(default=True, description="files that do not decode; false makes them an error")
    min_size: Annotated[int, Field(ge=1)] | None = Field(default=None, description="pixels of the shorter side")
    drop_label_errors: bool = Field(default=False, description="labels that the other samples contradict")


class Augment(Block):
    """Random changes to training images; all are off unless given."""

    flip: bool = Field(default=False, description="mirror left to right, half of the time")
    vertical_flip: bool = Field(default=False, description="mirror top to bottom, half of the time")
    rotate: Annotated[float, Field(ge=0, le=180)] = Field(default=0.0, description="degrees, either way")
    translate: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="share of the side, either way")
    scale: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="0.1 means 0.9 to 1.1 times")
    crop: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="share of the area that may be cut away")
    brightness: Annotated[float, Field(ge=0, le=1)] = Field(default=0.0, description="0.1 means 0.9 to 1.1 times")
    contrast: Annotated[float, Field(ge=0, le=1)] = Field(default=0.0, description="0.1 means 0.9 to 1.1 times")
    saturation: Annotated[float, Field(ge=0, le=1)] = Field(default=0.0, description="0.1 means 0.9 to 1.1 times")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(default=0.0, description="turns of the colour circle")
    noise: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="standard deviation; 1 is black to white"
    )
    mixup: Annotated[float, Field(ge=0)] = Field(default=0.0, description="alpha of the Beta distribution; 0 is off")
    cutmix: Annotated[float, Field(ge=0)] = Field(default=0.0, description="alpha of the Beta distribution; 0 is off")


class MeanStd(Block):
    """Normalisation by given numbers, one a channel, on the scale from 0 (black) to 1 (white)."""

    mean: list[float]
    std: list[Positive]

    @model_validator(mode="after")
    def _same_length(self) -> MeanStd:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels, std has {len(self.std)}")
        return self


class Data(Block):
    """Where the samples come from and what happens to them."""

    train: str = Field(
        description="builtin:digits, hf:NAME, or a path or URI of idx files, images in folders, parquet; "
        "a relative path starts at the job file's folder"
    )
    eval: Split | str | None = Field(default=None, description="{split: 0.2}, or a source like train")
    image_size: Annotated[int, Field(ge=4, le=4096)] | None = Field(
        default=None, description="pixels of a side after resizing; default: as the images are"
    )
    channels: Literal[1, 3] | None = Field(default=None, description="default: as the images are")
    image_column: str = Field(default="image", description="of parquet and hf: data")
    label_column: str = Field(default="label", description="of parquet and hf: data")
    clean: Clean = Clean()
    augment: Augment = Augment()
    normalize: Literal["auto", "none"] | MeanStd = Field(
        default="auto", description="auto: mean and deviation of the training split, stored with the model"
    )


OPTIMIZERS = ("sgd", "adam", "adamw", "adagrad", "rmsprop", "nadam", "radam", "adafactor", "muon")
NOT_ON_SHARDS = ("adafactor",)
_TAKES: dict[str, tuple[str, ...]] = {
    "momentum": ("sgd", "rmsprop", "muon"),
    "nesterov": ("sgd", "muon"),
    "betas": ("adam", "adamw", "nadam", "radam"),
    "eps": ("adam", "adamw", "adagrad", "rmsprop", "nadam", "radam"),
}


_LEARNING_RATES = {"sgd": 0.1, "muon": 0.02, "adagrad": 0.01, "adafactor": 0.01}  # of the others: 1e-3


class Optimizer(Block):
    """An optimizer of torch.optim, by its name in lower case."""

    name: Literal["sgd", "adam", "adamw", "adagrad", "rmsprop", "nadam", "radam", "adafactor", "muon"] = "adamw"
    lr: Positive | None = Field(
        default=None, description="default: 0.1 sgd, 0.02 muon, 0.01 adagrad and adafactor, 1e-3 others"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="not applied to norms and biases")
    momentum: Fraction | None = Field(default=None, description="sgd, rmsprop, muon")
    nesterov: bool | None = Field(default=None, description="sgd, muon")
    betas: tuple[Fraction, Fraction] | None = Field(default=None, description="adam, adamw, nadam, radam")
    eps: Positive | None = Field(default=None, description="adam, adamw, adagrad, rmsprop, nadam, radam")

    @property
    def rate(self) -> float:
        """The learning rate, or what is usual with this optimizer."""
        return _LEARNING_RATES.get(self.name, 1e-3) if self.lr is None else self.lr

    @model_validator(mode="after")
    def _options_of_this_optimizer(self) -> Optimizer:
        for option, names in _TAKES.items():
            if getattr(self, option) is not None and self.name not in names:
                raise ValueError(f"{option} is an option of {', '.join(names)}, not of {self.name}")
        if self.name == "sgd" and self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Schedule(Block):
    """How the learning rate moves over the run."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="rise from 0 over this share of the run (below 1) or this number of steps"
    )
    final: Annotated[float, Field(ge=0, le=1)] = Field(default=0.0, description="share of lr left at the end")

    @model_validator(mode="after")
    def _whole_steps(self) -> Schedule:
        if self.warmup >= 1 and not float(self.warmup).is_integer():
            raise ValueError(f"warmup {self.warmup:g} is neither a share below 1 nor a whole number of steps")
        return self


class Loss(Block):
    """What training minimises."""

    name: Literal["cross-entropy", "mse", "mae", "huber", "bce"] = "cross-entropy"
    label_smoothing: Fraction | None = Field(default=None, description="cross-entropy and bce")
    delta: Positive | None = Field(default=None, description="huber: where the square becomes a line")

    @model_validator(mode="after")
    def _options_of_this_loss(self) -> Loss:
        if self.label_smoothing is not None and self.name not in ("cross-entropy", "bce"):
            raise ValueError(f"label_smoothing is an option of cross-entropy and bce, not of {self.name}")
        if self.delta is not None and self.name != "huber":
            raise ValueError(f"delta is an option of huber, not of {self.name}")
        return self


def mode_of(metric: str, mode: str | None = None) -> str:
    """Return whether the largest (max) or the smallest (min) of a metric is best, where nobody says."""
    return mode or ("min" if "loss" in metric else "max")


class EarlyStopping(Block):
    """Stop when a metric of the evaluation has not improved for a while."""

    metric: str = Field(default="eval_loss", description="what must improve: eval_loss, eval_accuracy, …")
    mode: Literal["min", "max"] | None = Field(default=None, description="default: min for a loss, else max")
    patience: Annotated[int, Field(ge=1)] = Field(default=3, description="evaluations without improvement")
    min_delta: Annotated[float, Field(ge=0)] = Field(default=0.0, description="a smaller change is no improvement")


class Train(Block):
    """The training loop."""

    epochs: Annotated[int, Field(ge=1)] | None = Field(default=None, description="default 1, unless max_steps says")
    max_steps: Annotated[int, Field(ge=1)] | None = Field(default=None, description="the run's last step")
    batch_size: Annotated[int, Field(ge=1)] = Field(default=64, description="global: over all workers")
    micro_batch_size: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="samples a worker takes at once; more of its share is accumulated"
    )
    optimizer: Annotated[Optimizer, BeforeValidator(name_alone)] = Optimizer()
    schedule: Annotated[Schedule, BeforeValidator(name_alone)] = Schedule()
    loss: Annotated[Loss, BeforeValidator(name_alone)] = Loss()
    clip_norm: Positive | None = Field(default=None, description="largest norm of all gradients together")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="auto: bf16 where the accelerator, or a processor with AMX, computes in it",
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp",
        description="what each worker holds: ddp the whole model, fsdp its part of weights, gradients and optimizer",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=0, description="of weights, sample order and augmentation"
    )
    eval_every: Interval = Field(default=Every(count=1, unit="epoch"), description="or 500 steps")
    early_stopping: EarlyStopping | None = None
    max_failures: Annotated[int, Field(ge=0)] = Field(default=3, description="restarts after a crash")
    step_timeout: Positive | None = Field(
        default=None,
        description="seconds that a step may take, or five times the longest so far, until its worker counts as "
        "hanging and is ended; also how long it may show no sign of life, as in code that never lets go of the "
        "interpreter; default: 8",
    )
    log_every: Annotated[int, Field(ge=1)] = Field(default=1, description="steps between rows of metrics")

    @model_validator(mode="after")
    def _micro_fits(self) -> Train:
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} is larger than batch_size {self.batch_size}")
        if self.eval_every.unit == "min":
            raise ValueError("eval_every goes by epochs or steps: a clock would not repeat exactly")
        return self

    @model_validator(mode="after")
    def _optimizer_works_on_shards(self) -> Train:
        if self.parallel == "fsdp" and self.optimizer.name in NOT_ON_SHARDS:
            others = ", ".join(name for name in OPTIMIZERS if name not in NOT_ON_SHARDS)
            raise ValueError(
                f"parallel: fsdp does not take the optimizer {self.optimizer.name}, whose state is sums over rows and "
                f"columns that no worker holds whole; choose one of {others}"
            )
        return self


class Checkpoint(Block):
    """When to save, and how many checkpoints to keep."""

    every: Interval = Field(default=Every(count=1, unit="epoch"), description="or 500 steps, or 15 min")
    keep: Annotated[int, Field(ge=1)] = Field(default=3, description="the newest ones; older ones are deleted")
    best: bool = Field(default=True, description="keep the best one as well")
    metric: str | None = Field(
        default=None, description="what the best one is best at; default: eval_accuracy, else eval_loss"
    )
    mode: Literal["min", "max"] | None = Field(default=None, description="default: min for a loss, else max")

    @model_validator(mode="after")
    def _mode_is_of_a_metric(self) -> Checkpoint:
        if self.mode is not None and self.metric is None:
            raise ValueError(f"mode: {self.mode} of what? Name the metric: {{metric: eval_f1, mode: {self.mode}}}")
        return self

    def best_at(self) -> dict[str, str] | None:
        """Return the metric by which one is best, and its mode, as manifests have them; None where none is named."""
        return {"metric": self.metric, "mode": mode_of(self.metric, self.mode)} if self.metric is not None else None


class Budget(Block):
    """What a run or a sweep may take; then it saves and stops. A resume gives it as much again."""

    max_hours: Positive | None = Field(default=None, description="of all attempts together, with their start-up")
    max_usd: Positive | None = Field(default=None, description="the same in money, at cluster.usd_per_hour")

    @model_validator(mode="after")
    def _has_a_limit(self) -> Budget:
        if self.max_hours is None and self.max_usd is None:
            raise ValueError("it has no limit: give max_hours, max_usd, or both")
        return self


BuiltIn = Literal["image-classification"]
OWN_TASK = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"  # module:Class
_NO_DATA = Data(train="")
BUILT_IN_ONLY = ("model", "data")  # blocks that a task of one's own knows nothing of


def _finite(params: dict[str, Any]) -> dict[str, Any]:
    for key, value in params.items():
        try:
            json.dumps(value, allow_nan=False, default=str)
        except ValueError:
            raise ValueError(
                f"{key}: .inf and .nan are not kept in a job file; write another number, or a text"
            ) from None
    return params


class TrainJob(Block):
    """The part of a job file that the trainers read."""

    task: BuiltIn | Annotated[str, Field(pattern=f"^{OWN_TASK}$"), Words("module:Class, for a task of your own")]
    params: Annotated[dict[str, Any], AfterValidator(_finite)] = Field(
        default={}, description="handed to a task of your own, as a dict"
    )
    model: Annotated[Model, BeforeValidator(name_alone)] = Model()
    data: Data = _NO_DATA
    train: Train = Train()
    checkpoint: Checkpoint = Checkpoint()

    @property
    def is_own(self) -> bool:
        """Whether its task is a class of the user's own."""
        return self.task not in get_args(BuiltIn)

    @model_validator(mode="after")
    def _fits_an_own_task(self) -> TrainJob:
        if not self.is_own:
            if self.params:
                raise ValueError(f"params: they are for a task of your own, not for {self.task}")
            if self.data == _NO_DATA:
                raise ValueError("data: this key is missing; give for example data: {train: builtin:digits}")
            return self
        for key in BUILT_IN_ONLY:
            if getattr(self, key) != TrainJob.model_fields[key].default:
                raise ValueError(f"{key}: {self.task} brings its own; hand it what it needs as params")
        if self.train.loss != Loss():
            raise ValueError(f"train.loss: {self.task} brings its own; hand it what it needs as params")
        return self

    @model_validator(mode="after")
    def _fit_together(self) -> TrainJob:
        if self.is_own:
            return self
        if self.train.loss.name not in ("cross-entropy", "bce"):
            raise ValueError(f"train.loss: {self.task} takes cross-entropy or bce, not {self.train.loss.name}")
        if self.train.early_stopping is not None and self.data.eval is None:
            raise ValueError("train.early_stopping needs data.eval: without it nothing is evaluated")
        if self.data.augment.mixup and self.data.augment.cutmix and self.train.batch_size < 2:
            raise ValueError("data.augment: mixup and cutmix need train.batch_size of 2 or more")
        return self

    @classmethod
    def from_job(cls, job: dict[str, Any]) -> TrainJob:
        """Take our part of a frozen job file; the launcher's blocks are left out."""
        return cls.model_validate({key: value for key, value in job.items() if key in cls.model_fields})
