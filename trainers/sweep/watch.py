"""Whether a sweep is to stop: somebody asked for it, or a newer attempt has taken over."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from cluster.attempts import Attempt
from cluster.errors import StorageError, SupersededError

_POLL = 1.0  # seconds


class Watch:
    """Looks now and then, in a thread; while storage is away, nobody wants anything."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._closed = threading.Event()
        self.reason: str | None = None  # why it stops
        self.superseded: SupersededError | None = None

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
