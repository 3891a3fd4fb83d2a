"""The driver of a sweep, without Ray."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from cluster.attempts import Attempt
from cluster.config import LocalCluster, Workers
from cluster.errors import DeviceError, InfrastructureError, TrainingError
from cluster.records import Result
from cluster.segments import SegmentWriter
from cluster.trials import read_trials
from tests.finished import new_run, write_rows
from tests.sweeps import begun, ended, evaluated
from trainers.config import Train
from trainers.jobs import load_job
from trainers.main import Ready
from trainers.sweep import driver as sweep_driver
from trainers.sweep.bridge import Bridge
from trainers.sweep.driver import SweepDriver
from trainers.sweep.length import longest
from trainers.sweep.room import Room
from trainers.tuning import Tune

JOB = """\
task: image-classification
data: {train: builtin:digits, eval: {split: 0.2}}
train: {epochs: 2, batch_size: 64}
tune: {trials: 2, search: random, scheduler: none, workers_per_trial: 2, space: {train.optimizer.lr: [0.01, 0.001]}}
"""


@pytest.fixture
def driver(tmp_path: Path) -> SweepDriver:
    run = new_run(tmp_path, "sweep", JOB)
    return SweepDriver(run, *load_job(run))


def told_processors(monkeypatch: pytest.MonkeyPatch, there: int) -> list[int]:
    """Have a machine with so many processors, and return how many of them a Ray that is started is told of."""
    told: list[int] = []

    def start(_: LocalCluster, cpus: int) -> tuple[Workers, bool]:
        told.append(cpus)
        return Workers(min=there, max=there), False

    monkeypatch.setattr("os.cpu_count", lambda: there)
    monkeypatch.setattr("trainers.sweep.driver.start_ray_for", start)
    return told


# -- what it waits for


@pytest.mark.parametrize(
    ("cluster", "gpus", "least"),
    [
        ({"workers": 4}, False, 2),
        ({"workers": 4, "address": "somewhere:6379"}, False, 3),  # the process that looks after the trial has one
        ({"accelerators": "GPU:4", "address": "somewhere:6379"}, True, 2),
    ],
)
def test_a_sweep_waits_for_what_one_trial_takes(
    driver: SweepDriver, monkeypatch: pytest.MonkeyPatch, cluster: dict[str, object], gpus: bool, least: int
) -> None:
    monkeypatch.setattr("trainers.sweep.driver.start_ray_for", lambda *_: (Workers(min=4, max=4), gpus))
    driver.cluster = LocalCluster.model_validate(cluster)
    workers, _ = driver._start_ray()
    assert workers.min == least


def test_a_range_of_workers_here_is_as_many_trials_at_once_as_there_are_processors(
    driver: SweepDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = told_processors(monkeypatch, there=3)
    driver.tune = driver.tune.model_copy(update={"workers_per_trial": 1})
    for workers, slots in (({"min": 1, "max": 64}, 3), ({"min": 5, "max": 64}, 5), (64, 64)):
        driver.cluster = LocalCluster.model_validate({"workers": workers})
        driver._start_ray()
        assert (started.pop(), driver.room.slots()) == (slots, slots)


@pytest.mark.parametrize("cluster", [{}, {"workers": {"min": 1, "max": 8}}])
def test_a_ray_of_our_own_has_processors_for_a_trial_of_more_workers_than_the_machine_has(
    driver: SweepDriver, monkeypatch: pytest.MonkeyPatch, cluster: dict[str, object]
) -> None:
    started = told_processors(monkeypatch, there=2)
    driver.tune = driver.tune.model_copy(update={"workers_per_trial": 4})
    driver.cluster = LocalCluster.model_validate(cluster)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 5.0})
    driver._start_ray()
    assert (started, driver.room.slots()) == ([5], 1)


def test_a_trial_of_more_workers_than_there_are_gpus_here_is_refused(
    driver: SweepDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.sweep.driver.start_ray_for", lambda *_: (Workers(min=1, max=1), True))
    driver.cluster = LocalCluster()
    with pytest.raises(InfrastructureError, match=r"a trial has 2 workers, and this machine has 1 GPU$"):
        driver._start_ray()


@pytest.mark.parametrize(
    ("cluster", "waits"),
    [
        ({"accelerators": "GPU:1", "nodes": {"min": 0, "max": 4}}, False),
        ({"accelerators": "GPU:1", "nodes": 4}, True),
        ({"workers": {"min": 1, "max": 6}}, False),
        ({"workers": {"min": 3, "max": 6}}, True),
        ({"workers": 6}, True),
    ],
)
def test_a_sweep_does_not_wait_for_nodes_that_come_when_its_trials_ask_for_them(
    driver: SweepDriver, monkeypatch: pytest.MonkeyPatch, cluster: dict[str, object], waits: bool
) -> None:
    monkeypatch.setattr("trainers.backend.look_for_room", lambda **_: [])
    monkeypatch.setattr("trainers.main.PATIENCE", -1.0)  # then it gives up at once
    driver.cluster = LocalCluster.model_validate({**cluster, "address": "somewhere:6379"})
    attempt = driver.run.claim()
    events = SegmentWriter(driver.run, attempt.number, "events", "driver")
    final = driver._wait_for_room(events, Ready(Workers(min=3, max=6), gpus=False, meta={}, arrays={}))
    events.close()
    assert (final is not None) is waits


# -- how long a trial is


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"epochs": 3}, {"step": 48, "epoch": 3, "training_iteration": 3}),
        ({"epochs": None, "max_steps": 40}, {"step": 40, "epoch": 3, "training_iteration": 2}),
        ({"epochs": 3, "max_steps": 40}, {"step": 40, "epoch": 3, "training_iteration": 2}),
        ({"epochs": 2, "max_steps": 400}, {"step": 32, "epoch": 2, "training_iteration": 2}),
        (
            {"epochs": 3, "eval_every": "5 steps"},
            {"step": 48, "epoch": 3, "training_iteration": 9},
        ),
        (
            {"epochs": 3, "eval_every": "0.5 epochs"},
            {"step": 48, "epoch": 3, "training_iteration": 6},
        ),
        ({"epochs": 3, "eval_every": "9 epochs"}, {"step": 48, "epoch": 3, "training_iteration": 1}),
    ],
)
def test_what_a_scheduler_counts_follows_from_the_samples_and_the_job(
    driver: SweepDriver, train: dict[str, object], expected: dict[str, int]
) -> None:
    """A thousand samples are sixteen steps of 64, the last one smaller."""
    block = Train.model_validate({**driver.whole["train"], **train})
    assert longest(block, driver.tune, 1000) == expected


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({"train.epochs": [9, 27]}, {"step": 432, "epoch": 27, "training_iteration": 27}),
        ({"train.max_steps": {"randint": [100, 1001]}}, {"step": 32, "epoch": 2, "training_iteration": 2}),
        ({"train.batch_size": [32, 64]}, {"step": 64, "epoch": 2, "training_iteration": 2}),
        (  # a micro batch of 64 goes with none of 32, and a trial's own is another
            {"train.batch_size": [32, 96], "train.micro_batch_size": [16, 32]},
            {"step": 64, "epoch": 2, "training_iteration": 2},
        ),
        (
            {"train.epochs": list(range(1, 61)), "train.batch_size": list(range(64, 84))},
            {"step": 960, "epoch": 60, "training_iteration": 60},
        ),
        ({"train.max_steps": [None, 10]}, {"step": 32, "epoch": 2, "training_iteration": 2}),
        ({"train.eval_every": ["1 epoch", "4 steps"]}, {"step": 32, "epoch": 2, "training_iteration": 8}),
        (
            {
                "train.optimizer.name": ["sgd", "adam"],
                "train.epochs": {"choice": [1], "when": {"train.optimizer.name": "sgd"}},
            },
            {"step": 32, "epoch": 2, "training_iteration": 2},
        ),
    ],
)
def test_what_the_space_has_of_the_length_counts(
    driver: SweepDriver, space: dict[str, object], expected: dict[str, int]
) -> None:
    """The job file says two epochs."""
    block = driver.job.train.model_copy(update={"micro_batch_size": 64})
    assert longest(block, Tune.model_validate({"trials": 9, "space": space}), 1000) == expected


# -- how it ends


def test_what_a_sweep_has_heard_is_in_storage_before_its_result(
    driver: SweepDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = driver.run.claim()
    events = SegmentWriter(driver.run, attempt.number, "events", "driver")

    def run_trials(_driver: SweepDriver, _attempt: Attempt, _ready: Ready, bridge: Bridge, _scheduler: object) -> None:
        bridge.suggest("a")
        told = {"training_iteration": 1, "step": 5, "epoch": 1, "state": "SUCCEEDED", "message": ""}
        bridge.on_trial_complete("a", {**told, "evaluation/eval_accuracy": 0.9})

    def killed(_attempt: Attempt, _result: Result) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep_driver, "_ENVIRONMENT", {})
    monkeypatch.setattr(SegmentWriter, "_flush_now_and_then", lambda _: None)
    monkeypatch.setattr(SweepDriver, "_run_trials", run_trials)
    monkeypatch.setattr(Attempt, "finish", killed)
    driver.room = Room(2, most=2)
    with pytest.raises(KeyboardInterrupt):
        driver._fit(attempt, events, Ready(Workers(min=1, max=1), gpus=False, meta={"train": 80}, arrays={}))
    (trial,) = read_trials(driver.run.all_rows("events"))
    assert (trial.state, trial.value("eval_accuracy")) == ("SUCCEEDED", 0.9)


def test_a_sweep_that_was_killed_between_its_last_end_and_its_result_goes_on_to_that(
    driver: SweepDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(driver.run.claim(), "events", [begun(0), evaluated(0, 1, 0.9), begun(1), evaluated(1, 1, 0.8)], by="a")
    write_rows(driver.run.claim(), "events", [ended(0, "SUCCEEDED"), ended(1, "PRUNED")], by="driver")
    attempt = driver.run.claim()
    events = SegmentWriter(driver.run, attempt.number, "events", "driver")
    found: list[bool] = []
    monkeypatch.setattr(sweep_driver, "_ENVIRONMENT", {})
    monkeypatch.setattr(
        SweepDriver, "_run_trials", lambda _driver, _attempt, _ready, bridge, _scheduler: found.append(bridge.is_done)
    )
    driver.room = Room(2, most=2)
    driver._fit(attempt, events, Ready(Workers(min=1, max=1), gpus=False, meta={"train": 80}, arrays={}))
    events.close()
    result = driver.run.result()
    assert found == [True]
    assert result is not None
    assert (result.state, result.metrics) == ("SUCCEEDED", {"eval_accuracy": 0.9})


def test_a_sweep_whose_accelerators_fail_ends_with_that_and_goes_on_when_they_are_mended(
    driver: SweepDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.tune = Tune.model_validate({**driver.whole["tune"], "trials": 4, "space": {"train.seed": [1, 2, 3, 4]}})
    attempt = driver.run.claim()
    events = SegmentWriter(driver.run, attempt.number, "events", "driver")

    def run_trials(_driver: SweepDriver, _attempt: Attempt, _ready: Ready, bridge: Bridge, _scheduler: object) -> None:
        for name in "abc":
            bridge.suggest(name)
            bridge.on_device_failure(name, "it fell off the bus")

    monkeypatch.setattr(sweep_driver, "_ENVIRONMENT", {})
    monkeypatch.setattr(SweepDriver, "_run_trials", run_trials)
    driver.room = Room(2, most=2)
    said = (
        f"accelerators have failed 3 trials; the last, 00002: it fell off the bus. .* raylift resume {driver.run.uri}"
    )
    with pytest.raises(DeviceError, match=said):
        driver._fit(attempt, events, Ready(Workers(min=1, max=1), gpus=True, meta={"train": 80}, arrays={}))
    assert [trial.state for trial in read_trials(driver.run.all_rows("events"))] == ["STOPPED"] * 3
    assert driver.run.result() is None
    events.close()


DATA = {"train": 80, "eval": 20, "classes": ["a", "b"], "labels": "0a", "pixels": "1b"}


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (DATA, ""),
        ({**DATA, "pixels": "2c"}, "warning"),
        ({**DATA, "train": 90}, "this sweep began with: train was 80 and is 90. Put the data back"),
        ({**DATA, "labels": "3d"}, "this sweep began with: their labels, or their order. Put the data back"),
    ],
)
def test_a_sweep_goes_on_with_no_other_samples_and_ends_no_trial_for_that(
    driver: SweepDriver, monkeypatch: pytest.MonkeyPatch, now: dict[str, object], said: str
) -> None:
    fits: list[dict[str, object]] = []
    monkeypatch.setattr(sweep_driver, "_ENVIRONMENT", {})
    monkeypatch.setattr(
        SweepDriver, "_run_trials", lambda _driver, _attempt, ready, _bridge, _scheduler: fits.append(ready.meta)
    )
    driver.room = Room(2, most=2)

    def fit(meta: dict[str, object]) -> None:
        attempt = driver.run.claim()
        events = SegmentWriter(driver.run, attempt.number, "events", "driver")
        try:
            driver._fit(attempt, events, Ready(Workers(min=1, max=1), gpus=False, meta=meta, arrays={}))
        finally:
            events.close()

    fit(DATA)
    if said in ("", "warning"):
        fit(now)
        assert fits == [DATA, now]
        told = [row["event"] for row in driver.run.all_rows("events") if row["event"] == "warning"]
        assert told == [said] * bool(said)
    else:
        with pytest.raises(TrainingError, match=said):
            fit(now)
        assert fits == [DATA]
        assert driver.run.result_of(2) is None


NO_METRIC = "tune.metric: there is no 'eval_r3'; this task has eval_loss, eval_r2"


@pytest.mark.parametrize(
    ("told", "metric", "message"),
    [
        (
            {"state": "FAILED", "message": NO_METRIC, "lacks_metric": True, "evaluation/eval_r2": 0.9},
            "eval_r3",
            f"no trial of 1 succeeded; the first, 00000: {NO_METRIC}",
        ),
        (
            {"state": "SUCCEEDED", "message": "", "evaluation/eval_r2": math.nan},
            "eval_r2",
            "no trial of 2 has a finite eval_r2",
        ),
    ],
    ids=["is not there", "is no number"],
)
def test_a_sweep_whose_metric_no_trial_has_failed_and_says_why(
    driver: SweepDriver, monkeypatch: pytest.MonkeyPatch, told: dict[str, object], metric: str, message: str
) -> None:
    def run_trials(_driver: SweepDriver, _attempt: Attempt, _ready: Ready, bridge: Bridge, _scheduler: object) -> None:
        names = iter("ab")
        while not bridge.is_done:
            bridge.suggest(name := next(names))
            bridge.on_trial_complete(name, {"training_iteration": 1, "step": 5, "epoch": 1, **told})

    attempt = driver.run.claim()
    events = SegmentWriter(driver.run, attempt.number, "events", "driver")
    monkeypatch.setattr(sweep_driver, "_ENVIRONMENT", {})
    monkeypatch.setattr(SweepDriver, "_run_trials", run_trials)
    driver.room, driver.metric = Room(2, most=2), metric
    driver._fit(attempt, events, Ready(Workers(min=1, max=1), gpus=False, meta={"train": 80}, arrays={}))
    events.close()
    result = driver.run.result()
    assert result is not None
    assert (result.state, result.exit_code, result.message) == ("FAILED", 1, message)


def test_the_best_of_points_that_all_lack_a_seed_says_over_how_many_its_mean_is(
    driver: SweepDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = {"a": ("SUCCEEDED", 0.9), "b": ("FAILED", 0.8), "c": ("SUCCEEDED", 0.6), "d": ("SUCCEEDED", math.nan)}

    def run_trials(_driver: SweepDriver, _attempt: Attempt, _ready: Ready, bridge: Bridge, _scheduler: object) -> None:
        for name, (state, value) in ends.items():
            bridge.suggest(name)
            told = {"training_iteration": 1, "step": 5, "epoch": 1, "state": state, "message": ""}
            bridge.on_trial_complete(name, {**told, "evaluation/eval_accuracy": value})

    attempt = driver.run.claim()
    events = SegmentWriter(driver.run, attempt.number, "events", "driver")
    monkeypatch.setattr(sweep_driver, "_ENVIRONMENT", {})
    monkeypatch.setattr(SweepDriver, "_run_trials", run_trials)
    driver.room, driver.tune = Room(2, most=2), driver.tune.model_copy(update={"repeats": 2})
    driver._fit(attempt, events, Ready(Workers(min=1, max=1), gpus=False, meta={"train": 80}, arrays={}))
    events.close()
    result = driver.run.result()
    assert result is not None
    assert re.fullmatch(r"best of 4 trials: 00000-0  .*; mean over 1 of 2 seeds: 0\.9000", result.message)
