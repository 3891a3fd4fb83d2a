"""Where the faults of a rehearsal are placed, and what they cost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cluster.errors import StorageError, UsageError
from cluster.storage import rehearsed
from cluster.storage.open import open_storage
from cluster.storage.rehearsed import OUTAGE, refuse_for
from launcher.rehearsal import Fault, Job, choose, place, time_lost
from tests.finished import new_run, training, write_rows
from tests.real.seaweedfs import SeaweedFS


def test_faults_are_spread_over_the_steps_in_their_order() -> None:
    faults = [Fault.KILL_WORKER, Fault.PREEMPT, Fault.KILL_DRIVER]
    assert place(faults, 60) == {15: Fault.KILL_WORKER, 30: Fault.PREEMPT, 45: Fault.KILL_DRIVER}


@pytest.mark.parametrize(("count", "last_step"), [(1, 2), (3, 4), (5, 6)])
def test_each_fault_has_a_step_of_its_own_before_the_last(count: int, last_step: int) -> None:
    placed = place(list(Fault)[:count], last_step)
    assert len(placed) == count
    assert 0 < min(placed) <= max(placed) < last_step


def test_more_faults_than_steps_are_refused() -> None:
    with pytest.raises(UsageError, match=r"5 faults need more steps than the 3 of this job: raise --steps"):
        place(list(Fault), 3)


def test_a_sweep_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("task: image-classification\ndata: {train: builtin:digits, eval: {split: 0.2}}\ntune: {}\n")
    with pytest.raises(UsageError, match="is a sweep: rehearse compares two runs of one training"):
        Job(str(file), [], str(tmp_path), 60).load()


def test_without_a_choice_all_faults_come_that_can() -> None:
    assert choose([], "s3://bucket/runs") == list(Fault)
    assert choose([], "/home/me/runs") == [fault for fault in Fault if fault is not Fault.STORAGE_503]
    assert choose([Fault.PREEMPT], "s3://bucket/runs") == [Fault.PREEMPT]


def test_a_folder_answers_no_503() -> None:
    with pytest.raises(UsageError, match="--storage-503 is for a bucket, and /home/me/runs is a folder"):
        choose([Fault.STORAGE_503], "/home/me/runs")


def test_the_time_lost_is_that_to_the_next_step_which_is_new(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    write_rows(run.claim(), "metrics", training(0, 10, begin=1000.0))  # a tenth of a second each
    write_rows(run.claim(), "metrics", training(8, 12, begin=1005.0))
    assert time_lost(run, 10, at=1001.0) == pytest.approx(4.3)
    assert time_lost(run, 12, at=1006.0) is None


@pytest.mark.parametrize("server", ["s3_env", "gcs_env"])
def test_a_rehearsed_outage_is_met_by_every_retry_and_ends_by_itself(
    server: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OUTAGE, str(tmp_path / "outage"))
    storage = open_storage(request.getfixturevalue(server).fresh_uri())
    storage.write("a", b"before")
    refuse_for(3.0, tmp_path / "outage")
    began = time.monotonic()
    assert storage.read("a") == b"before"
    assert 1.0 < time.monotonic() - began < 30.0
    assert not rehearsed.is_away()


def test_a_rehearsed_outage_that_outlasts_the_retries_is_an_error(
    s3_env: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OUTAGE, str(tmp_path / "outage"))
    monkeypatch.setattr("cluster.storage.s3_retries.ATTEMPTS", 2)
    storage = open_storage(s3_env.fresh_uri())
    storage.write("a", b"before")
    refuse_for(60.0, tmp_path / "outage")
    with pytest.raises(StorageError, match="SlowDown"):
        storage.read("a")


def test_without_a_rehearsal_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OUTAGE, raising=False)
    assert not rehearsed.is_away()
