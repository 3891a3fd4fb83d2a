"""Every search and scheduler on a real Ray, and a sweep that another machine takes over from a bucket alone."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from cluster.local import ray_folder, scratch_folder
from cluster.runs import Run
from cluster.storage.open import open_storage
from cluster.trials import read_trials, trial_run
from tests.faults.test_sweeps import assert_went_on, copies, has_results, kill_everything, states, write
from tests.harness import assert_nothing_left, fresh_id, open_run, raylift, start_raylift, wait_for
from tests.needs import long
from tests.real.seaweedfs import SeaweedFS

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

RATES = "space: {train.optimizer.lr: {loguniform: [1.0e-5, 0.1]}}"


def rates(run: Run) -> list[float]:
    return [trial.point["train.optimizer.lr"] for trial in read_trials(run.all_rows("events"))]


@pytest.mark.parametrize(("search", "trials"), [("gp", 13)])  # it draws its first ten
def test_a_search_suggests_what_trials_train_with(tmp_path: Path, search: str, trials: int) -> None:
    run = open_run(tmp_path, fresh_id(search))
    job = write(tmp_path, f"  {{trials: {trials}, search: {{name: {search}, seed: 3}}, scheduler: none, {RATES}}}\n")
    done = raylift("run", job, "--id", run.id, "--storage", tmp_path, "--set", "train.epochs=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(run) == ["SUCCEEDED"] * trials
    assert len(set(rates(run))) == trials
    assert all(1e-5 <= rate <= 0.1 for rate in rates(run))
    assert_nothing_left(run.id)


def test_trials_below_the_median_of_the_others_end_early(tmp_path: Path) -> None:
    run = open_run(tmp_path, fresh_id("median"))
    scheduler = "{name: median, grace_period: 2, min_samples_required: 2}"
    grid = "space: {train.optimizer.lr: [5.0e-3, 1.0e-2, 1.0e-6, 1.0e-7]}"
    job = write(tmp_path, f"  {{search: grid, scheduler: {scheduler}, {grid}}}\n")
    one_by_one = ("--set", "train.epochs=6", "--set", "cluster.workers=1")
    done = raylift("run", job, "--id", run.id, "--storage", tmp_path, *one_by_one)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(run) == ["SUCCEEDED", "SUCCEEDED", "PRUNED", "PRUNED"]
    assert_nothing_left(run.id)


@long
def test_a_population_whose_trials_wait_for_each_other_copies_its_best(tmp_path: Path) -> None:
    run = open_run(tmp_path, fresh_id("synch"))
    scheduler = "{name: pbt, perturbation_interval: 2, synch: true}"
    job = write(tmp_path, f"  {{trials: 4, search: random, scheduler: {scheduler}, {RATES}}}\n")
    done = raylift("run", job, "--id", run.id, "--storage", tmp_path, "--set", "train.epochs=6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(run) == ["SUCCEEDED"] * 4
    assert copies(run)
    assert_nothing_left(run.id)


def test_a_sweep_with_repeats_goes_on_from_a_bucket_alone(tmp_path: Path, s3_env: SeaweedFS) -> None:
    """Another machine has nothing of what the first one had on its disk."""
    run = Run(open_storage(s3_env.fresh_uri()), fresh_id("bucket"))
    job = write(tmp_path, f"  {{trials: 4, repeats: 2, search: {{name: tpe, seed: 5}}, scheduler: none, {RATES}}}\n")
    long = ("--set", "train.epochs=12")
    with start_raylift("run", job, "--id", run.id, "--storage", run.storage.uri, *long):
        wait_for(partial(has_results, run, 30), "some of the evaluations", timeout=300)
        kill_everything(run.id)
    before = read_trials(run.all_rows("events"))
    for folder in (scratch_folder(run.id), ray_folder(scratch_folder(run.id))):
        shutil.rmtree(folder, ignore_errors=True)
    done = raylift("resume", run.uri)
    assert done.returncode == 0, done.stdout + done.stderr
    after = read_trials(run.all_rows("events"))
    assert [trial.state for trial in after] == ["SUCCEEDED"] * 8
    assert sum(assert_went_on(trial_run(run, trial.id)) for trial in after)
    assert [(trial.number, trial.repeat) for trial in after] == [(point, seed) for point in range(4) for seed in (0, 1)]
    assert [trial.point for trial in after[: len(before)]] == [trial.point for trial in before]
    assert all(len({trial.point["train.optimizer.lr"] for trial in after if trial.number == n}) == 1 for n in range(4))
    assert len(set(rates(run))) == 4
    assert_nothing_left(run.id)
