"""What a sweep's events tell of its trials."""

import math
from dataclasses import replace
from typing import Any

import pytest

from cluster.records import Origin
from cluster.trials import Copied, Trial, failed_points, means_of, ranked, read_trials, unfinished_points
from tests.sweeps import begun, ended, evaluated


def test_a_trial_that_was_evaluated_again_after_a_resume_counts_it_once() -> None:
    (trial,) = read_trials([begun(0), evaluated(0, 1, 0.5), evaluated(0, 2, 0.6), evaluated(0, 2, 0.6)])
    assert (trial.state, sorted(trial.evaluations), trial.epoch) == ("RUNNING", [1, 2], 2)
    assert trial.value("eval_accuracy") == 0.6
    assert trial.value("eval_loss") is None


def test_the_last_word_on_a_trial_counts() -> None:
    rows = [begun(1), begun(0), ended(0, "STOPPED"), ended(0, "PRUNED", 9.0), {"event": "memory", "time": 1.0}]
    trials = read_trials(rows)
    assert [(trial.number, trial.state, trial.ended) for trial in trials] == [(0, "PRUNED", 9.0), (1, "RUNNING", None)]


def test_the_time_of_a_trial_begins_when_it_first_trains() -> None:
    def now(state: str, at: float) -> dict[str, object]:
        return {"event": "trial.state", "trial": "00000", "state": state, "time": at}

    (trial,) = read_trials([begun(0, 1.0), now("WAITING", 1.0), now("RUNNING", 5.0)])
    assert (trial.state, trial.started) == ("RUNNING", 5.0)
    (trial,) = read_trials([begun(0, 1.0), evaluated(0, 1, 0.5), now("WAITING", 3.0), now("RUNNING", 5.0)])
    assert (trial.state, trial.started) == ("RUNNING", 1.0)


def test_a_result_of_a_trial_that_nobody_began_is_left_out() -> None:
    assert read_trials([evaluated(3, 1, 0.5), ended(3, "FAILED")]) == []


def test_trials_that_ended_well_stand_before_others_and_failed_ones_nowhere() -> None:
    rows = [begun(number) for number in range(5)]
    rows += [evaluated(number, 1, value) for number, value in enumerate([0.7, 0.9, 0.95, 0.99])]
    rows += [ended(0, "SUCCEEDED"), ended(1, "SUCCEEDED"), ended(2, "PRUNED"), ended(3, "FAILED")]
    trials = read_trials(rows)
    assert [trial.number for trial in ranked(trials, "eval_accuracy", "max")] == [1, 0, 2]
    assert [trial.number for trial in ranked(trials, "eval_accuracy", "min")] == [0, 1, 2]
    assert ranked([Trial("x", 0, {}, 0.0)], "eval_accuracy", "max") == []


def test_a_trial_that_goes_on_from_another_has_its_values_and_forgets_what_it_reached_itself_after() -> None:
    row = {"event": "trial.copied", "time": 2.5, "trial": "00000", "iteration": 1, "point": {"train.optimizer.lr": 0.7}}
    rows = [begun(0), evaluated(0, 1, 0.5), evaluated(0, 2, 0.6)]
    (trial,) = read_trials([*rows, {**row, "origin": {"run": "00003", "attempt": 2, "step": 11}}])
    copied = Copied(Origin("00003", 2, 11), 1)
    assert (trial.copied, sorted(trial.evaluations), trial.point) == (copied, [1], {"train.optimizer.lr": 0.7})
    named = replace(copied, origin=replace(copied.origin, nonce="a copy"))
    assert [Copied.from_json(one.to_json()) for one in (copied, named)] == [copied, named]


def test_points_that_were_repeated_go_by_their_mean() -> None:
    values = {"00000-0": 0.9, "00000-1": 0.5, "00001-0": 0.8, "00001-1": 0.7}
    rows = []
    for name, value in values.items():
        number, repeat = int(name[:5]), int(name[-1])
        rows += [
            {**begun(number), "trial": name, "repeat": repeat},
            {**evaluated(number, 1, value), "trial": name},
            {**ended(number, "SUCCEEDED"), "trial": name},
        ]
    trials = read_trials(rows)
    best = [trial.id for trial in ranked(trials, "eval_accuracy", "max")]
    assert best == ["00001-0", "00001-1", "00000-0", "00000-1"]
    assert means_of(trials, "eval_accuracy") == {0: pytest.approx(0.7), 1: pytest.approx(0.75)}


def test_the_mean_of_a_point_is_at_the_last_evaluation_that_all_its_trials_have_had() -> None:
    """As where one of them was ended early, or has just begun."""
    rows: list[dict[str, Any]] = []
    for repeat, values in enumerate([[0.6, 0.9], [0.4]]):
        of = {"trial": f"00000-{repeat}", "repeat": repeat}
        rows += [{**begun(0), **of}, *({**evaluated(0, at, value), **of} for at, value in enumerate(values, 1))]
    assert means_of(read_trials(rows), "eval_accuracy") == {0: pytest.approx(0.5)}


def test_a_point_of_which_seeds_are_left_to_begin_stands_behind_those_that_are_whole() -> None:
    """As where a sweep is stopped between two seeds."""
    rows: list[dict[str, Any]] = []
    for name, value in (("00000-0", 0.5), ("00000-1", 0.7), ("00001-0", 0.95)):
        number, of = int(name[:5]), {"trial": name, "repeat": int(name[-1])}
        rows += [{**begun(number), **of}, {**evaluated(number, 1, value), **of}, {**ended(number, "SUCCEEDED"), **of}]
    trials = read_trials(rows)
    assert [trial.id for trial in ranked(trials, "eval_accuracy", "max")] == ["00000-1", "00000-0", "00001-0"]
    assert unfinished_points(trials) == {1}
    assert unfinished_points(trials[:1]) == set()


def seed(number: int, repeat: int, values: list[float], state: str = "SUCCEEDED") -> list[dict[str, Any]]:
    of = {"trial": f"{number:05d}-{repeat}", "repeat": repeat}
    rows = [{**evaluated(number, at, value), **of} for at, value in enumerate(values, 1)]
    return [{**begun(number), **of}, *rows, {**ended(number, state), **of}]


@pytest.mark.parametrize("lost", [seed(0, 1, [0.3, math.nan]), seed(0, 1, [0.3], "FAILED"), seed(0, 1, [], "FAILED")])
def test_a_point_of_which_a_seed_has_failed_or_has_no_value_is_never_the_best_by_the_others(
    lost: list[dict[str, Any]],
) -> None:
    rows = [*seed(0, 0, [0.8, 0.95]), *lost, *seed(1, 0, [0.8, 0.9]), *seed(1, 1, [0.7], "PRUNED")]
    trials = read_trials(rows)
    assert [trial.id for trial in ranked(trials, "eval_accuracy", "max")] == ["00001-0", "00001-1", "00000-0"]
    assert failed_points(trials, "eval_accuracy") == {0}


def test_a_seed_that_has_just_begun_has_not_failed() -> None:
    trials = read_trials([*seed(0, 0, [0.9]), {**begun(0), "trial": "00000-1", "repeat": 1}])
    assert failed_points(trials, "eval_accuracy") == set()


def test_the_time_of_a_trial_is_that_of_its_training_alone() -> None:
    state = {"event": "trial.state", "trial": "00000"}
    rows = [
        {**begun(0, at=10.0), "attempt": 1},
        {**evaluated(0, 1, 0.5), "time": 14.0, "attempt": 1},
        {**state, "state": "WAITING", "time": 15.0, "attempt": 1},
        {**state, "state": "RUNNING", "time": 100.0, "attempt": 1},
        {**evaluated(0, 2, 0.6), "time": 103.0, "attempt": 1},
        {"event": "claimed", "time": 4000.0, "attempt": 2},  # its driver was killed, and is resumed after an hour
        {**evaluated(0, 3, 0.7), "time": 4006.0, "attempt": 2},
    ]
    (trial,) = read_trials(rows)
    assert (trial.trained, trial.trained_by(None), trial.trained_by(4007.0)) == (8.0, 8.0, 15.0)
    end = {**ended(0, "SUCCEEDED", at=4008.0), "attempt": 2}
    (over,) = read_trials([*rows, end])
    assert over.trained == over.trained_by(5000.0) == 16.0
    late = {**evaluated(0, 4, 0.8), "time": 4009.0, "attempt": 2}
    assert read_trials([*rows, end, late, {**end, "time": 4009.0}])[0].trained == 17.0, "no second counts twice"
