"""Another number of workers while a run goes on: a real raylet is taken away, and one is added."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import pytest

from cluster.runs import Run
from launcher.status import summarize
from tests.faults.screens import wait_for_nothing_left, write_job
from tests.finished import train
from tests.harness import (
    Started,
    assert_clean,
    find_process,
    fresh_id,
    kill,
    open_run,
    raylift,
    start_raylift,
    wait_for,
)
from tests.real.ray_nodes import RayNodes
from trainers.data.keyed import fingerprint
from trainers.data.order import SampleOrder
from trainers.pulse import pulse_folder

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1500)]

BATCH, SEED = 256, 3
# Relative. Sums of float32 in another order differ by some 1e-7; a tie in a pooling, or a ReLU at nought, that falls
# the other way for it changes the gradient of a sample, and hardly a loss.
TOLERANCES = {"loss": 1e-5, "grad_norm": 5e-3}
ENDLESS = 1_000_000  # steps: it is stopped
PATIENT = 600.0  # seconds; a start of the ranks takes ten on an idle machine
JOB = f"""
task: image-classification
model: {{name: cnn}}
data: {{train: builtin:digits, eval: {{split: 0.2}}, image_size: 28, augment: {{rotate: 10}}}}
train:
  max_steps: {ENDLESS}
  batch_size: {BATCH}
  seed: {SEED}
  precision: fp32
  optimizer: {{name: sgd, lr: 3e-4, momentum: 0.9}}  # so slow that later steps do not magnify a rounding
  eval_every: 60 steps
checkpoint: {{every: 40 steps}}
cluster: {{provider: local, workers: 2}}
"""


def start(folder: Path, nodes: RayNodes, run: Run, counted: str = "workers: {min: 1, max: 2}") -> Started:
    job = write_job(folder, JOB.replace("workers: 2", f'{counted}, address: "{nodes.address}"'))
    return start_raylift("run", job, "--id", run.id, "--storage", run.storage.uri)


def stop(run: Run, process: Started, *, after: int) -> str:
    """Let the ranks of an attempt train for a while, and stop the run; return what it said."""
    wait_for(lambda: len(rows_of(run, after)) > 30, f"attempt {after} to train", timeout=PATIENT)
    assert raylift("stop", run.uri).returncode == 0
    output, _ = process.communicate(timeout=PATIENT)
    assert process.returncode == 4, output
    return output


def rows_of(run: Run, attempt: int, event: str = "") -> list[dict[str, Any]]:
    """Return the rows of the steps that an attempt has so far, or its events of a name."""
    if attempt not in run.attempts():
        return []
    if event:
        return [row for row in run.rows_of(attempt, "events") if row["event"] == event]
    return [row for row in run.rows_of(attempt, "metrics") if row["kind"] == "step"]


def steps(run: Run) -> list[dict[str, Any]]:
    """Return the rows of the steps along the committed history."""
    return sorted((row for row in run.rows("metrics") if row["kind"] == "step"), key=lambda row: int(row["step"]))


def begun(run: Run) -> list[tuple[int, int]]:
    """Return after which step how many ranks began to train, as often as some did."""
    return [(row["step"], row["world_size"]) for row in run.rows("events") if row["event"] == "training"]


def assert_as_if_undisturbed(run: Run, folder: Path) -> None:
    """Fail unless two ranks that nobody disturbs see the same samples at every step, with the same losses."""
    ours = steps(run)
    assert [row["step"] for row in ours] == list(range(1, len(ours) + 1)), "each step counts once"
    job = JOB.replace(f"max_steps: {ENDLESS}", f"max_steps: {len(ours)}")
    theirs = steps(train(folder / "undisturbed", job, ranks=2, timeout=PATIENT))
    assert [row["seen"] for row in ours] == [row["seen"] for row in theirs]
    for what, tolerance in TOLERANCES.items():
        np.testing.assert_allclose([row[what] for row in ours], [row[what] for row in theirs], rtol=tolerance)
    assert_each_sample_once_an_epoch(run)


def assert_each_sample_once_an_epoch(run: Run) -> None:
    """Fail unless what the steps of each whole epoch saw is every sample once."""
    samples = next(row["train"] for row in run.rows("events") if row["event"] == "data.ready")
    order = SampleOrder(samples, BATCH, SEED)
    seen = [row["seen"] for row in steps(run)]
    epochs = len(seen) // order.steps_per_epoch
    assert epochs > 10
    for epoch in range(epochs):
        numbers = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        batches = [order.batch(number) for number in numbers]
        assert Counter(np.concatenate(batches).tolist()) == Counter(range(samples))
        assert [seen[number] for number in numbers] == [fingerprint(batch) for batch in batches]


def assert_nothing_left(run: Run, nodes: RayNodes) -> None:
    wait_for_nothing_left(run.id)
    wait_for(lambda: not nodes.ranks(), "the end of the ranks", timeout=30)
    assert not [number for number in run.attempts() if pulse_folder(Path(gettempdir()), run.uri, number).exists()]
    assert_clean(run)


def test_a_node_is_lost_and_another_comes_and_nothing_is_different(
    tmp_path: Path, ray_nodes: RayNodes, capsys: pytest.CaptureFixture[str]
) -> None:
    second = ray_nodes.add()
    run = open_run(tmp_path / "runs", fresh_id("elastic"))
    with start(tmp_path, ray_nodes, run) as process:
        wait_for(lambda: len(rows_of(run, 1)) > 60, "two ranks to train", timeout=PATIENT)
        second.take_away()
        lost = time.time()
        rows = wait_for(lambda: rows_of(run, 2), "one rank to train", timeout=PATIENT)
        took = rows[0]["time"] - lost
        with capsys.disabled():
            print(f"\n2→1: the next step came {took:.1f} s after the loss", end="")
        ray_nodes.add()
        output = stop(run, process, after=3)
    assert took < 120, "what it takes to notice, and a start of the ranks on a busy machine"
    base = [claim.base.step for claim in run.claims() if claim.base]
    assert begun(run) == [(0, 2), (base[0], 1), (base[1], 2)]
    assert [row["step"] for row in rows_of(run, 2)][-1] == base[1], "the planned change repeats no step"
    assert [row["attempt"] for row in run.rows("events") if row["event"] == "recovering"] == [1]
    assert f"resized: the number of ranks is 1 instead of 2, from step {base[0]} on" in output
    assert f"resized: the number of ranks is 2 instead of 1, from step {base[1]} on" in output
    assert "ranks        2" in raylift("status", run.uri).stdout
    goodput = summarize(run).goodput
    assert goodput is not None
    assert (goodput.repeated > 0) == (rows_of(run, 1)[-1]["step"] > base[0])
    assert_nothing_left(run, ray_nodes)
    assert_as_if_undisturbed(run, tmp_path)


def test_neither_a_driver_that_is_killed_before_the_next_ranks_nor_a_node_that_ray_drains_changes_anything(
    tmp_path: Path, ray_nodes: RayNodes
) -> None:
    run = open_run(tmp_path / "runs", fresh_id("killed"))
    with start(tmp_path, ray_nodes, run) as process:
        wait_for(lambda: rows_of(run, 1), "one rank to train", timeout=PATIENT)
        second = ray_nodes.add()
        saved = wait_for(lambda: rows_of(run, 1, "resizing"), "the save", timeout=PATIENT)[0]["step"]
        driver = find_process(run.id, "driver")
        assert driver is not None
        kill(driver)
        wait_for(lambda: begun(run)[1:], "the next ranks", timeout=PATIENT)
        attempt = run.attempts()[-1]
        wait_for(lambda: rows_of(run, attempt), "two ranks to train", timeout=PATIENT)
        ray_nodes.drain(second, seconds=60)
        left = wait_for(lambda: rows_of(run, attempt, "preempted"), "the save", timeout=PATIENT)[0]["step"]
        output = stop(run, process, after=attempt + 1)
    assert "the driver died (signal SIGKILL)" in output
    assert begun(run) == [(0, 1), (saved, 2), (left, 1)]
    assert [row["step"] for row in rows_of(run, attempt)][-1] == left, "a node that is left in time costs no step"
    assert f"attempt {attempt + 1}: goes on from the checkpoint of step {left}" in output
    assert_nothing_left(run, ray_nodes)
    assert_as_if_undisturbed(run, tmp_path)


def test_a_run_that_has_too_few_accelerators_waits_for_more_and_can_be_stopped(
    tmp_path: Path, ray_nodes: RayNodes
) -> None:
    run = open_run(tmp_path / "runs", fresh_id("waiting"))
    with start(tmp_path, ray_nodes, run, "nodes: {min: 2, max: 3}, accelerators: GPU:1") as process:
        wait_for(lambda: rows_of(run, 1, "waiting"), "the word that it waits", timeout=PATIENT)
        told = raylift("status", run.uri).stdout
        assert "PROVISIONING: waiting for 2 more workers: there is no room yet for the 2 that it needs at least" in told
        ray_nodes.add(gpus=1)
        second = ray_nodes.add(gpus=1)
        wait_for(lambda: rows_of(run, 1), "two ranks to train", timeout=PATIENT)
        second.take_away()
        waits = "RECOVERING: waiting for 1 more worker"  # for a moment it may be two, until the other rank has ended
        wait_for(lambda: waits in raylift("status", run.uri).stdout, "the word that it waits again", timeout=PATIENT)
        assert raylift("stop", run.uri).returncode == 0
        output, _ = process.communicate(timeout=PATIENT)
        assert process.returncode == 4, output
    assert [ranks for _, ranks in begun(run)] == [2]
    wait_for_nothing_left(run.id)
    wait_for(lambda: not ray_nodes.ranks(), "the end of the ranks", timeout=30)
