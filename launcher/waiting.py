"""What a command waits for, said where it takes more than a moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cluster.provider import Resource

_PATIENCE = 3.0  # seconds, also between two lines
_NAMED = 5  # of many


class Waiting:
    """Says what there still is, after a few seconds, and when that has changed."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said = ""
        self._said_at = time.monotonic()

    def __call__(self, left: Sequence[Resource]) -> None:
        names = [f"{each.kind} {each.name}" for each in left[:_NAMED]]
        more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
        line = f"waiting for: {', '.join(names)}{more}"
        if line != self._said and time.monotonic() - self._said_at > _PATIENCE:
            self._said, self._said_at = line, time.monotonic()
            self._say(line)
