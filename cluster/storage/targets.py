"""What an object is read into, where that is not a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Target(Protocol):
    """Memory for an object's bytes. Several threads fill it at a time, each a stretch of its own."""

    def begin(self) -> None:
        """Forget what has come: it was not verified, and all bytes come now, maybe once more."""
        ...

    def room(self, start: int, end: int) -> Sequence[memoryview]:
        """Return the memory, in order, of the bytes from `start` up to, not including, `end`."""
        ...

    def arrived(self, end: int) -> None:
        """Take note that all bytes before `end` are there, which are not verified before the last one is.

        Called again and again, by one thread, with an `end` that grows.
        """
        ...


def scatter(data: bytes, room: Sequence[memoryview]) -> None:
    """Fill memory with bytes, as far as they or it go."""
    at = 0
    for piece in room:
        found = data[at : at + len(piece)]
        piece[: len(found)] = found
        at += len(found)
