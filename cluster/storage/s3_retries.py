"""When a request to S3 is tried again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.storage.network import ATTEMPTS, FIRST_ATTEMPTS, backoff

_CODES = {
    "BadDigest",  # damaged on the way
    "ConditionalRequestConflict",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "ThrottlingException",
    "XAmzContentChecksumMismatch",
}


class Retries:
    """Decides for one client: botocore asks after every attempt (its `needs-retry` event), in any thread.

    botocore's own modes are off: they give a dead endpoint as many attempts as a busy one, and none of them
    retries a 409.
    """

    def __init__(self) -> None:
        self._answered = False

    def __call__(
        self,
        *,
        response: tuple[Any, Mapping[str, Any]] | None,
        attempts: int,
        caught_exception: Exception | None,
        **_: object,
    ) -> float | None:
        """Return the seconds to wait before the next attempt; None for no other."""
        self._answered = self._answered or response is not None
        transient = is_transient(caught_exception) if response is None else _is_transient_reply(response[1])
        if not transient or attempts >= (ATTEMPTS if self._answered else FIRST_ATTEMPTS):
            return None
        return backoff(attempts)


def is_transient(error: Exception | None) -> bool:
    """Return whether a request that got no whole reply may get one later."""
    from botocore.exceptions import ConnectionError as NoConnection
    from botocore.exceptions import HTTPClientError, IncompleteReadError, SSLError

    return isinstance(error, NoConnection | HTTPClientError | IncompleteReadError) and not isinstance(error, SSLError)


def _is_transient_reply(reply: Mapping[str, Any]) -> bool:
    status = reply.get("ResponseMetadata", {}).get("HTTPStatusCode", 200)
    code = reply.get("Error", {}).get("Code")
    return code in _CODES or status == 429 or (status >= 500 and status not in (501, 507))
