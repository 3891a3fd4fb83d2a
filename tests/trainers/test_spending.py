"""What a run has spent, and its stop when the budget is used up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import StorageError
from cluster.runs import Run
from cluster.segments import SegmentWriter
from tests.finished import claim, new_run, training, write_rows
from tests.harness import wait_for
from trainers import spending
from trainers.spending import Limit, Spending, limit_of, seconds_spent

BUDGET: dict[str, Any] = {"cluster": {"usd_per_hour": 4.0}}


def attempt(number: int, first: float, last: float, *events: str) -> list[dict[str, Any]]:
    times = {"claimed": first, **dict.fromkeys(events, last), "memory": last}
    return [{"attempt": number, "event": event, "time": time} for event, time in times.items()]


def test_all_attempts_count_since_a_budget_was_last_used_up() -> None:
    rows = attempt(1, 100.0, 130.0) + attempt(2, 200.0, 210.0)
    assert seconds_spent(rows) == 40.0
    rows = attempt(1, 100.0, 130.0) + attempt(2, 200.0, 210.0, "budget.spent")
    assert seconds_spent(rows) == 0.0
    assert seconds_spent(rows + attempt(3, 300.0, 307.0)) == 7.0
    assert seconds_spent([]) == 0.0


def test_the_first_limit_that_a_cluster_comes_to_counts() -> None:
    assert limit_of({"budget": None}) is limit_of({}) is None
    assert limit_of({"budget": {"max_hours": 2}}) == Limit(7200, "budget.max_hours, which is 2, is used up")
    money = limit_of({**BUDGET, "budget": {"max_hours": 2, "max_usd": 6}})
    assert money == Limit(5400, "budget.max_usd, which is 6, is used up at 4 an hour")
    hours = limit_of({**BUDGET, "budget": {"max_hours": 1, "max_usd": 6}})
    assert hours == Limit(3600, "budget.max_hours, which is 1, is used up")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(spending, "_POLL", 0.02)
    return new_run(tmp_path)


@contextmanager
def spent(run: Run, seconds: float) -> Iterator[Spending]:
    """Launch a run that may take so many seconds."""
    found, attempt = Spending(run, Limit(seconds, "all gone")), run.claim()
    events = SegmentWriter(run, attempt.number, "events", "driver")
    events.append({"event": "claimed"})
    with found.watched(attempt):
        yield found
    found.note(events)
    events.close()


def told(run: Run) -> list[int]:
    return [row["attempt"] for row in run.all_rows("events") if row["event"] == "budget.spent"]


def test_a_run_whose_budget_is_used_up_is_asked_to_stop_and_a_resume_has_it_anew(run: Run) -> None:
    began = time.monotonic()
    with spent(run, 0.3) as first:
        wait_for(lambda: first.is_used_up, "the end of the budget", timeout=5)
    assert time.monotonic() - began >= 0.3
    assert (run.stop_reason(), told(run)) == ("all gone", [1])
    run.withdraw_stop()
    with spent(run, 30.0) as second:
        time.sleep(0.2)
    assert (second.is_used_up, run.stop_reason(), told(run)) == (False, None, [1])


def test_a_driver_that_was_killed_before_it_could_write_so_down_is_followed_by_one_that_does(run: Run) -> None:
    killed = claim(run, at=100.0)
    write_rows(killed, "events", [{"event": "claimed", "time": 100.0}])
    write_rows(killed, "metrics", training(0, 8, begin=100.0))  # until 100.8
    run.request_stop("all gone")
    with spent(run, 0.7) as found:
        wait_for(lambda: found.is_used_up, "the end of the budget", timeout=0.5)
    assert told(run) == [2]


def test_a_sweep_whose_driver_was_killed_has_spent_what_its_trials_trained_meanwhile(run: Run) -> None:
    """They have rows of their own: of the sweep, nothing is known but that its driver was alive."""
    killed = claim(run, at=100.0)
    write_rows(killed, "events", [{"event": "claimed", "time": 100.0}, {"event": "trial", "time": 100.1}])
    run.storage.write(run.path("attempts/000001/alive.json"), b'{"at": 160.0}')
    with spent(run, 60.3) as found:
        wait_for(lambda: found.is_used_up, "the end of the budget", timeout=5)
    assert told(run) == [2]


def test_a_driver_that_was_taken_over_stops_nothing(run: Run) -> None:
    with spent(run, 0.3) as found:
        other = run.claim(launch="of another machine")
        time.sleep(0.6)
    assert (found.is_used_up, run.stop_reason(), other.number) == (False, None, 2)


def test_what_a_person_asked_for_first_stays(run: Run) -> None:
    run.request_stop("stopped by raylift stop")
    with spent(run, 0.0) as found:
        wait_for(lambda: found.is_used_up, "the end of the budget", timeout=5)
    assert run.stop_reason() == "stopped by raylift stop"


def test_while_storage_is_away_it_is_asked_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    write = run.request_stop

    def away(reason: str) -> None:
        asked.append(reason)
        if len(asked) < 3:
            raise StorageError("no answer")
        write(reason)

    monkeypatch.setattr(run, "request_stop", away)
    with spent(run, 0.0) as found:
        wait_for(lambda: found.is_used_up, "the end of the budget", timeout=5)
    assert (len(asked), run.stop_reason()) == (3, "all gone")
