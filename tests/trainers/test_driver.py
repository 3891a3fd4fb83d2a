"""Whether a run that lost its ranks is tried again, and in which words it says what was lost."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train.v2.api.exceptions import WorkerGroupError

from cluster.attempts import Attempt
from cluster.config import Workers
from cluster.errors import InfrastructureError, NewerFormatError, PreemptedError, StorageError, SupersededError
from cluster.kubernetes.manifest import render
from cluster.local import PREEMPTED, UNRECORDED
from cluster.records import Base, Result
from cluster.runs import Run
from cluster.segments import SegmentWriter
from cluster.ticket import Ticket
from tests.cluster.kubernetes.golden import on_named_cluster, request
from tests.cluster.saves import flip_a_byte, make_files, make_newer, send_half
from tests.finished import started, training, write_rows
from tests.harness import wait_for
from tests.hooked import hooked
from tests.trainers.training import start
from trainers.elastic import Room
from trainers.jobs import load_job
from trainers.main import Driver, Ready, _reason_of, driver_of, on_this_machine
from trainers.pulse import Phase, Reading, pulse_folder

LOST = "rank 1 died"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setenv("RAYLIFT_LAUNCH", "launch-1")
    run = start(tmp_path, {"train": {"max_failures": 3}})
    return Driver(run, *load_job(run))


def attempt_that_reached(run: Run, step: int, *, launch: str = "launch-1", ended_with: str = "") -> Attempt:
    attempt = run.claim(launch=launch)
    if step:
        write_rows(attempt, "metrics", training(0, step, begin=1000.0))
    if ended_with:
        write_rows(attempt, "events", [{"event": ended_with, "step": step}])
    return attempt


def test_a_run_is_tried_again_as_often_as_it_may(driver: Driver) -> None:
    for step in (3, 5, 9):
        assert driver._why_not_again(attempt_that_reached(driver.run, step), LOST) is None
    final = driver._why_not_again(attempt_that_reached(driver.run, 11), LOST)
    assert final is not None
    assert (final.exit_code, final.message) == (3, f"{LOST}, and no restart is left (train.max_failures is 3)")


def test_the_attempts_of_an_earlier_launch_do_not_count(driver: Driver) -> None:
    for step in (3, 5, 9, 12):
        attempt_that_reached(driver.run, step, launch="launch-0")
    assert driver._why_not_again(attempt_that_reached(driver.run, 14), LOST) is None


@pytest.mark.parametrize("place", ["its own cluster", "a named cluster"])
def test_the_attempts_of_an_earlier_launch_in_kubernetes_do_not_count(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    for _ in range(2):
        newest = max(driver.run.attempts(), default=0)
        if place == "a named cluster":
            job = render(replace(on_named_cluster(), newest_attempt=newest))[0]
            variables = Ticket.of(job["spec"]["entrypoint"].split()[-1]).variables
        else:
            job = render(replace(request("plain"), newest_attempt=newest))[0]
            head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
            variables = {each["name"]: each.get("value", "") for each in head["env"]}
        for name in ("RAYLIFT_LAUNCH", "RAYLIFT_NEWEST_ATTEMPT"):
            monkeypatch.setenv(name, variables[name])
        launched = Driver(driver.run, driver.job, driver.whole)
        for step in (3, 5, 9):
            attempt, _ = launched._claim()
            write_rows(attempt, "metrics", training(0, step, begin=1000.0))
            assert launched._why_not_again(attempt, LOST) is None
    assert driver.run.attempts() == [1, 2, 3, 4, 5, 6]
    final = launched._why_not_again(launched._claim()[0], LOST)
    assert final is not None
    assert "no restart is left" in final.message


def test_losses_between_the_same_rows_that_are_far_apart_are_no_reason_while_checkpoints_come(driver: Driver) -> None:
    for saved in (100, 200, 300):
        attempt = attempt_that_reached(driver.run, 4)
        write_rows(attempt, "events", [{"event": "checkpoint", "step": saved}])
        assert driver._why_not_again(attempt, LOST) is None


def test_a_notice_goes_on_being_told_while_storage_is_away(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = driver.run.claim()
    given, answers = Attempt.give_notice, iter([StorageError("away"), StorageError("away"), None])

    def told(attempt: Attempt, reason: str) -> None:
        if (error := next(answers)) is not None:
            raise error
        given(attempt, reason)

    monkeypatch.setattr(Attempt, "give_notice", told)
    before = signal.getsignal(signal.SIGTERM)
    try:
        driver.life.attempt = attempt
        driver._listen()
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert driver.leaving
    wait_for(attempt.notice, "the notice", timeout=10)
    assert next(answers, "all asked") == "all asked"


@pytest.mark.parametrize("step", [0, 7])
def test_three_losses_after_the_same_step_end_a_run(driver: Driver, step: int) -> None:
    assert driver._why_not_again(attempt_that_reached(driver.run, step), LOST) is None
    assert driver._why_not_again(attempt_that_reached(driver.run, step), LOST) is None
    final = driver._why_not_again(attempt_that_reached(driver.run, step), LOST)
    assert final is not None
    assert final.exit_code == 1
    assert final.message == f"{LOST}; for the third time in a row after step {step}, so no restart would help"


def test_three_machines_that_are_lost_before_a_first_step_is_known_do_not_end_a_run(driver: Driver) -> None:
    driver.cluster = driver.cluster.model_copy(update={"address": "somewhere:6379"})
    for _ in range(3):
        assert driver._why_not_again(attempt_that_reached(driver.run, 0), LOST) is None
    final = driver._why_not_again(attempt_that_reached(driver.run, 0), LOST)
    assert final is not None
    assert final.message == f"{LOST}, and no restart is left (train.max_failures is 3)"


def test_three_losses_after_the_same_step_end_a_run_of_a_cluster_too(driver: Driver) -> None:
    driver.cluster = driver.cluster.model_copy(update={"address": "somewhere:6379"})
    for _ in range(2):
        assert driver._why_not_again(attempt_that_reached(driver.run, 7), LOST) is None
    final = driver._why_not_again(attempt_that_reached(driver.run, 7), LOST)
    assert final is not None
    assert "for the third time in a row after step 7" in final.message


def test_three_kills_after_the_same_step_end_a_run_whatever_rows_were_written(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    final = None
    for written in (3, 0, 6):
        assert final is None
        attempt = attempt_that_reached(driver.run, written)
        pulses = pulse_folder(driver.temporary, driver.run.uri, attempt.number)
        pulses.mkdir()
        (pulses / "rank-0").write_bytes(Reading(0, 4242, 10, Phase.WAITING, 9, 10**9, 0.1, 2.0, step=7).packed())
        driver._note_step(attempt)
        final = driver._why_not_again(attempt, LOST)
    assert final is not None
    assert "for the third time in a row after step 7" in final.message


def test_a_loss_further_on_begins_the_count_anew(driver: Driver) -> None:
    for step in (7, 7, 9):
        assert driver._why_not_again(attempt_that_reached(driver.run, step), LOST) is None


@pytest.mark.parametrize("planned", ["preempted", "resizing"])
def test_what_was_planned_is_no_failure_however_often_it_comes(driver: Driver, planned: str) -> None:
    for step in (3, 3, 3, 4, 5, 6):
        assert driver._why_not_again(attempt_that_reached(driver.run, step, ended_with=planned), LOST) is None
    for step in (8, 8):
        assert driver._why_not_again(attempt_that_reached(driver.run, step), LOST) is None
    assert driver._why_not_again(attempt_that_reached(driver.run, 8, ended_with=planned), LOST) is None


def attempt_of_damage(run: Run) -> Attempt:
    attempt = attempt_that_reached(run, 0)
    attempt.report_damage("the checkpoint of step 8 cannot be restored: it is damaged")
    return attempt


def test_a_damaged_checkpoint_is_no_failure_of_the_run(driver: Driver) -> None:
    for step in (3, 5, 9):
        assert driver._why_not_again(attempt_that_reached(driver.run, step), LOST) is None
        assert driver._why_not_again(attempt_of_damage(driver.run), LOST) is None
    final = driver._why_not_again(attempt_that_reached(driver.run, 11), LOST)
    assert final is not None
    assert final.message == f"{LOST}, and no restart is left (train.max_failures is 3)"


def test_a_run_whose_checkpoints_cannot_be_restored_though_they_were_read_ends(driver: Driver) -> None:
    for _ in range(3):
        assert driver._why_not_again(attempt_of_damage(driver.run), LOST) is None
    final = driver._why_not_again(attempt_of_damage(driver.run), LOST)
    assert final is not None
    assert final.message == f"{LOST}; for the third time in a row after step 0, so no restart would help"


def test_ranks_that_end_over_a_damaged_checkpoint_are_told_as_that(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = attempt_of_damage(driver.run)

    def fit() -> None:
        raise WorkerGroupError("rank 1", {1: InfrastructureError("another rank is gone")})

    monkeypatch.setattr("trainers.backend.build_trainer", lambda *_, **__: SimpleNamespace(fit=fit))
    events = SegmentWriter(driver.run, attempt.number, "events", "driver")
    lost = driver._fit(attempt, events, Ready(Workers(min=2, max=2), gpus=False, meta={}, arrays={}))
    assert lost == "the checkpoint of step 8 cannot be restored: it is damaged"
    events.close()


def test_a_driver_goes_on_from_the_checkpoint_before_a_damaged_one_and_says_so_once(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = driver.run.claim()
    first.commit(4, make_files(tmp_path, 4), {})
    flip_a_byte(driver.run, first.commit(8, make_files(tmp_path, 8), {}).folder)
    started_from: list[Base | None] = []

    def find_damage(attempt: Attempt) -> str:
        started_from.append(attempt.claim.base)
        attempt.report_damage("it cannot be restored")
        return "it cannot be restored"

    def succeed(attempt: Attempt) -> str:
        started_from.append(attempt.claim.base)
        attempt.finish(Result(state="SUCCEEDED"))
        return ""

    assert drive(driver, monkeypatch, find_damage, succeed) == 0
    assert started_from == [Base(1, 8), Base(1, 4)]
    told = [row for row in driver.run.rows("events") if row["event"] in ("recovering", "checkpoint.corrupt")]
    assert [(row["attempt"], row["event"]) for row in told] == [(2, "recovering"), (3, "checkpoint.corrupt")]
    assert told[1]["step"] == 8


# -- a machine that is taken away while the run begins


@pytest.fixture
def sigterm() -> Iterator[Callable[[], None]]:
    """Return what sends SIGTERM to this process; one that it does not listen to ends the test."""
    before = signal.getsignal(signal.SIGTERM)
    yield lambda: signal.raise_signal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)


def assert_left(driver: Driver, number: int = 1) -> None:
    """Fail unless a driver has left, so that the run can go on elsewhere."""
    rows = [row["step"] for row in driver.run.rows_of(number, "events") if row["event"] == "preempted"]
    assert rows == [0]
    assert driver.run.results() == {}
    assert driver.run.attempts() == [number]


def test_a_driver_that_is_told_to_leave_as_it_claims_leaves(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, sigterm: Callable[[], None]
) -> None:
    def told(call: str, path: str, *_: object) -> None:
        if call == "write" and path.endswith("claim.json"):
            sigterm()

    assert drive(Driver(behind(told, driver), driver.job, driver.whole), monkeypatch) == PREEMPTED
    assert_left(driver)


@pytest.fixture
def starting(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """Return a driver whose data takes for ever, and whose Ray is there at once."""
    closed = threading.Event()
    monkeypatch.setattr("trainers.tasks.registry.prepare", lambda _: closed.wait(60))
    monkeypatch.setattr(driver, "_start_ray", lambda: (Workers(min=2, max=2), False))
    yield driver
    closed.set()


@pytest.mark.usefixtures("sigterm")
def test_a_driver_that_is_told_to_leave_while_data_is_prepared_leaves_at_once(
    starting: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> tuple[Workers, bool]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # stands for the handler that Ray sets
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return Workers(min=2, max=2), False

    monkeypatch.setattr(starting, "_start_ray", start)
    began = time.monotonic()
    assert starting.drive() == PREEMPTED
    assert time.monotonic() - began < 30
    assert_left(starting)


@pytest.mark.usefixtures("sigterm")
def test_a_driver_that_ray_ends_as_it_starts_leaves(starting: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "_start_ray", lambda: sys.exit(signal.SIGTERM))
    assert starting.drive() == PREEMPTED
    assert_left(starting)


# -- where another machine goes on with the run


def lose(_: Attempt) -> str:
    return LOST


def test_a_driver_that_was_cut_off_does_not_take_the_run_back(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_a_rank_after_another_launch_has_begun(attempt: Attempt) -> str:
        assert attempt.number == 1
        driver.run.claim(launch="launch-2")
        return LOST

    with pytest.raises(SupersededError, match="attempt 2 has taken over"):
        drive(driver, monkeypatch, lose_a_rank_after_another_launch_has_begun)
    assert [claim.launch for claim in driver.run.claims()] == ["launch-1", "launch-2"]
    assert driver.run.results() == {}


def test_a_driver_that_was_cut_off_does_not_take_the_run_back_from_a_driver_of_its_own_launch(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLIFT_NEWEST_ATTEMPT", "0")
    other = Driver(driver.run, driver.job, driver.whole)

    def replaced_by_its_cluster(_: Attempt) -> str:
        assert other._claim()[0].number == 2
        return LOST

    with pytest.raises(SupersededError, match="attempt 2 has taken over"):
        drive(driver, monkeypatch, replaced_by_its_cluster)
    assert driver.run.attempts() == [1, 2]


def test_a_driver_that_starts_after_another_launch_has_claimed_leaves_the_run_alone(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.run.claim(launch="launch-0")
    monkeypatch.setenv("RAYLIFT_NEWEST_ATTEMPT", "1")
    driver.run.claim(launch="launch-2")
    with pytest.raises(SupersededError, match="attempt 2 has taken over"):
        drive(driver, monkeypatch)
    assert driver.run.attempts() == [1, 2]


def test_a_driver_takes_over_what_was_there_when_its_launch_began(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.run.claim(launch="launch-0")
    monkeypatch.setenv("RAYLIFT_NEWEST_ATTEMPT", "1")
    driver.run.claim(launch="launch-1")  # its driver was lost

    def succeed(attempt: Attempt) -> str:
        attempt.finish(Result(state="SUCCEEDED"))
        return ""

    assert drive(driver, monkeypatch, lose, succeed) == 0
    assert [claim.launch for claim in driver.run.claims()] == ["launch-0", *["launch-1"] * 3]


def test_a_driver_that_starts_after_one_of_its_launch_has_ended_the_run_starts_nothing(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.run.claim(launch="launch-0").finish(Result(state="STOPPED", exit_code=4))
    monkeypatch.setenv("RAYLIFT_NEWEST_ATTEMPT", "1")

    def stop(attempt: Attempt) -> str:
        attempt.finish(Result(state="STOPPED", exit_code=4))
        return ""

    assert drive(driver, monkeypatch, stop) == 4  # the result before this launch is history
    again = Driver(driver.run, driver.job, driver.whole)
    assert drive(again, monkeypatch) == 4
    assert driver.run.attempts() == [1, 2]


# -- while storage is away


class Link:
    """What leads to a storage, and is away now and then."""

    def __init__(self) -> None:
        self._until = 0.0

    def goes_for(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def check(self, *_: object) -> None:
        if time.monotonic() < self._until:
            raise StorageError("the storage does not answer")


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Link:
    monkeypatch.setattr("cluster.outages._PAUSE", 0.02)
    return Link()


def behind(check: Callable[..., None], driver: Driver) -> Run:
    """Return the run of a driver, each of whose calls to storage is checked."""
    return Run(hooked(driver.run.storage, before=check), driver.run.id)


def drive(driver: Driver, monkeypatch: pytest.MonkeyPatch, *fits: Callable[[Attempt], str]) -> int:
    """Drive a run whose attempts go as told."""
    turns, before = iter(fits), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(driver, "_start", lambda *_: None)
    monkeypatch.setattr(driver, "_wait_for_room", lambda *_: None)
    monkeypatch.setattr(driver, "_fit", lambda attempt, *_: next(turns)(attempt))
    try:
        return driver.drive()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_driver_that_starts_while_storage_is_away_waits_for_it(driver: Driver, link: Link) -> None:
    link.goes_for(0.3)
    assert driver_of(behind(link.check, driver)).job == driver.job


def test_a_machine_of_a_cluster_that_never_reaches_storage_says_so_after_a_while(
    driver: Driver, link: Link, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainers.main.UNREACHED", 0.1)
    link.goes_for(60)
    with pytest.raises(StorageError, match="the storage does not answer"):
        driver_of(behind(link.check, driver))
    assert capsys.readouterr().err == "waiting for storage: the storage does not answer\n"


def test_ranks_that_are_lost_while_storage_is_away_are_replaced_when_it_is_back(
    driver: Driver, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(_: Attempt) -> str:
        link.goes_for(0.5)
        return LOST

    def succeed(attempt: Attempt) -> str:
        attempt.finish(Result(state="SUCCEEDED"))
        return ""

    assert drive(Driver(behind(link.check, driver), driver.job, driver.whole), monkeypatch, lose, succeed) == 0
    assert {number: result.state for number, result in driver.run.results().items()} == {2: "SUCCEEDED"}
    assert driver._ended_with(1, "recovering")


@pytest.mark.usefixtures("link")
def test_a_storage_that_comes_and_goes_during_a_claim_costs_no_attempt(driver: Driver, tmp_path: Path) -> None:
    driver.run.claim().commit(5, make_files(tmp_path, 5), {})
    calls = count()

    def refuse_every_other(*_: object) -> None:
        if next(calls) % 2 == 0:
            raise StorageError("the storage does not answer")

    flaky = Driver(behind(refuse_every_other, driver), driver.job, driver.whole)
    attempt, _ = flaky._claim()
    assert driver.run.attempts() == [1, 2]
    assert attempt.claim.base == Base(1, 5)
    assert [checkpoint.attempt for checkpoint in driver.run.checkpoints()] == [2]


def test_a_driver_whose_machine_goes_does_not_wait_for_storage(
    driver: Driver, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving = Driver(behind(link.check, driver), driver.job, driver.whole)

    def leave(_: Attempt) -> str:
        link.goes_for(60)
        signal.raise_signal(signal.SIGTERM)
        return LOST

    began = time.monotonic()
    assert drive(leaving, monkeypatch, leave) == PREEMPTED
    assert time.monotonic() - began < 30
    link.goes_for(0)


def test_a_driver_does_not_wait_again_for_a_storage_that_its_ranks_have_waited_for(
    driver: Driver, link: Link, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cluster.life.EVERY", 0.02)
    monkeypatch.setattr("trainers.main.PATIENCE", 0.5)  # of cluster.outages it stays half an hour
    cut_off = Driver(behind(link.check, driver), driver.job, driver.whole)

    def wait_in_vain(attempt: Attempt) -> str:
        link.goes_for(60)
        time.sleep(1.0)
        cut_off.patient.damage_of(attempt.number)
        return LOST

    began = time.monotonic()
    assert drive(cut_off, monkeypatch, wait_in_vain) == 3
    assert time.monotonic() - began < 30
    assert Path(UNRECORDED).read_text() == "the storage does not answer (storage took no record of it)"
    link.goes_for(0)


def test_a_driver_shows_that_it_lives_though_nothing_is_written(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.life.EVERY", 0.02)

    def train(attempt: Attempt) -> str:
        assert wait_for(lambda: signs(driver.run) == [attempt.number], "a sign of life", timeout=10)
        first = driver.run.last_heard()
        assert first is not None
        assert wait_for(lambda: (driver.run.last_heard() or 0) > first, "another one", timeout=10)
        return LOST

    def succeed(attempt: Attempt) -> str:
        assert wait_for(lambda: signs(driver.run) == [1, 2], "a sign of life of the next", timeout=10)
        attempt.finish(Result(state="SUCCEEDED"))
        return ""

    assert drive(driver, monkeypatch, train, succeed) == 0
    wait_for(lambda: "life" not in [thread.name for thread in threading.enumerate()], "the end of its last sign")
    ended = driver.run.last_heard()
    time.sleep(0.2)
    assert driver.run.last_heard() == ended


def signs(run: Run) -> list[int]:
    """Return the attempts that have shown that somebody lives."""
    return [int(entry.path.split("/")[-2]) for entry in run.storage.list() if entry.path.endswith("alive.json")]


# -- whether there is room for the ranks


class Wish:
    """Stands for the request to Ray: which there were, and whether one is granted."""

    made: ClassVar[list[Wish]] = []
    granted_at = 10**9  # looks

    def __init__(self, ranks: int, *, gpus: bool) -> None:
        assert not gpus
        self.ranks, self.looks, self.stands = ranks, 0, True
        self.made.append(self)

    def is_granted(self) -> bool:
        self.looks += 1
        return self.looks >= self.granted_at

    def withdraw(self) -> None:
        self.stands = False


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For how many ranks there is room, look after look; the last stays."""
    counts: list[int] = []

    def look(*, gpus: bool) -> list[Room]:
        assert not gpus
        count = counts.pop(0) if len(counts) > 1 else counts[0]
        return [Room("a", count, count)]

    monkeypatch.setattr("trainers.backend.look_for_room", look)
    monkeypatch.setattr("trainers.backend.Wish", Wish)
    monkeypatch.setattr("trainers.main._LOOK", 0.0)
    return counts


def waited(driver: Driver, least: int = 2, *, own_ray: bool = False) -> tuple[Result | None, list[dict[str, Any]]]:
    """Return how waiting ended, and what was written down meanwhile."""
    attempt = driver.run.claim()
    events = SegmentWriter(driver.run, attempt.number, "events", "driver")
    driver.cluster = driver.cluster.model_copy(update={"address": None if own_ray else "somewhere:6379"})
    ready = Ready(Workers(min=least, max=4), gpus=False, meta={}, arrays={})
    final = driver._wait_for_room(events, ready)
    events.close()
    return final, driver.run.rows_of(attempt.number, "events")


def test_a_driver_waits_for_the_fewest_ranks_and_says_for_how_many(driver: Driver, rooms: list[int]) -> None:
    rooms += [0, 0, 1, 1, 2]
    final, told = waited(driver)
    assert final is None
    assert [(row["event"], row.get("workers")) for row in told] == [("waiting", 2), ("waiting", 1), ("waited", None)]


def test_a_driver_that_waits_asks_ray_for_room_and_gives_it_to_its_ranks(
    driver: Driver, rooms: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wish, "made", [])
    monkeypatch.setattr(Wish, "granted_at", 3)
    rooms.append(0)  # what is granted is no longer free
    final, told = waited(driver)
    assert final is None
    assert [row["event"] for row in told] == ["waiting", "waited"]
    assert [(wish.ranks, wish.looks, wish.stands) for wish in Wish.made] == [(2, 3, False)]


def test_a_driver_that_has_room_does_not_wait(driver: Driver, rooms: list[int]) -> None:
    rooms.append(2)
    assert waited(driver) == (None, [])
    assert waited(driver, 4, own_ray=True) == (None, [])


def test_a_driver_gives_up_when_no_room_comes(
    driver: Driver, rooms: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms.append(1)
    monkeypatch.setattr("trainers.main.PATIENCE", -1.0)
    final, _ = waited(driver)
    assert final is not None
    assert (final.state, final.exit_code) == ("FAILED", 3)
    assert "for 1 more of the 2 workers that it needs" in final.message


def test_a_run_that_waits_can_be_stopped_and_preempted(driver: Driver, rooms: list[int]) -> None:
    rooms.append(1)
    driver._told_to_leave = True
    assert waited(driver) == (None, [])
    driver._told_to_leave = False
    driver.run.request_stop("a person asked for it")
    final, _ = waited(driver)
    assert final is not None
    assert (final.state, final.message, final.exit_code) == ("STOPPED", "a person asked for it", 4)


def test_a_driver_that_cannot_claim_leaves_word_why(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_newer(driver.run, driver.run.claim().commit(10, make_files(tmp_path, 10), {}).folder)
    with pytest.raises(NewerFormatError) as told:
        driver.drive()
    assert Path(UNRECORDED).read_text() == str(told.value)


def test_what_all_attempts_before_had_sent_half_of_is_swept(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = [driver.run.claim() for _ in range(3)]
    begun = [send_half(driver.run, attempt.number) for attempt in attempts]
    monkeypatch.setattr("trainers.backend.build_trainer", lambda *_, **__: SimpleNamespace(fit=lambda: None))
    events = SegmentWriter(driver.run, 3, "events", "driver")
    driver._fit(attempts[-1], events, Ready(Workers(min=2, max=2), gpus=False, meta={}, arrays={}))
    assert driver.run.storage.sweep() == begun[2:]


def test_a_run_that_fails_leaves_nothing_half_sent(driver: Driver) -> None:
    attempts = [driver.run.claim() for _ in range(2)]
    for attempt in attempts:
        send_half(driver.run, attempt.number)
    events = SegmentWriter(driver.run, 2, "events", "driver")
    assert driver._finish(attempts[-1], events, Result(state="FAILED", exit_code=1)) == 1
    assert driver.run.storage.sweep() == []


def test_what_a_rank_was_sending_as_it_failed_is_swept(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(attempt: Attempt) -> str:
        send_half(driver.run, attempt.number)
        attempt.finish(Result(state="FAILED", exit_code=1))
        return ""

    assert drive(driver, monkeypatch, fail) == 1
    assert driver.run.storage.sweep() == []


@pytest.mark.parametrize(("processors", "ranks"), [(1, 2), (3, 3), (64, 4)])
def test_one_machine_has_as_many_ranks_as_processors_within_the_range(
    monkeypatch: pytest.MonkeyPatch, processors: int, ranks: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: processors)
    assert on_this_machine(Workers(min=2, max=4)) == ranks


def test_how_many_ranks_trained_before_is_known_from_the_run(driver: Driver) -> None:
    first = attempt_that_reached(driver.run, 4)
    assert driver._ranks_before(first) is None
    write_rows(first, "events", [started(0, at=1.0)])
    lost_at_its_start = attempt_that_reached(driver.run, 0)
    assert driver._ranks_before(lost_at_its_start) == 2
    assert driver._ranks_before(attempt_that_reached(driver.run, 0)) == 2


# -- in which words


class FailedError(Exception):
    """What Ray Train raises: the exception of each rank that was lost."""

    def __init__(self, **causes: Exception) -> None:
        super().__init__("the worker group failed")
        self.worker_failures = {int(rank.removeprefix("rank_")): cause for rank, cause in causes.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pulse"
    folder.mkdir()
    for rank in (0, 1):
        reading = Reading(rank, 4242, 10, Phase.WAITING, 100, 3_200_000_000, 0.1, 2.0)
        (folder / f"rank-{rank}").write_bytes(replace(reading, peak_bytes=reading.peak_bytes + rank).packed())
    return folder


def test_a_rank_that_died_is_told_with_what_it_held(folder: Path) -> None:
    missed, told = InfrastructureError("another rank is gone: rank 1"), "rank 1 died (it held 3.2 GB at most)"
    assert _reason_of(FailedError(rank_0=missed, rank_1=ActorDiedError()), folder) == told
    assert _reason_of(FailedError(rank_0=missed), folder) == told, "known from another, before it is noticed"
    assert _reason_of(FailedError(rank_1=ActorDiedError()), folder / "none") == "rank 1 died"


def test_a_rank_that_the_watchdog_ended_is_told_with_its_verdict(folder: Path) -> None:
    (folder / "verdicts.jsonl").write_text(json.dumps({"rank": 1, "reason": "it froze: no sign of life for 8 s"}))
    told = _reason_of(FailedError(rank_1=ActorDiedError()), folder)
    assert told == "rank 1 was ended: it froze: no sign of life for 8 s"


def test_a_rank_that_ray_ended_for_its_memory_is_told_as_that(folder: Path) -> None:
    told = _reason_of(FailedError(rank_0=OutOfMemoryError("too much"), rank_1=ActorDiedError()), folder)
    assert told == "rank 0 ran out of memory, and Ray ended it (it held 3.2 GB at most)"


def test_a_machine_that_is_gone_is_told_as_that(folder: Path) -> None:
    class WorkerHealthCheckTimeoutError(Exception):  # by its name alone: Ray has it among its inner parts
        pass

    class NodeDiedError(ActorDiedError):
        def __str__(self) -> str:
            return "The actor died because its node has died. Node Id: 7"

    silent = FailedError(rank_1=WorkerHealthCheckTimeoutError("Set the RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"))
    assert _reason_of(silent, folder) == "rank 1 no longer answers: its machine is off, or cut off from this one"
    assert _reason_of(FailedError(rank_1=NodeDiedError()), folder / "none") == "rank 1 died with its machine"


def test_a_cause_comes_before_a_rank_that_only_missed_another(folder: Path) -> None:
    missed, cause = InfrastructureError("another rank is gone"), InfrastructureError("rank 1 ran out of memory")
    assert _reason_of(FailedError(rank_0=missed, rank_1=cause), folder) == "rank 1 ran out of memory"
    assert _reason_of(FailedError(rank_0=missed), folder) == "rank 0: another rank is gone"


def test_a_preemption_is_told_with_its_step(folder: Path) -> None:
    told = PreemptedError("preempted: the machine will be taken away; saved at step 40")
    assert _reason_of(FailedError(rank_0=told, rank_1=told), folder) == str(told)


def test_a_start_that_failed_is_told_with_what_ray_says(folder: Path) -> None:
    error = FailedError()
    error.controller_failure = InfrastructureError("there is no room any more")  # type: ignore[attr-defined]
    assert _reason_of(error, folder) == "there is no room any more"
