"""A run that lost a rank before has processes ready for the next time."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from cluster.local import processes_of, scratch_folder
from cluster.runs import Run
from tests.faults.screens import DIGITS, write_job
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

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

JOB = DIGITS.replace("epochs: 3", "epochs: 500")


def test_the_ranks_of_a_later_attempt_are_spares_of_the_one_before_under_the_same_controller(tmp_path: Path) -> None:
    run = open_run(tmp_path / "runs", fresh_id("spares"))
    with start_raylift("run", write_job(tmp_path, JOB), "--id", run.id, "--storage", run.storage.uri):
        _wait_for_training(run, 1)
        assert not _named(run, "ray::IDLE"), "Ray has taken the processes that were started for the first ranks"
        controller = _named(run, "TrainController")
        at = time.time()
        _kill_a_rank(run)
        _wait_for_training(run, 2)
        noticed = next(row["time"] for row in run.rows_of(1, "events") if row["event"] == "recovering")
        assert noticed - at < 20, "a second or two on a quiet machine"
        spares = wait_for(lambda: idle if len(idle := _named(run, "ray::IDLE")) == 2 else None, "two spares")
        _kill_a_rank(run)
        _wait_for_training(run, 3)
        assert _named(run, "RayTrainWorker") == spares
        assert _named(run, "TrainController") == controller
        assert raylift("stop", run.uri, "--now").returncode in (0, 4)
    wait_for(lambda: not processes_of(scratch_folder(run.id)), "the end of the run")
    assert_nothing_left(run.id)


def _wait_for_training(run: Run, attempt: int) -> None:
    wait_for(lambda: attempt in run.attempts() and run.rows_of(attempt, "metrics"), f"a step of attempt {attempt}")


def _kill_a_rank(run: Run) -> None:
    victim = find_process(run.id, "worker")
    assert victim is not None
    kill(victim)


def _named(run: Run, name: str) -> set[int]:
    found = set()
    for process in processes_of(scratch_folder(run.id)):
        try:
            if name in " ".join(process.cmdline()[:1]):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found
