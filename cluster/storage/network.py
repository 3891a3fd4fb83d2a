"""What storages behind a network share: how often a request is tried again, and why it failed."""

from __future__ import annotations

import random

ATTEMPTS = 9  # about a minute: a server that restarts, a bucket that throttles
FIRST_ATTEMPTS = 3  # of an endpoint that never answered: it is misspelled, more likely than it is down


def backoff(attempts: int) -> float:
    """Return a random wait in seconds that doubles in the mean: 0.4 after the first attempt, 15 at most."""
    return random.uniform(0.5, 1) * min(20.0, 0.25 * 2.0**attempts)


def reason(error: BaseException, otherwise: str = "") -> str:
    """Return the system's own words from the end of a chain of errors; without any, others or the error's name."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        cause = cause.__cause__ or cause.__context__
    return otherwise or type(error).__name__
