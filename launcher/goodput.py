"""How much of a run's time went into training that counts, and what the rest went into.

The parts follow Google's ml-goodput-measurement (github.com/AI-Hypercomputer/ml-goodput-measurement, version 0.2),
where the one that counts is `GoodputType.TOTAL` and the others are kinds of `BadputType`:

    training     GoodputType.TOTAL
    start-up     TPU_INITIALIZATION, TRAINING_PREP, PROGRAM_STARTUP, DATA_LOADING_SYNC before the first step
    restoring    UNPRODUCTIVE_CHECKPOINT_RESTORE_TIME
    evaluating   CUSTOM_BADPUT_EVENTS: evaluation is its example
    saves        UNPRODUCTIVE_CHECKPOINT_SAVE_TIME
    repeated     WASTED_PROGRESS_FROM_DISRUPTION
    waiting      INFRASTRUCTURE_RECOVERY_FROM_DISRUPTION
    other        OTHER
    paused       excluded time (`total_excluded_time`)
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from typing import Any

from cluster.records import Claim, Result, last_steps
from launcher.text import duration

Rows = Sequence[Mapping[str, Any]]
_OF_ITS_END = ("recovering", "finished")  # events that others, or later ones, may write of an attempt
_SHOWN = 50  # milliseconds; less is 0.0 s


@dataclass(frozen=True)
class Goodput:
    """What a run's time went into, in milliseconds: whole ones, so that the parts add up to it exactly."""

    training: int = 0  # steps that count
    start_up: int = 0  # from an attempt's claim to its first step, but for restoring
    restoring: int = 0
    evaluating: int = 0
    repeated: int = 0  # all that an attempt did after the step from which a later one went on
    saves: int = 0  # in which training stood still; what goes on behind it costs nothing
    waiting: int = 0  # from the last sign of an attempt that has no result to the next one's claim, and for room
    other: int = 0  # the end of an attempt, above all: its last checkpoint on its way
    paused: int = 0  # from an attempt's result to the next one's claim: a person stopped it, and went on later

    @property
    def total(self) -> int:
        """The run's wall time but for pauses."""
        return sum(self.parts().values()) - self.paused

    @property
    def share(self) -> float:
        """The part of the total that was training, from 0 to 1."""
        return self.training / self.total if self.total else 0.0

    def parts(self) -> dict[str, int]:
        """Return the milliseconds by the name that a person reads."""
        return {field.name.replace("_", "-"): getattr(self, field.name) for field in fields(self)}

    def as_dict(self) -> dict[str, float]:
        """Return the share, and total and parts in seconds, for programs."""
        seconds = {name: milliseconds / 1000 for name, milliseconds in asdict(self).items()}
        return {"share": round(self.share, 4), "total": self.total / 1000, **seconds}


def describe(goodput: Goodput) -> str:
    """Say it in a line, without what took no time to speak of; an empty one where no time has passed yet."""
    if not goodput.total:
        return ""
    parts = [
        f"{name} {duration(milliseconds / 1000)}"
        for name, milliseconds in goodput.parts().items()
        if milliseconds >= _SHOWN and name not in ("training", "paused")
    ]
    rest = f": {', '.join(parts)}" if parts else ""
    pause = f"; paused {duration(goodput.paused / 1000)}" if goodput.paused >= _SHOWN else ""
    return f"{100 * goodput.share:.0f} % of {duration(goodput.total / 1000)}{rest}{pause}"


def measure(claims: Sequence[Claim], results: Mapping[int, Result], events: Rows, metrics: Rows) -> Goodput | None:
    """Work out from all that a run wrote what its time went into, up to its last word; None before its first claim.

    Takes the rows of all attempts, each with its `attempt`. Any may be missing, since an attempt can be killed at any
    moment, and the clocks of their writers may differ: what lies outside of its attempt is moved to its edge, so that
    no part is negative and all add up. Where not every step has a row, the steps in between count as equally long.
    """
    if not claims:
        return None
    bounds = last_steps(claims)
    begins = list(accumulate((_ms(claim.at) for claim in claims), max))
    events_of, metrics_of = _by_attempt(events), _by_attempt(metrics)
    spent: Counter[str] = Counter()
    for claim, begin, end in zip(claims, begins, [*begins[1:], None], strict=True):
        number = claim.attempt
        attempt = _Attempt(claim, results.get(number), events_of[number], metrics_of[number])
        spent.update(attempt.measure(begin, end, bounds.get(number, -1)))
    return Goodput(**spent)


class _Attempt:
    """What one attempt wrote."""

    def __init__(self, claim: Claim, result: Result | None, events: Rows, metrics: Rows) -> None:
        self.base = claim.base.step if claim.base else 0
        self.result = result
        self.events = events
        self.metrics = metrics

    def measure(self, begin: int, end: int | None, bound: float) -> Counter[str]:
        """Share out the time from its claim to the next one's, or to its last word where there is no next."""
        heard = self._last_sign(begin)
        if end is None:
            end = max([heard, *(_ms(row["time"]) for row in self.events)])
        heard = min(heard, end)
        began = min(max(self._first_step(heard), begin), heard)
        waited = min(self._took("waited"), began - begin)
        restoring = min(self._took("restored"), began - begin - waited)
        spent = Counter(restoring=restoring, waiting=waited, start_up=began - begin - waited - restoring)
        spent["waiting" if self.result is None else "paused"] += end - heard
        spent.update(self._share_out(began, heard, bound))
        return spent

    def _last_sign(self, begin: int) -> int:
        """Return when it last did anything: until it trains, that is told by others too."""
        signs = [row for row in self.events if row["event"] not in _OF_ITS_END or self._never_trained()]
        times = [_ms(row["time"]) for row in [*signs, *self.metrics]]
        if self.result is not None:
            times += [_ms(self.result.at), *(_ms(row["time"]) for row in self.events)]
        return max([begin, *times])

    def _never_trained(self) -> bool:
        return not self.metrics and not self._of("training")

    def _first_step(self, default: int) -> int:
        """Return when training began; where that event was lost, when its first row was written."""
        return min((_ms(row["time"]) for row in self._of("training") or self.metrics), default=default)

    def _share_out(self, began: int, heard: int, bound: float) -> Counter[str]:
        """Share out the time from its first step to its last sign, by the rows in between."""
        spent: Counter[str] = Counter()
        evaluations = self._evaluations(began, heard)
        for first, last, step in evaluations:
            spent["evaluating" if step <= bound else "repeated"] += last - first
        clock = _clock_without([(first, last) for first, last, _ in evaluations])
        told = [*self._of("checkpoint"), *self._of("checkpoint.skipped")]
        saves = sorted(((row["step"], _ms(row.get("blocked", 0))) for row in told), reverse=True)

        def take_saves(gap: int, before: float) -> int:
            """Take out of a gap what the saves of the steps before it held up; return what is left."""
            while saves and saves[-1][0] < before:
                step, blocked = saves.pop()
                blocked = min(blocked, gap)
                spent["saves" if step <= bound else "repeated"] += blocked
                gap -= blocked
            return gap

        at, done = began, self.base
        for row in self.metrics:
            now, step = min(max(_ms(row["time"]), at), heard), row["step"]
            gap = take_saves(clock(now) - clock(at), step)
            kept = round(gap * _part_up_to(bound, done, step))
            spent.update(training=kept, repeated=gap - kept)
            at, done = now, max(step, done)
        spent["other"] += take_saves(clock(heard) - clock(at), float("inf"))
        return spent

    def _evaluations(self, began: int, heard: int) -> list[tuple[int, int, int]]:
        """Return begin, end and step of each evaluation; a row is written at its end."""
        found: list[tuple[int, int, int]] = []
        at = began
        for row in self.metrics:
            if row["kind"] == "eval":
                last = min(max(_ms(row["time"]), at), heard)
                found.append((max(last - _ms(row.get("seconds", 0)), at), last, row["step"]))
                at = last
        return found

    def _took(self, event: str) -> int:
        return sum(_ms(row.get("seconds", 0)) for row in self._of(event))

    def _of(self, event: str) -> list[Mapping[str, Any]]:
        return [row for row in self.events if row["event"] == event]


def _part_up_to(bound: float, done: int, step: int) -> float:
    """Return which part of the steps after `done` up to `step` is not after the bound."""
    if step <= done:
        return float(step <= bound)
    return min(max(bound - done, 0), step - done) / (step - done)


def _clock_without(spans: Sequence[tuple[int, int]]) -> Callable[[int], int]:
    """Return a clock that stands still in these spans, which are in order and do not overlap."""
    firsts = [first for first, _ in spans]
    stood = [0, *accumulate(last - first for first, last in spans)]

    def clock(at: int) -> int:
        number = bisect_right(firsts, at)
        to_come = max(spans[number - 1][1] - at, 0) if number else 0
        return at - stood[number] + to_come

    return clock


def _by_attempt(rows: Rows) -> Mapping[int, list[Mapping[str, Any]]]:
    """Return each attempt's rows by their time."""
    found: defaultdict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: float(row["time"])):  # stable: a writer's own order stays
        found[row["attempt"]].append(row)
    return found


def _ms(seconds: float) -> int:
    return max(round(seconds * 1000), 0)
