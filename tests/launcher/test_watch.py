"""Following a run from its storage alone."""

from __future__ import annotations

import dataclasses
import json
import secrets
import threading
import time
from pathlib import Path

import pytest

from cluster.attempts import Attempt
from cluster.records import Result
from cluster.runs import Run
from cluster.segments import SegmentWriter
from launcher import watch
from launcher.watch import Follower, Update
from tests.finished import new_run, started, training, write_rows, write_story
from tests.living import living


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path, f"watch-{secrets.token_hex(4)}")


def told(updates: list[Update]) -> list[tuple[int, str, int]]:
    """Return of each update its attempt, its stream and its step."""
    return [(update.attempt, update.stream, update.row["step"]) for update in updates]


def steps(updates: list[Update]) -> list[int]:
    return [update.row["step"] for update in updates if update.row.get("kind") == "step"]


def event(writer: str, attempt: Attempt, step: int) -> None:
    write_rows(attempt, "events", [{"event": "checkpoint", "step": step}], by=writer)


def test_a_run_that_has_not_begun_has_nothing_to_tell(run: Run) -> None:
    assert Follower(run).read() == []


def test_events_and_metrics_come_in_the_order_of_their_times(run: Run) -> None:
    attempt = run.claim()
    write_rows(attempt, "metrics", training(0, 2, begin=10.0))  # at 10.1 and 10.2
    write_rows(attempt, "events", [started(0, at=10.0), started(9, at=10.15)])
    assert told(Follower(run).read()) == [(1, "events", 0), (1, "metrics", 1), (1, "events", 9), (1, "metrics", 2)]


def test_a_row_is_told_once(run: Run) -> None:
    writer = SegmentWriter(run, run.claim().number, "metrics", "rank-0")
    follower = Follower(run)
    found = []
    for row in training(0, 3, begin=1.0):
        writer.append(row)
        writer.flush()
        found.append(steps(follower.read()))
    writer.close()
    assert [*found, steps(follower.read())] == [[1], [2], [3], []]


def test_every_writer_of_events_is_heard(run: Run) -> None:
    attempt = run.claim()
    for step, writer in enumerate(("supervisor", "driver", "rank-0"), start=1):
        event(writer, attempt, step)
    assert sorted(step for _, _, step in told(Follower(run).read())) == [1, 2, 3]


def test_a_new_attempt_is_followed_after_the_last_rows_of_the_old_one(run: Run) -> None:
    first = run.claim()
    follower = Follower(run)
    follower.read()
    event("driver", first, 1)
    event("driver", run.claim(), 2)
    assert told(follower.read()) == [(1, "events", 1), (2, "events", 2)]


def test_attempts_that_come_and_go_between_two_looks_are_told_too(run: Run) -> None:
    follower = Follower(run)
    for step in (1, 2, 3):
        event("driver", run.claim(), step)
    assert told(follower.read()) == [(1, "events", 1), (2, "events", 2), (3, "events", 3)]


def test_what_was_before_a_resume_is_not_told_again(run: Run) -> None:
    event("driver", run.claim(), 1)
    follower = Follower(run, after=1)
    found = [told(follower.read())]
    event("driver", run.claim(), 2)
    assert [*found, told(follower.read())] == [[], [(2, "events", 2)]]


def test_the_result_of_what_was_before_a_resume_is_not_the_result(run: Run) -> None:
    run.claim().finish(Result(state="STOPPED", exit_code=4))
    follower = Follower(run, after=1)
    found = [follower.result()]
    second = run.claim()
    found.append(follower.result())
    second.finish(Result(state="SUCCEEDED", at=1.0))
    assert [*found, follower.result()] == [None, None, Result(state="SUCCEEDED", at=1.0)]


def printed(updates: list[Update]) -> list[tuple[int, str, str]]:
    """Return of each line that was printed its attempt, its writer and its text."""
    return [(update.attempt, update.row["writer"], update.row["line"]) for update in updates if update.stream == "logs"]


def test_what_processes_print_comes_in_whole_lines_and_once(run: Run) -> None:
    attempt = run.claim()
    write_rows(attempt, "events", [started(0, at=1.0)], by="driver")  # two ranks
    follower = Follower(run, output=True)
    writers = {name: SegmentWriter(run, 1, "logs", name) for name in ("driver", "rank-0", "rank-1")}
    found = []
    for name, data in (("driver", b"one\ntw"), ("rank-1", b"a"), ("driver", b"o\n"), ("rank-1", b"b\n")):
        writers[name].append_bytes(data)
        writers[name].flush()
        found += printed(follower.read())
    assert found == [(1, "driver", "one"), (1, "driver", "two"), (1, "rank-1", "ab")]
    writers["rank-0"].append_bytes(b"no end")
    for writer in writers.values():
        writer.close()
    attempt.finish(Result(state="SUCCEEDED"))
    assert printed([update for update in follower.follow() if update is not None]) == [(1, "rank-0", "no end")]


def test_a_driver_that_serves_several_attempts_is_heard_in_all_and_ranks_that_never_train_too(run: Run) -> None:
    run.claim()
    driver = SegmentWriter(run, 1, "logs", "driver")
    follower = Follower(run, output=True)
    driver.append_bytes(b"first, ")
    driver.flush()
    dying = SegmentWriter(run, 1, "logs", "rank-3")
    dying.append_bytes(b"no memory")
    dying.close()
    assert printed(follower.read()) == []
    run.claim()
    assert printed(follower.read()) == [(1, "rank-3", "no memory")]
    driver.append_bytes(b"last\n")
    driver.close()
    assert printed(follower.read()) == [(1, "driver", "first, last")]


def test_what_processes_print_after_the_result_is_read_until_they_have_ended(run: Run) -> None:
    attempt = run.claim()
    output = SegmentWriter(run, 1, "logs", "rank-0")
    attempt.finish(Result(state="SUCCEEDED"))
    with living(run.id) as process:

        def ends() -> None:
            time.sleep(0.7)
            output.append_bytes(b"good bye\n")
            output.close()
            process.kill()

        thread = threading.Thread(target=ends)
        thread.start()
        found = printed([update for update in Follower(run, output=True).follow() if update is not None])
        thread.join()
    assert found == [(1, "rank-0", "good bye")]


def test_following_right_after_a_resume_goes_on_with_what_that_begins(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes are there before they have claimed an attempt: until then the newest has a result."""
    monkeypatch.setattr(watch, "_LAST_WORDS", 2.0)
    run.claim().finish(Result(state="STOPPED"))

    def resumes() -> None:
        time.sleep(0.5)
        attempt = run.claim()
        time.sleep(2.5)
        write_rows(attempt, "metrics", training(0, 2, begin=1.0))
        attempt.finish(Result(state="SUCCEEDED"))
        process.kill()

    with living(run.id) as process:
        thread = threading.Thread(target=resumes)
        thread.start()
        updates = [update for update in Follower(run, output=True).follow() if update is not None]
        thread.join()
    assert steps(updates) == [1, 2]


def test_following_a_run_whose_result_does_not_read_ends(run: Run) -> None:
    run.claim().finish(Result(state="SUCCEEDED"))
    run.storage.write(run.path("attempts/000001/result.json"), b"{")
    assert list(Follower(run).follow()) == []


def test_following_a_finished_run_ends_at_once_with_all_its_rows(tmp_path: Path) -> None:
    run = write_story(tmp_path)
    updates = [update for update in Follower(run, after=1).follow() if update is not None]
    assert steps(updates) == [9, 10, 11, 12]


def test_following_waits_while_nothing_is_new_and_ends_with_the_result(run: Run) -> None:
    attempt = run.claim()

    def trains() -> None:
        time.sleep(0.5)
        write_rows(attempt, "metrics", training(0, 2, begin=1.0))
        attempt.finish(Result(state="SUCCEEDED"))

    with living(run.id):
        thread = threading.Thread(target=trains)
        thread.start()
        updates = list(Follower(run).follow())
        thread.join()
    assert updates[0] is None
    assert steps([update for update in updates if update is not None]) == [1, 2]


def test_following_ends_when_the_processes_are_gone_without_a_word(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_GONE", 0.5)
    event("driver", run.claim(), 1)
    updates = list(Follower(run).follow())
    assert told([update for update in updates if update is not None]) == [(1, "events", 1)]


@pytest.mark.parametrize(("after", "lost"), [(0, False), (1, True)], ids=["its own attempt", "one before a resume"])
def test_an_attempt_of_another_machine_is_never_thought_lost_unless_it_is_history(
    run: Run, monkeypatch: pytest.MonkeyPatch, after: int, *, lost: bool
) -> None:
    monkeypatch.setattr(watch, "_GONE", 0.0)
    claim = {**dataclasses.asdict(run.claim().claim), "host": "another-machine"}
    run.storage.write(run.path("attempts/000001/claim.json"), json.dumps(claim).encode())
    updates = Follower(run, after=after).follow()
    ended = False
    for _ in range(3):
        try:
            next(updates)
        except StopIteration:
            ended = True
            break
    assert ended is lost
