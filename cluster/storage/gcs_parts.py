"""Large objects of Google Cloud Storage, sent in parallel parts and composed of them."""

from __future__ import annotations

import hashlib
import logging
import secrets
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from cluster.errors import StorageError
from cluster.storage.base import Digest
from cluster.storage.gcs_errors import failures
from cluster.storage.sources import Source

FOLDER = ".raylift-parts"
CONNECTIONS = 8
_AT_ONCE = 32  # as many as one request composes
_CHUNK = 1 << 20
_TYPE = "application/octet-stream"

_log = logging.getLogger(__name__)


class Parts:
    """The parts of one object: objects in a folder of their own, which are gone at the end of the block.

    Of the ways to send a large file this one is parallel, verified, and whole or nothing: the server refuses a part
    that has another checksum than was announced, the object is composed in one step, and a request whose reply was
    lost can be repeated. A resumable session is one stream, and the library repeats a chunk without asking how much
    of it has arrived. Nobody checks the whole of an XML multipart upload, and no server to test with speaks it.
    """

    def __init__(self, bucket: Any, folder: str, calls: Mapping[str, Any]) -> None:
        self._bucket = bucket
        self._folder = f"{folder}/{secrets.token_hex(8)}"
        self._calls = calls
        self._made: list[Any] = []
        self._parts: Sequence[Any] = []

    def __enter__(self) -> Parts:
        return self

    def send(self, size: int, part_size: int, read: Callable[[int, int], bytes]) -> None:
        """Store the bytes that `read` returns for each start and end."""

        def one(start: int) -> Any:
            part = self._new(str(start))
            data = read(start, min(start + part_size, size))
            part.upload_from_string(data, _TYPE, checksum="crc32c", **self._calls)
            return part

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            self._parts = list(pool.map(one, range(0, size, part_size)))

    def compose(self, target: Any, **conditions: int) -> None:
        """Let the parts be `target`, in one step."""
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            while len(self._parts) > _AT_ONCE:
                self._parts = list(pool.map(self._join_some, range(0, len(self._parts), _AT_ONCE)))
        self._join(self._parts, target, **conditions)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        calls = dict(self._calls) if kind is None else {**self._calls, "retry": None}  # or a dead network costs twice
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            left = sum(pool.map(lambda part: not _remove(part, calls), self._made))
        if left:
            _log.warning("%d parts in %s could not be removed: the next sweep does it", left, self._folder)

    def _new(self, name: str) -> Any:
        part = self._bucket.blob(f"{self._folder}/{name}")
        self._made.append(part)
        return part

    def _join_some(self, start: int) -> Any:
        return self._join(self._parts[start : start + _AT_ONCE], self._new(f"{start}-of-{len(self._parts)}"))

    def _join(self, parts: Sequence[Any], target: Any, **conditions: int) -> Any:
        from google.api_core.exceptions import NotFound

        target.content_type = _TYPE
        try:
            target.compose(parts, **conditions, **self._calls)
        except NotFound as error:
            name = f"gs://{self._bucket.name}/{target.name}"
            raise StorageError(f"a sweep removed parts of {name} while it was sent: send it again") from error
        return target


def _remove(part: Any, calls: Mapping[str, Any]) -> bool:
    """Remove a part; return whether it is gone."""
    from google.api_core.exceptions import NotFound

    try:
        part.delete(**calls)
    except NotFound:
        return True
    except failures():
        return False
    return True


def digests(source: Source) -> tuple[Digest, str]:
    """Return what a source holds, and its CRC-32C as the server writes it."""
    from google_crc32c import Checksum

    hashed, checksum, size = hashlib.sha256(), Checksum(), 0
    for piece in source.pieces():
        hashed.update(piece)
        for start in range(0, len(piece), _CHUNK):  # it takes bytes alone
            checksum.update(bytes(piece[start : start + _CHUNK]))
        size += len(piece)
    return Digest(size, hashed.hexdigest()), b64encode(checksum.digest()).decode()


def crc32c(data: bytes) -> str:
    """Return the CRC-32C of bytes, as the server writes it."""
    from google_crc32c import Checksum

    return b64encode(Checksum(data).digest()).decode()
