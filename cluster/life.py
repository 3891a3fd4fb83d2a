"""Signs of life of a run, by which other machines know that it goes on, also where nothing happens for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.attempts import Attempt
from cluster.errors import StorageError

EVERY = 20.0  # seconds


class SignsOfLife:
    """Has the newest attempt of a driver show, in a thread, that somebody lives, and notes when storage took that."""

    def __init__(self) -> None:
        self.attempt: Attempt | None = None
        self._taken_at = time.monotonic()

    @property
    def silence(self) -> float:
        """For how many seconds storage has not taken one."""
        return time.monotonic() - self._taken_at

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show them, from the next moment on."""
        self._taken_at = time.monotonic()
        closed = threading.Event()
        thread = threading.Thread(target=self._show, args=(closed,), name="life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            closed.set()  # one that is on its way to a storage that is away is not waited for

    def _show(self, closed: threading.Event) -> None:
        while not closed.wait(EVERY):
            if self.attempt is not None:
                try:
                    self.attempt.show_life()
                except StorageError:
                    continue
                self._taken_at = time.monotonic()
