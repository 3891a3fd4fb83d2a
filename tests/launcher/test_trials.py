"""A trial of a sweep, as people look at it while its sweep runs, and afterwards."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from cluster.attempts import Attempt
from cluster.errors import UsageError
from cluster.provider import State
from cluster.records import Result
from cluster.runs import Run
from cluster.trials import sweep_of, trial_run
from launcher import watch
from launcher.cli.rm import rm_command
from launcher.cli.stop import stop_command
from launcher.following import watch_only
from launcher.status import is_running, next_steps, summarize
from launcher.submit import relaunch
from tests.finished import DIGITS, new_run, training, write_rows
from tests.living import living
from tests.sweeps import STORY, elsewhere


def waits(number: int) -> dict[str, object]:
    return {"event": "trial.state", "time": 4.0, "trial": f"{number:05d}", "state": "WAITING"}


@pytest.fixture
def sweep(tmp_path: Path) -> Run:
    """A sweep whose trial 3 runs; 1 has succeeded, 0 was pruned, 2 has failed."""
    run = new_run(tmp_path, f"sweep-{secrets.token_hex(4)}", DIGITS + "tune: {trials: 8}\n")
    write_rows(run.claim(), "events", STORY, by="driver")
    return run


def begin(sweep: Run, number: int) -> tuple[Run, Attempt]:
    trial = trial_run(sweep, f"{number:05d}")
    trial.create(DIGITS.encode())
    return trial, trial.claim()


def test_a_trial_knows_its_sweep_and_a_run_in_a_storage_of_that_name_is_none(sweep: Run, tmp_path: Path) -> None:
    above = sweep_of(trial_run(sweep, "00003"))
    assert above is not None
    assert above.uri == sweep.uri
    assert sweep_of(new_run(tmp_path / "trials", "alone")) is None
    assert sweep_of(sweep) is None


def test_a_trial_that_trains_is_running_as_its_sweep_tells(sweep: Run) -> None:
    trial, attempt = begin(sweep, 3)
    write_rows(attempt, "metrics", training(0, 4, begin=1.0))
    with living(sweep.id):
        summary = summarize(trial)
        assert is_running(trial)
    assert (summary.state, summary.step, summary.trial_of) == (State.RUNNING, 4, sweep.uri)
    assert next_steps(summary) == []


def test_a_trial_that_waits_for_others_is_pending(sweep: Run) -> None:
    trial, _ = begin(sweep, 3)
    write_rows(Attempt.reopen(sweep, 1), "events", [waits(3)], by="late")
    with living(sweep.id):
        summary = summarize(trial)
    assert (summary.state, summary.reason, next_steps(summary)) == (State.PENDING, "it waits for others", [])


def test_a_trial_whose_end_its_sweep_knows_alone_has_ended(sweep: Run) -> None:
    trial, _ = begin(sweep, 0)
    with living(sweep.id):
        assert summarize(trial).state is State.PRUNED


def test_a_trial_that_stood_still_when_its_process_was_let_go_was_ended_by_the_scheduler(sweep: Run) -> None:
    for number in (0, 2, 3):
        begin(sweep, number)[1].finish(Result("STOPPED", "its sweep let go of it", 4, 10, {"eval_loss": 1}))
    trial, other = (trial_run(sweep, f"{number:05d}") for number in (0, 3))
    summary = summarize(trial)
    assert (summary.state, summary.exit_code, summary.step) == (State.PRUNED, 0, 10)
    assert next_steps(summary)[0] == f"export it: raylift export {trial.uri} DIR"
    assert summarize(other).state is State.STOPPED
    failed = summarize(trial_run(sweep, "00002"))
    assert (failed.state, failed.exit_code, failed.reason) == (State.FAILED, 1, STORY[-1]["message"])
    with living(sweep.id):
        assert (summarize(other).state, summarize(trial).state) == (State.RUNNING, State.PRUNED)
    with pytest.raises(UsageError, match="00000 was ended early by its sweep, which alone decides about its trials"):
        relaunch(trial)
    assert trial.attempts() == [1]


def test_a_trial_that_the_scheduler_ended_at_its_whole_length_has_succeeded(sweep: Run) -> None:
    for number in (1, 3):
        begin(sweep, number)[1].finish(Result("PRUNED", "the sweep's scheduler ended it, at step 10", 0, 10))
    with living(sweep.id):
        found = [summarize(trial_run(sweep, f"{number:05d}")) for number in (1, 3)]
    assert [(summary.state, summary.exit_code, summary.step) for summary in found] == [
        (State.SUCCEEDED, 0, 10),
        (State.PRUNED, 0, 10),
    ]


@pytest.mark.parametrize(
    ("cluster", "gpus", "where"),
    [("{provider: local}", True, "GPUs"), ("{provider: kubernetes, workers: 2, image: x}", False, "a cluster")],
)
def test_a_trial_does_not_go_on_by_itself_where_its_sweep_had_more_to_train_on(
    tmp_path: Path, cluster: str, gpus: bool, where: str
) -> None:
    sweep = new_run(tmp_path, f"sweep-{secrets.token_hex(4)}", f"{DIGITS}cluster: {cluster}\nstorage: s3://a/b\n")
    write_rows(sweep.claim(), "events", [{"event": "cluster", "ranks": 2, "gpus": gpus}, *STORY], by="driver")
    trial, _ = begin(sweep, 3)
    with pytest.raises(
        UsageError, match=f"a trial of a sweep on {where} goes on with that alone: raylift resume {sweep.uri}$"
    ):
        relaunch(trial)


def test_a_trial_whose_sweep_is_gone_is_stopped_and_goes_on_with_it(sweep: Run) -> None:
    trial, _ = begin(sweep, 3)
    summary = summarize(trial)
    assert (summary.state, summary.reason) == (State.STOPPED, "its sweep does not run: that is FAILED")
    assert next_steps(summary) == [f"go on:     raylift resume {sweep.uri}"]


def test_a_trial_of_a_sweep_on_another_machine_runs_as_far_as_storage_tells(sweep: Run) -> None:
    elsewhere(Attempt.reopen(sweep, 1))
    trial, attempt = begin(sweep, 3)
    elsewhere(attempt)
    summary = summarize(trial)
    assert (summary.state, summary.reason) == (
        State.RUNNING,
        "as far as storage tells: it runs on another-machine",
    )


def test_a_trial_that_was_resumed_alone_runs_by_its_own_processes(sweep: Run) -> None:
    trial, _ = begin(sweep, 10000 + secrets.randbelow(90000))  # no other test's
    with living(trial.id):
        assert summarize(trial).state is State.PROVISIONING


def test_a_trial_is_followed_for_as_long_as_its_sweep_runs(
    sweep: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "_GONE", 0.3)
    trial, attempt = begin(sweep, 3)

    def trains() -> None:
        time.sleep(1.5)
        write_rows(attempt, "metrics", training(0, 4, begin=1.0))
        attempt.finish(Result(state="PRUNED", message="ended by asha after epoch 1", step=4))

    with living(sweep.id):
        thread = threading.Thread(target=trains)
        thread.start()
        assert watch_only(trial) == 0
        thread.join()
    assert "PRUNED: ended by asha after epoch 1" in capsys.readouterr().out


COMMANDS: dict[str, Callable[[Run], object]] = {
    "resume": relaunch,
    "rm": lambda trial: rm_command(trial.uri, yes=True),
    "stop": lambda trial: stop_command(trial.uri),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_what_would_get_in_the_way_of_a_sweep_that_runs_is_refused(sweep: Run, name: str, place: str) -> None:
    trial, _ = begin(sweep, 3)
    if place == "elsewhere":
        elsewhere(Attempt.reopen(sweep, 1))
    with (
        living(sweep.id) if place == "here" else nullcontext(),
        pytest.raises(UsageError, match=rf"00003 is a trial of a sweep: .* Stop it first: raylift stop {sweep.uri}$"),
    ):
        COMMANDS[name](trial)
    assert trial.attempts() == [1]
    assert trial.stop_reason() is None


def test_a_trial_whose_sweep_is_gone_may_be_removed(sweep: Run) -> None:
    trial, _ = begin(sweep, 3)
    rm_command(trial.uri, yes=True)
    assert not Path(trial.uri).exists()
