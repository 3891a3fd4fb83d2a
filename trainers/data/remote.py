"""Data behind a URI, fetched once into a folder of this machine."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import StorageFullError, TrainingError

if TYPE_CHECKING:
    from cluster.storage.base import Entry, Storage

_CONNECTIONS = 16
_PIECE = 64 << 20


def cache_folder() -> Path:
    """Return the folder for what can be fetched or computed again: RAYLIFT_CACHE, else below the user's own cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("RAYLIFT_CACHE") or Path(base) / "raylift")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def is_remote(source: str) -> bool:
    return "://" in source


def fetch(uri: str) -> Path:
    """Fetch an object, a folder or a pattern (`s3://bucket/data/*.parquet`, or gs://); return where it lies now.

    The folder belongs to exactly these objects, by their names, sizes and times, so that what was fetched before is
    used again only while nothing has changed. Raises TrainingError where nothing has this name, and the storage's
    own errors.
    """
    from cluster.storage.open import open_storage

    root, _, name = uri.rstrip("/").rpartition("/")
    while any(sign in root for sign in "*?["):
        root, _, last = root.rpartition("/")
        name = f"{last}/{name}"
    if root.endswith(":/"):  # the URI is a bucket
        root, name = uri.rstrip("/"), ""
    storage = open_storage(root)
    fixed = name[: min((name.find(sign) for sign in "*?[" if sign in name), default=len(name))]
    entries = [entry for entry in storage.list(fixed) if _is_asked_for(entry.path, name)]
    if not entries:
        tool = "gcloud storage ls" if uri.startswith("gs:") else "aws s3 ls"
        raise TrainingError(f"{uri}: nothing is there. Look for it with: {tool} {root}/")
    folder = cache_folder() / "fetched" / hashlib.sha256(f"{root}{entries}".encode()).hexdigest()[:16]
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        for _ in pool.map(lambda entry: _fetch_one(storage, entry, folder), entries):
            pass
    return folder / name


def _is_asked_for(path: str, name: str) -> bool:
    return not name or path == name or path.startswith(f"{name}/") or fnmatch.fnmatchcase(path, name)


def _fetch_one(storage: Storage, entry: Entry, folder: Path) -> None:
    target = folder / entry.path
    if target.is_file() and target.stat().st_size == entry.size:
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=target.parent, prefix=".partial-")
        try:
            with open(handle, "wb") as file:
                for start in range(0, entry.size, _PIECE):
                    file.write(storage.read(entry.path, start=start, end=min(start + _PIECE, entry.size)))
            os.replace(partial, target)
        finally:
            Path(partial).unlink(missing_ok=True)
    except OSError as error:
        raise StorageFullError(
            f"{target}: {error.strerror} while fetching. Free some space there, or set RAYLIFT_CACHE to another folder."
        ) from error
