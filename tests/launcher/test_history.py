"""What follows from a run's rows."""

from __future__ import annotations

from typing import Any

from cluster.provider import State
from cluster.records import Base, Claim, Result
from launcher.history import ReportData, ending_of
from launcher.status import Summary


def claim(attempt: int, at: float, step: int | None = None) -> Claim:
    return Claim(attempt, "here", 1, at, Base(attempt - 1, step) if step is not None else None)


def data(state: State = State.SUCCEEDED, **values: Any) -> ReportData:
    given: dict[str, Any] = {"job": "", "created": 0.0, "made": 1000.0, "claims": [], "results": {}, "checkpoints": []}
    given |= {"metrics": [], "events": [], "summary": Summary("r", "runs/r", state, "why")}
    return ReportData(**{**given, **values})


def event(at: float, name: str, attempt: int = 1, **values: Any) -> dict[str, Any]:
    return {"time": at, "event": name, "attempt": attempt, **values}


def test_an_attempt_that_wrote_a_result_ended_as_it_says() -> None:
    run = data(claims=[claim(1, 1.0)], results={1: Result("STOPPED", "stopped by raylift stop; saved at step 5")})
    assert ending_of(run, run.claims[0]) == ("STOPPED", "stopped by raylift stop; saved at step 5")


def test_an_attempt_that_lost_a_rank_says_which() -> None:
    run = data(claims=[claim(1, 1.0), claim(2, 9.0)], events=[event(5.0, "recovering", reason="rank 1 died")])
    assert ending_of(run, run.claims[0]) == ("LOST", "rank 1 died")


def test_an_attempt_that_was_killed_is_lost() -> None:
    run = data(claims=[claim(1, 1.0), claim(2, 9.0)])
    assert ending_of(run, run.claims[0])[0] == "LOST"


def test_the_newest_attempt_without_a_result_stands_where_the_run_stands() -> None:
    run = data(State.RUNNING, claims=[claim(1, 1.0)])
    assert ending_of(run, run.claims[0]) == (State.RUNNING, "why")
