"""A run's events and rows, as they come, from storage alone: any laptop can follow."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cluster.records import Result, by_time
from cluster.runs import Run
from cluster.segments import SegmentReader
from cluster.trials import sweep_of
from launcher.printed import Line, Printed
from launcher.status import is_running_here

WRITERS = {"events": ("supervisor", "driver", "rank-0"), "metrics": ("rank-0",)}
_POLL = 0.3  # seconds, of a local folder; a bucket is asked less often
_POLL_REMOTE = 1.0
_LAST_WORDS = 20.0  # seconds that the processes of a run with a result have to print to their end
_GONE = 3.0  # seconds without processes and without a result until a run counts as lost


@dataclass(frozen=True)
class Update:
    """One row of a run's events or metrics, or of its logs: who has printed which line."""

    stream: str
    attempt: int
    row: dict[str, Any]


class Follower:
    """Reads what is new in a run, over its attempts; those up to `after` are history."""

    def __init__(
        self, run: Run, *, after: int = 0, is_alive: Callable[[], bool] | None = None, output: bool = False
    ) -> None:
        """`is_alive` says whether the run may still write; unless given, this machine's processes say so.

        With `output`, what its processes print is read too.
        """
        self.run = run
        self._is_alive = is_alive or self._is_alive_here
        self._after = after
        self._attempt = 0
        self._readers: list[tuple[str, SegmentReader]] = []
        self._gone_since: float | None = None
        self._printed = Printed(run) if output else None

    def follow(self) -> Iterator[Update | None]:
        """Yield updates until the run has a result or its processes are gone; None where nothing was new."""
        poll = _POLL if "://" not in self.run.uri or self.run.uri.startswith("file://") else _POLL_REMOTE
        while True:
            newest = max(self.run.attempts(), default=0)
            is_over = self.result() is not None
            updates = self.read()
            yield from updates
            if is_over or self._is_lost():
                yield from self._last_words(poll, newest)
                if not is_over or not self._goes_on(newest):
                    return
            if not updates:
                yield None
            time.sleep(poll)

    def _last_words(self, poll: float, newest: int) -> Iterator[Update | None]:
        """Yield what comes of a run that is over: its newest attempt has a result before its processes have ended."""
        deadline = time.monotonic() + _LAST_WORDS
        own = self._printed is not None and sweep_of(self.run) is None  # a trial's processes go on with others
        while own and self._is_alive() and time.monotonic() < deadline and not self._goes_on(newest):
            yield from self.read()
            yield None
            time.sleep(poll)
        yield from self.read()
        if self._printed is not None:
            yield from map(as_update, self._printed.end())

    def _goes_on(self, newest: int) -> bool:
        """Whether a resume has begun an attempt after the one that was the newest."""
        return max(self.run.attempts(), default=0) > newest

    def read(self) -> list[Update]:
        """Return the rows since the last call, in the order of their times."""
        attempts = self.run.attempts()
        found = self._drain()
        for attempt in attempts:
            if attempt > max(self._attempt, self._after):
                self._attempt = attempt
                self._readers = [
                    (stream, SegmentReader(self.run, attempt, stream, writer))
                    for stream, writers in WRITERS.items()
                    for writer in writers
                ]
                if self._printed is not None:
                    found += map(as_update, self._printed.begin(attempt))
                found += self._drain()
        return found

    def result(self) -> Result | None:
        """Return how the newest attempt ended, once there is one after those that are history."""
        attempts = self.run.attempts()
        return self.run.result_of(attempts[-1]) if attempts and attempts[-1] > self._after else None

    def _drain(self) -> list[Update]:
        found = by_time(
            [[Update(stream, self._attempt, row) for row in reader.read_rows()] for stream, reader in self._readers],
            lambda update: float(update.row["time"]),
        )
        if self._printed is None or not self._attempt:
            return found
        for update in found:
            if update.row.get("event") == "training":
                self._printed.expect(update.row["world_size"])
        return [*found, *map(as_update, self._printed.read())]

    def _is_alive_here(self) -> bool:
        claims = self.run.claims()
        elsewhere = bool(claims) and claims[-1].attempt > self._after and claims[-1].host != socket.gethostname()
        return (elsewhere and self.result() is None) or is_running_here(self.run)

    def _is_lost(self) -> bool:
        if self._is_alive():
            self._gone_since = None
            return False
        now = time.monotonic()
        self._gone_since = self._gone_since or now
        return now - self._gone_since > _GONE


def as_update(line: Line) -> Update:
    return Update("logs", line.attempt, {"writer": line.writer, "line": line.text})
