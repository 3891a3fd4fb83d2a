"""cluster/storage/parts.py: how many requests it takes to read an object into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest

from cluster.storage.base import Digest
from cluster.storage.parts import fill

PART = 10


class Memory:
    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def begin(self) -> None: ...

    def room(self, start: int, end: int) -> Sequence[memoryview]:
        return [memoryview(self.data)[start:end]]

    def arrived(self, end: int) -> None: ...


@pytest.mark.parametrize(
    ("size", "connections", "requests"),
    [(0, 4, 1), (PART, 4, 1), (79, 4, 8), (80, 4, 4), (805, 4, 41), (800, 1, 80)],
    ids=["empty", "one part", "few parts", "a large part each", "large parts", "one connection"],
)
def test_parts_are_large_where_all_connections_have_one(size: int, connections: int, requests: int) -> None:
    stored, asked = bytes(range(256)) * 4, []

    def read(start: int, end: int | None, room: Sequence[memoryview]) -> int:
        asked.append(start)
        data = stored[start : size if end is None else end]
        room[0][:] = data
        return len(data)

    memory = Memory(size)
    expect = Digest(size, hashlib.sha256(stored[:size]).hexdigest())
    fill(read, memory, "it", expect=expect, part_size=PART, connections=connections)
    assert bytes(memory.data) == stored[:size]
    assert len(asked) == requests
