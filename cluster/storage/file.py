"""A storage in a folder of this machine, or of a file system that several machines share."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from cluster.errors import ObjectExistsError, ObjectNotFoundError, StorageError
from cluster.storage.base import Digest, Entry
from cluster.storage.disk import (
    PARTIAL,
    arriving,
    create,
    disk_errors,
    new_file,
    partial_target,
    remove_if_stale,
    replace,
)
from cluster.storage.parts import fill
from cluster.storage.rules import check_folder, check_path, check_prefix, holds
from cluster.storage.sources import Piece, Source, opened
from cluster.storage.targets import Target

_CHUNK = 1 << 20


class FileStorage:
    """Objects are files. Links to folders are not followed in listings, and empty folders do not exist."""

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.abspath(root))
        self.uri = str(self._root)

    def read(self, path: str, *, start: int = 0, end: int | None = None) -> bytes:
        with self._open(path) as file:
            file.seek(start)
            return file.read() if end is None else file.read(max(0, end - start))

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        target = self._target(path)
        with disk_errors(target), new_file(target) as file:
            file.write(data)
            try:
                (create if if_absent else replace)(file, target)
            except FileExistsError as error:
                if not holds(self, path, data):
                    raise ObjectExistsError(f"{target} exists already: another writer was first") from error

    def upload(self, source: Path | Source, path: str) -> Digest:
        target = self._target(path)
        with opened(source) as data, disk_errors(target), new_file(target) as file:
            digest = _write_hashing(data.pieces(), file)
            data.check_unchanged()
            replace(file, target)
        return digest

    def download(self, path: str, target: Path | Target, *, expect: Digest) -> None:
        with self._open(path) as stored:
            if not isinstance(target, Path):
                read = partial(_read_into, stored)  # what comes next, so by one thread
                fill(read, target, stored.name, expect=expect, part_size=_CHUNK, connections=1)
                return
            with arriving(target, expect, stored.name) as arrival, arrival.path.open("xb") as file:
                arrival.found = _write_hashing(iter(lambda: stored.read(_CHUNK), b""), file)

    def copy(self, source: str, target: str) -> None:
        goal = self._target(target)
        with self._open(source) as stored, disk_errors(goal), new_file(goal) as file:
            shutil.copyfile(stored.name, file.name)  # within the kernel where it can
            replace(file, goal)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder = check_prefix(prefix).rpartition("/")[0]
        return self._walk(f"{folder}/" if folder else "", prefix)

    def folders(self, prefix: str = "", *, quick: bool = False) -> Iterator[str]:
        for entry in self._scan(check_folder(prefix)):
            if entry.is_dir(follow_symlinks=False) and (quick or any(self._walk(f"{prefix}{entry.name}/"))):
                yield entry.name

    def delete(self, path: str) -> None:
        target = self._target(path)
        with disk_errors(target), suppress(FileNotFoundError, NotADirectoryError):
            if not target.is_dir():
                target.unlink()
        self._prune(target.parent)

    def sweep(self, prefix: str = "") -> Sequence[str]:
        check_prefix(prefix)
        swept = []
        for folder, _, names in os.walk(self._root / prefix.rpartition("/")[0]):
            for name in names:
                path = Path(folder, partial_target(name) or name).relative_to(self._root).as_posix()
                if partial_target(name) and path.startswith(prefix) and remove_if_stale(Path(folder, name)):
                    swept.append(path)
                    self._prune(Path(folder))
        return sorted(swept)

    def _target(self, path: str) -> Path:
        if PARTIAL in check_path(path):
            raise StorageError(f"{path!r}: names that begin with {PARTIAL} are taken by files that are being written")
        return self._root / path

    @contextmanager
    def _open(self, path: str) -> Iterator[BinaryIO]:
        target = self._target(path)
        with disk_errors(target):
            try:
                file = target.open("rb")
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                raise ObjectNotFoundError(f"there is no {target}") from error
            with file:
                yield file

    def _walk(self, folder: str, prefix: str = "") -> Iterator[Entry]:
        for entry in self._scan(folder):
            path = folder + entry.name
            if not path.startswith(prefix):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(f"{path}/")
            elif entry.is_file():
                with suppress(FileNotFoundError):  # deleted since
                    found = entry.stat()
                    yield Entry(path, found.st_size, found.st_mtime)

    def _scan(self, folder: str) -> Sequence[os.DirEntry[str]]:
        """Return what is in a folder in the order of whole paths, in which `a-b` stands before `a/b`."""
        there = self._root / folder
        with disk_errors(there), suppress(FileNotFoundError, NotADirectoryError), os.scandir(there) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(PARTIAL)]
            return sorted(visible, key=lambda entry: entry.name + "/" * entry.is_dir(follow_symlinks=False))
        return []

    def _prune(self, folder: Path) -> None:
        while folder != self._root:
            try:
                folder.rmdir()
            except OSError:  # not empty, or gone
                return
            folder = folder.parent


def _write_hashing(pieces: Iterable[Piece], target: BinaryIO) -> Digest:
    hashed, size = hashlib.sha256(), 0
    for piece in pieces:
        hashed.update(piece)
        target.write(piece)
        size += len(piece)
    return Digest(size, hashed.hexdigest())


def _read_into(file: BinaryIO, _start: int, end: int | None, room: Sequence[memoryview]) -> int:
    """Read what comes next of a file into memory; return how much that was, with one byte more of a longer one."""
    found = sum(file.readinto(piece) for piece in room)  # type: ignore[attr-defined]  # of the buffered file it is
    return found + (len(file.read(1)) if end is None else 0)
