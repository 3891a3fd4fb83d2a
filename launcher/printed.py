"""What a run's processes print, line by line, while it goes on."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.errors import RunNotFoundError
from cluster.runs import Run
from cluster.segments import IN_STORAGE, SegmentReader

if TYPE_CHECKING:
    from cluster.provider import Provider

DRIVER = "driver"
LAUNCH = "launch"  # who prints before there is a driver, or where that is started
_PARALLEL = 8
_RETRY = 5.0  # seconds
_QUIET = 5.0  # seconds
_PAUSE = 0.2  # of the time for which a writer has written nothing, until it is asked again
_LONGEST_PAUSE = 5.0  # seconds


@dataclass(frozen=True)
class Line:
    """A line that somebody printed."""

    attempt: int
    writer: str
    text: str


class Lines:
    """Cuts bytes, as they come, into lines."""

    def __init__(self) -> None:
        self._begun = b""

    def feed(self, data: bytes) -> list[str]:
        *whole, self._begun = (self._begun + data).split(b"\n")
        return [_text(each) for each in whole]

    def rest(self) -> list[str]:
        """Return the line that never came to its end, if there is one."""
        begun, self._begun = self._begun, b""
        return [_text(begun)] if begun else []


class Printed:
    """Reads from storage what the newest attempt's processes print, and its driver, which may serve several."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._attempt = 0
        self._ranks = 1
        self._writers: dict[tuple[int, str], _Writer] = {}

    def begin(self, attempt: int) -> list[Line]:
        """Turn to a new attempt; return the last lines of the one before, whose ranks have ended."""
        last = self._read_rest(but=DRIVER)
        self._writers = {key: writer for key, writer in self._writers.items() if writer.name == DRIVER}
        self._attempt = attempt
        self._add(DRIVER, "supervisor")
        self.expect(self._ranks)
        return last

    def expect(self, ranks: int) -> None:
        """Read of so many ranks."""
        self._ranks = max(ranks, self._ranks)
        self._add(*(f"rank-{rank}" for rank in range(self._ranks)))

    def read(self) -> list[Line]:
        """Return the lines since the last call, those of a writer in their order; who is quiet is asked less often."""
        now = time.monotonic()
        return self._read([writer for writer in self._writers.values() if now >= writer.due])

    def _read(self, writers: Sequence[_Writer]) -> list[Line]:
        with ThreadPoolExecutor(_PARALLEL) as pool:
            return [line for lines in pool.map(_Writer.read, writers) for line in lines]

    def end(self) -> list[Line]:
        """Return what is left, once the run is over."""
        return self._read_rest()

    def _read_rest(self, *, but: str = "") -> list[Line]:
        if not self._attempt:
            return []
        self._add(*self._run.writers_of(self._attempt))  # also ranks that never came to train
        ended = [writer for writer in self._writers.values() if writer.name != but]
        return [*self._read([*self._writers.values()]), *(line for writer in ended for line in writer.rest())]

    def _add(self, *names: str) -> None:
        for name in names:
            if (key := (self._attempt, name)) not in self._writers:
                reader = SegmentReader(self._run, self._attempt, "logs", name)
                self._writers[key] = _Writer(self._attempt, name, reader)


@dataclass
class _Writer:
    attempt: int
    name: str
    reader: SegmentReader
    lines: Lines = field(default_factory=Lines)
    due: float = 0.0  # of time.monotonic()
    _heard: float = field(default_factory=time.monotonic)

    def read(self) -> list[Line]:
        data, now = self.reader.read_new(), time.monotonic()
        self._heard = now if data else self._heard
        if (quiet := now - self._heard) > _QUIET:
            self.due = now + min(quiet * _PAUSE, _LONGEST_PAUSE)
        return self._said(self.lines.feed(data))

    def rest(self) -> list[Line]:
        return self._said(self.lines.rest())

    def _said(self, texts: Sequence[str]) -> list[Line]:
        return [Line(self.attempt, self.name, text) for text in texts]


class Launching:
    """Reads through its provider, in a thread, what a run prints before an attempt: from then on storage has it."""

    def __init__(self, run: Run, provider: Provider) -> None:
        self._run, self._provider = run, provider
        self._found: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, name="launching", daemon=True)
        self._thread.start()

    def read(self) -> list[Line]:
        """Return the lines since the last call."""
        return [Line(0, LAUNCH, self._found.get()) for _ in range(self._found.qsize())]

    def end(self, timeout: float) -> list[Line]:
        """Return what is left, once the run is over."""
        self._thread.join(timeout)
        return self.read()

    def _read(self) -> None:
        from launcher.remote import describe

        lines, read = Lines(), 0
        while True:
            try:
                describe(self._run, self._provider)  # what has its id may be another storage's
                for data in self._provider.logs(self._run.id, follow=True, offset=read):
                    read += len(data)
                    for text in lines.feed(data):
                        if text.startswith(IN_STORAGE):
                            return
                        self._found.put(text)
            except RunNotFoundError:
                pass
            except Exception:  # as whatever follows the run says: nothing here ends that
                time.sleep(_RETRY)
                continue
            for text in lines.rest():
                self._found.put(text)
            return


def _text(line: bytes) -> str:
    """Return what a terminal would show of a line that was written over, as progress is."""
    return line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]
