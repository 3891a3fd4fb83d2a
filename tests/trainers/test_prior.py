"""Which points a sweep begins with: the job file's own values, then learning rates that are usual."""

import math
import statistics
from typing import Any

import pytest

from trainers.config import TrainJob
from trainers.sweep.prior import own_point, with_prior
from trainers.sweep.search import STARTUP, Every, Searcher, build_searcher
from trainers.tuning import Point, Tune

OWN = {"model": {"dropout": 0.2}, "train": {"batch_size": 32, "optimizer": {"name": "adamw", "lr": None}}}


def own(space: dict[str, Any]) -> Point | None:
    return own_point(Tune.model_validate({"trials": 30, "space": space, "search": "random"}), OWN)


def begun_with_prior(config: Tune, job: dict[str, Any] = OWN) -> Searcher:
    return with_prior(build_searcher(config, "max"), config, job)


@pytest.mark.parametrize(
    ("space", "point"),
    [
        ({"train.optimizer.lr": {"loguniform": [1e-5, 0.1]}}, {"train.optimizer.lr": 1e-3}),
        ({"train.optimizer.lr": {"uniform": [0.1, 0.2]}}, None),
        ({"train.optimizer.name": ["sgd", "adamw"]}, {"train.optimizer.name": "adamw"}),
        ({"train.optimizer.name": ["sgd", "muon"]}, None),
        ({"train.batch_size": {"randint": [32, 33]}}, {"train.batch_size": 32}),
        ({"train.batch_size": {"randint": [8, 32]}}, None),
        ({"train.batch_size": {"randint": [8, 99_999]}}, {"train.batch_size": 32}),
        ({"model.dropout": {"quniform": [0, 0.5, 0.1]}}, {"model.dropout": 0.2}),
        ({"model.dropout": {"quniform": [0, 0.5, 0.25]}}, None),
        ({"train.batch_size": {"quniform": [16, 64, 16]}}, {"train.batch_size": 32.0}),
        ({"train.optimizer.momentum": [0.9]}, {"train.optimizer.momentum": 0.9}),
        ({"train.optimizer.momentum": [0.8, 0.9]}, None),
        ({"model.dropout": {"quniform": [0, 0.5, 1e-6]}}, {"model.dropout": 0.2}),
        ({"model.dropout": {"quniform": [0, 0.5, 3e-6]}}, None),
        ({"train.batch_size": {"grid": [32, 64]}}, None),
        ({"params.depth": {"uniform": [0, 9]}}, None),
        (
            {
                "train.optimizer.name": ["sgd", "adamw"],
                "train.optimizer.momentum": {"uniform": [0.8, 0.9], "when": {"train.optimizer.name": "sgd"}},
            },
            {"train.optimizer.name": "adamw"},
        ),
    ],
)
def test_the_values_of_the_job_file_are_a_point_where_the_space_has_all_of_them(
    space: dict[str, Any], point: Point | None
) -> None:
    assert str(own(space)) == str(point)


def test_no_decay_is_the_least_that_a_logarithmic_range_has() -> None:
    job = {"train": {"optimizer": {"weight_decay": 0.0}}}
    space = {"train.optimizer.weight_decay": {"loguniform": [1e-6, 0.1]}}
    config = Tune.model_validate({"trials": 30, "space": space})
    assert own_point(config, job) == {"train.optimizer.weight_decay": 1e-6}


@pytest.mark.parametrize(
    ("space", "point"),
    [
        ({"train.optimizer": ["sgd", "adamw"]}, {"train.optimizer": "adamw"}),
        ({"train.optimizer": ["sgd", {"lr": 0.1}]}, None),
        ({"train.schedule": ["cosine", {"name": "constant"}]}, {"train.schedule": {"name": "constant"}}),
        ({"train.schedule": ["constant", "cosine"]}, {"train.schedule": "constant"}),
        ({"train.schedule": [{"warmup": 0.1}, "cosine"]}, None),
        ({"model": ["cnn"]}, {"model": "cnn"}),
        ({"train.epochs": [1, 5], "model.dropout": {"uniform": [0, 0.5]}}, {"train.epochs": 5, "model.dropout": 0.0}),
    ],
)
def test_a_block_of_a_list_is_the_job_file_s_own_if_it_says_the_same(
    space: dict[str, Any], point: Point | None
) -> None:
    written = {"task": "image-classification", "data": {"train": "builtin:digits"}, "train": {"epochs": 5}}
    job = TrainJob.from_job(written).model_dump(mode="json")
    assert own_point(Tune.model_validate({"trials": 30, "space": space}), job) == point


@pytest.mark.parametrize("name", ["random", "tpe", "cmaes"])
def test_a_search_begins_with_the_values_of_the_job_file_and_chooses_the_others_as_ever(name: str) -> None:
    space = {"train.optimizer.lr": {"loguniform": [1e-5, 0.1]}, "model.dropout": {"quniform": [0, 0.5, 0.1]}}
    config = Tune.model_validate({"trials": 12, "space": space, "search": name})

    def points(count: int, begun: list[Point]) -> list[Point]:
        searcher = begun_with_prior(config)
        found: list[Point] = []
        for number in range(count):
            if number < len(begun):
                searcher.know(number, begun[number])
            found.append(begun[number] if number < len(begun) else searcher.ask(number))
            searcher.tell(number, {1: found[-1]["train.optimizer.lr"]}, completed=True)
        return found

    whole = points(12, [])
    assert whole[0] == own(space)
    assert len({str(point) for point in whole}) == 12
    assert points(12, whole[:4]) == whole
    assert points(12, whole[:10]) == whole
    if name == "random":
        searcher = build_searcher(config, "max")
        assert whole[1:] == [searcher.ask(number) for number in range(1, 12)]


def test_the_values_of_the_job_file_are_not_tried_twice_in_a_small_space() -> None:
    space = {"train.batch_size": [16, 32, 64], "train.optimizer.name": ["sgd", "adamw"]}
    config = Tune.model_validate({"trials": 5, "space": space, "search": "random"})
    searcher = begun_with_prior(config)
    points = [str(searcher.ask(number)) for number in range(5)]
    assert points[0] == str({"train.batch_size": 32, "train.optimizer.name": "adamw"})
    assert len({*points}) == 5


OPTIMIZERS = ["adamw", "sgd", "muon"]
WIDE = {"train.optimizer.name": OPTIMIZERS, "train.optimizer.lr": {"loguniform": [1e-4, 0.3]}}


def begun(
    space: dict[str, Any], *, lr: float | None = None, name: str = "tpe", seeds: int = 60, usual: bool = True
) -> list[Point]:
    """Return points after the first with which sweeps of as many seeds begin: the usual ones, or those between."""
    job = {"train": {"optimizer": {"name": "adamw", "lr": lr}}}
    found = []
    for seed in range(seeds):
        config = Tune.model_validate({"trials": 20, "space": space, "search": {"name": name, "seed": seed}})
        searcher = begun_with_prior(config, job)
        found += [searcher.ask(number) for number in range(STARTUP)][1 if usual else 2 :: 2]
    return found


def turned(space: dict[str, Any]) -> dict[str, Any]:
    return dict(reversed(space.items()))


def middle(points: list[Point], optimizer: str | None = None) -> float:
    """Return the median of learning rates, of all points or those with an optimizer, in decades."""
    rates = [point["train.optimizer.lr"] for point in points if point.get("train.optimizer.name") == optimizer]
    return statistics.median(map(math.log10, rates))


@pytest.mark.parametrize(("name", "space"), [("tpe", WIDE), ("gp", WIDE), ("tpe", turned(WIDE))])
def test_a_search_that_learns_begins_with_each_optimizer_around_its_usual_rate(
    name: str, space: dict[str, Any]
) -> None:
    points = begun(space, name=name)
    assert {point["train.optimizer.name"] for point in points} == {*OPTIMIZERS}
    assert all(1e-4 <= point["train.optimizer.lr"] <= 0.3 for point in points)
    for optimizer, usual in (("adamw", -3.0), ("muon", math.log10(0.02)), ("sgd", -1.0)):
        assert middle(points, optimizer) == pytest.approx(usual, abs=0.45)  # a little towards the middle of the range
    assert max(point["train.optimizer.lr"] for point in points if point["train.optimizer.name"] == "adamw") > 0.02


@pytest.mark.parametrize(("name", "usual"), [("random", True), ("cmaes", True), ("tpe", False), ("gp", False)])
def test_every_other_point_and_other_searches_have_rates_from_anywhere(name: str, usual: bool) -> None:
    points = begun({"train.optimizer.lr": WIDE["train.optimizer.lr"]}, name=name, usual=usual)
    assert middle(points) == pytest.approx((-4 + math.log10(0.3)) / 2, abs=0.4)


def test_the_rate_of_the_job_file_is_what_is_usual_with_its_optimizer() -> None:
    points = begun(WIDE, lr=0.03)
    assert middle(points, "adamw") == pytest.approx(math.log10(0.03), abs=0.45)
    assert middle(points, "sgd") == pytest.approx(-1, abs=0.45)


@pytest.mark.parametrize("ends", [[0.01, 0.3], [1e-6, 1e-4]])
def test_a_range_without_the_usual_rate_is_searched_evenly(ends: list[float]) -> None:
    points = begun({"train.optimizer.lr": {"loguniform": ends}})
    assert middle(points) == pytest.approx(statistics.mean(map(math.log10, ends)), abs=0.15)


def test_a_range_that_is_not_logarithmic_has_its_rates_around_the_usual_one_too() -> None:
    points = begun({"train.optimizer.lr": {"uniform": [1e-4, 0.1]}}, lr=0.02)
    rates = [point["train.optimizer.lr"] for point in points]
    assert all(1e-4 <= rate <= 0.1 for rate in rates)
    assert 0.02 < statistics.median(rates) < 0.04


def test_an_optimizer_that_is_chosen_as_a_block_has_its_usual_rate() -> None:
    space = {
        "train.optimizer": ["adamw", {"name": "sgd", "momentum": 0.9}],
        "train.optimizer.lr": {"loguniform": [1e-4, 0.3]},
    }
    points = begun(space)
    for optimizer, usual in zip(space["train.optimizer"], (-3, -1), strict=True):
        rates = [math.log10(point["train.optimizer.lr"]) for point in points if point["train.optimizer"] == optimizer]
        assert statistics.median(rates) == pytest.approx(usual, abs=0.45)


@pytest.mark.parametrize("seed", range(5))
def test_no_point_of_a_small_space_with_rates_is_tried_twice(seed: int) -> None:
    space = {"train.optimizer.lr": [1e-4, 1e-3, 1e-2, 0.1], "train.batch_size": [16, 32, 64]}
    config = Tune.model_validate({"trials": 11, "space": space, "search": {"name": "tpe", "seed": seed}})
    searcher = begun_with_prior(config)
    assert len({str(searcher.ask(number)) for number in range(11)}) == 11


def test_a_list_of_rates_has_no_usual_one() -> None:
    space = {"train.optimizer.lr": [1e-4, 1e-3, 1e-2, 0.1], "model.dropout": {"uniform": [0, 0.5]}}
    rates = [point["train.optimizer.lr"] for point in begun(space)]
    assert all(35 <= rates.count(rate) <= 85 for rate in space["train.optimizer.lr"])


def test_a_space_that_is_tried_in_full_has_no_beginning() -> None:
    config = Tune.model_validate({"trials": 20, "space": {"train.optimizer.lr": [1e-2, 1e-3]}})
    assert isinstance(begun_with_prior(config), Every)


def test_tpe_hears_of_the_points_that_it_did_not_choose() -> None:
    """Where the first points show that one optimizer is good, most of the next ones are of that."""
    config = Tune.model_validate({"trials": 60, "space": WIDE, "search": {"name": "tpe", "seed": 2}})
    searcher = begun_with_prior(config)
    points = []
    for number in range(40):
        points.append(searcher.ask(number))
        searcher.tell(number, {1: float(points[-1]["train.optimizer.name"] == "muon")}, completed=True)
    names = [point["train.optimizer.name"] for point in points]
    assert names[STARTUP:].count("muon") > 16
