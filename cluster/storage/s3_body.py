"""What S3 answers with, read into memory that is there."""

from __future__ import annotations

from collections.abc import Sequence
from http.client import HTTPException, HTTPResponse
from typing import Any

_CHUNK = 1 << 20


def pour(body: Any, room: Sequence[memoryview]) -> int:
    """Read a body into memory; return how long it is, or one more than there is room where it is longer.

    Python's own response reads from the socket into memory that it is given. What urllib3 and botocore wrap around it
    copies all of it once more, through new memory: that takes a third of a restore's processor time. Raises botocore's
    errors.
    """
    from botocore.exceptions import IncompleteReadError

    response = _response_in(body)
    if response is None:
        return _read_by_chunks(body, room)
    is_whole = False
    try:
        filled = _read_directly(response, room)
        is_longer = filled == sum(map(len, room)) and bool(_called(response.read, 1))
        if response.length and not is_longer:
            raise IncompleteReadError(actual_bytes=filled, expected_bytes=filled + response.length)
        is_whole = not is_longer
    finally:
        body._raw_stream.release_conn() if is_whole else body.close()  # with what is still to come, none can use it
    return filled + is_longer


def _response_in(body: Any) -> HTTPResponse | None:
    """Return the response that is wrapped; None where what is wrapped around it does more than to read it."""
    from botocore.response import StreamingBody

    if type(body) is not StreamingBody:
        return None
    stream = getattr(body, "_raw_stream", None)
    response = getattr(stream, "_fp", None)
    is_plain = isinstance(response, HTTPResponse) and response.getheader("Content-Encoding") in (None, "identity")
    return response if is_plain and hasattr(stream, "release_conn") else None


def _read_directly(response: HTTPResponse, room: Sequence[memoryview]) -> int:
    filled = 0
    for piece in room:
        at = 0
        while at < len(piece):
            count = _called(response.readinto, piece[at:])
            if not count:
                return filled
            at += count
            filled += count
    return filled


def _called(read: Any, argument: Any) -> Any:
    """Return what a method of a response does; what goes wrong is told as botocore tells it."""
    from botocore.exceptions import ReadTimeoutError, ResponseStreamingError

    try:
        return read(argument)
    except TimeoutError as error:
        raise ReadTimeoutError(endpoint_url=None, error=error) from error
    except (OSError, HTTPException) as error:
        raise ResponseStreamingError(error=error) from error


def _read_by_chunks(body: Any, room: Sequence[memoryview]) -> int:
    filled = 0
    for piece in room:
        at = 0
        while at < len(piece):
            data = body.read(min(_CHUNK, len(piece) - at))
            if not data:
                return filled
            piece[at : at + len(data)] = data
            at += len(data)
            filled += len(data)
    return filled + len(body.read(1))
