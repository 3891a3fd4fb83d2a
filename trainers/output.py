"""What a process prints, kept in storage as well."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

from cluster.attempts import Attempt
from cluster.errors import StorageError
from cluster.redaction import redactor
from cluster.segments import SegmentWriter


@contextlib.contextmanager
def shipped_output(attempt: Attempt, writer: str) -> Iterator[None]:
    """Copy standard output and error of this process, C libraries' too, into the attempt's logs; secrets in neither."""
    shown = redactor()
    segments = SegmentWriter(attempt.run, attempt.number, "logs", writer)
    read_end, write_end = os.pipe()
    kept = [os.dup(1), os.dup(2)]

    def copy() -> None:
        while data := os.read(read_end, 65536):
            write(shown.feed(data))
        write(shown.rest())

    def write(data: bytes) -> None:
        os.write(kept[1], data)
        segments.append_bytes(data)

    thread = threading.Thread(target=copy, name="output", daemon=True)
    thread.start()
    os.dup2(write_end, 1)
    os.dup2(write_end, 2)
    os.close(write_end)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, original in enumerate(kept, start=1):
            os.dup2(original, descriptor)  # the pipe's last writers are closed by this: copy() ends
        thread.join(timeout=2.0)  # a child that still holds the pipe must not hold us
        with contextlib.suppress(StorageError):
            segments.close()
