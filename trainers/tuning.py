"""What a job file says about a sweep: the space, the search and the scheduler. Free of torch, ray and optuna."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from cluster.config import Block
from cluster.spelling import nearest
from trainers.config import Positive, mode_of, name_alone

Point = dict[str, Any]  # keys of the job file, such as train.optimizer.lr, and what they are in one trial
_METRICS = {"image-classification": ("eval_accuracy", "eval_f1", "eval_loss")}
SEARCHED = ("model", "data", "train", "params")  # the blocks whose keys a space may name
NAMED = ("model", "train.optimizer", "train.schedule", "train.loss")  # of these, a text alone is the name
_KINDS = ("choice", "grid", "uniform", "loguniform", "quniform", "randint")
_MOST_VALUES = 10_000  # of one key that count as a list


class Domain(Block):
    """The values that a key may take, in one of Ray Tune's ways, and when it counts at all."""

    choice: Annotated[list[Any], Field(min_length=1)] | None = Field(
        default=None, description="one of these; a list alone means the same"
    )
    grid: Annotated[list[Any], Field(min_length=1)] | None = Field(
        default=None, description="each of these equally often; with search grid and random"
    )
    uniform: tuple[float, float] | None = Field(default=None, description="a number from low to high")
    loguniform: tuple[Positive, Positive] | None = Field(default=None, description="the same, on a logarithmic scale")
    quniform: tuple[float, float, Positive] | None = Field(
        default=None, description="low, high, step: a multiple of step from low to high"
    )
    randint: tuple[int, int] | None = Field(default=None, description="a whole number from low up to, not with, high")
    when: dict[str, Any] = Field(
        default={}, description="only where these other keys of the space have this value, or one of this list"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Domain:
        kinds = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            found = f"not {' and '.join(kinds)}" if kinds else "it has none"
            raise ValueError(f"give one of {', '.join(_KINDS)}; {found}")
        if self.values is None or kinds[0] in ("quniform", "randint"):
            low, high = getattr(self, self.kind)[:2]
            if low >= high:
                raise ValueError(f"{self.kind}: {low:g} to {high:g} is no range: the first must be the smaller one")
            if self.quniform is not None and not self.multiples:
                raise ValueError(f"quniform: no multiple of {self.quniform[2]:g} lies from {low:g} to {high:g}")
        listed = self.listed or []
        if twice := [value for at, value in enumerate(listed) if place_in(listed[:at], value) is not None]:
            raise ValueError(f"{kinds[0]}: {', '.join(dict.fromkeys(map(_shown, twice)))} is listed twice")
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def listed(self) -> list[Any] | None:
        """The values of a choice or a grid; None of a range."""
        return self.choice if self.choice is not None else self.grid

    @property
    def values(self) -> list[Any] | None:
        """All values; None where there are too many to list."""
        if self.listed is not None:
            return self.listed
        if self.randint is not None and self.randint[1] - self.randint[0] <= _MOST_VALUES:
            return list(range(*self.randint))
        if self.quniform is not None and self.multiples.stop - self.multiples.start <= _MOST_VALUES:
            return [self.multiple(number) for number in self.multiples]
        return None

    @property
    def multiples(self) -> range:
        """Which multiples of the step of a quniform lie in it."""
        assert self.quniform is not None
        low, high, step = self.quniform
        return range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)

    def multiple(self, number: int) -> float:
        """Return a multiple of the step of a quniform, written as its other values and conditions have it."""
        assert self.quniform is not None
        return float(f"{number * self.quniform[2]:.15g}")  # 3 * 0.1 is 0.30000000000000004

    def own(self, value: Any) -> Any:
        """Return a value as it has it. Raises ValueError where it has not."""
        if self.values is not None:
            if (place := place_in(self.values, value)) is None:
                raise ValueError(f"{_shown(value)} is none of {self}")
            return self.values[place]
        low, high = self.ends.values()
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{_shown(value)} is not in {self}")
        if self.randint is not None:
            found: float = round(value)
        else:
            found = self.multiple(self.nearest_multiple(value)) if self.quniform is not None else float(value)
        if not math.isclose(found, value):
            raise ValueError(f"{_shown(value)} is not in {self}")
        return found

    def at(self, share: float) -> Any:
        """Return the value at a share, from 0 to below 1, of all that it has."""
        if (values := self.values) is not None:
            return values[int(share * len(values))]
        if self.randint is not None:
            low, high = self.randint
            return low + int(share * (high - low))
        low, high = self.ends.values()
        if self.loguniform is not None:
            return min(max(math.exp(math.log(low) + share * (math.log(high) - math.log(low))), low), high)
        value = low + share * (high - low)
        return self.multiple(self.nearest_multiple(value)) if self.quniform is not None else value

    def nearest_multiple(self, value: float) -> int:
        """Return which multiple within a quniform is next to a number."""
        assert self.quniform is not None
        return self.clipped(round(value / self.quniform[2]))

    def clipped(self, number: int) -> int:
        """Return the multiple within a quniform that is next to one which may be beyond it."""
        return min(max(number, self.multiples[0]), self.multiples[-1])

    @property
    def ends(self) -> dict[tuple[str | int, ...], Any]:
        """Every listed value, or the least and the largest of a range, by where they stand below the key."""
        if self.listed is not None:
            return {(self.kind, index): value for index, value in enumerate(self.listed)}
        given = getattr(self, self.kind)
        if self.randint is not None:
            return {("randint", 0): given[0], ("randint", 1): given[1] - 1}
        if self.quniform is not None:
            first, last = self.multiples[0], self.multiples[-1]
            return {("quniform", 0): self.multiple(first), ("quniform", 1): self.multiple(last)}
        return {(self.kind, 0): given[0], (self.kind, 1): given[1]}

    @property
    def checked(self) -> dict[tuple[str | int, ...], Any]:
        """What is to be checked of it: its ends and, of a range, a value between them, no whole one if it has others.

        Both ends of `{uniform: [16, 256]}` are batch sizes, and hardly anything between them is.
        """
        if self.quniform is not None:
            half = (self.multiples.stop - self.multiples.start) // 2
            middle = [self.multiple(number) for number in self.multiples[half : half + 2]]
            return {**self.ends, ("quniform",): next((value for value in middle if value % 1), middle[0])}
        if self.uniform is not None or self.loguniform is not None:
            low, high = self.ends.values()
            middle = low + (high - low) / 2
            half = math.floor(middle) + 0.5
            return {**self.ends, (self.kind,): half if low < half < high else middle}
        return self.ends

    @property
    def conditions(self) -> dict[str, list[Any]]:
        """The other keys on which it depends, and those of their values with which it counts."""
        return {key: value if isinstance(value, list) else [value] for key, value in self.when.items()}

    def counts(self, point: Point) -> bool:
        """Whether it counts where the keys before it have these values."""
        return all(key in point and place_in(values, point[key]) is not None for key, values in self.conditions.items())

    def __str__(self) -> str:
        given = getattr(self, self.kind)
        if self.listed is not None:
            text = ", ".join(map(_shown, self.listed))
        else:
            text = f"{_shown(self.ends[(self.kind, 0)])} to {_shown(self.ends[(self.kind, 1)])}"
            text += {"loguniform": ", logarithmic", "randint": ", whole"}.get(self.kind, "")
            text += f", in steps of {given[2]:g}" if self.quniform is not None else ""
        conditions = [f"{key} is {' or '.join(map(_shown, values))}" for key, values in self.conditions.items()]
        return text + (f", where {' and '.join(conditions)}" if conditions else "")


def place_in(values: Sequence[Any], value: Any) -> int | None:
    """Return where a value stands in a list, in which 1 is 1.0, and not true; None where it does not."""
    same = (
        place
        for place, each in enumerate(values)
        if each == value and isinstance(each, bool) == isinstance(value, bool)
    )
    return next(same, None)


def _choice_alone(value: object) -> object:
    """Let `lr: [0.1, 0.01]` mean `lr: {choice: [0.1, 0.01]}`."""
    return {"choice": value} if isinstance(value, list) else value


_Listed = Annotated[list[Any], Field(min_length=1)]
Space = dict[str, Annotated[Domain, BeforeValidator(_choice_alone, json_schema_input_type=Domain | _Listed)]]


class Search(Block):
    """How the next point is chosen."""

    name: Literal["random", "grid", "tpe", "gp", "cmaes", "qmc"] = Field(
        default="tpe", description="grid: every point; qmc: a Sobol sequence; tpe, gp, cmaes: Optuna's samplers"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0, description="the same seed and the same results give the same points"
    )


_TAKES: dict[str, tuple[str, ...]] = {
    "grace_period": ("asha", "median"),
    "reduction_factor": ("asha", "hyperband"),
    "max_t": ("asha", "hyperband"),
    "brackets": ("asha",),
    "min_samples_required": ("median",),
    "perturbation_interval": ("pbt",),
    "burn_in_period": ("pbt",),
    "quantile_fraction": ("pbt",),
    "resample_probability": ("pbt",),
    "perturbation_factors": ("pbt",),
    "synch": ("pbt",),
}
# What may change while a model trains, its weights and the state of its optimizer staying what they are.
_WHILE_IT_TRAINS = (
    *("train.optimizer.", "train.schedule.", "train.loss.", "train.clip_norm"),
    *("data.augment.", "model.dropout"),
)
_NEVER = ("train.optimizer.name", "train.schedule.name", "train.loss.name")


class Scheduler(Block):
    """Which trials end early, or go on from others; the options have the names that Ray Tune gives them."""

    name: Literal["none", "asha", "median", "hyperband", "pbt"] = "asha"
    time_attr: Literal["training_iteration", "epoch", "step"] = Field(
        default="training_iteration",
        description="what the options count: evaluations, epochs that have begun, or steps",
    )
    grace_period: Annotated[int, Field(ge=1)] | None = Field(default=None, description="asha, median: not before this")
    reduction_factor: Annotated[float, Field(gt=1)] | None = Field(
        default=None, description="asha, hyperband: one in so many goes on at each rung; default 3"
    )
    max_t: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="asha, hyperband: no longer than this; default: a trial's whole length"
    )
    brackets: Annotated[int, Field(ge=1)] | None = Field(default=None, description="asha")
    min_samples_required: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="median: trials to compare with"
    )

    perturbation_interval: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="pbt: how often the worst go on from the best; default: a fifth of a trial's length"
    )
    burn_in_period: Annotated[int, Field(ge=0)] | None = Field(default=None, description="pbt: not before this")
    quantile_fraction: Annotated[float, Field(gt=0, le=0.5)] | None = Field(
        default=None, description="pbt: this share is the worst, and as many the best; default 0.25"
    )
    resample_probability: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="pbt: how often a value is drawn anew, not perturbed; default 0.25"
    )
    perturbation_factors: tuple[Positive, Positive] | None = Field(
        default=None, description="pbt: a number is multiplied by one of these; default [1.2, 0.8]"
    )
    synch: bool | None = Field(default=None, description="pbt: have all wait for each other at every interval")

    @property
    def pauses(self) -> bool:
        """Whether it lets trials wait for others, so that more have begun than there is room for."""
        return self.name in ("hyperband", "pbt")

    def is_whole(self, iteration: int, epoch: int, step: int) -> bool:
        """Whether a trial that it ended there has come to where it ends all; brackets of HyperBand may end before."""
        reached = {"training_iteration": iteration, "epoch": epoch, "step": step}[self.time_attr]
        return self.name == "asha" and self.max_t is not None and reached >= self.max_t

    @model_validator(mode="after")
    def _options_of_this_scheduler(self) -> Scheduler:
        for option, names in _TAKES.items():
            if getattr(self, option) is not None and self.name not in names:
                raise ValueError(f"{option} is an option of {', '.join(names)}, not of {self.name}")
        if self.max_t is not None and self.grace_period is not None and self.grace_period > self.max_t:
            raise ValueError(f"grace_period: {self.grace_period} is longer than max_t, {self.max_t}")
        return self


class Tune(Block):
    """A sweep: many trainings of this job, each with other values for some of its keys."""

    metric: str | None = Field(
        default=None,
        description="what the best trial is best at; default: eval_accuracy, or eval_loss of your own task",
    )
    mode: Literal["min", "max"] | None = Field(default=None, description="default: min for a loss, else max")
    trials: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="default: 20, or every point with search grid"
    )
    search: Annotated[Search, BeforeValidator(name_alone)] = Search()
    scheduler: Annotated[Scheduler, BeforeValidator(name_alone)] = Scheduler()
    repeats: Annotated[int, Field(ge=1, le=100)] = Field(
        default=1, description="train each point so often, each time with another train.seed; their mean counts"
    )
    workers_per_trial: Annotated[int, Field(ge=1, le=512)] = Field(
        default=1, description="ranks of each trial; as many trials run at once as cluster.workers allows"
    )
    gpus_per_trial: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="where there are GPUs: less than one, and trials of one worker share a GPU"
    )
    space: Annotated[Space, Field(min_length=1)] | None = Field(
        default=None,
        description="keys of the job file and the values they may take; default: optimizer, learning rate and decay",
    )

    @model_validator(mode="after")
    def _space_holds_together(self) -> Tune:
        for key, domain in (self.space or {}).items():
            _check_conditions(key, domain, self.space or {})
            if self.search.name == "grid" and domain.values is None:
                raise ValueError(f"search: grid takes lists, and {key} is a range: {domain.kind}. Choose random or tpe")
            if domain.grid is not None and self.search.name not in ("grid", "random"):
                raise ValueError(f"search: {self.search.name} takes no grid, as {key} is: write choice")
        if self.repeats > 1 and "train.seed" in (self.space or {}):
            raise ValueError("repeats: they differ by train.seed, so the space cannot have it too")
        if self.repeats > 1 and self.scheduler.name == "pbt":
            raise ValueError("repeats: with scheduler pbt no two trials have the same point")
        if self.workers_per_trial > 1 and self.scheduler.pauses:
            raise ValueError(f"scheduler: {self.scheduler.name} takes trials of one worker; choose asha or median")
        if self.workers_per_trial > 1 and self.gpus_per_trial < 1:
            raise ValueError("gpus_per_trial: only trials of one worker can share a GPU")
        if self.scheduler.name == "pbt" and self.search.name == "grid":
            raise ValueError("scheduler: pbt changes the points of a grid. Choose search: random")
        if self.scheduler.name == "pbt" and self.space and not any(map(may_be_perturbed, self.space)):
            raise ValueError(
                "scheduler: pbt changes values while a model trains, and no key of the space allows that: name one of "
                "train.optimizer, train.schedule or train.loss (but their names), train.clip_norm, data.augment, or "
                "model.dropout"
            )
        _ = self.ordered
        if self.search.name == "grid" and self.trials is None and self._count > _MOST_VALUES:
            raise ValueError(f"search: the grid has more than {_MOST_VALUES:,} points; say by trials how many to try")
        return self

    @property
    def ordered(self) -> dict[str, Domain]:
        """The space with every key after those that it depends on, and after a block that it is a key of."""
        found: dict[str, Domain] = {}
        left = dict(self.space or {})
        while left:
            free = [
                key
                for key, domain in left.items()
                if found.keys() >= domain.when.keys() and not any(key.startswith(f"{block}.") for block in left)
            ]
            if not free:
                raise ValueError(f"space: the conditions of {', '.join(left)} depend on each other in a circle")
            found |= {key: left.pop(key) for key in free}
        return found

    @property
    def tried(self) -> int:
        """How many points are tried: no more than there are, but for a population, whose points change."""
        return self._asked if self.scheduler.name == "pbt" else int(min(self._asked, self._count))

    @property
    def is_finite(self) -> bool:
        """Whether every key has a list of values, or steps that can be counted."""
        return all(domain.values is not None for domain in self.ordered.values())

    @property
    def covers_all(self) -> bool:
        """Whether there are no more points than trials: then each is tried once, whatever the search."""
        return self.scheduler.name != "pbt" and self._count <= self._asked

    @property
    def _asked(self) -> int:
        return self.trials or (_MOST_VALUES if self.search.name == "grid" else 20)

    @property
    def _count(self) -> float:
        """How many points there are; of more than are asked for, one more stands for all."""
        if not self.is_finite:
            return math.inf
        return sum(1 for _ in islice(self.points(), self._asked + 1))

    def points(self) -> Iterator[Point]:
        """Yield every point of a finite space, the last key changing first."""
        return _points(list(self.ordered.items()), {})


def may_be_perturbed(key: str) -> bool:
    """Whether a key of the job file may change while a model trains."""
    return key.startswith(_WHILE_IT_TRAINS) and key not in _NEVER


def metrics_of(task: str) -> tuple[str, ...]:
    """Return what an evaluation measures, its default first; of a task of one's own, what is known beforehand."""
    return _METRICS.get(task, ("eval_loss",))


def metric_of(tune: Tune, task: str) -> tuple[str, str]:
    """Return what a sweep goes by, and whether the largest (max) or the smallest (min) is best."""
    metric = tune.metric or metrics_of(task)[0]
    return metric, mode_of(metric, tune.mode)


def apply(job: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """Return a frozen job file with the values of a point."""
    changed = deepcopy(dict(job))
    for key, value in point.items():
        *above, last = key.split(".")
        block = changed
        for depth, name in enumerate(above, 1):
            there = block.get(name)
            if not isinstance(there, dict):
                is_name = isinstance(there, str) and ".".join(above[:depth]) in NAMED
                block[name] = {"name": there} if is_name else {}
            block = block[name]
        block[last] = deepcopy(value)
    return changed


def trial_job(sweep: Mapping[str, Any], point: Mapping[str, Any], repeat: int = 0) -> dict[str, Any]:
    """Return the frozen job file of a trial: the sweep's with the values of a point, on the workers of one.

    It is a part of the sweep, wherever that runs: nobody launches it, or looks for it on a cluster.
    """
    document = _job_at(sweep, point, repeat)
    _be_best_at(document, sweep)
    address = document.get("cluster", {}).get("address")
    document["cluster"] = {"provider": "local", "address": address, "workers": _workers_of(sweep)}
    return document


def lone_job(
    sweep: Mapping[str, Any], point: Mapping[str, Any], repeat: int = 0, *, gpus: bool = False
) -> dict[str, Any]:
    """Return the job file that trains like a trial by itself: on the sweep's cluster, as large as the trial had it.

    `gpus` says whether the workers of trials had one each, as where there are some a cluster need not name them.
    """
    document = _job_at(sweep, point, repeat)
    _be_best_at(document, sweep)
    cluster, workers = document.get("cluster", {}), _workers_of(sweep)
    accelerators = cluster.get("accelerators") or (f"GPU:{workers}" if gpus else None)
    if accelerators is None:
        document["cluster"] = {**cluster, "workers": workers}
        return document
    kind, _, most = accelerators.partition(":")
    each = max(number for number in range(1, int(most or 1) + 1) if workers % number == 0)  # every node has as many
    nodes = workers // each if workers > each or cluster.get("nodes") else None
    document["cluster"] = {**cluster, "accelerators": f"{kind}:{each}", "nodes": nodes}
    return document


def _job_at(sweep: Mapping[str, Any], point: Mapping[str, Any], repeat: int) -> dict[str, Any]:
    document = {key: value for key, value in apply(sweep, point).items() if key not in ("tune", "budget")}
    if repeat:
        document["train"] = {**document["train"], "seed": document["train"]["seed"] + repeat}
    return document


def _be_best_at(document: dict[str, Any], sweep: Mapping[str, Any]) -> None:
    """Have a trial keep the checkpoint that is best at what trials are compared by, where the job file does not say."""
    tune, checkpoint = sweep.get("tune") or {}, document.get("checkpoint", {})
    if not checkpoint.get("metric"):
        metric = tune.get("metric") or metrics_of(document.get("task", ""))[0]
        document["checkpoint"] = {**checkpoint, "metric": metric, "mode": tune.get("mode")}


def _workers_of(sweep: Mapping[str, Any]) -> int:
    """Return how many workers a trial has."""
    return int((sweep.get("tune") or {}).get("workers_per_trial", 1))


def describe(point: Point) -> str:
    """Say a point in a line, without the blocks that its keys are in."""
    return "  ".join(f"{key.removeprefix('train.')} {_shown(value)}" for key, value in point.items())


def _points(left: list[tuple[str, Domain]], point: Point) -> Iterator[Point]:
    if not left:
        yield point
        return
    (key, domain), rest = left[0], left[1:]
    if not domain.counts(point):
        yield from _points(rest, point)
        return
    for value in domain.values or []:
        yield from _points(rest, {**point, key: value})


def _check_conditions(key: str, domain: Domain, space: Mapping[str, Domain]) -> None:
    for other, wanted in domain.conditions.items():
        if other == key or other not in space:
            known = [name for name in space if name != key]
            told = f"{', '.join(known) or 'it has none'}{nearest(other, known)}"
            raise ValueError(f"space.{key}: it depends on {other}, which is no other key of the space: {told}")
        values = space[other].values
        if values is None:
            raise ValueError(f"space.{key}: it depends on {other}, which is a range: a condition needs a list")
        if not wanted:
            raise ValueError(f"space.{key}: it counts when {other} is one of none: name a value, or several")
        for value in wanted:
            if place_in(values, value) is None:
                known = [_shown(each) for each in values]
                shown = f"{', '.join(known)}{nearest(value, known)}"
                raise ValueError(f"space.{key}: it counts when {other} is {_shown(value)}, which it never is: {shown}")


def _shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
