"""Whether a sweep is to stop: a person wants it to, its budget is used up, or a newer attempt has taken over."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from cluster.errors import StorageError
from cluster.runs import Attempt, SupersededError

_POLL = 1.0  # seconds


class Watch:
    """Looks now and then, in a thread; while storage is away, nobody wants anything."""

    def __init__(self, attempt: Attempt, *, seconds_left: float | None = None, budget: str = "") -> None:
        """After `seconds_left` the trials are told to save and end; `budget` says of what there is no more."""
        self._attempt = attempt
        self._until = time.monotonic() + seconds_left if seconds_left is not None else None
        self._budget = budget
        self._closed = threading.Event()
        self.reason: str | None = None  # why it stops
        self.superseded: SupersededError | None = None

    @property
    def is_spent(self) -> bool:
        """Whether it stops for its budget."""
        return self.reason is not None and self.reason == self._budget

    @property
    def is_stopping(self) -> bool:
        return self.reason is not None or self.superseded is not None

    @contextlib.contextmanager
    def looking(self) -> Iterator[Watch]:
        thread = threading.Thread(target=self._look_on, name="watch", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._closed.set()
            thread.join()

    def _look_on(self) -> None:
        self._look()
        while self.superseded is None and not self._closed.wait(_POLL):
            self._look()

    def _look(self) -> None:
        with contextlib.suppress(StorageError):
            try:
                self._attempt.check_current()
            except SupersededError as error:
                self.superseded = error
                return
            self.reason = self.reason or self._attempt.run.stop_reason()
            if self.reason is None and self._until is not None and time.monotonic() > self._until:
                self._attempt.give_notice(self._budget)
                self.reason = self._budget
