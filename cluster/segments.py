"""Append-only rows in object storage, as numbered segments that never change once written."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from cluster.errors import ObjectNotFoundError, StorageError
from cluster.records import last_of, segment_path
from cluster.redaction import hide
from cluster.runs import Run

IN_STORAGE = "raylift: storage has this log from here on, attempt"  # what a driver prints as it begins one
_FIRST_INTERVAL = 1.0  # seconds
_LAST_INTERVAL = 10.0
_MERGED = 100  # segments, or fewer with so many bytes
_MERGED_BYTES = 4 << 20


class SegmentWriter:
    """Collects rows (or raw bytes) and writes a segment every second, later every ten: long runs stay listable.

    `append` never blocks on storage and never fails: while storage is away, rows wait in memory. `flush` writes
    what is there and raises StorageError where it cannot. Now and then all that were written since are written once
    more, as one, for whoever reads them all.
    """

    def __init__(self, run: Run, attempt: int, stream: str, writer: str) -> None:
        self._run = run
        self._place = attempt, stream, writer
        self._pending: list[bytes | Mapping[str, Any]] = []
        self._text: list[bytes] = []  # made of what was pending, which takes more memory
        self._sealed = b""  # a segment that may or may not have arrived: it is repeated as it was
        self._next = 0
        self._unmerged: list[bytes] = []  # the last segments
        self._lock = threading.Lock()
        self._io = threading.Lock()
        self._closed = threading.Event()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._flush_now_and_then, name=f"segments-{stream}", daemon=True)
        self._thread.start()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row, which must not change any more; it becomes text behind whoever trains."""
        with self._lock:
            self._pending.append({"time": round(time.time(), 3), **row})

    def append_bytes(self, data: bytes) -> None:
        with self._lock:
            self._pending.append(data)

    def flush(self) -> None:
        with self._io:
            with self._lock:
                pending, self._pending = self._pending, []
            self._text.extend(each if isinstance(each, bytes) else _line(each) for each in pending)
            self._write_sealed()
            self._sealed = b"".join(self._text)
            self._text.clear()
            self._write_sealed()

    def close(self) -> None:
        """Write what is left. Raises StorageError."""
        self._closed.set()
        self._thread.join()
        self.flush()

    def _write_sealed(self) -> None:
        if self._sealed:
            self._run.storage.write(self._run.path(segment_path(*self._place, self._next)), self._sealed)
            self._next += 1
            self._unmerged.append(self._sealed)
            self._sealed = b""
            self._merge()

    def _merge(self) -> None:
        """Write the last segments as one, where they are enough; who finds none reads the segments themselves."""
        count = len(self._unmerged)
        if count < _MERGED and sum(map(len, self._unmerged)) < _MERGED_BYTES:
            return
        merged = b"".join(self._unmerged)
        self._unmerged.clear()
        if count > 1:
            path = segment_path(*self._place, self._next - count, self._next - 1)
            with suppress(StorageError):
                self._run.storage.write(self._run.path(path), merged)

    def _flush_now_and_then(self) -> None:
        while not self._closed.wait(self._interval()):
            try:
                self.flush()
            except StorageError:
                continue  # the rows wait; close() or the next checkpoint says it aloud

    def _interval(self) -> float:
        age = time.monotonic() - self._started
        return min(max(age / 60, _FIRST_INTERVAL), _LAST_INTERVAL)


class SegmentReader:
    """Follows one writer's segments, reading each once, in order."""

    def __init__(self, run: Run, attempt: int, stream: str, writer: str) -> None:
        self._run = run
        self._place = attempt, stream, writer
        self._next: int | None = None  # unknown before the first call

    def read_new(self) -> bytes:
        """Return what was written since the last call, which may be nothing. The first reads what was merged as one."""
        found = []
        if self._next is None:
            written = self._run.segments(*self._place)
            found = [self._run.storage.read(path) for path in written]
            self._next = last_of(written[-1]) + 1 if written else 0
        while True:
            try:
                found.append(self._run.storage.read(self._run.path(segment_path(*self._place, self._next))))
            except ObjectNotFoundError:
                return b"".join(found)
            self._next += 1

    def read_rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.read_new().splitlines()]


def _line(row: Mapping[str, Any]) -> bytes:
    return hide(json.dumps(row, separators=(",", ":")).encode()) + b"\n"
