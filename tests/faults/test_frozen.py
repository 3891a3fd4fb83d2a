"""What of Ray is stopped by a signal, alive and deaf: it is ended, and the run goes on as if it had not been."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from cluster.runs import Run
from tests.faults.screens import long_job, write_job
from tests.finished import train
from tests.harness import (
    assert_clean,
    assert_nothing_left,
    find_process,
    fresh_id,
    losses,
    open_run,
    start_raylift,
    wait_for,
)

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.waiting, pytest.mark.timeout(600)]

FROZEN = {  # in this order, and what is said of each
    "controller": "the process of Ray Train that looks after the ranks died",
    "raylet": "the raylet froze, and was ended",
    "gcs_server": "the gcs_server froze, and was ended",
}

JOB = long_job("7 steps").replace("epochs: 24", "epochs: 96")  # ranks go on training until a freeze is noticed


def test_a_run_goes_on_by_itself_whatever_of_ray_is_stopped_by_a_signal(tmp_path: Path) -> None:
    undisturbed = train(tmp_path / "undisturbed", JOB, ranks=2)
    run = open_run(tmp_path / "runs", fresh_id("frozen"))
    job = write_job(tmp_path, JOB)
    with start_raylift("run", job, "--id", run.id, "--storage", run.storage.uri) as process:
        for attempt, what in enumerate(FROZEN, start=1):
            wait_for(partial(_has_saved, run, attempt), f"a checkpoint of attempt {attempt}", timeout=240)
            victim = find_process(run.id, what)
            assert victim is not None
            victim.suspend()
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    told = {row["attempt"]: row["reason"] for row in run.rows("events") if row["event"] == "recovering"}
    assert told == dict(enumerate(FROZEN.values(), start=1))
    assert losses(run) == losses(undisturbed), output
    assert_nothing_left(run.id)
    assert_clean(run, output)


def _has_saved(run: Run, attempt: int) -> bool:
    """Whether an attempt has saved, which is soon after its first steps."""
    return attempt in run.attempts() and any(row["event"] == "checkpoint" for row in run.rows_of(attempt, "events"))
