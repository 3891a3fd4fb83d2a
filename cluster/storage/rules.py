"""What every storage keeps to: the shape of its paths, and what a lost conditional create means."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from cluster.errors import CorruptObjectError, ObjectNotFoundError, StorageError
from cluster.storage.base import Digest, Storage

_CHUNK = 8 << 20  # bytes read at once


def check_path(path: str) -> str:
    """Return a path that stays below the root; raise StorageError for any other."""
    if not all(part not in ("", ".", "..") for part in path.split("/")) or "\0" in path:
        raise StorageError(
            f"{path!r} is no path within a storage: its parts are separated by one /, and none is empty, . or .."
        )
    return path


def check_prefix(prefix: str) -> str:
    """Return a prefix of paths: nothing, a path, or a path and a `/`."""
    if prefix:
        check_path(prefix.removesuffix("/"))
    return prefix


def check_folder(prefix: str) -> str:
    """Return the prefix of a folder: nothing, or a path and a `/`."""
    assert not prefix or prefix.endswith("/"), f"{prefix!r} names no folder: it needs a / at its end"
    return check_prefix(prefix)


def holds(storage: Storage, path: str, data: bytes) -> bool:
    """Return whether an object is exactly `data`: then we wrote it, though the reply was lost."""
    try:
        return storage.read(path) == data
    except ObjectNotFoundError:
        return False


def digest_in(storage: Storage, path: str, size: int, read: Callable[[int], object] = lambda _: None) -> Digest:
    """Hash the first `size` bytes of an object part by part, which takes neither a disk nor much memory.

    `read` is told of the bytes of each part.
    """
    hashed, found = hashlib.sha256(), 0
    for start in range(0, size, _CHUNK):
        data = storage.read(path, start=start, end=min(start + _CHUNK, size))
        hashed.update(data)
        found += len(data)
        read(len(data))
        if len(data) < _CHUNK:
            break  # that was its end
    return Digest(found, hashed.hexdigest())


def check_digest(found: Digest, expect: Digest, name: str) -> None:
    """Raise CorruptObjectError where the bytes read are not the bytes written."""
    if found != expect:
        raise damaged(name, "SHA-256", (found.size, found.sha256), (expect.size, expect.sha256))


def damaged(name: str, kind: str, found: tuple[int, str], expect: tuple[int, str]) -> CorruptObjectError:
    """Return the error of an object with this size and hash, but another one when it was written."""
    return CorruptObjectError(
        f"{name} is damaged: {found[0]} bytes with {kind} {found[1][:12]}…, "
        f"but {expect[0]} bytes with {expect[1][:12]}… were written"
    )
