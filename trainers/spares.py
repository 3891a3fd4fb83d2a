"""Processes that stand by, with everything imported, to become ranks.

Most of a start is Python starting and importing torch. The first ranks' processes start while Ray Train starts its own.
A run that has trained for a while has its ranks' machine start as many again, which Ray then takes for the ranks of the
next attempt. They need no processor while they wait, and some memory.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

from trainers.memory import available_memory

AFTER = 60.0  # seconds of a first attempt: shorter runs would pay for what they hardly ever need
_AFTER_A_RESTART = 6.0  # the steps since the checkpoint are repeated first
_MEMORY = 1 << 30  # bytes that have to be free for each
_log = logging.getLogger(__name__)


def import_what_ranks_need() -> None:
    """Import what takes long; every process that may become a rank begins with this."""
    import torch._dynamo  # noqa: F401  # otherwise imported at the first step

    import trainers.backend
    import trainers.checkpoint
    import trainers.control
    import trainers.loop
    import trainers.record
    import trainers.tasks.images
    import trainers.worker  # noqa: F401


@contextlib.contextmanager
def standing_by(count: int, *, attempt: int) -> Iterator[None]:
    """Have `count` spares started on this machine once the block has lasted for a while; none where that is 0."""
    timer = threading.Timer(AFTER if attempt == 1 else _AFTER_A_RESTART, _start_spares, (count,))
    timer.daemon = True
    if count:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def start_first_ranks(count: int) -> None:
    """Have the processes of a run's first ranks started on this machine, while Ray Train starts its controller."""
    from trainers import backend

    _start(backend.start_first_ranks, count)


def _start_spares(count: int) -> None:
    from trainers import backend

    if available_memory() >= count * _MEMORY:
        _start(backend.start_spares, count)


def _start(processes: Callable[[int], None], count: int) -> None:
    try:
        processes(count)
    except Exception:  # whatever a Ray that is another inside raises: a start then takes a little longer
        _log.debug("no processes beforehand", exc_info=True)
