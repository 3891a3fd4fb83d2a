"""Memory that objects are read into."""

from __future__ import annotations

from collections.abc import Sequence


class Memory:
    """A target in two pieces, which meet in the middle of a part."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.ends: list[int] = []

    def begin(self) -> None:
        self.ends.clear()

    def room(self, start: int, end: int) -> Sequence[memoryview]:
        cut = min(max(start, len(self.data) // 3), end)
        return [memoryview(self.data)[start:cut], memoryview(self.data)[cut:end]]

    def arrived(self, end: int) -> None:
        self.ends.append(end)
