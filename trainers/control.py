"""What a run is asked while it trains: to stop, or to go on with more ranks.

That a newer attempt has taken over, it learns at its next save.

In a rehearsal, this is also where its faults come from.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator

from cluster.attempts import Attempt
from cluster.errors import StorageError
from trainers import notice
from trainers.context import StopReason
from trainers.elastic import Growth
from trainers.pulse import Phase, Pulse
from trainers.rehearsal import Faults

_POLL = 1.0  # seconds


class Control:
    """Looks into storage once a second, on rank 0 alone; the loop spreads what it finds.

    Whether its machine will be taken away, every rank looks for itself.
    """

    def __init__(self, attempt: Attempt, rank: int, world_size: int = 1) -> None:
        self._attempt = attempt
        self._faults = Faults(rank, world_size, driver=attempt.claim.pid)
        self._stop: StopReason | None = None
        self._deadline = math.inf  # of time.monotonic(), as the notice of the attempt has it
        self.why: str | None = None  # of rank 0: in the words of whoever asked for a stop
        self.growth: Growth | None = None  # of rank 0, where the number of ranks may change
        self.resize_to: int | None = None  # set with the wish for it
        self.pulse: Pulse | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        notice.ask(self._closed)
        if rank == 0:
            self._thread = threading.Thread(target=self._watch, name="control", daemon=True)
            self._thread.start()

    def after(self, step: int) -> None:
        """Count a step, and meet the faults of a rehearsal; outside one, there are none."""
        if self.growth is not None:
            self.growth.after(step)
        self._faults.at(step)

    def stop(self) -> StopReason | None:
        """Return this rank's wish to stop; never blocks."""
        if (urgent := self.urgent_stop()) is not None:
            return urgent
        if self.growth is not None and (wanted := self.growth.wanted()) is not None:
            self.resize_to = wanted
            return StopReason.RESIZE
        return None

    def urgent_stop(self) -> StopReason | None:
        """Return this rank's wish to stop where even an evaluation is too long to wait for; never blocks."""
        if self._stop is not None:
            return self._stop
        return StopReason.PREEMPTED if notice.is_given() else None

    def left(self) -> float:
        """Return for how many seconds this rank's machine is still there, as far as it knows, else infinity."""
        return min(self._deadline - time.monotonic(), notice.left())

    @contextlib.contextmanager
    def excused(self) -> Iterator[None]:
        """Hold the step up, within `stop`: no watchdog takes it for hanging."""
        if self.pulse is not None:
            self.pulse.enter(Phase.SAVING)
        yield
        if self.pulse is not None:
            self.pulse.enter(Phase.COMPUTING)

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(_POLL):
            try:
                if self._stop is None and (why := self._attempt.run.stop_reason()) is not None:
                    self.why, self._stop = why, StopReason.PERSON
                if (told := self._attempt.notice()) is not None:  # also to one that stops: it may have to hurry
                    self._deadline = time.monotonic() + (math.inf if told.seconds is None else told.seconds - _POLL)
                    self._stop = self._stop or StopReason.PREEMPTED
                    return
            except StorageError:
                continue  # storage is away: training goes on
