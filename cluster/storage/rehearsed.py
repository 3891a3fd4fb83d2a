"""A bucket that answers 503 for a while, as a rehearsal asks for it: no request reaches the server meanwhile."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REHEARSAL = "RAYLIFT_REHEARSAL"  # environment: the folder with plan.json; see trainers.rehearsal
OUTAGE = "RAYLIFT_REHEARSED_OUTAGE"  # environment: a file that holds the time at which the outage ends
_BODY = b"<Error><Code>SlowDown</Code><Message>a rehearsed outage</Message></Error>"


def refuse_for(seconds: float, file: Path) -> None:
    """Begin an outage for all processes that have `file` in their environment."""
    new = file.with_suffix(".new")
    new.write_text(str(time.time() + seconds))
    new.replace(file)


def is_away() -> bool:
    """Whether storage is to be away now."""
    try:
        return time.time() < float(Path(os.environ[OUTAGE]).read_text())
    except (KeyError, FileNotFoundError):
        return False


def rehearse_s3(client: Any) -> None:
    """Have a client of boto3 meet the outages that are rehearsed, if any are."""
    if OUTAGE in os.environ:
        client.meta.events.register("before-send.s3", _answer)


def rehearse_gcs() -> None:
    """Raise in place of a request what google-cloud-storage raises of a 503, while an outage is rehearsed."""
    if is_away():
        from google.api_core.exceptions import ServiceUnavailable
        from requests import Response

        reply = Response()
        reply.status_code, reply.raw = 503, io.BytesIO(_BODY)
        raise ServiceUnavailable("a rehearsed outage", response=reply)


def _answer(request: Any, **_: object) -> Any:
    """Return the reply that botocore takes for the server's; None to send the request."""
    if not is_away():
        return None
    from botocore.awsrequest import AWSResponse

    return AWSResponse(request.url, 503, {"Content-Type": "application/xml"}, _Body())


class _Body:
    def stream(self) -> Iterator[bytes]:
        yield _BODY
