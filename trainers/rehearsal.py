"""Faults that a rehearsal asked for: ranks do to themselves, at a given step, what machines and networks do to them.

The signals are real, and so is what follows from them. Each fault comes once, whatever it ends: its record is made
first, in a folder of this machine.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from cluster.storage.rehearsed import OUTAGE, REHEARSAL, refuse_for
from trainers import notice

_OUTAGE_S = 20.0
_PATIENCE = 10.0  # seconds


def is_rehearsed() -> bool:
    """Whether this process is part of a rehearsal."""
    return REHEARSAL in os.environ


class Faults:
    """The faults of one rank; none outside a rehearsal."""

    def __init__(self, rank: int, world_size: int, driver: int) -> None:
        """`driver` is the process id of the run's driver. The plan is {"40": "kill-worker"}, by steps."""
        folder = os.environ.get(REHEARSAL)
        self._folder = Path(folder or "")
        plan: dict[str, str] = json.loads((self._folder / "plan.json").read_text()) if folder else {}
        on_last, on_first = rank == world_size - 1, rank == 0
        able: dict[str, tuple[bool, Callable[[], object]]] = {
            "kill-worker": (on_last, lambda: os.kill(os.getpid(), signal.SIGKILL)),
            "freeze-worker": (on_last, lambda: os.kill(os.getpid(), signal.SIGSTOP)),
            "preempt": (on_last, _preempt),
            "kill-driver": (on_first, lambda: _kill(driver)),
            "storage-503": (on_first, lambda: refuse_for(_OUTAGE_S, Path(os.environ[OUTAGE]))),
        }
        self._planned = {int(step): (name, able[name][1]) for step, name in plan.items() if able[name][0]}

    def at(self, step: int) -> None:
        """Do what is planned for the moment after `step`, if it was not done before."""
        if step not in self._planned:
            return
        name, act = self._planned[step]
        try:
            with (self._folder / f"{step}-{name}.json").open("x") as file:
                json.dump({"fault": name, "step": step, "at": time.time()}, file)
        except FileExistsError:
            return
        act()


def _preempt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    _wait(notice.is_given)  # the main thread takes it, which may be asleep


def _kill(driver: int) -> None:
    os.kill(driver, signal.SIGKILL)
    _wait(lambda: False)  # for our own end, so that small steps do not run into the next fault before it


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
