"""CRC-64/NVME, which awscrt computes fifty times as fast as SHA-256: 0.02 instead of 0.8 s of a processor a GB.

It tells damage as surely, and nothing of who wrote it: against that SHA-256 is kept beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

Function = Callable[[bytes | memoryview, int], int]
_STEP = 1 << 20  # bytes at once: no other thread runs meanwhile


class Crc64:
    """Computes it of bytes as they come; with hashlib's names."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self._value = 0

    def update(self, data: bytes | memoryview) -> None:
        for start in range(0, len(data), _STEP):
            self._value = self._function(data[start : start + _STEP], self._value)

    def hexdigest(self) -> str:
        return f"{self._value:016x}"


def crc64() -> Crc64 | None:
    """Return a new one; None where awscrt is not installed."""
    function = _function()
    return Crc64(function) if function is not None else None


@cache
def _function() -> Function | None:
    try:
        from awscrt.checksums import crc64nvme
    except ImportError:  # it comes with raylift[aws]
        return None
    found: Function = crc64nvme
    return found
