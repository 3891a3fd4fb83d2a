"""What is likely to be good before a sweep has tried anything: the job file's own values, and usual learning rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from pydantic import ValidationError

from trainers.config import Optimizer, TrainJob
from trainers.sweep.search import STARTUP, Every, Random, Searcher
from trainers.tuning import Domain, Point, Tune, apply

_LR = "train.optimizer.lr"
_SPREAD = 0.25  # of a range: the standard deviation of rates around what is usual


def with_prior(searcher: Searcher, tune: Tune, job: Mapping[str, Any]) -> Searcher:
    """Return a searcher that begins with points which are likely to be good, and goes on as the given one.

    First come the job file's own values. Of what TPE and a GP hear of before they choose, every other point has then a
    learning rate around the usual one: it may be wrong here, and the others find out. A searcher that tries every point
    anyway stays what it is.
    """
    if isinstance(searcher, Every):
        return searcher
    rate = tune.ordered.get(_LR)
    informs = tune.search.name in ("tpe", "gp") and rate is not None and rate.kind in ("uniform", "loguniform")
    return Begun(searcher, own_point(tune, job), Usual(tune, job) if informs else None)


def own_point(tune: Tune, job: Mapping[str, Any]) -> Point | None:
    """Return the values that a whole job, with its defaults, has for the keys of its sweep; None where it lacks one.

    Zero, as of a decay, stands at the beginning of a logarithmic range. None, too, where all points together are to
    fill the space evenly.
    """
    if tune.search.name == "qmc" or any(domain.grid is not None for domain in tune.ordered.values()):
        return None
    point: Point = {}
    for key, domain in tune.ordered.items():
        if not domain.counts(point):
            continue
        value = _own_value(job, key, domain)
        if domain.loguniform is not None and value == 0 and not isinstance(value, bool):
            value = domain.loguniform[0]
        if value is None and domain.values is not None and len(domain.values) == 1:
            (value,) = domain.values  # what it is by default is set there
        try:
            point[key] = domain.own(value)
        except ValueError:
            return None
    return point


def _own_value(job: Mapping[str, Any], key: str, domain: Domain) -> Any:
    value: Any = job
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping):  # with every default: of a list, what says the same in other words
        return next((each for each in domain.choice or () if _says_the_same(apply(job, {key: each}), job)), value)
    return usual_rate(job, {}) if key == _LR and value is None else value


def _says_the_same(changed: dict[str, Any], job: Mapping[str, Any]) -> bool:
    try:
        return TrainJob.from_job(changed).model_dump(mode="json") == job
    except ValidationError:
        return False


def usual_rate(job: Mapping[str, Any], point: Point) -> float:
    """Return the learning rate of a job with its own optimizer, or what is usual with another one that a point has."""
    own, chosen = job["train"]["optimizer"], apply(job, point)["train"]["optimizer"]
    name = chosen.get("name", Optimizer().name) if isinstance(chosen, Mapping) else chosen
    return Optimizer.model_validate({"name": name, "lr": own["lr"] if name == own["name"] else None}).rate


class Usual(Random):
    """Random points whose learning rates, from a range, lie around the job's own or what is usual with an optimizer.

    They are normally distributed on the scale of the range, cut off at its ends: what is usual is a prior, as experts'
    beliefs are to PriorBand (Mallik et al. 2023, arXiv 2306.12370). A range without that rate says that another is
    expected: there they lie anywhere, as all other values do.
    """

    def __init__(self, tune: Tune, job: Mapping[str, Any]) -> None:
        super().__init__(tune)
        self._job = job

    def ask(self, number: int) -> Point:
        point = super().ask(number)
        if _LR not in point:
            return point
        domain = self._space[_LR]
        share = dict(zip(self._space, self._shares(number), strict=True))[_LR]
        place = _place(domain, usual_rate(self._job, point))
        if 0 <= place <= 1:
            around = NormalDist(place, _SPREAD)
            low, high = around.cdf(0), around.cdf(1)
            moved = around.inv_cdf(low + share * (high - low))
            point[_LR] = domain.at(min(max(moved, 0.0), math.nextafter(1, 0)))
        return point


def _place(domain: Domain, value: float) -> float:
    """Return where in a range, on its scale, a value lies: 0 to 1 within it."""
    low, high = domain.ends.values()
    if domain.loguniform is not None:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return float((value - low) / (high - low))


class Begun:
    """Another searcher, but with other points first, which it hears of as of its own.

    Beside the first one, what is found later is seen to be better, or not.
    """

    def __init__(self, searcher: Searcher, first: Point | None, usual: Random | None) -> None:
        self.learns = searcher.learns
        self.know = searcher.know
        self.tell = searcher.tell
        self._searcher = searcher
        self._first = first
        self._usual = usual

    def ask(self, number: int) -> Point:
        point = self._before(number)
        if point is None:
            return self._searcher.ask(number)
        self.know(number, point)
        return point

    def _before(self, number: int) -> Point | None:
        """Return a point that is likely to be good; None where the searcher chooses."""
        if number == 0 and self._first is not None:
            return dict(self._first)
        is_usual = number < STARTUP and number % 2
        return self._usual.ask(number) if self._usual is not None and is_usual else None
