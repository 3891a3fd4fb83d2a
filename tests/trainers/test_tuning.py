"""Domains and spaces: which points there are, and what a point makes of a job."""

import pytest
from pydantic import ValidationError

from launcher import blocks
from trainers.config import TrainJob
from trainers.tuning import NAMED, SEARCHED, Domain, Scheduler, Tune, apply, describe, metric_of


def tune(**space: object) -> Tune:
    return Tune.model_validate({"space": {key.replace("_", "."): domain for key, domain in space.items()}})


def test_the_points_of_a_space_leave_out_what_no_condition_lets_count() -> None:
    momentum = {"choice": [0.8, 0.9], "when": {"name": "sgd"}}
    points = list(tune(momentum=momentum, name=["sgd", "adamw"]).points())
    assert points == [
        {"name": "sgd", "momentum": 0.8},
        {"name": "sgd", "momentum": 0.9},
        {"name": "adamw"},
    ]


def test_a_condition_may_name_several_values() -> None:
    domain = Domain(choice=[1], when={"name": ["sgd", "muon"], "x": 2})
    assert domain.counts({"name": "muon", "x": 2})
    assert not domain.counts({"name": "adam", "x": 2})
    assert not domain.counts({"name": "sgd"})


def test_the_length_of_a_trial_is_counted_by_what_the_scheduler_counts_by() -> None:
    at = {"training_iteration": 4, "epoch": 2, "step": 92}
    for counted, most in at.items():
        for max_t, whole in ((most, True), (most + 1, False)):
            scheduler = Scheduler.model_validate({"name": "asha", "time_attr": counted, "max_t": max_t})
            assert scheduler.is_whole(*at.values()) is whole, (counted, max_t)
    assert not Scheduler(name="asha").is_whole(*at.values())


def test_randint_ends_before_its_end_and_quniform_on_multiples() -> None:
    assert Domain(randint=(2, 5)).values == [2, 3, 4]
    assert Domain(quniform=(0.1, 0.3, 0.1)).values == [0.1, 0.2, 0.3]
    assert Domain(quniform=(5, 20, 4)).values == [8, 12, 16, 20]
    assert str(Domain(quniform=(0, 1, 0.3))) == "0 to 0.9, in steps of 0.3"
    assert [*Domain(quniform=(0.5, 1e6, 2)).ends.values()] == [2, 1e6]
    assert Domain(quniform=(0, 1e20, 1)).values is None
    assert [*Domain(quniform=(0, 1e20, 1)).checked.values()] == [0, 1e20, 5e19]
    assert max(Domain(uniform=(1e308, 1.7e308)).checked.values()) == 1.7e308
    assert Domain(uniform=(0, 1)).values is None
    assert Domain(randint=(0, 10**9)).values is None


def test_no_more_points_are_tried_than_there_are() -> None:
    space = {"train.epochs": [1, 2], "train.seed": {"randint": [0, 3]}}
    assert Tune.model_validate({"space": space}).tried == 6
    assert Tune.model_validate({"space": space, "search": "grid"}).tried == 6
    assert Tune.model_validate({"space": space, "trials": 4}).tried == 4
    assert not Tune.model_validate({"space": space, "trials": 4}).covers_all
    assert Tune.model_validate({"space": space, "trials": 6}).covers_all


def test_an_endless_space_has_as_many_trials_as_asked_for() -> None:
    assert Tune.model_validate({"space": {"lr": {"uniform": [0, 1]}}}).tried == 20
    space = {f"x{i}": [1, 2, 3] for i in range(40)}
    assert Tune.model_validate({"space": space, "trials": 50}).tried == 50
    assert Tune.model_validate({"space": space, "trials": 50, "search": "grid"}).tried == 50


def test_a_point_is_set_in_a_copy_of_the_job() -> None:
    job = {"train": {"optimizer": {"name": "adamw", "lr": None}, "early_stopping": None}}
    changed = apply(job, {"train.optimizer.lr": 0.1, "train.early_stopping.patience": 2})
    assert changed["train"] == {"optimizer": {"name": "adamw", "lr": 0.1}, "early_stopping": {"patience": 2}}
    assert job["train"] == {"optimizer": {"name": "adamw", "lr": None}, "early_stopping": None}


@pytest.mark.parametrize("optimizers", [["adamw", "sgd"], [{"name": "adamw"}, {"name": "sgd"}]])
@pytest.mark.parametrize("rate_first", [True, False])
def test_a_block_may_be_searched_together_with_a_key_in_it(optimizers: list[object], rate_first: bool) -> None:
    keys: list[tuple[str, object]] = [("train.optimizer.lr", [0.1, 0.01]), ("train.optimizer", optimizers)]
    tune = Tune.model_validate({"search": "grid", "space": dict(keys if rate_first else keys[::-1])})
    found = [apply({"train": {"epochs": 3}}, point)["train"]["optimizer"] for point in tune.points()]
    assert found == [{"name": name, "lr": lr} for name in ("adamw", "sgd") for lr in (0.1, 0.01)]


def test_the_blocks_that_a_text_names_are_those_of_the_job_file() -> None:
    found = {path: blocks.block_of(blocks.at(TrainJob, path)) for path in blocks.paths(TrainJob)}
    named = [".".join(map(str, path)) for path, one in found.items() if path[0] in SEARCHED and blocks.takes_name(one)]
    assert named == [*NAMED]


def test_a_point_in_a_line() -> None:
    assert describe({"train.optimizer.lr": 0.0123456, "model.dropout": 0.5, "train.x": True}) == (
        "optimizer.lr 0.01235  model.dropout 0.5  x true"
    )


@pytest.mark.parametrize(
    ("block", "found"),
    [({}, ("eval_accuracy", "max")), ({"metric": "eval_loss"}, ("eval_loss", "min")), ({"mode": "min"}, None)],
)
def test_a_loss_is_best_when_it_is_small(block: dict[str, str], found: tuple[str, str] | None) -> None:
    assert metric_of(Tune.model_validate(block), "image-classification") == (found or ("eval_accuracy", "min"))


def test_a_population_is_as_large_as_asked_for_though_there_are_fewer_points_to_begin_with() -> None:
    block = {"space": {"data.augment.rotate": [0, 5]}, "trials": 6, "scheduler": "pbt", "search": "random"}
    assert Tune.model_validate(block).tried == 6
    assert not Tune.model_validate(block).covers_all


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"space": {"model.name": ["cnn", "rnn"]}}, "no key of the space allows that"),
        ({"search": "grid"}, "pbt changes the points of a grid"),
        ({"scheduler": {"name": "pbt", "max_t": 3}}, "max_t is an option of asha, hyperband, not of pbt"),
        ({"scheduler": {"name": "pbt", "quantile_fraction": 0.6}}, "less than or equal to 0.5"),
    ],
)
def test_what_no_population_can_do_is_refused(change: dict[str, object], said: str) -> None:
    block = {"space": {"data.augment.rotate": [0, 5]}, "scheduler": "pbt", "search": "random", **change}
    with pytest.raises(ValidationError, match=said):
        Tune.model_validate(block)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"workers_per_trial": 2, "scheduler": "hyperband"}, "hyperband takes trials of one worker"),
        ({"workers_per_trial": 2, "gpus_per_trial": 0.5}, "only trials of one worker can share a GPU"),
        ({"repeats": 2, "space": {"train.seed": [1, 2]}}, "they differ by train.seed"),
        ({"repeats": 2, "scheduler": "pbt"}, "no two trials have the same point"),
        ({"gpus_per_trial": 1.5}, "less than or equal to 1"),
        ({"space": {"train.optimizer.lr": [0.1, 0.01, 0.1]}}, "choice: 0.1 is listed twice"),
        ({"search": "grid", "space": {f"x{i}": [1, 2, 3] for i in range(9)}}, "more than 10,000 points"),
    ],
)
def test_what_contradicts_itself_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Tune.model_validate(change)
