"""Files of this machine: written whole or not at all, and their errors in words."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from cluster.errors import StorageDeniedError, StorageError, StorageFullError
from cluster.storage.base import Digest
from cluster.storage.rules import check_digest

PARTIAL = ".raylift-partial-"
_TOKEN_BYTES = 4
_TRIES = 100


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a StorageError about `path`."""
    try:
        yield
    except OSError as error:
        raise _explain(error, path) from error


@contextmanager
def new_file(target: Path) -> Iterator[BinaryIO]:
    """Open a hidden file beside `target` for `replace` or `create`; it is gone at the end of the block.

    It is locked as long as its writer lives, which is how `remove_if_stale` knows those of the dead.
    """
    file = _open_locked(target)
    try:
        yield file
    finally:
        with suppress(FileNotFoundError):
            os.unlink(file.name)
        with suppress(OSError):  # after a full disk, the rest of the buffer cannot be written either
            file.close()


def replace(file: BinaryIO, target: Path) -> None:
    """Let a new file become `target`, durably, in place of what was there."""
    _flush(file)
    os.replace(file.name, target)
    _sync_folder(target.parent)


def create(file: BinaryIO, target: Path) -> None:
    """Let a new file become `target`, durably. Raises FileExistsError where there is one."""
    _flush(file)
    try:
        os.link(file.name, target)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise StorageError(
                f"the file system of {target.parent} has no hard links, which a run needs to have one writer: "
                "choose another storage"
            ) from error
        raise
    _sync_folder(target.parent)


def partial_target(name: str) -> str | None:
    """Return the name that a hidden file is for; None where `name` is no hidden file."""
    return name[len(PARTIAL) + 2 * _TOKEN_BYTES + 1 :] if name.startswith(PARTIAL) else None


def remove_if_stale(partial: Path) -> bool:
    """Remove a hidden file whose writer is gone; return whether it was."""
    try:
        with partial.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()
    except OSError:  # held by a living writer, moved to its place, or on a file system without locks
        return False
    return True


@dataclass
class Arrival:
    """A file that is being fetched."""

    path: Path  # to be filled
    found: Digest | None = None  # of what was written into it, where that is known: it is then not read again


@contextmanager
def arriving(target: Path, expect: Digest, name: str) -> Iterator[Arrival]:
    """Yield a file to fill. It becomes `target` if it then holds `expect`, and is removed if not."""
    partial = target.with_name(f"{PARTIAL}{secrets.token_hex(_TOKEN_BYTES)}-{target.name}")
    arrival = Arrival(partial)
    try:
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield arrival
            check_digest(arrival.found or Digest.of_file(partial), expect, name)
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(target)
    finally:
        with suppress(OSError):  # moved to its place, or never made
            partial.unlink()


def _open_locked(target: Path) -> BinaryIO:
    for _ in range(_TRIES):
        # a folder that is still empty may be removed by another's delete, a file without a lock by a sweep
        with suppress(FileNotFoundError):
            made = list(takewhile(lambda folder: not folder.exists(), target.parents))
            if made:
                target.parent.mkdir(parents=True, exist_ok=True)
            file = target.with_name(f"{PARTIAL}{secrets.token_hex(_TOKEN_BYTES)}-{target.name}").open("xb")
            with suppress(OSError):  # a file system without locks: nothing is swept there
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                for folder in made:
                    _sync_folder(folder.parent)
                return file
            file.close()
    raise StorageError(f"{target.parent} is removed again and again while we write to it: find out by whom")


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot, and need not
            raise
    finally:
        os.close(descriptor)


def _explain(error: OSError, path: Path) -> StorageError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError(
            f"no space for {path}: {reason.lower()}, {_free(path)}; free some or choose another place"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageDeniedError(f"{path} is out of bounds: {reason.lower()}; check its owner and mode, or its mount")
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return StorageError(f"{path} cannot be used: {reason.lower()}; a file and a folder cannot share a name")
    return StorageError(f"{path}: {reason.lower()}")


def _free(path: Path) -> str:
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return f"{shutil.disk_usage(there).free / 1e6:.1f} MB are free"
