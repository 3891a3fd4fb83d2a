"""Where a job's data is: local paths made absolute, and missed at once where they do not exist."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from cluster.spelling import nearest
from launcher.mistakes import Keys, Mistake
from launcher.yaml_source import Document

BUILTIN = ("digits",)  # what builtin: can name
_SHOWN = 8


def settle_sources(document: Document, folder: Path) -> None:
    """Make the local paths of data.train and data.eval absolute, and note those where nothing is.

    So too those that a sweep's space has for them. A path in the job file starts at the file's folder, one from the
    command line where the command is typed.
    """
    for key in (("data", "train"), ("data", "eval")):
        for path in (key, *_searched(document, ".".join(key))):
            source = document.get(path)
            if isinstance(source, str):
                base = folder if document.place(path).line is not None else Path.cwd()
                document.get(path[:-1])[path[-1]] = _settled(document, path, key, source, base)


def _searched(document: Document, key: str) -> Iterator[Keys]:
    """Yield where a sweep's space lists values of a key, or has one in a condition."""
    space: Keys = ("tune", "space")
    written = document.get(space)
    conditions = [(*space, other, "when", key) for other in written] if isinstance(written, dict) else []
    for path in ((*space, key), (*space, key, "choice"), (*space, key, "grid"), *conditions):
        found = document.get(path)
        yield from ((*path, index) for index in range(len(found))) if isinstance(found, list) else [path]


def _settled(document: Document, path: Keys, key: Keys, source: str, base: Path) -> str:
    """Return a source whose path is absolute; note what is wrong with the one that stands at `path`."""
    kind, colon, name = source.partition(":")
    problem = ""
    if colon and kind == "builtin":
        if name not in BUILTIN:
            problem = f"there is no {source}; builtin data: {', '.join(BUILTIN)}{nearest(name, BUILTIN)}"
    elif colon and kind == "hf":
        problem = "" if name else "hf: names no data set; write for example hf:ylecun/mnist"
    elif uri := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)", source):
        if uri[1] not in ("s3", "gs", "file"):
            problem = f"{uri[1]}:// is not supported; write a path, s3://bucket/prefix, gs://bucket/prefix or hf:NAME"
        elif uri[1] != "file" and not uri[2]:
            problem = f"{source} names no bucket; write {uri[1]}://bucket/prefix"
    else:
        found = Path(os.path.abspath(base / Path(source).expanduser()))
        if found.exists() or any(glob.iglob(str(found), recursive=True)):  # a pattern may name parquet files
            return str(found)
        problem = _missing(source, found)
    if problem:
        document.mistakes.append(Mistake(document.place(path), key, problem))
    return source


def _missing(source: str, wanted: Path) -> str:
    """Say what there is instead, in the nearest folder that exists."""
    folder = next(parent for parent in wanted.parents if parent.is_dir())
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    listed = f"are: {', '.join(names[:_SHOWN])}{more}" if names else "is nothing"
    return f"{source} does not exist; in {folder} there {listed}{nearest(wanted.name, names)}"
