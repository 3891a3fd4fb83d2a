"""What follows from a run's rows."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.provider import State
from cluster.runs import Base, Claim, Result
from launcher.history import ReportData, ending_of, phases
from launcher.status import Summary


def claim(attempt: int, at: float, step: int | None = None) -> Claim:
    return Claim(attempt, "here", 1, at, Base(attempt - 1, step) if step is not None else None)


def data(state: State = State.SUCCEEDED, **values: Any) -> ReportData:
    given: dict[str, Any] = {"job": "", "created": 0.0, "made": 1000.0, "claims": [], "results": {}, "checkpoints": []}
    given |= {"metrics": [], "events": [], "summary": Summary("r", "runs/r", state, "why")}
    return ReportData(**{**given, **values})


def event(at: float, name: str, attempt: int = 1, **values: Any) -> dict[str, Any]:
    return {"time": at, "event": name, "attempt": attempt, **values}


def evaluation(at: float, seconds: float, attempt: int = 1) -> dict[str, Any]:
    return {"time": at, "kind": "eval", "step": 1, "seconds": seconds, "attempt": attempt}


def test_the_phases_of_a_run_are_told_apart() -> None:
    events = [event(6.0, "cluster"), event(8.0, "training"), event(15.0, "checkpoint", blocked=0.5)]
    run = data(
        claims=[claim(1, 1.0)],
        events=[*events, event(18.5, "finished")],
        metrics=[evaluation(18.0, 2.0)],
        results={1: Result("SUCCEEDED", at=19.0)},
    )
    assert phases(run) == pytest.approx(
        {
            "launching": 1.0,
            "Ray and data": 5.0,
            "starting ranks": 2.0,
            "training": 7.5,
            "evaluation": 2.0,
            "saving": 0.5,
            "ending": 1.0,
        }
    )


def test_the_phases_of_several_attempts_add_up_to_the_run() -> None:
    events = [event(3.0, "cluster"), event(4.0, "training"), event(40.0, "recovering", reason="rank 1 died")]
    run = data(
        claims=[claim(1, 1.0), claim(2, 70.0, 5)],
        events=[*events, event(75.0, "training", attempt=2)],
        metrics=[evaluation(30.0, 2.0), evaluation(90.0, 3.0, attempt=2)],
        results={2: Result("SUCCEEDED", at=95.0)},
    )
    assert sum(phases(run).values()) == pytest.approx(95.0)
    assert phases(run)["recovering"] == pytest.approx(30.0)


def test_a_run_that_goes_on_is_still_training() -> None:
    run = data(State.RUNNING, claims=[claim(1, 1.0)], events=[event(4.0, "training")], made=100.0)
    assert phases(run)["training"] == pytest.approx(96.0)


def test_a_run_that_was_never_claimed_was_launching_all_the_time() -> None:
    assert phases(data(State.PENDING, made=12.0)) == {"launching": 12.0}


def test_an_attempt_that_wrote_a_result_ended_as_it_says() -> None:
    run = data(claims=[claim(1, 1.0)], results={1: Result("STOPPED", "stopped at step 5, saved")})
    assert ending_of(run, run.claims[0]) == ("STOPPED", "stopped at step 5, saved")


def test_an_attempt_that_lost_a_rank_says_which() -> None:
    run = data(claims=[claim(1, 1.0), claim(2, 9.0)], events=[event(5.0, "recovering", reason="rank 1 died")])
    assert ending_of(run, run.claims[0]) == ("LOST", "rank 1 died")


def test_an_attempt_that_was_killed_is_lost() -> None:
    run = data(claims=[claim(1, 1.0), claim(2, 9.0)])
    assert ending_of(run, run.claims[0])[0] == "LOST"


def test_the_newest_attempt_without_a_result_stands_where_the_run_stands() -> None:
    run = data(State.RUNNING, claims=[claim(1, 1.0)])
    assert ending_of(run, run.claims[0]) == (State.RUNNING, "why")
