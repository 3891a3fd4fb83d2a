"""What a run has spent of its budget, and its stop once that is used up.

The driver asks for it as a person does, by way of storage: whoever trains saves and ends. What counts is the time from
the claim of each attempt to the last that is known of it, so neither a crash nor a restart stretches a budget.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.attempts import Attempt
from cluster.errors import StorageError
from cluster.outages import patient
from cluster.runs import Run
from cluster.segments import SegmentWriter
from trainers.config import Budget

_POLL = 1.0  # seconds


@dataclass(frozen=True)
class Limit:
    """How long a run may go on, and what to say when it no longer may."""

    seconds: float
    reason: str


def limit_of(job: Mapping[str, Any]) -> Limit | None:
    """Return what a frozen job file's budget allows, the first limit that its cluster comes to; None: it has none."""
    if job.get("budget") is None:
        return None
    budget, usd_per_hour = Budget.model_validate(job["budget"]), job.get("cluster", {}).get("usd_per_hour")
    limits = []
    if budget.max_hours is not None:
        why = f"budget.max_hours, which is {budget.max_hours:g}, is used up"
        limits.append(Limit(budget.max_hours * 3600, why))
    if budget.max_usd is not None:
        why = f"budget.max_usd, which is {budget.max_usd:g}, is used up at {usd_per_hour:g} an hour"
        limits.append(Limit(budget.max_usd / usd_per_hour * 3600, why))
    return min(limits, key=lambda limit: limit.seconds)


def seconds_spent(rows: Iterable[Mapping[str, Any]]) -> float:
    """Return how long the attempts took since a budget was last used up, from the events and metrics of a run."""
    rows = list(rows)
    spent_at = max((row["attempt"] for row in rows if row["event"] == "budget.spent"), default=0)
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    for row in rows:
        number = row["attempt"]
        if number > spent_at:
            first[number] = min(row["time"], first.get(number, row["time"]))
            last[number] = max(row["time"], last.get(number, row["time"]))
    return sum(last[number] - time for number, time in first.items())


class Spending:
    """Looks after the budget of a run, in a thread, for one launch of it."""

    def __init__(self, run: Run, limit: Limit | None) -> None:
        self._run = run
        self._limit = limit
        self._closed = threading.Event()
        self.is_used_up = False

    @contextlib.contextmanager
    def watched(self, attempt: Attempt) -> Iterator[None]:
        """Ask for a stop when nothing is left; `attempt` is the first of the launch."""
        if self._limit is None:
            yield
            return
        limit = self._limit
        until = time.monotonic() + limit.seconds - self._before(attempt)
        wanted = (until, limit.reason, attempt.claim.launch)
        thread = threading.Thread(target=self._watch, args=wanted, name="budget", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._closed.set()
            thread.join()

    def note(self, events: SegmentWriter) -> None:
        """Write down, in an attempt that ends, that the budget was used up: what comes later has it anew."""
        if self.is_used_up:
            events.append({"event": "budget.spent"})

    def _before(self, attempt: Attempt) -> float:
        run = patient(self._run)
        rows = [*run.all_rows("events"), *({"event": "", **row} for row in run.all_rows("metrics"))]
        # the trials of a sweep have rows of their own: between two of its events only its signs of life tell of it
        lived = {number: run.last_sign_of_life(number) for number in run.attempts()}
        rows += [{"event": "", "attempt": number, "time": at} for number, at in lived.items() if at is not None]
        return seconds_spent(row for row in rows if row["attempt"] < attempt.number)

    def _watch(self, until: float, reason: str, launch: str) -> None:
        while not self._closed.wait(min(_POLL, max(0.0, until - time.monotonic()))):
            if time.monotonic() < until:
                continue
            with contextlib.suppress(StorageError):  # away: asked again
                if self._run.claims()[-1].launch != launch:
                    return  # somebody else goes on with it, with a budget of their own
                if self._run.stop_reason() is None:
                    self._run.request_stop(reason)
                self.is_used_up = True
                return
