"""Which points a sweep tries: in their domains, the same again, and as if nothing had been lost on the way."""

import math

import pytest

from trainers.sweep.search import Every, Random, build_searcher, perturb
from trainers.tuning import Point, Tune

SPACE = {
    "train.optimizer.name": ["sgd", "adamw"],
    "train.optimizer.lr": {"loguniform": [1e-5, 0.1]},
    "train.optimizer.momentum": {"uniform": [0.8, 0.99], "when": {"train.optimizer.name": "sgd"}},
    "train.batch_size": {"randint": [8, 65]},
    "model.dropout": {"quniform": [0.0, 0.5, 0.1]},
    "train.optimizer.betas": {"choice": [[0.9, 0.99], [0.9, 0.95]], "when": {"train.optimizer.name": "adamw"}},
}
QUICK = ["random", "tpe", "cmaes", "qmc"]


def tune(name: str, *, seed: int = 3, trials: int = 30) -> Tune:
    return Tune.model_validate({"trials": trials, "space": SPACE, "search": {"name": name, "seed": seed}})


def score(point: Point) -> float:
    """Return how good a point is; the best is adamw at a rate of 10^-2.5 with dropout 0.2."""
    rate: float = -abs(math.log10(point["train.optimizer.lr"]) + 2.5)
    return rate - float(point["train.optimizer.name"] == "sgd") - abs(float(point["model.dropout"]) - 0.2)


def search(config: Tune, count: int, *, forget_at: int | None = None) -> list[Point]:
    """Run a search that hears of each point one later, as two slots do; at `forget_at` it begins anew, from records."""
    searcher = build_searcher(config, "max")
    points: list[Point] = []

    def tell(number: int) -> None:
        if number >= 0:
            values = {1: score(points[number]) - 0.1, 2: score(points[number])}
            completed = number % 3 != 0
            searcher.tell(number, values if completed else {1: values[1]}, completed=completed)

    for number in range(count):
        if number == forget_at:
            searcher = build_searcher(config, "max")
            for known, point in enumerate(points):
                searcher.know(known, point)
                tell(known - 1)
        points.append(searcher.ask(number))
        tell(number - 1)
    return points


@pytest.mark.parametrize("name", [*QUICK, pytest.param("gp", marks=pytest.mark.slow)])
def test_points_keep_to_their_domains_and_conditions(name: str) -> None:
    for point in search(tune(name), 14):
        assert point["train.optimizer.name"] in ("sgd", "adamw")
        assert 1e-5 <= point["train.optimizer.lr"] <= 0.1
        assert point["train.batch_size"] in range(8, 65)
        assert point["model.dropout"] * 10 == pytest.approx(round(point["model.dropout"] * 10), abs=1e-9)
        assert ("train.optimizer.momentum" in point) == (point["train.optimizer.name"] == "sgd")
        assert 0.8 <= point.get("train.optimizer.momentum", 0.9) <= 0.99
        assert point.get("train.optimizer.betas", [0.9, 0.99]) in ([0.9, 0.99], [0.9, 0.95])


@pytest.mark.parametrize("name", QUICK)
def test_the_same_seed_gives_the_same_points_and_another_seed_others(name: str) -> None:
    points = search(tune(name), 15)
    assert search(tune(name), 15) == points
    assert search(tune(name, seed=4), 15) != points


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("forget_at", [5, 17])
def test_a_search_that_lost_its_memory_goes_on_as_if_it_had_not(name: str, forget_at: int) -> None:
    assert search(tune(name), 25, forget_at=forget_at) == search(tune(name), 25)


@pytest.mark.parametrize("seed", range(6))
def test_a_search_that_lost_its_memory_knows_steps_as_it_chose_them(seed: int) -> None:
    """Of 0.1 the third multiple is 0.30000000000000004 to some."""
    space = {"train.optimizer.lr": {"loguniform": [1e-5, 0.1]}, "model.dropout": {"quniform": [0, 0.7, 0.1]}}
    config = Tune.model_validate({"trials": 40, "space": space, "search": {"name": "tpe", "seed": seed}})
    assert told(config, 40, forget_at=14) == told(config, 40)


@pytest.mark.parametrize("name", QUICK)
def test_one_and_true_are_two_values(name: str) -> None:
    space = {"params.a": [1, True], "x": {"uniform": [0, 1], "when": {"params.a": True}}}
    config = Tune.model_validate({"trials": 20, "space": space, "search": name})
    points = told(config, 20)
    assert {point["params.a"] is True for point in points} == {True, False}
    assert all(("x" in point) == (point["params.a"] is True) for point in points)
    assert [str(point) for point in told(config, 20, forget_at=9)] == [str(point) for point in points]


def told(config: Tune, count: int, *, forget_at: int | None = None) -> list[Point]:
    """Run a search that hears of each point at once how large its numbers are."""
    searcher = build_searcher(config, "max")
    points: list[Point] = []
    for number in range(count):
        if number == forget_at:
            searcher = build_searcher(config, "max")
            for known, point in enumerate(points):
                searcher.know(known, point)
                searcher.tell(known, {1: sum(map(float, point.values()))}, completed=True)
        points.append(searcher.ask(number))
        searcher.tell(number, {1: sum(map(float, points[-1].values()))}, completed=True)
    return points


FEW = {
    "train.optimizer.name": {"grid": ["sgd", "adamw"]},
    "train.batch_size": [16, 32, 64],
    "train.optimizer.momentum": {"choice": [0.8, 0.9], "when": {"train.optimizer.name": "sgd"}},
    "model.dropout": {"quniform": [0.0, 0.2, 0.1]},
}  # 27 points


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("forget_at", [3, 12, 20])
def test_no_point_of_a_small_space_is_tried_twice_whatever_was_forgotten(name: str, forget_at: int) -> None:
    space = {**FEW, "train.optimizer.name": ["sgd", "adamw"]}
    config = Tune.model_validate({"trials": 25, "space": space, "search": {"name": name, "seed": 4}})

    def points(forget_at: int | None = None) -> list[Point]:
        searcher = build_searcher(config, "max")
        found: list[Point] = []
        for number in range(25):
            if number == forget_at:
                searcher = build_searcher(config, "max")
                for known, point in enumerate(found):
                    searcher.know(known, point)
                    searcher.tell(known, {1: point["train.batch_size"] - point["model.dropout"]}, completed=True)
            found.append(searcher.ask(number))
            searcher.tell(number, {1: found[-1]["train.batch_size"] - found[-1]["model.dropout"]}, completed=True)
        return found

    whole = points()
    assert len({str(point) for point in whole}) == 25
    assert all(("train.optimizer.momentum" in point) == (point["train.optimizer.name"] == "sgd") for point in whole)
    assert points(forget_at) == whole


def test_a_point_that_takes_the_place_of_another_has_the_same_values_of_a_grid() -> None:
    config = Tune.model_validate({"trials": 16, "space": FEW, "search": {"name": "random", "seed": 4}})
    searcher = build_searcher(config, "max")
    names = [searcher.ask(number)["train.optimizer.name"] for number in range(16)]
    assert names == ["sgd", "adamw"] * 8


def test_of_a_large_space_points_are_not_listed() -> None:
    space = {f"params.x{n}": {"randint": [0, 1000]} for n in range(4)}
    config = Tune.model_validate({"trials": 30, "space": space, "search": "random"})
    assert isinstance(build_searcher(config, "max"), Random)


@pytest.mark.slow
def test_gp_that_lost_its_memory_goes_on_as_if_it_had_not_and_another_seed_gives_other_points() -> None:
    """Of its points the first eight are random."""
    points = search(tune("gp"), 13)
    assert search(tune("gp"), 13, forget_at=12) == points
    assert search(tune("gp", seed=4), 1) != points[:1]


@pytest.mark.parametrize("name", QUICK)
def test_a_search_that_says_it_does_not_learn_chooses_the_same_whatever_it_is_told(name: str) -> None:
    def points(sign: int) -> list[Point]:
        found = []
        for number in range(30):
            found.append(searcher.ask(number))
            searcher.tell(number, {1: sign * score(found[-1])}, completed=True)
        return found

    searcher = build_searcher(tune(name), "max")
    first = points(1)
    searcher = build_searcher(tune(name), "max")
    assert (points(-1) != first) == searcher.learns


def test_tpe_learns_where_the_good_points_are() -> None:
    points = search(tune("tpe", trials=60), 60)
    last, first = points[40:], points[:10]
    assert sum(map(score, last)) / len(last) > sum(map(score, first)) / len(first) + 0.4


@pytest.mark.parametrize("name", ["tpe", "cmaes", "gp"])
def test_a_search_learns_from_trials_that_were_ended_early(name: str) -> None:
    def points(sign: int) -> list[Point]:
        space = {"a": {"uniform": [0, 1]}, "b": {"uniform": [0, 1]}}
        searcher = build_searcher(Tune.model_validate({"trials": 20, "search": name, "space": space}), "max")
        found = []
        for number in range(13):
            found.append(searcher.ask(number))
            searcher.tell(number, {1: sign * found[-1]["a"]}, completed=False)
        return found

    assert points(1) != points(-1)


def test_a_point_that_failed_draws_no_others() -> None:
    searcher = build_searcher(tune("tpe"), "max")
    for number in range(25):
        point = searcher.ask(number)
        good = point["train.optimizer.name"] == "adamw"
        searcher.tell(number, {1: score(point)} if good else {}, completed=good)
    names = [searcher.ask(number)["train.optimizer.name"] for number in range(25, 49)]
    assert names.count("adamw") >= 20


@pytest.mark.parametrize("name", ["cmaes", pytest.param("gp", marks=pytest.mark.slow)])
def test_points_that_failed_are_as_bad_as_the_worst_to_those_who_want_a_value_of_each(name: str) -> None:
    """The higher the better up to where every point fails: there nobody stays."""
    space = {"rate": {"uniform": [0, 1]}, "b": {"uniform": [0, 1]}}
    searcher = build_searcher(Tune.model_validate({"trials": 40, "search": name, "space": space}), "max")
    failed = []
    for number in range(24):
        rate = searcher.ask(number)["rate"]
        failed.append(rate > 0.6)
        searcher.tell(number, {} if failed[-1] else {1: rate}, completed=not failed[-1])
    assert sum(failed[12:]) <= 6


@pytest.mark.slow
def test_gp_that_lost_its_memory_takes_trials_that_run_for_what_they_were() -> None:
    """All that have ended have `b`, so the GP draws it for others too, where it does not count."""
    space = {"a": ["x", "y"], "b": {"uniform": [0, 1], "when": {"a": "x"}}}
    config = Tune.model_validate({"trials": 40, "search": {"name": "gp", "seed": 0}, "space": space})

    def points(forget_at: int | None = None) -> list[Point]:
        searcher = build_searcher(config, "max")
        found: list[Point] = []

        def tell(number: int) -> None:
            if "b" in found[number]:
                searcher.tell(number, {1: found[number]["b"]}, completed=True)

        for number in range(20):
            if number == forget_at:
                searcher = build_searcher(config, "max")
                for known, point in enumerate(found):
                    searcher.know(known, point)
                    tell(known)
            found.append(searcher.ask(number))
            tell(number)
        return found

    assert points(15) == points()


def test_a_result_that_is_no_number_is_none() -> None:
    searcher = build_searcher(tune("tpe"), "max")
    searcher.ask(0)
    searcher.tell(0, {1: math.nan}, completed=True)
    assert searcher.ask(1)


def test_random_takes_grid_values_equally_often() -> None:
    space = {"a": {"grid": [1, 2, 3]}, "b": {"grid": [1, 2]}, "c": {"uniform": [0, 1]}}
    searcher = build_searcher(Tune.model_validate({"trials": 12, "search": "random", "space": space}), "max")
    assert isinstance(searcher, Random)
    points = [searcher.ask(number) for number in range(12)]
    assert sorted((point["a"], point["b"]) for point in points) == sorted(
        [(a, b) for a in (1, 2, 3) for b in (1, 2)] * 2
    )
    assert len({point["c"] for point in points}) == 12


def test_qmc_fills_every_range_evenly() -> None:
    space = {"a": {"uniform": [0, 16]}, "b": {"uniform": [0, 16]}, "c": ["x", "y"]}
    searcher = build_searcher(Tune.model_validate({"trials": 16, "search": "qmc", "space": space}), "max")
    points = [searcher.ask(number) for number in range(16)]
    for key in ("a", "b"):
        assert sorted(int(point[key]) for point in points) == list(range(16))
    assert [point["c"] for point in points].count("x") == 8


@pytest.mark.parametrize("name", ["grid", "tpe", "random"])
def test_a_space_with_no_more_points_than_trials_is_searched_in_full(name: str) -> None:
    config = Tune.model_validate({"trials": 20, "search": name, "space": {"a": [1, 2], "b": ["x"]}})
    searcher = build_searcher(config, "max")
    assert isinstance(searcher, Every)
    assert [searcher.ask(number) for number in range(config.tried)] == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]


# -- perturbing


MUTATED: dict[str, object] = {
    "train.optimizer.name": ["sgd", "adamw"],
    "train.optimizer.lr": {"loguniform": [1e-5, 0.1]},
    "train.batch_size": {"randint": [8, 65]},
    "model.dropout": {"quniform": [0.0, 0.5, 0.1]},
    "data.augment.rotate": [0, 5, 10],
    "train.optimizer.momentum": {"uniform": [0.8, 0.99], "when": {"train.optimizer.name": "sgd"}},
}
BETTER: Point = {
    "train.optimizer.name": "adamw",
    "train.optimizer.lr": 1e-3,
    "train.batch_size": 20,
    "model.dropout": 0.5,
    "data.augment.rotate": 5,
}


def perturbed(number: int = 0, **options: object) -> Point:
    scheduler = {"name": "pbt", **options}
    config = Tune.model_validate({"space": MUTATED, "search": "random", "scheduler": scheduler})
    return perturb(config, BETTER, number=number, iteration=3)


def test_what_goes_on_from_another_gets_values_beside_its_own() -> None:
    found = [perturbed(number, resample_probability=0) for number in range(40)]
    assert {round(point["train.optimizer.lr"], 12) for point in found} == {1.2e-3, 0.8e-3}
    assert {point["data.augment.rotate"] for point in found} == {0, 10}
    assert {point["model.dropout"] for point in found} == {0.5, 0.4}  # 0.6 is none of its values
    assert {(point["train.optimizer.name"], point["train.batch_size"]) for point in found} == {("adamw", 20)}
    assert all("train.optimizer.momentum" not in point for point in found)


def test_small_steps_are_perturbed_by_one_at_least() -> None:
    space = {"model.dropout": {"quniform": [0, 0.5, 0.1]}, "data.augment.rotate": {"randint": [0, 31]}}
    scheduler = {"name": "pbt", "resample_probability": 0}
    config = Tune.model_validate({"space": space, "search": "random", "scheduler": scheduler})
    for dropout, rotate, beside in (
        (0.0, 0, ({0.0, 0.1}, {0, 1})),
        (0.1, 1, ({0.0, 0.2}, {0, 2})),
        (0.5, 30, ({0.4, 0.5}, {24, 30})),
    ):
        point = {"model.dropout": dropout, "data.augment.rotate": rotate}
        found = [perturb(config, point, number=number, iteration=1) for number in range(40)]
        assert ({each["model.dropout"] for each in found}, {each["data.augment.rotate"] for each in found}) == beside


def test_what_is_drawn_anew_comes_from_the_whole_range() -> None:
    rates = [perturbed(number, resample_probability=1)["train.optimizer.lr"] for number in range(40)]
    assert min(rates) < 1e-4 < 1e-2 < max(rates)
    assert all(1e-5 <= rate <= 0.1 for rate in rates)


def test_the_same_seed_perturbs_alike() -> None:
    assert perturbed(3) == perturbed(3) != perturbed(4)


def test_a_factor_of_ones_own_counts() -> None:
    point = perturbed(resample_probability=0, perturbation_factors=[2, 2])
    assert point["train.optimizer.lr"] == pytest.approx(2e-3)


def test_conditions_hold_for_perturbed_values_too() -> None:
    rotate = {"choice": [5, 10], "when": {"data.augment.flip": True}}
    space = {"data.augment.flip": [True, False], "data.augment.rotate": rotate}
    config = Tune.model_validate({"space": space, "search": "random", "scheduler": "pbt"})
    for point in ({"data.augment.flip": True, "data.augment.rotate": 5}, {"data.augment.flip": False}):
        found = [perturb(config, point, number=number, iteration=1) for number in range(40)]
        assert {each["data.augment.flip"] for each in found} == {True, False}
        assert all(("data.augment.rotate" in each) == each["data.augment.flip"] for each in found)


@pytest.mark.parametrize("name", ["random", "tpe", "gp", "cmaes", "qmc"])
def test_a_condition_holds_for_every_step_of_a_quniform_it_names(name: str) -> None:
    space = {"model.dropout": {"quniform": [0, 0.5, 0.1]}, "x": {"uniform": [0, 1], "when": {"model.dropout": 0.3}}}
    config = Tune.model_validate({"trials": 40, "space": space, "search": name})
    searcher = build_searcher(config, "max")
    steps = []
    for number in range(40):
        point = searcher.ask(number)
        searcher.tell(number, {1: -abs(point["model.dropout"] - 0.3)}, completed=True)
        assert ("x" in point) == (abs(point["model.dropout"] - 0.3) < 1e-9)
        steps.append(point["model.dropout"])
    assert 0.3 in steps
    assert {*steps} <= {0.0, 0.1, 0.2, 0.3, 0.4, 0.5}
