"""raylift rehearse: a job goes through every fault, and nothing is different."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import psutil
import pytest

from cluster.local import processes_of, scratch_folder
from cluster.runs import Run, list_runs
from cluster.storage.open import open_storage
from tests.faults.checker import assert_as_it_must_be
from tests.faults.screens import assert_refused, long_job, write_job
from tests.harness import (
    ROOT,
    assert_clean,
    assert_nothing_left,
    find_process,
    fresh_id,
    losses,
    open_run,
    raylift,
    start_raylift,
    wait_for,
)
from tests.real.seaweedfs import SeaweedFS

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

LONG = long_job("10 steps")


def test_the_example_goes_through_every_fault_and_is_equal(s3_env: SeaweedFS) -> None:
    uri = s3_env.fresh_uri()
    done = raylift("rehearse", ROOT / "examples" / "digits.yaml", "--storage", uri, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    for fault in ("kill-worker", "kill-driver", "freeze-worker", "preempt", "storage-503"):
        line = next(line for line in done.stdout.splitlines() if line.startswith(fault))
        assert "the next new step came after" in line
    assert "verdict: EQUAL: 60 steps, each on the same samples, all losses and metrics to the bit" in done.stdout
    assert list_runs(open_storage(uri)) == [], "what passed is taken away"


def test_chosen_faults_alone_come_and_programs_get_json(tmp_path: Path) -> None:
    job = write_job(tmp_path, LONG)
    done = raylift("rehearse", job, "--kill-worker", "--steps", "30", "--keep", "--storage", tmp_path / "r", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert [one["fault"] for one in told["faults"]] == ["kill-worker"]
    assert told["verdict"]["equal"] is told["passed"] is True
    assert told["faults"][0]["step"] == 15
    runs = list_runs(open_storage(str(tmp_path / "r")))
    assert len(runs) == 2
    for run in runs:
        assert_clean(run, done.stderr)


def test_a_fault_that_cannot_be_is_refused_before_anything_runs(tmp_path: Path) -> None:
    done = raylift("rehearse", write_job(tmp_path, LONG), "--storage-503", "--storage", tmp_path / "r")
    assert_refused(done, 2, "--storage-503 is for a bucket", "s3://")
    assert not (tmp_path / "r").exists()


# -- the same faults, as they come from outside


def test_a_frozen_rank_a_driver_that_is_to_end_and_a_machine_that_shuts_down_change_nothing(
    tmp_path: Path, undisturbed: Run
) -> None:
    run = open_run(tmp_path / "runs", fresh_id("outside"))
    job = write_job(tmp_path, LONG)
    with start_raylift("run", job, "--id", run.id, "--storage", run.storage.uri) as process:
        _once_it_has_saved(run, 1, "worker").send_signal(signal.SIGSTOP)
        frozen_at = time.time()
        driver = _once_it_has_saved(run, 2, "driver")
        assert min(row["time"] for row in run.rows_of(2, "metrics")) - frozen_at < 30
        driver.terminate()
        _once_it_has_saved(run, 3, "supervisor").terminate()
        output, _ = process.communicate(timeout=240)
        assert "was ended: it froze: no sign of life for 8 s" in output
        saved = next(row["step"] for row in run.rows_of(2, "events") if row["event"] == "preempted")
        assert f"preempted: the machine will be taken away; saved at step {saved}" in output
        base = run.claims()[2].base
        assert base is not None
        assert base.step == saved, "not a step is repeated"
        wait_for(lambda: not processes_of(scratch_folder(run.id)), "the end of its processes", timeout=60)
        told = raylift("status", run.uri).stdout
        assert "RECOVERING: preempted: its machine was taken away, all up to step" in told
        assert "raylift resume" in told
    resumed = raylift("resume", run.uri)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert len(run.attempts()) == 4
    assert losses(run) == losses(undisturbed)
    assert_nothing_left(run.id)
    assert_as_it_must_be(run, undisturbed, faults=4)  # with the resume
    assert_clean(run, output + resumed.stdout + resumed.stderr)


def _once_it_has_saved(run: Run, attempt: int, what: str) -> psutil.Process:
    """Wait for an attempt's first checkpoint, and return a process of the run."""

    def has_saved() -> bool:
        return bool(run.rows_of(attempt, "metrics")) and any(one.attempt == attempt for one in run.checkpoints())

    wait_for(has_saved, f"the first checkpoint of attempt {attempt}")
    process = find_process(run.id, what)
    assert process is not None, f"there is no {what}"
    return process
