"""The driver of a sweep, without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.attempts import Attempt
from cluster.config import LocalCluster, Workers
from cluster.records import Result
from cluster.segments import SegmentWriter
from cluster.trials import read_trials
from tests.finished import new_run
from trainers.jobs import load_job
from trainers.main import Ready
from trainers.sweep import driver as sweep_driver
from trainers.sweep.bridge import Bridge
from trainers.sweep.driver import SweepDriver
from trainers.sweep.room import Room

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
