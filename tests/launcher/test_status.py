"""Where a run stands, in every phase of its life."""

from __future__ import annotations

import dataclasses
import json
import secrets
from pathlib import Path

import pytest

from cluster.attempts import Attempt
from cluster.errors import RunNotFoundError
from cluster.local import UNRECORDED, scratch_folder
from cluster.provider import State
from cluster.records import Result
from cluster.runs import Run
from launcher.status import Summary, is_running, next_steps, summarize, tear_down
from tests.finished import new_run, save, started, training, write_rows, write_story
from tests.living import living, process_in, scratch_of


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path, f"status-{secrets.token_hex(4)}")


def state(run: Run) -> State:
    return summarize(run, brief=True).state


def move_elsewhere(attempt: Attempt) -> None:
    """Let an attempt have been claimed by another machine."""
    claim = {**dataclasses.asdict(attempt.claim), "host": "another-machine"}
    path = attempt.run.path(f"attempts/{attempt.number:06d}/claim.json")
    attempt.run.storage.write(path, json.dumps(claim).encode())


def test_a_run_that_nobody_started_is_pending(run: Run) -> None:
    summary = summarize(run)
    assert (summary.state, summary.attempt, summary.exit_code) == (State.PENDING, 0, None)
    assert "never started" in summary.reason
    assert "raylift resume" in next_steps(summary)[0]


def test_a_run_whose_driver_is_starting_is_provisioning(run: Run) -> None:
    with living(run.id):
        assert state(run) is State.PROVISIONING


def test_a_first_attempt_that_does_not_train_yet_is_provisioning(run: Run) -> None:
    run.claim()
    with living(run.id):
        assert state(run) is State.PROVISIONING


def test_a_run_that_trains_is_running(run: Run) -> None:
    write_rows(run.claim(), "events", [started(0, at=1.0)])
    with living(run.id):
        assert state(run) is State.RUNNING


def test_a_later_attempt_that_does_not_train_yet_is_recovering(run: Run) -> None:
    write_rows(run.claim(), "events", [started(0, at=1.0)])
    run.claim()
    with living(run.id):
        assert state(run) is State.RECOVERING


@pytest.mark.parametrize(
    ("attempts", "expected"), [(1, State.PROVISIONING), (2, State.RECOVERING)], ids=["at first", "later"]
)
def test_a_run_that_waits_for_workers_says_for_how_many(run: Run, attempts: int, expected: State) -> None:
    for _ in range(attempts):
        attempt = run.claim()
    write_rows(attempt, "events", [{"event": "waiting", "workers": 2, "least": 4}], by="driver")
    with living(run.id):
        summary = summarize(run)
        assert (summary.state, summary.reason.partition(":")[0]) == (expected, "waiting for 2 more workers")
        write_rows(attempt, "events", [{"event": "waited", "seconds": 9.0}], by="later")
        assert "waiting" not in summarize(run).reason


def test_the_number_of_ranks_is_the_newest(run: Run) -> None:
    write_rows(run.claim(), "events", [started(0, at=1.0)])
    assert summarize(run).ranks == 2
    write_rows(run.claim(), "events", [{**started(0, at=2.0), "world_size": 1}])
    assert summarize(run).ranks == 1


def test_a_run_of_another_machine_is_running_as_far_as_one_knows(run: Run) -> None:
    move_elsewhere(run.claim())
    summary = summarize(run)
    assert (summary.state, summary.host) == (State.RUNNING, "another-machine")
    assert "it runs on another-machine" in summary.reason


@pytest.mark.parametrize("brief", [True, False])
def test_a_run_whose_machine_was_taken_away_can_go_on_from_everywhere(run: Run, brief: bool) -> None:
    attempt = run.claim()
    move_elsewhere(attempt)
    write_rows(attempt, "events", [started(0, at=1.0), {"event": "preempted", "step": 40}])
    summary = summarize(run, brief=brief)
    told = "preempted: its machine was taken away, all up to step 40 is saved"
    assert (summary.state, summary.reason) == (State.RECOVERING, told)
    assert "raylift resume" in next_steps(summary)[0]
    move_elsewhere(run.claim())  # which somebody else has resumed
    assert state(run) is State.RUNNING


def test_a_run_whose_processes_are_gone_has_failed_and_can_go_on(run: Run) -> None:
    run.claim()
    summary = summarize(run)
    assert (summary.state, summary.reason) == (State.FAILED, "its processes are gone")
    assert "raylift resume" in next_steps(summary)[0]


def test_a_run_whose_processes_were_ended_by_a_wish_to_stop_is_stopped(run: Run) -> None:
    run.claim()
    run.request_stop("enough")
    summary = summarize(run)
    assert (summary.state, summary.reason) == (State.STOPPED, "enough")


def test_an_end_that_storage_would_not_take_is_told_by_the_machine(run: Run) -> None:
    run.claim()
    with scratch_of(run.id) as scratch:
        (scratch / UNRECORDED).write_text("the disk is full")
        summary = summarize(run)
    assert (summary.state, summary.reason) == (State.FAILED, "the disk is full")


@pytest.mark.parametrize(("name", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("FAILED", 3), ("STOPPED", 4)])
def test_a_result_is_the_runs_state(run: Run, name: str, code: int) -> None:
    run.claim().finish(Result(state=name, message="so it ended", exit_code=code, step=7, metrics={"loss": 0.5}))
    summary = summarize(run)
    assert (summary.state, summary.reason, summary.exit_code) == (State(name), "so it ended", code)
    assert (summary.step, summary.metrics) == (7, {"loss": 0.5})
    assert summary.state.is_final


def test_a_result_of_an_older_attempt_does_not_end_the_run(run: Run) -> None:
    run.claim().finish(Result(state="STOPPED", exit_code=4))
    write_rows(run.claim(), "events", [started(0, at=1.0)])
    with living(run.id):
        assert state(run) is State.RUNNING


def test_a_summary_tells_how_far_training_came(run: Run, tmp_path: Path) -> None:
    attempt = run.claim()
    write_rows(attempt, "events", [started(0, at=1.0)])
    write_rows(attempt, "metrics", training(0, 6, begin=1.0))
    (tmp_path / "weights").write_bytes(b"weights")
    save(attempt, 4, [tmp_path / "weights"])
    with living(run.id):
        summary = summarize(run)
    assert (summary.step, summary.last_step, summary.epoch) == (6, 12, 2)
    assert (summary.loss, summary.samples_per_s) == (2 / 6, 640.0)
    assert summary.metrics == {"eval_loss": 2.5 / 4, "eval_accuracy": 0.75}
    assert summary.checkpoints == (4,)


def test_a_run_that_failed_is_as_far_as_its_last_step(run: Run) -> None:
    attempt = run.claim()
    write_rows(attempt, "metrics", training(0, 6, begin=1.0))
    attempt.finish(Result(state="FAILED", message="out of luck", exit_code=1))
    assert summarize(run).step == 6


def test_a_finished_run_tells_of_its_restarts_and_its_data(tmp_path: Path) -> None:
    summary = summarize(write_story(tmp_path))
    assert (summary.state, summary.restarts, summary.attempt) == (State.SUCCEEDED, 1, 2)
    assert summary.data["classes"] == ["cat", "dog"]
    assert summary.checkpoints == (8, 12)


def test_a_summary_is_plain_json(tmp_path: Path) -> None:
    told = json.loads(json.dumps(summarize(write_story(tmp_path)).as_dict()))
    assert set(told) == {field.name for field in dataclasses.fields(Summary)}
    assert told["state"] == "SUCCEEDED"


def test_a_run_that_is_not_there_is_not_found(run: Run) -> None:
    with pytest.raises(RunNotFoundError):
        summarize(Run(run.storage, "none"))


def test_a_run_of_the_same_id_in_another_storage_is_another_run(run: Run, tmp_path: Path) -> None:
    other = new_run(tmp_path / "other", run.id)
    with living(run.id) as process:
        (scratch_folder(run.id) / "launch.json").write_text(json.dumps({"run_uri": run.uri}))
        assert (is_running(run), is_running(other)) == (True, False)
        assert not tear_down(other).removed
        assert process.poll() is None


def test_a_process_that_only_works_in_the_folder_is_no_run(run: Run) -> None:
    with scratch_of(run.id) as scratch, process_in(scratch, "a shell"):
        assert not is_running(run)
