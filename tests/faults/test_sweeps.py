"""Whole sweeps on the real command line, through what may happen to them."""

from __future__ import annotations

import json
import re
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.local import processes_of, scratch_folder
from cluster.records import Base, Origin
from cluster.runs import Run
from cluster.trials import read_trials, trial_run
from launcher.status import summarize
from tests.harness import (
    ROOT,
    assert_nothing_left,
    find_process,
    fresh_id,
    kill,
    losses,
    open_run,
    raylift,
    start_raylift,
    wait_for,
)
from tests.needs import long

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

EXAMPLE = ROOT / "examples" / "digits-sweep.yaml"
JOB = """\
name: sweep
task: image-classification
data: {train: builtin:digits, eval: {split: 0.2}}
train: {epochs: 2, batch_size: 256, max_failures: 1}
cluster: {workers: 2}
tune:
"""


def results(run: Run) -> list[dict[str, Any]]:
    return [row for row in run.all_rows("events") if row["event"] == "trial.result"] if run.attempts() else []


def has_results(run: Run, count: int) -> bool:
    return len(results(run)) >= count


def has_attempts(run: Run, count: int) -> bool:
    return len(run.attempts()) >= count


def copies(run: Run) -> list[dict[str, Any]]:
    return [row for row in run.all_rows("events") if row["event"] == "trial.copied"] if run.attempts() else []


def states(run: Run) -> list[str]:
    return [trial.state for trial in read_trials(run.all_rows("events"))] if run.attempts() else []


def evaluations(run: Run) -> list[dict[str, Any]]:
    return [row for row in run.rows("metrics") if row["kind"] == "eval"]


def assert_went_on(trial: Run) -> int:
    """Look at where each attempt of a trial started, and return how many did from a checkpoint of the one before.

    That has to be the newest that the one before had, unless another trial's was copied.
    """
    went_on = 0
    for before, after in pairwise(trial.claims()):
        newest = max((found.step for found in trial.checkpoints_of(before.attempt)), default=None)
        if after.origin is None:
            expected = Base(before.attempt, newest) if newest is not None else before.base
            assert after.base == expected, f"attempt {after.attempt} of {trial.uri}"
            went_on += newest is not None
    return went_on


def kill_everything(run_id: str) -> None:
    """Kill the supervisor, the driver, Ray and the trials."""
    for _ in range(2):  # the supervisor may have started something meanwhile
        for process in processes_of(scratch_folder(run_id)):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


def write(folder: Path, tune: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(JOB + tune)
    return path


def test_the_digits_sweep_survives_two_kills_of_everything_and_one_of_its_driver(tmp_path: Path) -> None:
    run_id = fresh_id("sweep")
    run = open_run(tmp_path, run_id)
    with start_raylift("run", EXAMPLE, "--storage", tmp_path, "--id", run_id):
        wait_for(partial(has_results, run, 5), "the first evaluations", timeout=300)
        kill_everything(run_id)
    for wanted in (20, 35):
        with start_raylift("resume", run_id, "--storage", tmp_path) as resumed:
            wait_for(partial(has_results, run, wanted), "more evaluations", timeout=300)
            if wanted == 20:
                kill_everything(run_id)
                continue
            driver = find_process(run_id, "driver")
            assert driver is not None
            kill(driver)
            output, _ = resumed.communicate(timeout=500)
    assert "16 of 16 trials done" in output, output
    assert sum(assert_went_on(trial_run(run, f"{number:05d}")) for number in range(16))
    sweep = json.loads(raylift("status", run_id, "--storage", tmp_path, "--json").stdout)["sweep"]
    assert re.search(rf"^{sweep['best']}\* +(SUCCEEDED|PRUNED) ", output, re.MULTILINE), output
    ended = [row["trial"] for row in run.all_rows("events") if row["event"] == "trial.ended"]
    assert sorted(ended) == [f"{number:05d}" for number in range(16)]  # each once: none was trained again
    for name in ended:
        rows = [row["step"] for row in trial_run(run, name).rows("metrics") if row["kind"] == "step"]
        assert rows == list(range(1, len(rows) + 1))  # nothing skipped, nothing counted twice
    exported = raylift("export", run_id, tmp_path / "model", "--storage", tmp_path, "--json")
    assert json.loads(exported.stdout)["metrics"]["eval_accuracy"] >= 0.975
    assert json.loads(exported.stdout)["run"].endswith(f"trials/{sweep['best']}")
    assert_nothing_left(run_id)


def test_trials_that_diverge_are_recorded_and_the_sweep_goes_on_to_its_best(tmp_path: Path) -> None:
    job = write(
        tmp_path, "  {search: grid, space: {train.optimizer: [{name: sgd, lr: 1e30}, {name: adamw, lr: 5e-3}]}}\n"
    )
    run_id = fresh_id("sweep")
    done = raylift("run", job, "--storage", tmp_path, "--id", run_id)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trial 00000 failed: training diverged: " in done.stdout
    assert "2 of 2 trials done: 1 succeeded, 1 failed" in done.stdout


def test_where_every_trial_fails_the_first_cause_is_the_message(tmp_path: Path) -> None:
    job = write(
        tmp_path, "  {search: grid, space: {train.optimizer: [{name: sgd, lr: 1e30}, {name: sgd, lr: 1e32}]}}\n"
    )
    done = raylift("run", job, "--storage", tmp_path, "--id", fresh_id("sweep"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no trial of 2 succeeded; the first, 00000: training diverged: " in done.stdout


def test_a_trial_that_is_killed_too_often_fails_and_the_sweep_ends_with_the_others(tmp_path: Path) -> None:
    """Two kills are one more than the trial's `max_failures`; the other goes on."""
    space = "train.epochs: {grid: [1000, 1]}, train.eval_every: [40 epochs]"
    job = write(tmp_path, f"  {{search: grid, scheduler: none, space: {{{space}}}}}\n")
    run_id = fresh_id("sweep")
    run = open_run(tmp_path, run_id)
    with start_raylift("run", job, "--storage", tmp_path, "--id", run_id) as started:
        victim = trial_run(run, "00000")
        for attempt in (1, 2):
            wait_for(partial(has_attempts, victim, attempt), "the trial", timeout=300)
            wait_for(lambda: victim.rows("events"), "its training")
            time.sleep(1)
            psutil.Process(victim.claims()[-1].pid).kill()
        output, _ = started.communicate(timeout=300)
    assert "2 of 2 trials done: 1 succeeded, 1 failed" in output, output


def test_a_sweep_that_is_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    job = write(tmp_path, "  {trials: 3, scheduler: none}\n")
    run_id = fresh_id("sweep")
    run = open_run(tmp_path, run_id)
    with start_raylift(
        "run", job, "--storage", tmp_path, "--id", run_id, "--set", "train.epochs=300", "--set", "train.log_every=100"
    ) as started:
        (first, *_) = wait_for(lambda: results(run), "an evaluation", timeout=300)
        trial = raylift("status", trial_run(run, first["trial"]).uri, "--json")
        assert json.loads(trial.stdout)["state"] == "RUNNING"
        assert raylift("stop", run_id, "--storage", tmp_path).returncode == 0
        output, _ = started.communicate(timeout=120)
    assert started.returncode == 4, output
    assert "3 trials are left to do" in output
    assert {row["state"] for row in run.all_rows("events") if row["event"] == "trial.ended"} == {"STOPPED"}
    assert trial_run(run, "00000").checkpoints()
    assert_nothing_left(run_id)


POPULATION = """  trials: 4
  search: random
  scheduler: {name: pbt, perturbation_interval: 2}
  space: {train.optimizer.lr: {loguniform: [1.0e-5, 0.1]}, data.augment.rotate: [0, 5, 10]}
"""


def test_a_population_goes_on_from_the_weights_of_its_best_through_a_kill_of_everything(tmp_path: Path) -> None:
    job = write(tmp_path, POPULATION)
    run_id = fresh_id("sweep")
    run = open_run(tmp_path, run_id)
    long = ("--set", "train.epochs=10", "--set", "checkpoint.keep=100")
    with start_raylift("run", job, "--storage", tmp_path, "--id", run_id, *long):
        wait_for(lambda: copies(run), "the first copy", timeout=300)
        kill_everything(run_id)
    done = raylift("resume", run_id, "--storage", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 trials done: 4 succeeded" in done.stdout
    for number in range(4):
        assert_went_on(trial_run(run, f"{number:05d}"))
    taken = 0
    for row in copies(run):
        copy, origin = trial_run(run, row["trial"]), Origin(**row["origin"])
        for claim in [claim for claim in copy.claims() if claim.origin == origin]:
            taken += 1
            original = trial_run(run, origin.run).checkpoint_at(origin.attempt, origin.step)
            adopted = copy.checkpoint_at(claim.attempt, origin.step)
            assert adopted.files["model.safetensors"] == original.files["model.safetensors"]
    assert taken
    last = {row["trial"]: row["point"] for row in copies(run)}
    (best,) = [row for row in copies(run) if row["trial"] == list(last)[-1]][-1:]
    rates = [row["lr"] for row in trial_run(run, best["trial"]).rows("metrics") if row["kind"] == "step"]
    assert best["point"]["train.optimizer.lr"] in rates


def test_hyperband_lets_trials_wait_and_ends_each_once_through_a_kill_of_everything(tmp_path: Path) -> None:
    space = "train.optimizer.lr: {loguniform: [1.0e-5, 0.1]}"
    scheduler = "{name: hyperband, reduction_factor: 3}"
    job = write(tmp_path, f"  {{trials: 9, search: random, scheduler: {scheduler}, space: {{{space}}}}}\n")
    run_id = fresh_id("sweep")
    run = open_run(tmp_path, run_id)
    with start_raylift("run", job, "--storage", tmp_path, "--id", run_id, "--set", "train.epochs=9"):
        wait_for(partial(has_results, run, 25), "the first evaluations", timeout=300)
        kill_everything(run_id)
    done = raylift("resume", run_id, "--storage", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 of 9 trials done: " in done.stdout
    ended = [row["trial"] for row in run.all_rows("events") if row["event"] == "trial.ended"]
    assert sorted(ended) == [f"{number:05d}" for number in range(9)]
    assert sum(assert_went_on(trial_run(run, name)) for name in ended)
    assert None not in [trial_run(run, name).result() for name in ended]
    told = {summarize(trial_run(run, name)).state for name in ended}  # the last one's own folder may say STOPPED
    assert told == {"SUCCEEDED", "PRUNED"}


@long
def test_a_stop_ends_no_trial_that_hyperband_let_wait(tmp_path: Path) -> None:
    space = "train.optimizer.lr: {loguniform: [1.0e-5, 0.1]}"
    scheduler = "{name: hyperband, max_t: 9}"
    job = write(tmp_path, f"  {{trials: 6, search: random, scheduler: {scheduler}, space: {{{space}}}}}\n")
    run_id = fresh_id("sweep")
    run = open_run(tmp_path, run_id)
    long = ("--set", "train.epochs=90", "--set", "train.eval_every=10 epochs", "--set", "train.log_every=100")
    with start_raylift("run", job, "--storage", tmp_path, "--id", run_id, *long) as started:
        wait_for(lambda: "WAITING" in states(run), "a trial that waits", timeout=300)
        assert raylift("stop", run_id, "--storage", tmp_path).returncode == 0
        output, _ = started.communicate(timeout=120)
    assert started.returncode == 4, output
    assert set(states(run)) <= {"STOPPED", "SUCCEEDED"}
    done = raylift("resume", run_id, "--storage", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 of 6 trials done" in done.stdout


def test_trials_of_several_workers_train_as_runs_do_and_go_on_where_a_worker_or_their_own_process_is_lost(
    tmp_path: Path,
) -> None:
    job = write(tmp_path, "  {search: grid, scheduler: none, workers_per_trial: 2, space: {train.seed: [5, 6]}}\n")
    more = ("--set", "train.epochs=15", "--set", "train.log_every=1")
    run_id = fresh_id("sweep")
    run = open_run(tmp_path, run_id)
    with start_raylift("run", job, "--storage", tmp_path, "--id", run_id, *more) as started:
        trial = trial_run(run, "00000")
        wait_for(lambda: len(evaluations(trial)) > 3, "evaluations of its first trial", timeout=300)
        rank = find_process(run_id, "worker")
        assert rank is not None
        kill(rank)
        second = trial_run(run, "00001")
        wait_for(lambda: len(evaluations(second)) > 3, "evaluations of its second trial", timeout=300)
        kill(psutil.Process(second.claims()[-1].pid))
        output, _ = started.communicate(timeout=400)
    assert "2 of 2 trials done: 2 succeeded" in output, output
    assert [len(each.attempts()) for each in (trial, second)] == [2, 2]
    alone = tmp_path / "alone.yaml"
    alone.write_text(JOB.removesuffix("tune:\n"))
    done = raylift("run", alone, "--storage", tmp_path, "--id", "alone", "--set", "train.seed=5", *more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(trial) == losses(open_run(tmp_path, "alone"))
    assert [row["iteration"] for row in results(run) if row["trial"] == "00000"] == list(range(1, 16))
    assert_nothing_left(run_id)


def test_a_sweep_whose_budget_is_used_up_stops_and_a_resume_gives_it_as_much_again(tmp_path: Path) -> None:
    job = write(tmp_path, "  {trials: 2, scheduler: none}\nbudget: {max_hours: 0.0125}\n")
    run_id = fresh_id("sweep")
    run = open_run(tmp_path, run_id)
    long = ("--set", "train.epochs=2000", "--set", "train.log_every=100", "--set", "checkpoint.every=1000 epochs")
    done = raylift("run", job, "--storage", tmp_path, "--id", run_id, *long)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "budget.max_hours, which is 0.0125, is used up; 2 trials are left to do" in done.stdout
    steps = [checkpoint.step for checkpoint in trial_run(run, "00000").checkpoints()]
    done = raylift("resume", run_id, "--storage", tmp_path)
    assert done.returncode == 4, done.stdout + done.stderr
    assert trial_run(run, "00000").checkpoints()[-1].step > steps[-1]
    spent = [row["time"] for row in run.all_rows("events") if row["event"] in ("claimed", "budget.spent")]
    assert spent[1] - spent[0] >= 45
    assert spent[3] - spent[2] >= 45
