"""Sweeps through lost trials, drivers and storage, and beside each other on one Ray.

RAYLIFT_TEST_OUTAGE=600 takes storage away for ten minutes.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from functools import partial
from pathlib import Path

import psutil
import pytest

from cluster.runs import Run
from cluster.storage.open import open_storage
from cluster.trials import trial_run
from tests.faults.test_sweeps import assert_went_on, results, write
from tests.harness import (
    assert_nothing_left,
    find_process,
    fresh_id,
    kill,
    open_run,
    raylift,
    start_raylift,
    wait_for,
)
from tests.real.ray_nodes import RayNodes
from tests.real.seaweedfs import SeaweedFS

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

AWAY = float(os.environ.get("RAYLIFT_TEST_OUTAGE", "60"))  # seconds
KILLS = 10


def trained_steps(run: Run, trial: str) -> list[int]:
    return [row["step"] for row in trial_run(run, trial).rows("metrics") if row["kind"] == "step"]


def states(run: Run) -> list[str]:
    sweep = json.loads(raylift("status", run.uri, "--json").stdout)["sweep"]
    return sorted(trial["state"] for trial in sweep["trials"])


def test_a_trial_that_freezes_and_is_killed_over_and_over_goes_on_each_time_where_it_was(tmp_path: Path) -> None:
    job = write(tmp_path, "  {search: grid, scheduler: none, space: {train.optimizer.lr: [0.001]}, trials: 40}\n")
    run_id = fresh_id("sweep")
    run = open_run(tmp_path, run_id)
    more = ("--set", f"train.epochs={40 * KILLS}", "--set", f"train.max_failures={KILLS}", "--set", "train.log_every=1")
    with start_raylift("run", job, "--storage", tmp_path, "--id", run_id, *more) as started:
        victim = trial_run(run, "00000")
        for attempt in range(1, KILLS + 1):
            wait_for(partial(has_saved, victim, attempt), f"a checkpoint of attempt {attempt}", timeout=120)
            process = psutil.Process(victim.claims()[-1].pid)
            process.kill() if attempt > 1 else process.suspend()  # which its watchdog notices
        output, _ = started.communicate(timeout=300)
    assert "1 of 1 trial done: 1 succeeded" in output, output  # forty were asked for: there is one point
    assert trained_steps(run, "00000") == list(range(1, 40 * KILLS * 6 + 1))
    assert assert_went_on(victim) == KILLS == len(victim.attempts()) - 1
    (ended,) = [row for row in victim.all_rows("events") if row["event"] == "rank.ended"]
    assert (ended["attempt"], ended["reason"]) == (1, "it froze: no sign of life for 8 s")


def has_saved(run: Run, attempt: int) -> bool:
    return attempt in run.attempts() and any(row["event"] == "checkpoint" for row in run.rows_of(attempt, "events"))


PHASES = [  # what is killed when a sweep has come to it
    ("claimed", "driver"),
    ("trial", "driver"),
    ("trial.result", "driver"),
    ("trial.result", "raylet"),
    ("trial.ended", "driver"),
    ("trial.ended", "gcs_server"),
]


def test_a_driver_or_a_ray_that_is_killed_in_each_phase_costs_no_trial(tmp_path: Path) -> None:
    job = write(tmp_path, "  {trials: 6, search: random, scheduler: none}\n")
    run_id = fresh_id("sweep")
    run = open_run(tmp_path, run_id)
    more = ("--set", "train.epochs=20", "--set", "train.max_failures=9", "--set", "train.log_every=1")
    with start_raylift("run", job, "--storage", tmp_path, "--id", run_id, *more) as started:
        for attempt, (phase, what) in enumerate(PHASES, start=1):
            wait_for(partial(has_come_to, run, attempt, phase), f"{phase} in attempt {attempt}", timeout=120)
            victim = find_process(run_id, what)
            assert victim is not None, f"there is no {what} to kill"
            kill(victim)
        output, _ = started.communicate(timeout=300)
    assert "6 of 6 trials done: 6 succeeded" in output, output
    ended = Counter(row["trial"] for row in run.all_rows("events") if row["event"] == "trial.ended")
    assert ended == Counter(f"{number:05d}" for number in range(6))
    for name in ended:
        assert trained_steps(run, name) == list(range(1, 20 * 6 + 1))
    assert sum(assert_went_on(trial_run(run, name)) for name in ended) >= 2
    begun = run.claims()[-1].at
    last = [claim.pid for name in ended for claim in trial_run(run, name).claims() if claim.at > begun]
    assert len({*last}) <= 2, "a process is kept for the next trial"
    assert_nothing_left(run_id)


def has_come_to(run: Run, attempt: int, event: str) -> bool:
    return attempt in run.attempts() and any(row["event"] == event for row in run.rows_of(attempt, "events"))


@pytest.mark.waiting
def test_a_minute_without_storage_costs_a_sweep_no_trial(tmp_path: Path, own_s3_env: SeaweedFS) -> None:
    job = write(tmp_path, "  {trials: 4, search: random, scheduler: none}\n")
    run = Run(open_storage(own_s3_env.fresh_uri()), fresh_id("sweep"))
    more = ("--set", "train.epochs=30", "--set", "train.log_every=1")
    begun = raylift("run", job, "--storage", run.storage.uri, "--id", run.id, *more, "--detach")
    assert begun.returncode == 0, begun.stderr
    wait_for(lambda: len(results(run)) > 5, "the first evaluations", timeout=300)
    own_s3_env.stop()
    time.sleep(AWAY)
    own_s3_env.start_again()
    result = wait_for(lambda: run.attempts() and run.result(), "the end", timeout=400)
    assert (result.state, states(run)) == ("SUCCEEDED", ["SUCCEEDED"] * 4), result.message
    for number in range(4):
        assert trained_steps(run, f"{number:05d}") == list(range(1, 30 * 6 + 1))


def test_two_sweeps_at_once_on_one_ray_of_two_nodes_do_not_meet(tmp_path: Path, ray_nodes: RayNodes) -> None:
    ray_nodes.add()
    space = "space: {train.optimizer.lr: [0.001, 0.01], train.seed: [1, 2]}"
    job = write(tmp_path, f"  {{search: grid, scheduler: none, {space}}}\n")
    there = ("--set", "cluster={provider: local, address: '" + ray_nodes.address + "'}")
    runs = [open_run(tmp_path, fresh_id(name)) for name in ("one", "two")]
    first, second = (start_raylift("run", job, "--storage", tmp_path, "--id", run.id, *there) for run in runs)
    with first, second:
        for process in (first, second):
            output, _ = process.communicate(timeout=600)
            assert "4 of 4 trials done: 4 succeeded" in output, output
    learnt = [{(row["trial"], row["iteration"]): row["metrics"]["eval_loss"] for row in results(run)} for run in runs]
    assert learnt[0] == learnt[1]
    assert len(learnt[0]) == 8


def test_a_trial_waits_for_its_workers_until_the_sweep_is_stopped(tmp_path: Path, ray_nodes: RayNodes) -> None:
    """Two workers and the trial's own process have three nodes; that of a worker goes."""
    nodes = [ray_nodes.add(), ray_nodes.add()]
    job = write(tmp_path, "  {search: grid, scheduler: none, workers_per_trial: 2, space: {train.seed: [5]}}\n")
    run = open_run(tmp_path, fresh_id("sweep"))
    there = ("--set", "cluster={provider: local, address: '" + ray_nodes.address + "'}")
    with start_raylift("run", job, "--storage", tmp_path, "--id", run.id, *there, "--set", "train.epochs=9000") as one:
        trial = trial_run(run, "00000")
        wait_for(partial(has_saved, trial, 1), "a checkpoint", timeout=300)
        own = trial.claims()[-1].pid
        next(node for node in nodes if own not in node.pids()).take_away()
        wait_for(lambda: 2 in trial.attempts(), "a second attempt", timeout=200)
        time.sleep(5)  # the ranks of a run would wait a minute
        assert raylift("stop", run.uri).returncode == 0
        output, _ = one.communicate(timeout=30)
    assert one.returncode == 4, output
    assert states(run) == ["STOPPED"]
    result = trial.result()
    assert result is not None
    assert result.message.endswith("; it waited for its workers")
