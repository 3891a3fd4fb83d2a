"""What waits for a storage that is away."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from cluster.errors import StorageError, is_outage
from cluster.runs import Run
from cluster.storage.base import Digest, Entry, Storage
from cluster.storage.sources import Source
from cluster.storage.targets import Target

PATIENCE = 30 * 60.0  # seconds for what may come back, until a run gives up
UNREACHED = 5 * 60.0  # seconds for a storage that the machines of a cluster may not reach at all
_PAUSE = 5.0  # seconds between tries, beside those that storage takes by itself
_T = TypeVar("_T")


def through_outages(
    call: Callable[[], _T], *, seconds: float = PATIENCE, gives_up: Callable[[], bool] = lambda: False
) -> _T:
    """Try again while storage is away, until it was so long, or `gives_up` says so. Raises what else there is."""
    until, is_told = time.monotonic() + seconds, False
    while True:
        try:
            return call()
        except StorageError as error:
            if not is_outage(error) or time.monotonic() > until or gives_up():
                raise
            if not is_told:
                print(f"waiting for storage: {error}", file=sys.stderr, flush=True)
                is_told = True
        time.sleep(_PAUSE)


def patient(run: Run, *, seconds: float = PATIENCE, gives_up: Callable[[], bool] = lambda: False) -> Run:
    """Return the same run, by which each call to storage waits, as `through_outages` does, until it has an answer.

    Where a method makes several, none that had one is repeated.
    """
    return Run(_Patient(run.storage, seconds, gives_up), run.id)


class _Patient:
    """A storage, each of whose calls waits while it is away."""

    def __init__(self, storage: Storage, seconds: float, gives_up: Callable[[], bool]) -> None:
        self.uri = storage.uri
        self._storage = storage
        self._seconds = seconds
        self._gives_up = gives_up

    def read(self, path: str, *, start: int = 0, end: int | None = None) -> bytes:
        return self._wait(lambda: self._storage.read(path, start=start, end=end))

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        self._wait(lambda: self._storage.write(path, data, if_absent=if_absent))

    def upload(self, source: Path | Source, path: str) -> Digest:
        return self._wait(lambda: self._storage.upload(source, path))

    def download(self, path: str, target: Path | Target, *, expect: Digest) -> None:
        self._wait(lambda: self._storage.download(path, target, expect=expect))

    def copy(self, source: str, target: str) -> None:
        self._wait(lambda: self._storage.copy(source, target))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        return iter(self._wait(lambda: [*self._storage.list(prefix)]))

    def folders(self, prefix: str = "", *, quick: bool = False) -> Iterator[str]:
        return iter(self._wait(lambda: [*self._storage.folders(prefix, quick=quick)]))

    def delete(self, path: str) -> None:
        self._wait(lambda: self._storage.delete(path))

    def sweep(self, prefix: str = "") -> Sequence[str]:
        return self._wait(lambda: self._storage.sweep(prefix))

    def _wait(self, call: Callable[[], _T]) -> _T:
        return through_outages(call, seconds=self._seconds, gives_up=self._gives_up)
