"""Whole runs on a GPU, on the real command line, with a real Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.runs import Run
from cluster.trials import trial_run
from launcher.verdict import compare
from tests.faults.screens import DIGITS, assert_ended, write_job
from tests.gpu.card import needs_gpu, occupied
from tests.harness import (
    ROOT,
    assert_nothing_left,
    environment,
    find_process,
    fresh_id,
    kill,
    open_run,
    raylift,
    start_raylift,
    wait_for,
)

pytestmark = [*needs_gpu, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(300)]

ONE_GPU = "cluster={provider: local, accelerators: 'GPU:1'}"
JOB = DIGITS.replace("workers: 2", "accelerators: 'GPU:1'")
LONG = JOB.replace("epochs: 3", "epochs: 40").replace("{name: cnn}", "{name: cnn, dropout: 0.3}")
SWEEP = """\
task: image-classification
data: {train: builtin:digits, eval: {split: 0.2}}
train: {epochs: 150, batch_size: 64, seed: 5, eval_every: 10 epochs}
tune:
  trials: 4
  search: random
  gpus_per_trial: 0.25
  space: {train.optimizer.lr: {loguniform: [1e-3, 1e-2]}}
cluster: {provider: local, accelerators: 'GPU:1'}
"""


def rows(run: Run, event: str) -> list[dict[str, Any]]:
    return [row for row in run.all_rows("events") if row["event"] == event]


def test_the_digits_example_reads_97_of_100_on_a_gpu(tmp_path: Path) -> None:
    run = open_run(tmp_path / "runs", fresh_id("digits"))
    example = ROOT / "examples" / "digits.yaml"
    done = raylift("run", example, "--id", run.id, "--storage", run.storage.uri, "--set", ONE_GPU)
    assert done.returncode == 0, done.stdout + done.stderr
    [began] = rows(run, "training")
    assert (began["device"], began["world_size"], began["precision"]) == ("cuda:0", 1, "bf16")
    result = run.result()
    assert result is not None
    assert result.metrics["eval_accuracy"] >= 0.97
    for checkpoint in run.checkpoints():
        run.verify(checkpoint)
    assert_nothing_left(run.id)


def test_a_killed_worker_on_a_gpu_makes_no_difference(tmp_path: Path) -> None:
    whole, run = (open_run(tmp_path / "runs", fresh_id(name)) for name in ("whole", "killed"))
    job = write_job(tmp_path, LONG)
    assert raylift("run", job, "--id", whole.id, "--storage", whole.storage.uri).returncode == 0
    with start_raylift("run", job, "--id", run.id, "--storage", run.storage.uri) as process:
        wait_for(lambda: run.attempts() and len(run.checkpoints()) > 1, "the second checkpoint")
        victim = find_process(run.id, "worker")
        assert victim is not None
        kill(victim)
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert len(run.attempts()) == 2
    assert {row["device"] for row in rows(run, "training")} == {"cuda:0"}
    assert compare(whole, run).equal, compare(whole, run)
    assert_nothing_left(run.id)


def test_the_example_goes_through_every_fault_on_a_gpu_and_is_equal(tmp_path: Path) -> None:
    faults = ("kill-worker", "kill-driver", "freeze-worker", "preempt")
    example = ROOT / "examples" / "digits.yaml"
    chosen = [f"--{fault}" for fault in faults]
    done = raylift("rehearse", example, *chosen, "--storage", tmp_path / "r", "--json", "--set", ONE_GPU)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert sorted(one["fault"] for one in told["faults"]) == sorted(faults)
    assert told["verdict"]["equal"] is told["passed"] is True
    assert told["verdict"]["tolerance"] > 0, "of a GPU"


def test_four_trials_share_a_gpu_at_once(tmp_path: Path) -> None:
    run = open_run(tmp_path / "runs", fresh_id("shared"))
    done = raylift("run", write_job(tmp_path, SWEEP), "--id", run.id, "--storage", run.storage.uri)
    assert done.returncode == 0, done.stdout + done.stderr
    trials = [trial_run(run, f"{number:05d}") for number in range(4)]
    assert [rows(trial, "training")[0]["device"] for trial in trials] == ["cuda:0"] * 4
    steps = [[row["time"] for row in trial.rows("metrics") if row["kind"] == "step"] for trial in trials]
    assert max(times[0] for times in steps) < min(times[-1] for times in steps), "all four trained at the same time"
    assert_nothing_left(run.id)


def test_trials_of_processors_leave_the_gpu_alone(tmp_path: Path) -> None:
    run = open_run(tmp_path / "runs", fresh_id("processors"))
    job = SWEEP.replace("accelerators: 'GPU:1'", "workers: 4").replace("epochs: 150", "epochs: 10")
    done = raylift("run", write_job(tmp_path, job), "--id", run.id, "--storage", run.storage.uri)
    assert done.returncode == 0, done.stdout + done.stderr
    for number in range(4):
        assert rows(trial_run(run, f"{number:05d}"), "training")[0]["device"] == "cpu"


def test_a_run_without_enough_gpu_memory_says_so_and_gives_up_after_three_tries(tmp_path: Path) -> None:
    run = open_run(tmp_path / "runs", fresh_id("memory"))
    large = JOB.replace("split: 0.2}}", "split: 0.2}, image_size: 128}").replace("batch_size: 64", "batch_size: 1438")
    job = write_job(tmp_path, large)
    with occupied(left=2_000_000_000):  # noqa: SIM117 - as long as the run lasts
        with start_raylift("run", job, "--id", run.id, "--storage", run.storage.uri) as process:
            output, _ = process.communicate(timeout=250)
    words = ("rank 0 ran out of GPU memory, at step 1: it held", "third time in a row after step 0")
    assert len(run.attempts()) == 3, output
    assert_ended(output[output.index("FAILED in") :], process.returncode, run, 1, "FAILED", *words)


def test_processes_that_stand_by_hold_nothing_of_the_gpu() -> None:
    """One that had begun to use CUDA would see other devices than Ray gives it later."""
    code = "import psutil; from trainers.spares import import_what_ranks_need as begin; begin(); " + (
        "print([one.path for one in psutil.Process().memory_maps()])"
    )
    for begin, expected in (("", False), ("import torch; torch.zeros(1).cuda(); ", True)):
        command = [sys.executable, "-P", "-c", begin + code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(), check=True)
        assert ("/dev/nvidia" in done.stdout) is expected
