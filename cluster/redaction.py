"""Keeps the values of secrets out of what is printed and stored."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from functools import cache

NAMES = "RAYLIFT_SECRETS"  # the variables that hold secrets, by name, with commas between them
SHORTEST = 4  # characters: what is shorter would be found in anything
_HIDDEN = b"[secret]"


class Redactor:
    """Takes secrets out of a stream of bytes, also where a chunk ends in the middle of one."""

    def __init__(self, values: Iterable[str]) -> None:
        # longest first, so that one that begins with another goes as a whole; JSON writes some in another way
        both = {form.encode() for value in values for form in (value, json.dumps(value)[1:-1])}
        self._words = sorted(filter(None, both), key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._words)))
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return what may be shown by now: an end that may be the beginning of a secret waits for what follows."""
        if not self._words:
            return data
        data = self._held + data
        cut = len(data) - self._beginning(data)
        cut = next((match.start() for match in self._pattern.finditer(data) if match.start() < cut < match.end()), cut)
        self._held = data[cut:]
        return self.hide(data[:cut])

    def rest(self) -> bytes:
        """Return what was still waiting; nothing follows it."""
        held, self._held = self._held, b""
        return self.hide(held)

    def hide(self, data: bytes) -> bytes:
        return self._pattern.sub(_HIDDEN, data) if self._words else data

    def _beginning(self, data: bytes) -> int:
        """Return how many bytes at the end are the beginning, and no more, of a secret."""
        longest = min(len(self._words[0]) - 1, len(data))
        lengths = range(longest, 0, -1)
        return next((each for each in lengths if any(self._begins(word, data[-each:]) for word in self._words)), 0)

    @staticmethod
    def _begins(word: bytes, end: bytes) -> bool:
        return len(end) < len(word) and word.startswith(end)


def redactor() -> Redactor:
    """Return one for the secrets of this process."""
    names = filter(None, os.environ.get(NAMES, "").split(","))
    return Redactor([os.environ[name] for name in names if len(os.environ.get(name, "")) >= SHORTEST])


def hide(data: bytes) -> bytes:
    """Return data without the secrets of this process."""
    return _of_this_process(os.environ.get(NAMES, "")).hide(data)


@cache
def _of_this_process(_names: str) -> Redactor:
    return redactor()
