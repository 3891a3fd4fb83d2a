"""The one seam to object storage: a run sees a Storage, never a cloud's SDK."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cluster.storage.sources import Source
    from cluster.storage.targets import Target


@dataclass(frozen=True)
class Digest:
    """What a file holds: its size in bytes, its SHA-256 in hex and, where that is known, its CRC-64/NVME."""

    size: int
    sha256: str
    crc64: str = field(default="", compare=False)

    @classmethod
    def of_file(cls, path: Path) -> Digest:
        with path.open("rb") as file:
            return cls(size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())

    @classmethod
    def of_bytes(cls, data: bytes) -> Digest:
        return cls(size=len(data), sha256=hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Entry:
    """One object in a listing; `path` is relative to the storage's root."""

    path: str
    size: int
    modified: float  # seconds since the epoch, by the storage's clock


class Storage(Protocol):
    """Objects under one root (a folder, or a bucket and prefix).

    Paths are relative to the root, with `/` between their parts and none at either end. Every call blocks,
    retries what is worth retrying (throttling, 5xx, resets, with backoff and jitter), and raises a
    `StorageError` of cluster.errors. All but `write(if_absent=True)` are idempotent.
    """

    uri: str

    def read(self, path: str, *, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes from `start` up to, not including, `end`. Raises ObjectNotFoundError."""
        ...

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        """Write all of `data` or nothing.

        With `if_absent`, raises ObjectExistsError where another writer was first. A reply that was lost is
        read back: an object that holds exactly `data` is ours, so `data` must hold a nonce of the writer.
        """
        ...

    def upload(self, source: Path | Source, path: str) -> Digest:
        """Store a file, or what is in memory, in parallel parts where it is large; return what was sent.

        All or nothing. Raises CorruptObjectError where a file changed meanwhile.
        """
        ...

    def download(self, path: str, target: Path | Target, *, expect: Digest) -> None:
        """Fetch an object into a file that appears only when complete, or into memory. Raises CorruptObjectError.

        What is in the memory is worth nothing until this has returned.
        """
        ...

    def copy(self, source: str, target: str) -> None:
        """Copy an object within the storage, without its bytes passing through this machine where it can."""
        ...

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the objects whose path starts with `prefix`, in the order of their paths."""
        ...

    def folders(self, prefix: str = "", *, quick: bool = False) -> Iterator[str]:
        """Yield the names directly below the folder `prefix` (`""` or `a/b/`) that are folders themselves.

        With `quick` no more is asked than a listing takes; a folder that was emptied just now may then be among them.
        """
        ...

    def delete(self, path: str) -> None:
        """Remove an object; one that is not there is no error."""
        ...

    def sweep(self, prefix: str = "") -> Sequence[str]:
        """Abort the partial uploads below `prefix` that nobody will complete; return their paths."""
        ...
