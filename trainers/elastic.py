"""How many ranks a run has, where that may change while it goes on: what there is room for, and when more pay."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

GIVEN_BACK = 10.0  # seconds in which what the ranks before held is free again
_APART = 2.0  # starts: ranks train at least so much longer than a start takes before they are started again
_GAIN = 1.5  # starts: what more ranks save must be so much more than that
_LEAST_COST, _MOST_COST = 5.0, 300.0  # seconds of a start; the clocks that measure it may differ

_room: int | None = None  # for so many ranks, as this process was told


@dataclass(frozen=True)
class Room:
    """What one node has room for, in ranks."""

    node: str  # its id in Ray
    free: int  # beside all that runs there
    total: int  # if nothing ran there

    def __post_init__(self) -> None:
        assert 0 <= self.free <= self.total, self


def ranks_to_start(rooms: Sequence[Room], least: int, most: int, waited: float) -> int | None:
    """Return with how many ranks to start, `waited` seconds after the first look; None: not yet.

    What is held may be what the ranks before give back just now, so that is waited for, but not for long.
    """
    free, total = (min(most, sum(counts)) for counts in ([r.free for r in rooms], [r.total for r in rooms]))
    if free < least or (free < total and waited < GIVEN_BACK):
        return None
    return free


def tell_room(ranks: int) -> None:
    """Let rank 0, in whose process this is called, know for how many ranks there is room."""
    global _room
    _room = ranks


def pays(*, ranks: int, room: int, trained: float, left: float, cost: float) -> bool:
    """Whether to end the ranks and start as many as there is room for.

    `trained` is how long they train already and `left` how long they would for the rest, `cost` how long a start
    takes, all in seconds. Ranks that are as many times more are taken to be as many times faster.
    """
    if room <= ranks:
        return False
    saved = left * (1 - ranks / room)
    return trained >= _APART * cost and saved >= _GAIN * cost


class Growth:
    """Tells rank 0, from its own pace, when it is time for more ranks."""

    def __init__(self, ranks: int, *, last_step: int, began: float) -> None:
        """Take `began`, when the start of these ranks began, as seconds since the epoch."""
        self._ranks = ranks
        self._last_step = last_step
        self._began = began
        self._first: tuple[float, int] | None = None  # when the first step was done, and which
        self._step = 0
        self._cost = _MOST_COST

    def after(self, step: int) -> None:
        """Count a step."""
        self._step = step
        if self._first is None:
            self._first = time.monotonic(), step
            self._cost = min(max(time.time() - self._began, _LEAST_COST), _MOST_COST)

    def wanted(self) -> int | None:
        """Return with how many ranks to go on; None: with those that are there."""
        if self._first is None or _room is None or self._step == self._first[1]:
            return None
        trained = time.monotonic() - self._first[0]
        left = trained / (self._step - self._first[1]) * (self._last_step - self._step)
        return _room if pays(ranks=self._ranks, room=_room, trained=trained, left=left, cost=self._cost) else None
