"""Objects, fetched in parallel parts where they are large."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from cluster.storage.base import Digest
from cluster.storage.checksums import crc64
from cluster.storage.rules import damaged
from cluster.storage.targets import Target

Read = Callable[[int, int | None], bytes]  # from a first byte to, and without, a last one; None: to the end
ReadInto = Callable[[int, int | None, Sequence[memoryview]], int]  # the same; returns the bytes that there were
Part = TypeVar("Part")


def fetch(read: Read, target: Path, *, size: int, part_size: int, connections: int) -> Digest:
    """Write an object that should have `size` bytes into a new file, and return what it holds.

    It is hashed as it comes, which takes a second reading off the time; no more than two parts a connection are in
    memory. Raises what `read` does, and OSError.
    """
    hashed, found = hashlib.sha256(), 0
    with target.open("wb") as file:

        def part(start: int) -> bytes:
            end = start + part_size
            data = read(start, end if end < size else None)  # the last part may be longer than it should be
            os.pwrite(file.fileno(), data, start)
            return data

        for data in _in_order(part, range(0, max(size, 1), part_size), connections):
            hashed.update(data)
            found += len(data)
    return Digest(found, hashed.hexdigest())


def fill(read: ReadInto, target: Target, name: str, *, expect: Digest, part_size: int, connections: int) -> None:
    """Read an object into memory. Raises CorruptObjectError where it is not as expected, and what `read` does.

    It is hashed as it comes, where it then stays: by its CRC-64 where that is known, which finds damage as SHA-256
    does. Of an object that is longer `read` may tell no more than that. Parts are twice as large where they still
    occupy all connections, as each costs a request.
    """
    quick = crc64() if expect.crc64 else None
    hashed, kind, wanted = (quick, "CRC-64", expect.crc64) if quick else (hashlib.sha256(), "SHA-256", expect.sha256)
    size, found = expect.size, 0
    if connections > 1 and size >= 2 * part_size * connections:
        part_size *= 2

    def part(start: int) -> tuple[Sequence[memoryview], int]:
        end = min(start + part_size, size)
        room = target.room(start, end)
        return room, read(start, end if end < size else None, room)

    target.begin()
    for room, length in _in_order(part, range(0, max(size, 1), part_size), connections):
        left = length
        for piece in room:
            hashed.update(piece[:left])
            left -= min(left, len(piece))
        found += length
        target.arrived(min(found, size))
    if (found, hashed.hexdigest()) != (size, wanted):
        raise damaged(name, kind, (found, hashed.hexdigest()), (size, wanted))


def _in_order(part: Callable[[int], Part], starts: Iterable[int], connections: int) -> Iterator[Part]:
    """Yield what `part` returns for each start, of which two a connection are ahead at most."""
    with ThreadPoolExecutor(connections) as pool:
        left = iter(starts)
        coming = deque(pool.submit(part, start) for start in islice(left, 2 * connections))
        while coming:
            yield coming.popleft().result()
            coming.extend(pool.submit(part, start) for start in islice(left, 1))
