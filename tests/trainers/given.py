"""The notice of this process, which a test gives and takes back."""

from __future__ import annotations

import contextlib

from tests.harness import wait_for
from trainers import notice


class Given:
    """As an event: a process has got notice, or not."""

    def set(self) -> None:
        notice.give()

    def clear(self) -> None:
        notice._deadlines.clear()

    def is_set(self) -> bool:
        return notice.is_given()

    def wait(self, seconds: float) -> bool:
        with contextlib.suppress(AssertionError):
            wait_for(notice.is_given, "a notice", timeout=seconds)
        return notice.is_given()
