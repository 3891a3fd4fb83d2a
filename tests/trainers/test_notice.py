"""The notice that a machine will be taken away: whom it comes from, and what a run makes of it."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray._private.state import state
from ray.exceptions import RaySystemError

from cluster.attempts import Attempt
from cluster.errors import PreemptedError
from cluster.records import Notice
from cluster.runs import Run
from tests.harness import environment, losses, wait_for
from tests.hooked import hooked
from tests.stand_ins.metadata import Metadata, in_seconds
from tests.trainers.given import Given
from tests.trainers.training import EVERYTHING, Change, events, start, train
from trainers import backend, notice
from trainers.checkpoint import Checkpointer
from trainers.context import LocalContext, StopReason
from trainers.control import Control

LONG: Change = {"train": {"epochs": 40, "eval_every": "120 steps"}, "checkpoint": {"every": "1000 epochs"}}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notice, "_POLL", 0.05)


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_the_word_of_a_cloud_is_a_notice(
    cloud: str, metadata: Metadata, given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in metadata.env(cloud).items():
        monkeypatch.setenv(name, value)
    metadata.failures = metadata.broken = 2
    closed = threading.Event()
    notice.ask(closed)
    wait_for(lambda: metadata.failures == metadata.broken == 0, "the service to be asked")
    assert not given.wait(0.3)
    metadata.preempted = True
    assert given.wait(10)
    assert notice.is_given()
    assert notice.left() == pytest.approx({"aws": 120, "gcp": 30}[cloud], abs=3)
    closed.set()


@pytest.mark.parametrize(
    ("at", "seconds"),
    [
        (45, 45),
        (-5, 1),  # the clock of this machine is wrong
        (3600, 120),
        ("soon", math.inf),
    ],
)
def test_aws_tells_when_it_takes_the_machine(
    metadata: Metadata, given: Given, monkeypatch: pytest.MonkeyPatch, at: float | str, seconds: float
) -> None:
    for name, value in metadata.env("aws").items():
        monkeypatch.setenv(name, value)
    metadata.preempted, metadata.time = True, at if isinstance(at, str) else in_seconds(at)
    assert notice.look()
    assert notice.left() == pytest.approx(seconds, abs=3)
    assert given.is_set()


def test_of_several_deadlines_the_earliest_counts(given: Given) -> None:
    assert notice.left() == math.inf
    for seconds in (math.inf, 50.0, 20.0, 90.0):
        notice.give(seconds)
    assert notice.left() == pytest.approx(20, abs=1)
    assert given.is_set()


@pytest.mark.parametrize(("deadline", "seconds"), [(None, None), (0, math.inf), (20_000, 20)])
def test_ray_tells_when_it_takes_a_node(
    monkeypatch: pytest.MonkeyPatch, deadline: int | None, seconds: float | None
) -> None:
    now = int(time.time() * 1000)
    draining = {"other": now} if deadline is None else {"own": now + deadline if deadline else 0}
    monkeypatch.setattr(state, "get_draining_nodes", lambda: draining)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "own"))
    assert backend.seconds_until_drained() == (seconds if seconds is None else pytest.approx(seconds, abs=1))


def test_a_cloud_can_be_asked_at_once(metadata: Metadata, given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not notice.look()
    for name, value in metadata.env("gcp").items():
        monkeypatch.setenv(name, value)
    assert not notice.look()
    metadata.preempted, metadata.failures, metadata.broken = True, 1, 1
    assert not notice.look(), "its answer is none"
    assert not notice.look(), "the service is busy"
    assert notice.look()
    assert given.is_set()


def test_a_ray_that_does_not_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch, given: Given) -> None:
    asked: list[int] = []

    def draining() -> dict[str, int]:
        asked.append(1)
        if len(asked) == 1:
            raise RaySystemError("its store is away")
        return {"own": 0}

    monkeypatch.setattr(state, "get_draining_nodes", draining)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "own"))
    monkeypatch.setattr(notice, "_POLL", 0.01)
    monkeypatch.setenv(notice.JOINED, "1")
    notice.ask(threading.Event())
    wait_for(given.is_set, "the notice")


def test_a_machine_of_no_cloud_asks_nobody(given: Given) -> None:
    before = threading.active_count()
    notice.ask(threading.Event())
    assert threading.active_count() == before
    assert not given.is_set()


@pytest.mark.usefixtures("given")
def test_every_rank_hears_its_own_notice_and_rank_0_that_of_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.control._POLL", 0.05)
    run = start(tmp_path)
    attempt = run.claim()
    rank_1, rank_0 = Control(attempt, 1), Control(attempt, 0)
    assert rank_1.stop() is rank_0.stop() is None
    attempt.give_notice("the machine asked the driver to end", seconds=90)
    wait_for(lambda: rank_0.stop() is StopReason.PREEMPTED, "the notice")
    assert rank_0.left() == pytest.approx(90, abs=2)
    assert rank_1.stop() is None
    assert rank_1.left() == math.inf
    notice.give(20)
    assert rank_1.stop() is StopReason.PREEMPTED
    assert rank_1.left() == pytest.approx(20, abs=1)
    assert rank_0.left() == pytest.approx(20, abs=1), "they are one process here"
    rank_0.close()
    rank_1.close()


def test_a_person_comes_before_a_cloud(tmp_path: Path, given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.control._POLL", 0.05)
    run = start(tmp_path)
    run.request_stop("enough")
    given.set()
    attempt = run.claim()
    control = Control(attempt, 0)
    wait_for(lambda: control.stop() is StopReason.PERSON, "the person's wish")
    attempt.give_notice("the machine goes too", seconds=50)
    wait_for(lambda: control.left() < 51, "the deadline")
    assert control.stop() is StopReason.PERSON
    control.close()


def test_the_notice_of_an_attempt_is_not_for_the_next(tmp_path: Path) -> None:
    run = start(tmp_path)
    first = run.claim()
    first.give_notice("gone", seconds=60)
    first.give_notice("gone indeed")
    assert Attempt.reopen(run, 1).notice() == Notice("gone", 60)
    assert run.claim().notice() is None


def test_a_process_that_is_told_to_end_saves_and_goes_on_later_as_if_it_had_not(tmp_path: Path) -> None:
    whole, run = start(tmp_path, EVERYTHING, LONG, run_id="whole"), start(tmp_path, EVERYTHING, LONG)
    _run_process(whole)
    process = _start_process(run)
    wait_for(lambda: run.attempts() and run.rows_of(1, "metrics"), "the first steps")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    step = run.checkpoints()[-1].step
    assert process.returncode == 3
    assert f"error: preempted: the machine will be taken away; saved at step {step}" in errors
    assert [row["step"] for row in events(run, "preempted")] == [step]
    assert run.result() is None
    assert step < 160
    _run_process(run)
    assert losses(run) == losses(whole)


@pytest.mark.usefixtures("given")
def test_the_last_save_knows_the_earliest_deadline_of_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    make_room = Checkpointer.make_room

    def note(checkpointer: Checkpointer, left: float) -> None:
        told.append(left)
        make_room(checkpointer, left)

    class Context(LocalContext):
        def gather(self, value: int) -> list[int]:
            return [value, min(value, 20_000)]  # another rank's milliseconds

    monkeypatch.setattr(Checkpointer, "make_room", note)
    monkeypatch.setattr("trainers.control.Control.after", lambda _, step: notice.give(60) if step == 2 else None)
    with pytest.raises(PreemptedError, match="saved at step 3"):
        train(start(tmp_path), context=Context())
    assert told == [20.0]


@pytest.mark.usefixtures("given")
def test_a_notice_is_heard_while_the_loop_waits_for_a_save_that_hangs(tmp_path: Path) -> None:
    run, gone_on = start(tmp_path), threading.Event()

    def hang(name: str, *arguments: Any) -> None:
        if name == "upload" and "/checkpoints/000000002/" in str(arguments[1]):
            threading.Timer(1, notice.give, [5]).start()
            gone_on.wait(60)

    began = time.monotonic()
    with pytest.raises(PreemptedError, match="saved at step 4"):
        train(Run(hooked(run.storage, before=hang), run.id))
    gone_on.set()
    assert time.monotonic() - began < 20, "half a minute is the wait where nobody is in a hurry"
    assert [one.step for one in run.checkpoints()] == [1, 4]
    assert [row["step"] for row in events(run, "checkpoint.skipped")] == [3, 2]


def test_no_rank_leaves_a_preempted_attempt_before_rank_0_has_saved(tmp_path: Path, given: Given) -> None:
    run = start(tmp_path)
    given.set()
    stored: list[tuple[list[int], list[int]]] = []

    class Context(LocalContext):
        def gather(self, value: int) -> list[int]:
            stored.append(([one.step for one in run.checkpoints()], [row["step"] for row in events(run, "preempted")]))
            return super().gather(value)

    with pytest.raises(PreemptedError, match="saved at step 1"):
        train(run, context=Context())
    assert stored[-1] == ([1], [1]), "what is there when the ranks meet for the last time"


def _start_process(run: Run) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "trainers.worker", run.uri]
    one_thread = {**environment(), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=one_thread)


def _run_process(run: Run) -> None:
    process = _start_process(run)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def test_training_itself_knows_nothing_of_signals(tmp_path: Path, given: Given) -> None:
    run = start(tmp_path, {"train": {"max_steps": 2}})
    assert train(run).stopped is None
    assert not given.is_set()
