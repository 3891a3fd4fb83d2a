"""When a request to Google Cloud Storage is tried again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from cluster.storage.network import ATTEMPTS, FIRST_ATTEMPTS, backoff
from cluster.storage.rehearsed import rehearse_gcs

_DAMAGED = "doesn't match calculated"  # the server's words for a checksum that is not that of the bytes it got
_SLOW_DOWN = {"rateLimitExceeded", "userRateLimitExceeded"}  # reasons of a 403

T = TypeVar("T")


class Retries:
    """What google-cloud-storage takes for `retry=`: it wraps every request of one client, in any thread.

    google.api_core's own Retry knows a deadline alone: it gives a dead endpoint as much time as a busy one. The
    library calls what it wraps from the byte on that it has, so that a download that broke off is resumed.
    """

    def __init__(self) -> None:
        self._answered = False

    def __call__(self, request: Callable[[], T]) -> Callable[[], T]:
        def persistent() -> T:
            attempts = 0
            while True:
                attempts += 1
                try:
                    rehearse_gcs()
                    reply = request()
                except Exception as error:
                    wait = self.wait(error, attempts)
                    if wait is None:
                        raise
                    time.sleep(wait)
                else:
                    self._answered = True
                    return reply

        return persistent

    def wait(self, error: Exception, attempts: int) -> float | None:
        """Return the seconds to wait after a failed attempt before the next one; None for no other."""
        self._answered = self._answered or reply_to(error) is not None
        if not _is_transient(error) or attempts >= (ATTEMPTS if self._answered else FIRST_ATTEMPTS):
            return None
        return backoff(attempts)


def reply_to(error: Exception) -> Any | None:
    """Return the server's reply (of the package requests) that an error of google-cloud-storage is about."""
    from google.api_core.exceptions import GoogleAPICallError
    from google.cloud.storage.exceptions import InvalidResponse

    return error.response if isinstance(error, GoogleAPICallError | InvalidResponse) else None


def is_sign_in_away(error: Exception) -> bool:
    """Return whether Google's sign-in, or a machine's metadata server, may take the same credentials later."""
    from google.auth.exceptions import GoogleAuthError, TransportError

    if not isinstance(error, GoogleAuthError):
        return False
    lost = error if isinstance(error, TransportError) else error.__cause__  # google-auth wraps some of them
    if error.retryable or not isinstance(lost, TransportError):
        return bool(error.retryable)
    return not any(400 <= getattr(said, "status", 0) < 500 for said in lost.args)  # a reply may be among them


def is_damaged(reply: Any) -> bool:
    """Return whether a server refused bytes because they changed on their way to it."""
    return bool(reply.status_code == 400 and _DAMAGED in reply.text)


def _is_transient(error: Exception) -> bool:
    from requests import exceptions as lost
    from urllib3.exceptions import HTTPError

    reply = reply_to(error)
    if reply is not None:
        return _is_transient_reply(reply)
    if isinstance(error, lost.SSLError):
        return False
    broken = lost.ConnectionError | lost.Timeout | lost.ChunkedEncodingError | HTTPError | ConnectionError
    return isinstance(error, broken) or is_sign_in_away(error)


def _is_transient_reply(reply: Any) -> bool:
    status = reply.status_code
    slow_down = status == 403 and any(f'"{reason}"' in reply.text for reason in _SLOW_DOWN)
    return status in (408, 429) or (status >= 500 and status != 501) or slow_down or is_damaged(reply)
