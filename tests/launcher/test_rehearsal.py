"""Where the faults of a rehearsal are placed, and what they cost."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.config import LocalCluster
from cluster.errors import StorageError, UsageError
from cluster.records import Result
from cluster.runs import Run
from cluster.storage import rehearsed
from cluster.storage.open import open_storage
from cluster.storage.rehearsed import OUTAGE, REHEARSAL, refuse_for
from launcher.cli.app import app
from launcher.rehearsal import Fault, Job, choose, how_it_ended, place, time_lost
from launcher.spec import LoadedJob
from launcher.watch import Update
from tests.finished import DIGITS, new_run, started, training, write_rows
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


@pytest.mark.parametrize(
    ("block", "workers", "price"),
    [
        ("{provider: local, address: '10.0.0.1:6379', workers: {min: 1, max: 3}}", 3, None),
        ("{provider: local, address: auto}", 1, None),
        ("{provider: kubernetes, accelerators: 'L4:4', nodes: 2, usd_per_hour: 9}", 4, 9),
    ],
)
def test_a_job_of_another_cluster_comes_to_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: str, workers: int, price: float | None
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    file = tmp_path / "job.yaml"
    file.write_text(f"{DIGITS}cluster: {block}\nstorage: s3://bucket/prefix\n")
    job = Job(str(file), [], None, 60)
    assert job.load("train.seed=5").spec.cluster == LocalCluster(workers=workers, usd_per_hour=price)
    assert f"workers: {workers}" in (job.moved() or "")


def test_a_job_of_this_machine_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(f"{DIGITS}cluster: {{provider: local, workers: 7}}\n")
    job = Job(str(file), [], str(tmp_path), 60)
    assert job.moved() is None
    assert job.load().spec.cluster == LocalCluster(workers=7)


@pytest.mark.parametrize("differs", [True, False])
def test_runs_that_differ_are_kept_and_end_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, differs: bool
) -> None:
    def run(_: LoadedJob, name: str, __: Callable[[str, Update], None]) -> Run:
        """Return a run that is over; one that is disturbed met its fault, and may have computed another loss."""
        made = new_run(tmp_path / "runs", name)
        attempt, rows = made.claim(), training(0, 8, begin=1000.0)
        if name == "disturbed":
            met = {"fault": "kill-worker", "step": 4, "at": 1000.4}
            (Path(os.environ[REHEARSAL]) / "4-kill-worker.json").write_text(json.dumps(met))
            rows[-3]["loss"] += 1e-9 * differs
        write_rows(attempt, "events", [started(0, at=1000.0, last_step=8)])
        write_rows(attempt, "metrics", rows)
        (tmp_path / "model").write_bytes(b"weights")
        attempt.commit(8, [tmp_path / "model"], {"metrics": {}})
        attempt.finish(Result(state="SUCCEEDED", step=8))
        return made

    monkeypatch.setattr("launcher.rehearsal._run", run)
    file = tmp_path / "job.yaml"
    file.write_text(f"{DIGITS}cluster: {{provider: local, address: auto}}\n")
    done = CliRunner().invoke(app, ["rehearse", str(file), "--kill-worker", "--storage", str(tmp_path / "runs")])
    runs = [tmp_path / "runs" / name for name in ("undisturbed", "disturbed")]
    assert done.exit_code == int(differs), done.output
    assert [run.exists() for run in runs] == [differs] * 2
    assert "note: a rehearsal runs on this machine, so as with --set 'cluster={provider: local" in done.stderr
    assert ("verdict: NOT EQUAL: step 8: loss is" in done.stdout) is differs
    for one in runs:
        assert (f"raylift report {one}" in done.stdout) is differs


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


@pytest.mark.parametrize(
    ("state", "saved", "said"),
    [
        ("SUCCEEDED", [4, 12], ""),
        ("FAILED", [4, 12], "it is FAILED: the last save was refused"),
        ("SUCCEEDED", [4], "its last step is 12, and the newest checkpoint that is intact is that of step 4"),
        ("SUCCEEDED", [], "its last step is 12, and the newest checkpoint that is intact is none"),
    ],
)
def test_a_run_that_was_disturbed_has_to_end_well_with_its_last_step_saved(
    tmp_path: Path, state: str, saved: list[int], said: str
) -> None:
    run = new_run(tmp_path)
    attempt = run.claim()
    write_rows(attempt, "events", [started(0, at=1.0, last_step=240)])  # it may end early
    write_rows(attempt, "metrics", training(1, 12, begin=1.0))
    (tmp_path / "model").write_bytes(b"weights")
    for step in saved:
        attempt.commit(step, [tmp_path / "model"], {"metrics": {}})
    is_well = state == "SUCCEEDED"
    attempt.finish(Result(state, "" if is_well else "the last save was refused", 0 if is_well else 3, 12))
    assert how_it_ended(run) == said
