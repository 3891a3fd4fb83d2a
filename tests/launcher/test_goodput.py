"""Where a run's time went: known answers, and sums that hold for whatever a run may have written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.records import Base, Claim, Result
from launcher.goodput import Goodput, describe, measure
from launcher.history import gather
from launcher.status import summarize
from tests.finished import new_run, write_story

Row = dict[str, Any]


def claim(attempt: int, at: float, base: tuple[int, int] | None = None) -> Claim:
    return Claim(attempt, "here", 1, at, Base(*base) if base else None)


def event(at: float, name: str, attempt: int = 1, **values: Any) -> Row:
    return {"time": at, "event": name, "attempt": attempt, **values}


def step(at: float, number: int, attempt: int = 1) -> Row:
    return {"time": at, "kind": "step", "step": number, "attempt": attempt}


def evaluation(at: float, number: int, seconds: float, attempt: int = 1) -> Row:
    return {"time": at, "kind": "eval", "step": number, "seconds": seconds, "attempt": attempt}


def spent(
    claims: Sequence[Claim],
    events: Sequence[Row] = (),
    metrics: Sequence[Row] = (),
    results: dict[int, float] | None = None,
) -> dict[str, float]:
    """Return the seconds of the parts that are not zero; `results` are the times of attempts' results."""
    found = measure(
        claims, {number: Result("STOPPED", at=at) for number, at in (results or {}).items()}, events, metrics
    )
    assert found is not None
    return {name: milliseconds / 1000 for name, milliseconds in found.parts().items() if milliseconds}


# -- one attempt


def test_the_parts_of_an_attempt_are_told_apart() -> None:
    events = [
        event(5.0, "restored", step=0, seconds=0.5),
        event(8.0, "training", step=0),
        event(15.0, "checkpoint", step=1, blocked=0.25),  # it was written behind training, long after it held that up
    ]
    metrics = [step(10.0, 1), evaluation(12.0, 1, 1.5), step(14.5, 2)]
    assert spent([claim(1, 1.0)], events, metrics, {1: 16.0}) == {
        "start-up": 6.5,
        "restoring": 0.5,
        "training": 2.0 + 0.5 + 2.25,
        "evaluating": 1.5,
        "saves": 0.25,
        "other": 1.5,
    }


def test_a_save_that_was_given_up_held_training_up_too() -> None:
    skipped = event(4.0, "checkpoint.skipped", step=1, blocked=1.5)
    events = [event(1.0, "training", step=0), skipped, event(6.0, "checkpoint", step=2, blocked=0.5)]
    found = spent([claim(1, 1.0)], events, [step(2.0, 1), step(5.0, 2)], {1: 6.0})
    assert found == {"training": 2.5, "saves": 2.0, "other": 0.5}


def test_what_the_last_save_held_up_is_told_apart_from_the_rest_of_the_end() -> None:
    events = [event(1.0, "training", step=0), event(5.0, "checkpoint", step=1, blocked=0.5)]
    found = spent([claim(1, 1.0)], events, [step(3.0, 1)], {1: 6.0})
    assert found == {"training": 2.0, "saves": 0.5, "other": 2.5}


def test_an_attempt_that_never_trained_was_starting_up() -> None:
    assert spent([claim(1, 1.0)], [event(3.0, "cluster")], results={1: 4.0}) == {"start-up": 3.0}


def test_an_attempt_whose_driver_was_killed_before_it_trained_was_starting_up_until_then() -> None:
    events = [event(2.0, "claimed"), event(9.0, "recovering")]
    assert spent([claim(1, 1.0), claim(2, 10.0)], events) == {"start-up": 8.0, "waiting": 1.0}


def test_an_attempt_that_wrote_nothing_was_waited_for() -> None:
    assert spent([claim(1, 1.0), claim(2, 10.0)], results={2: 11.0}) == {"waiting": 9.0, "start-up": 1.0}


def test_where_the_event_of_its_begin_was_lost_an_attempt_began_with_its_first_row() -> None:
    assert spent([claim(1, 1.0)], [], [step(4.0, 1), step(6.0, 2)]) == {"start-up": 3.0, "training": 2.0}


def test_a_run_that_goes_on_is_measured_up_to_its_last_row() -> None:
    assert spent([claim(1, 1.0)], [event(2.0, "training", step=0)], [step(7.0, 5)]) == {
        "start-up": 1.0,
        "training": 5.0,
    }


def test_a_run_without_an_attempt_has_no_goodput() -> None:
    assert measure([], {}, [], []) is None


# -- several attempts


def test_work_behind_the_base_of_a_later_attempt_was_repeated() -> None:
    events = [event(2.0, "training", step=0), event(3.0, "training", attempt=2, step=8)]
    metrics = [step(2.0 + number / 10, number) for number in range(1, 11)]
    found = spent([claim(1, 2.0), claim(2, 3.0, (1, 8))], events, metrics)
    assert found == {"training": 0.8, "repeated": 0.2}


def test_an_evaluation_behind_the_base_was_repeated_too() -> None:
    events = [event(1.0, "training", step=0)]
    metrics = [step(2.0, 1), evaluation(2.5, 1, 0.5), step(3.0, 2), evaluation(4.0, 2, 0.75)]
    found = spent([claim(1, 1.0), claim(2, 4.0, (1, 1))], events, metrics)
    assert found == {"training": 1.0, "evaluating": 0.5, "repeated": 1.5}


def test_the_save_of_the_base_itself_was_not_repeated() -> None:
    events = [event(1.0, "training", step=0), event(2.9, "checkpoint", step=1, blocked=0.25)]
    found = spent([claim(1, 1.0), claim(2, 3.0, (1, 1))], events, [step(2.0, 1), step(3.0, 2)])
    assert found == {"training": 1.0, "saves": 0.25, "repeated": 0.75}


def test_a_save_behind_the_base_was_repeated_too() -> None:
    events = [event(1.0, "training", step=0), event(3.0, "checkpoint", step=2, blocked=0.5)]  # damaged since
    found = spent([claim(1, 1.0), claim(2, 3.0, (1, 1))], events, [step(2.0, 1), step(2.5, 2), step(3.0, 3)])
    assert found == {"training": 1.0, "repeated": 1.0}


def test_the_steps_between_two_rows_are_as_long_as_each_other() -> None:
    events = [event(0.0, "training", step=0)]
    metrics = [step(10.0, 10), step(20.0, 20), step(30.0, 30)]
    assert spent([claim(1, 0.0), claim(2, 30.0, (1, 25))], events, metrics) == {"training": 25.0, "repeated": 5.0}


def test_steps_are_counted_from_where_an_attempt_went_on() -> None:
    events = [event(0.0, "training", attempt=2, step=90)]
    metrics = [step(10.0, 100, attempt=2)]
    claims = [claim(1, 0.0), claim(2, 0.0, (1, 90)), claim(3, 10.0, (2, 95))]
    assert spent(claims, events, metrics) == {"training": 5.0, "repeated": 5.0}


def test_where_a_later_attempt_began_anew_all_work_was_repeated() -> None:
    events = [event(1.0, "training", step=0), event(3.0, "checkpoint", step=2, blocked=0.5)]
    metrics = [step(2.0, 2), evaluation(3.0, 2, 0.5)]
    assert spent([claim(1, 1.0), claim(2, 3.0)], events, metrics) == {"repeated": 2.0}


def test_a_base_far_back_takes_the_attempts_between_out_of_the_history() -> None:
    events = [event(float(number), "training", attempt=number, step=0) for number in (1, 2, 3)]
    metrics = [step(2.0, 4, 1), step(3.0, 8, 2), step(4.0, 8, 3)]
    claims = [claim(1, 1.0), claim(2, 2.0, (1, 4)), claim(3, 3.0, (1, 2))]
    assert spent(claims, events, metrics) == {"training": 0.5 + 1.0, "repeated": 0.5 + 1.0}


def test_waiting_is_from_the_last_sign_of_a_lost_attempt_to_the_next_claim() -> None:
    events = [event(1.0, "training", step=0), event(62.0, "recovering")]
    assert spent([claim(1, 1.0), claim(2, 65.0)], events, [step(2.0, 1)]) == {"repeated": 1.0, "waiting": 63.0}


def test_a_planned_change_of_the_ranks_repeats_nothing_and_costs_its_start() -> None:
    events = [
        event(2.0, "training", step=0),
        event(5.5, "resizing", step=2, **{"from": 1, "to": 2}),
        event(8.0, "resized", 2, step=2, **{"from": 1, "to": 2}),
        event(9.0, "restored", 2, step=2, seconds=0.5),
        event(9.0, "training", 2, step=2),
    ]
    metrics = [step(3.0, 1), step(5.0, 2), step(10.0, 3, 2)]
    claims = [claim(1, 1.0), claim(2, 6.0, (1, 2))]
    assert spent(claims, events, metrics) == {
        "start-up": 1.0 + 2.5,
        "restoring": 0.5,
        "training": 3.0 + 1.0,
        "waiting": 0.5,
        "other": 0.5,
    }


def test_the_wait_for_room_is_no_start_up() -> None:
    events = [
        event(2.0, "waiting", workers=1, least=2),
        event(7.0, "waited", seconds=5.0),
        event(9.0, "training", step=0),
    ]
    found = spent([claim(1, 1.0)], events, [step(10.0, 1)])
    assert found == {"start-up": 3.0, "waiting": 5.0, "training": 1.0}


def test_a_run_that_lost_its_rank_and_has_not_gone_on_yet_is_waiting() -> None:
    events = [event(1.0, "training", step=0), event(5.0, "recovering")]
    assert spent([claim(1, 1.0)], events, [step(2.0, 1)]) == {"training": 1.0, "waiting": 3.0}


def test_the_time_between_a_stop_and_a_resume_is_paused() -> None:
    claims = [claim(1, 1.0), claim(2, 1000.0, (1, 1))]
    found = measure(
        claims,
        {1: Result("STOPPED", at=3.0)},
        [event(1.0, "training", step=0), event(1000.0, "training", attempt=2, step=1)],
        [step(3.0, 1), step(1002.0, 2, 2)],
    )
    assert found == Goodput(training=4000, paused=997_000)
    assert (found.total, found.share) == (4000, 1.0)


# -- clocks that differ


def test_an_attempt_that_was_given_up_and_writes_on_takes_nothing_from_the_next() -> None:
    events = [event(1.0, "training", step=0), event(4.0, "training", attempt=2, step=2)]
    metrics = [step(2.0, 1), step(3.0, 2), step(9.0, 20), step(5.0, 3, attempt=2)]
    claims = [claim(1, 1.0), claim(2, 4.0, (1, 2))]
    assert spent(claims, events, metrics) == {"training": 3.0, "repeated": 1.0}


def test_a_crash_that_was_noticed_before_the_last_row_by_another_clock_is_no_negative_wait() -> None:
    events = [event(1.0, "training", step=0), event(2.75, "recovering")]
    found = spent([claim(1, 1.0), claim(2, 3.5, (1, 2))], events, [step(2.0, 1), step(3.0, 2)])
    assert found == {"training": 2.0, "waiting": 0.5}


def test_rows_from_before_the_claim_by_another_clock_are_moved_to_it() -> None:
    events = [event(0.5, "restored", step=0, seconds=9.0), event(0.75, "training", step=0)]
    assert spent([claim(1, 1.0)], events, [step(0.9, 1), step(3.0, 2)]) == {"training": 2.0}


def test_a_claim_from_before_the_one_before_by_another_clock_is_moved_to_it() -> None:
    assert spent([claim(1, 5.0), claim(2, 4.0)], [event(6.0, "cluster", attempt=2)]) == {"start-up": 1.0}


def test_an_evaluation_that_says_longer_than_it_can_have_been_is_cut() -> None:
    events = [event(1.0, "training", step=0)]
    metrics = [step(2.0, 1), evaluation(3.0, 1, 0.75), evaluation(4.0, 1, 60.0)]
    assert spent([claim(1, 1.0)], events, metrics) == {"training": 1.25, "evaluating": 1.75}


# -- whatever a run may have written

TIMES = st.integers(0, 60_000).map(lambda milliseconds: milliseconds / 1000)
STEPS = st.integers(0, 30)
EVENTS = st.builds(
    lambda at, name, attempt, number, seconds: event(
        at, name, attempt, step=number, seconds=seconds, blocked=seconds / 4
    ),
    TIMES,
    st.sampled_from(["claimed", "cluster", "restored", "training", "checkpoint", "recovering", "finished", "memory"]),
    st.integers(1, 4),
    STEPS,
    TIMES,
)
METRICS = st.builds(
    lambda at, kind, attempt, number, seconds: {**evaluation(at, number, seconds, attempt), "kind": kind},
    TIMES,
    st.sampled_from(["step", "eval", "epoch"]),
    st.integers(1, 4),
    STEPS,
    TIMES,
)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Claim], dict[int, Result], list[Row], list[Row]]:
    claims = []
    for number in range(1, draw(st.integers(1, 4)) + 1):
        older = st.tuples(st.integers(1, number - 1), STEPS) if number > 1 else st.nothing()
        claims.append(claim(number, draw(TIMES), draw(st.none() | older)))
    results = draw(st.dictionaries(st.integers(1, 4), TIMES.map(lambda at: Result("STOPPED", at=at))))
    return claims, results, draw(st.lists(EVENTS, max_size=25)), draw(st.lists(METRICS, max_size=25))


@given(histories())
def test_no_part_is_negative_and_all_of_them_are_the_wall_time(
    history: tuple[list[Claim], dict[int, Result], list[Row], list[Row]],
) -> None:
    claims, results, events, metrics = history
    found = measure(claims, results, events, metrics)
    assert found is not None
    parts = found.parts()
    assert min(parts.values()) >= 0
    last = claims[-1].attempt
    words = [row["time"] for row in [*events, *metrics] if row["attempt"] == last]
    words += [results[last].at] if last in results else []
    end = max([*words, *(one.at for one in claims)])
    assert sum(parts.values()) == round(end * 1000) - round(claims[0].at * 1000)
    assert found.total == sum(parts.values()) - parts["paused"]
    assert 0 <= found.share <= 1


@given(histories(), st.integers(1, 2_000_000_000))
def test_it_does_not_matter_when_a_run_was(
    history: tuple[list[Claim], dict[int, Result], list[Row], list[Row]], later: int
) -> None:
    claims, results, events, metrics = history
    moved = measure(
        [claim(one.attempt, one.at + later, (one.base.attempt, one.base.step) if one.base else None) for one in claims],
        {number: Result("STOPPED", at=result.at + later) for number, result in results.items()},
        [{**row, "time": row["time"] + later} for row in events],
        [{**row, "time": row["time"] + later} for row in metrics],
    )
    assert moved == measure(claims, results, events, metrics)


@dataclass
class Simulation:
    """A run that is lost and goes on, by one clock, and what its time went into."""

    now: int = 1_000_000  # milliseconds
    claims: list[Claim] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    metrics: list[Row] = field(default_factory=list)
    results: dict[int, Result] = field(default_factory=dict)
    truth: Counter[str] = field(default_factory=Counter)
    saved: tuple[int, int] | None = None

    def attempt(self, draw: st.DrawFn, *, last: bool) -> None:
        attempt, first = len(self.claims) + 1, self.saved[1] if self.saved else 0
        self.claims.append(claim(attempt, self.now / 1000, self.saved))
        done: list[tuple[int, str, int]] = []  # step, part, milliseconds
        self._pass(draw, "start-up", 5000)
        if self.saved is not None:
            self.saved = attempt, first  # adopted
            took = self._pass(draw, "restoring", 1000)
            self._tell("restored", step=first, seconds=took / 1000)
        self._tell("training", step=first)
        for number in range(first + 1, first + 1 + draw(st.integers(0, 6))):
            done.append((number, "training", self._wait(draw, 900)))
            self.metrics.append(step(self.now / 1000, number, attempt))
            if draw(st.booleans()):
                done.append((number, "evaluating", self._wait(draw, 700)))
                self.metrics.append(evaluation(self.now / 1000, number, done[-1][2] / 1000, attempt))
            if draw(st.booleans()):
                done.append((number, "saves", self._wait(draw, 300)))
                self._tell("checkpoint", step=number, blocked=done[-1][2] / 1000)
                self.saved = attempt, number
        bound = float("inf") if last else self.saved[1] if self.saved else -1
        for number, part, took in done:
            self.truth[part if number <= bound else "repeated"] += took
        self._end(draw, last=last)

    def _end(self, draw: st.DrawFn, *, last: bool) -> None:
        if not last:
            self._pass(draw, "waiting", 4000)
            self._tell("recovering", reason="rank 1 died")
            self._pass(draw, "waiting", 3000)
            return
        self._pass(draw, "other", 2000)
        self.results[len(self.claims)] = Result("SUCCEEDED", at=self.now / 1000)

    def _tell(self, name: str, **values: Any) -> None:
        self.events.append(event(self.now / 1000, name, len(self.claims), **values))

    def _pass(self, draw: st.DrawFn, part: str, most: int) -> int:
        took = self._wait(draw, most)
        self.truth[part] += took
        return took

    def _wait(self, draw: st.DrawFn, most: int) -> int:
        took = draw(st.integers(1, most))
        self.now += took
        return took


@st.composite
def simulations(draw: st.DrawFn) -> Simulation:
    simulation = Simulation()
    attempts = draw(st.integers(1, 4))
    for number in range(1, attempts + 1):
        simulation.attempt(draw, last=number == attempts)
    return simulation


@given(simulations())
def test_a_run_by_one_clock_is_measured_to_the_millisecond(run: Simulation) -> None:
    found = measure(run.claims, run.results, run.events, run.metrics)
    assert found is not None
    assert Counter({name: took for name, took in found.parts().items() if took}) == run.truth


# -- real rows


def test_a_run_that_was_lost_at_step_10_and_went_on_from_step_8(tmp_path: Path) -> None:
    run = write_story(tmp_path)
    expected = Goodput(training=760 + 380, start_up=700, evaluating=60, repeated=200, waiting=1300, other=1600)
    assert expected.total == 5000
    assert summarize(run).goodput == expected
    assert gather(run).goodput == expected


def test_a_brief_summary_does_not_read_what_goodput_needs(tmp_path: Path) -> None:
    assert summarize(write_story(tmp_path), brief=True).goodput is None


def test_a_run_that_was_just_claimed_has_spent_nothing_yet(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.claim()
    found = summarize(run).goodput
    assert found == Goodput()
    assert describe(found) == ""


# -- in words


def test_a_line_says_the_share_and_what_the_rest_went_into() -> None:
    found = Goodput(
        training=220_100,
        start_up=12_000,
        restoring=400,
        evaluating=6000,
        repeated=3000,
        saves=100,
        waiting=400,
        other=0,
    )
    assert describe(found) == (
        "91 % of 4 min 2 s: start-up 12 s, restoring 0.4 s, evaluating 6.0 s, repeated 3.0 s, saves 0.1 s, "
        "waiting 0.4 s"
    )


def test_a_line_leaves_out_what_took_no_time_and_tells_a_pause_apart() -> None:
    assert describe(Goodput(training=4000, saves=49, paused=3_600_000)) == "99 % of 4.0 s; paused 1 h 0 min"


def test_programs_get_seconds() -> None:
    assert Goodput(training=1500, start_up=500, paused=9000).as_dict() == {
        **{"share": 0.75, "total": 2.0, "training": 1.5, "start_up": 0.5, "restoring": 0.0, "evaluating": 0.0},
        **{"repeated": 0.0, "saves": 0.0, "waiting": 0.0, "other": 0.0, "paused": 9.0},
    }


@pytest.mark.parametrize("milliseconds", [0, 1])
def test_a_share_of_nothing_is_nothing(milliseconds: int) -> None:
    assert Goodput(paused=milliseconds).share == 0.0
