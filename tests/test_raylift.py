"""Jobs that are made and followed in Python."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import raylift
from cluster.local import LocalProvider


def digits(storage: Path) -> raylift.JobSpec:
    return raylift.JobSpec(
        task="image-classification",
        data=raylift.Data(train="builtin:digits", eval=raylift.Split(split=0.2)),
        train=raylift.Train(epochs=None, max_steps=3),
        storage=str(storage),
    )


def test_a_job_made_in_python_whose_data_is_missing_makes_no_run(tmp_path: Path) -> None:
    job = digits(tmp_path / "runs").model_copy(update={"data": raylift.Data(train=str(tmp_path / "photos"))})
    with pytest.raises(raylift.RayliftError, match=r"data\.train.*photos does not exist"):
        raylift.run(job)
    assert not (tmp_path / "runs").exists()


def test_the_status_of_an_unknown_run_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(raylift.RayliftError, match=str(tmp_path)):
        raylift.status("digits-1", storage=str(tmp_path))


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_made_in_python_runs_to_its_end(tmp_path: Path) -> None:
    run = raylift.run(digits(tmp_path))
    deadline = time.monotonic() + 200
    try:
        while not (summary := raylift.status(run)).state.is_final and time.monotonic() < deadline:
            time.sleep(0.5)
    finally:
        LocalProvider().teardown(run.id)
    assert (summary.state, summary.step) == (raylift.State.SUCCEEDED, 3), summary.reason
