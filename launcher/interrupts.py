"""Ctrl-C: the first time a wish, the second time a command."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupts:
    """Counts Ctrl-C for the length of a block; the second raises KeyboardInterrupt, and no other does.

    What is raised where a signal comes may be lost, as in the midst of an import; what is counted is not.
    """

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Interrupts:
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is not signal.SIG_IGN:  # a shell starts commands in its background so
            signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 2:
            raise KeyboardInterrupt
