"""What is sent to a storage: a file, or what lies in memory."""

from __future__ import annotations

import hashlib
import io
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, Protocol

from cluster.errors import CorruptObjectError
from cluster.storage.base import Digest
from cluster.storage.checksums import crc64
from cluster.storage.disk import disk_errors

_PIECE = 1 << 20
Piece = bytes | memoryview


class Source(Protocol):
    """Bytes to be stored. They are read more than once, and by several threads at a time."""

    @property
    def size(self) -> int: ...

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to, not including, `end`."""
        ...

    def pieces(self) -> Iterator[Piece]:
        """Yield all bytes, in order."""
        ...

    def check_unchanged(self) -> None:
        """Raise CorruptObjectError where they are not what they were at first."""
        ...


class InMemory:
    """Pieces of memory, one after the other, that nobody changes meanwhile."""

    def __init__(self, *pieces: Piece) -> None:
        self._pieces = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        self._ends = list(accumulate(len(piece) for piece in self._pieces))

    @property
    def size(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, end: int) -> bytes:
        found = []
        for index in range(bisect_right(self._ends, start), len(self._pieces)):
            begin = self._ends[index] - len(self._pieces[index])
            if begin >= end:
                break
            found.append(self._pieces[index][max(start - begin, 0) : end - begin])
        return b"".join(found)

    def pieces(self) -> Iterator[Piece]:
        return iter(self._pieces)

    def check_unchanged(self) -> None: ...


class _File:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._before = self._state()

    @property
    def size(self) -> int:
        return self._before[0]

    def read(self, start: int, end: int) -> bytes:
        return os.pread(self._file.fileno(), end - start, start)

    def pieces(self) -> Iterator[Piece]:
        return (self.read(start, min(start + _PIECE, self.size)) for start in range(0, self.size, _PIECE))

    def check_unchanged(self) -> None:
        if self._state() != self._before:
            raise CorruptObjectError(f"{self._file.name} was written to while it was sent: send it again")

    def _state(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns


@contextmanager
def opened(source: Path | Source) -> Iterator[Source]:
    """Open a file as a source, for the length of the block. Raises StorageError where it cannot be read."""
    if not isinstance(source, Path):
        yield source
        return
    with disk_errors(source):
        file = source.open("rb")
    with file:
        yield _File(file)


def digest_of(source: Source) -> Digest:
    """Return what a source holds, with its CRC-64 where this machine has a quick one."""
    hashed, quick, size = hashlib.sha256(), crc64(), 0
    for piece in source.pieces():
        hashed.update(piece)
        if quick is not None:
            quick.update(piece)
        size += len(piece)
    return Digest(size, hashed.hexdigest(), quick.hexdigest() if quick is not None else "")


class Stream(io.RawIOBase):
    """A source as a file that is open to be read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = self._source.size if size is None or size < 0 else min(self._at + size, self._source.size)
        data = self._source.read(self._at, end)
        self._at += len(data)
        return data

    def readinto(self, buffer: Sequence[int]) -> int:  # type: ignore[override]
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self.read(len(target))
        target[: len(data)] = data
        return len(data)
