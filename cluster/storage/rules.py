"""What every storage keeps to: the shape of its paths, and what a lost conditional create means."""

from __future__ import annotations

from cluster.errors import CorruptObjectError, ObjectNotFoundError, StorageError
from cluster.storage.base import Digest, Storage


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


def check_digest(found: Digest, expect: Digest, name: str) -> None:
    """Raise CorruptObjectError where the bytes read are not the bytes written."""
    if found != expect:
        raise CorruptObjectError(
            f"{name} is damaged: {found.size} bytes with SHA-256 {found.sha256[:12]}…, "
            f"but {expect.size} bytes with {expect.sha256[:12]}… were written"
        )
