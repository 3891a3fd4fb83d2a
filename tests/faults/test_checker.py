"""The checker finds nothing in a history as it must be, and each kind of violation in one that is doctored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.provider import State
from cluster.records import Base, Claim, Result
from tests.faults.checker import INTACT, History, Injected, Seen, assert_as_it_must_be, violations
from tests.finished import training
from tests.trainers.training import EVERYTHING, cut_off, start, train

Change = Callable[[History], History]
LAST = 12


def claim(attempt: int, at: float, base: Base | None) -> Claim:
    return Claim(attempt=attempt, host="here", pid=1, at=at, base=base)


def event(attempt: int, at: float, name: str, **values: Any) -> dict[str, Any]:
    return {"attempt": attempt, "time": at, "event": name, **values}


def rows(attempt: int, first: int, last: int, begin: float) -> list[dict[str, Any]]:
    return [{**row, "attempt": attempt} for row in training(first, last, begin=begin)]


@pytest.fixture
def history() -> History:
    """Return a run that lost a rank at step 10, went on from step 8 and came to its end at step 12."""
    return History(
        claims=[claim(1, 0.0, None), claim(2, 3.0, Base(1, 8))],
        results={2: Result(state="SUCCEEDED", step=LAST)},
        metrics=[*rows(1, 0, 10, 1.0), *rows(2, 8, LAST, 3.0)],
        events=[
            event(1, 0.1, "claimed", base=None),
            event(1, 1.5, "checkpoint", step=4),
            event(1, 1.9, "checkpoint", step=8),
            event(1, 2.9, "recovering", reason="rank 1 died"),
            event(2, 3.0, "claimed", base=8),
            event(2, 3.1, "restored", step=8),
            event(2, 3.5, "checkpoint", step=LAST),
            event(2, 3.6, "finished", state="SUCCEEDED", message=""),
        ],
        stored={(1, 4): INTACT, (1, 8): INTACT, (2, 8): INTACT, (2, LAST): INTACT},
        visible=[(1, 4), (2, 8), (2, LAST)],
        keep=2,
        expected=training(0, LAST, begin=0.0),
        injected=[Injected(2.5, "kill worker")],
        seen=[Seen(0.5, State.PROVISIONING), Seen(2.0, State.RUNNING), Seen(4.0, State.SUCCEEDED)],
    )


def without_a_row(history: History) -> History:
    return replace(history, metrics=[row for row in history.metrics if (row["attempt"], row["step"]) != (2, 11)])


def with_a_row_twice(history: History) -> History:
    return replace(history, metrics=[*history.metrics, history.metrics[-3]])


def with_a_row_changed(attempt: int, at: int, **values: Any) -> Change:
    def change(history: History) -> History:
        return replace(
            history,
            metrics=[
                {**row, **values} if (row["attempt"], row["step"], row["kind"]) == (attempt, at, "step") else row
                for row in history.metrics
            ],
        )

    return change


def with_base(base: Base | None) -> Change:
    return lambda history: replace(history, claims=[history.claims[0], claim(2, 3.0, base)])


def with_events(*events: dict[str, Any]) -> Change:
    return lambda history: replace(history, events=[*history.events, *events])


def with_stored(place: tuple[int, int], verdict: str) -> Change:
    return lambda history: replace(history, stored={**history.stored, place: verdict})


def without_stored(place: tuple[int, int]) -> Change:
    def change(history: History) -> History:
        stored = {key: value for key, value in history.stored.items() if key != place}
        return replace(history, stored=stored, visible=[one for one in history.visible if one != place])

    return change


def with_states(*states: State) -> Change:
    return lambda history: replace(history, seen=[Seen(float(at), state) for at, state in enumerate(states)])


def with_step_4_retired(found: str | None) -> Change:
    """Let attempt 1 have saved step 10 too, and retention have left this of its step 4."""

    def change(history: History) -> History:
        stored = {(1, 8): INTACT, (1, 10): INTACT, (2, 10): INTACT, (2, LAST): INTACT}
        return replace(
            with_events(event(1, 2.0, "checkpoint", step=10))(history),
            claims=[history.claims[0], claim(2, 3.0, Base(1, 10))],
            stored=stored if found is None else {**stored, (1, 4): found},
            visible=[(1, 8), (2, 10), (2, LAST)],
            events=[row for row in history.events if row["event"] not in ("restored", "claimed")],
            metrics=[*rows(1, 0, 10, 1.0), *rows(2, 10, LAST, 3.0)],
        )

    return change


def failed_and_resumed(*states: State, at: float) -> Change:
    return lambda history: replace(with_states(*states)(history), injected=[*history.injected, Injected(at, "resume")])


VIOLATIONS: dict[str, tuple[Change, str]] = {
    "missing step": (without_a_row, "step rows missing: 11"),
    "doubled row": (with_a_row_twice, "step rows doubled: 12"),
    "unknown step": (with_a_row_changed(2, 11, step=99), "step rows of no other run: 99"),
    "other loss": (with_a_row_changed(2, 11, loss=9.9), "attempt 2, step 11: loss of its step row differ"),
    "other samples": (with_a_row_changed(2, 11, seen=1), "attempt 2, step 11: seen of its step row differ"),
    "other loss of a step that was repeated": (
        with_a_row_changed(1, 10, loss=9.9),
        "attempt 1, step 10: loss of its step row differ",
    ),
    "older base": (with_base(Base(1, 4)), "attempt 2 starts from step 4, though attempt 1 had saved step 8"),
    "no base": (with_base(None), "attempt 2 starts from nothing, though attempt 1 had saved step 8"),
    "base of its own": (with_base(Base(2, 8)), "attempt 2 starts from attempt 2"),
    "other base than restored": (with_base(Base(1, 9)), "attempt 2 restored step 8, and its base is step 9"),
    "attempt without a fault": (
        lambda history: replace(history, injected=[]),
        "2 attempts after 0 faults: an attempt was lost without one",
    ),
    "number claimed twice": (
        lambda history: replace(history, claims=[*history.claims, history.claims[1]]),
        "the attempts are [1, 2, 2]",
    ),
    "damaged": (with_stored((2, LAST), "damaged"), f"step {LAST} of attempt 2 was saved and is damaged"),
    "damaged, not retired": (with_step_4_retired("damaged"), "step 4 of attempt 1 was saved and is damaged"),
    "resumed before it failed": (
        failed_and_resumed(State.RUNNING, State.FAILED, State.RUNNING, State.SUCCEEDED, at=0.5),
        "at 2.0 it was RUNNING, after it had been FAILED",
    ),
    "partial and visible": (
        with_stored((2, LAST), "partial"),
        f"readers see step {LAST} of attempt 2, which is partial",
    ),
    "gone too early": (
        without_stored((2, LAST)),
        f"step {LAST} of attempt 2 was saved and is gone, though retention keeps 2",
    ),
    "no last checkpoint": (without_stored((2, LAST)), f"there is no checkpoint of the last step, {LAST}"),
    "unreadable meanwhile": (
        lambda history: replace(history, seen=[Seen(1.0, State.RUNNING, ["1/4: damaged"]), *history.seen[2:]]),
        "at 1.0 readers saw a checkpoint that could not be read: 1/4: damaged",
    ),
    "no result": (lambda history: replace(history, results={}), "attempt 2 is the newest and has no result"),
    "success of an older attempt": (
        lambda history: replace(history, results={1: Result(state="SUCCEEDED", step=LAST), **history.results}),
        "attempt 1 succeeded, and attempt 2 came after it",
    ),
    "success too early": (
        lambda history: replace(history, results={2: Result(state="SUCCEEDED", step=11)}),
        "the result is of step 11, not of the last one, 12",
    ),
    "finished twice": (with_events(event(2, 3.7, "finished", state="FAILED")), "attempt 2 was finished 2 times"),
    "success undone": (
        with_states(State.RUNNING, State.SUCCEEDED, State.RUNNING, State.SUCCEEDED),
        "at 2.0 it was RUNNING, after it had been SUCCEEDED",
    ),
    "failed and running without a resume": (
        with_states(State.FAILED, State.RUNNING, State.SUCCEEDED),
        "at 1.0 it was RUNNING, after it had been FAILED",
    ),
    "pending again": (
        with_states(State.RUNNING, State.PENDING, State.SUCCEEDED),
        "at 1.0 it was PENDING again, after it had been RUNNING",
    ),
    "another state at last": (with_states(State.RUNNING), "it has succeeded, and was RUNNING at last"),
    "traceback": (
        with_events(event(1, 2.9, "recovering", reason="Traceback (most recent call last)")),
        "attempt 1 has a traceback in an event: recovering",
    ),
    "no reason": (with_events(event(1, 2.9, "recovering", reason="")), "attempt 1 recovers without a reason"),
    "left over": (lambda history: replace(history, left=["process 12 raylet"]), "left over: process 12 raylet"),
}


def test_a_history_as_it_must_be_has_no_violation(history: History) -> None:
    assert violations(history) == []


@pytest.mark.parametrize(("change", "words"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_a_violation_is_found(history: History, change: Change, words: str) -> None:
    found = violations(change(history))
    assert any(line.startswith(words) for line in found), found


@pytest.mark.parametrize(
    "change",
    [
        with_states(State.RUNNING, State.RECOVERING, State.RUNNING, State.SUCCEEDED),
        failed_and_resumed(State.RUNNING, State.FAILED, State.RECOVERING, State.SUCCEEDED, at=1.5),
        lambda history: replace(
            with_base(Base(1, 4))(with_events(event(2, 3.0, "checkpoint.corrupt", step=8))(history)),
            events=[
                *[row for row in history.events if row["event"] != "restored"],
                event(2, 3.0, "checkpoint.corrupt", step=8),
                event(2, 3.1, "restored", step=4),
            ],
            metrics=[*rows(1, 0, 10, 1.0), *rows(2, 4, LAST, 3.0)],
        ),
        with_step_4_retired(None),
        with_step_4_retired("partial"),
        failed_and_resumed(State.RUNNING, State.FAILED, State.FAILED, State.RUNNING, State.SUCCEEDED, at=1.5),
    ],
    ids=["recovering", "failed and resumed", "damaged base passed over", "retired", "half retired", "failed a while"],
)
def test_what_may_happen_is_no_violation(history: History, change: Change) -> None:
    assert violations(change(history)) == []


def test_of_real_runs_one_that_goes_on_is_as_it_must_be_and_one_that_repeats_what_it_had_saved_is_not(
    tmp_path: Path,
) -> None:
    whole = start(tmp_path, EVERYTHING)
    train(whole)
    assert_as_it_must_be(whole, whole, faults=0, keep=100)
    for step, repeats in ((12, False), (7, True)):
        run = cut_off(whole, step, tmp_path / str(step))
        train(run)
        if not repeats:
            assert_as_it_must_be(run, whole, faults=1, keep=100)
        else:
            with pytest.raises(AssertionError, match="starts from step 7, though attempt 1 had saved step 12"):
                assert_as_it_must_be(run, whole, faults=1, keep=100)
