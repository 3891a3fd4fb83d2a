"""From what a job file calls its data to labelled images: which reader serves which source.

A source that holds more than one part gives `train` to data.train and the other to data.eval, so the same folder
may stand in both: MNIST's train-… and t10k-… files, folders `train` and `val` or `test`, parquet files with these
words in their names, the splits of a Hugging Face data set.
"""

from __future__ import annotations

import glob
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cluster.errors import TrainingError
from trainers.data import hub
from trainers.data.arrays import find_idx, pick_idx, read_digits, read_idx
from trainers.data.folders import SUFFIXES, read_file, read_folder
from trainers.data.labelled import Labelled
from trainers.data.remote import fetch, is_remote
from trainers.data.tables import Columns, pick_parquet, read_parquet


def open_source(source: str, role: str, columns: Columns, scratch: ExitStack) -> Labelled:
    """Find the labelled images of a source; `role` is train or eval.

    Files that are needed only while `scratch` is open are removed with it. Raises TrainingError for what a person
    can mend: nothing there, no images in it, no labels where `columns` asks for some.
    """
    if source.startswith("builtin:"):
        return _builtin(source)
    if source.startswith("hf:"):
        return hub.read_named(source, role, columns, scratch)
    found = _local(_place(source), source, role, columns, scratch)
    if not len(found):
        raise TrainingError(f"{source} is empty: it holds no images")
    return found


def _place(source: str) -> Path:
    if source.startswith("file://"):
        return Path(unquote(urlsplit(source).path))
    return fetch(source) if is_remote(source) else Path(source).expanduser()


def _builtin(source: str) -> Labelled:
    if source != "builtin:digits":
        raise TrainingError(f"{source}: there is no such data; write builtin:digits")
    return read_digits()


def _local(path: Path, source: str, role: str, columns: Columns, scratch: ExitStack) -> Labelled:
    if path.is_dir():
        return _folder(path, source, role, columns, scratch)
    if path.is_file():
        return _file(path, source, columns, scratch)
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
    if not matches:
        raise TrainingError(f"{source}: no such file or folder (looked in {Path.cwd()})")
    others = [match for match in matches if match.suffix != ".parquet"]
    if others:
        raise TrainingError(f"{source} matches {others[0]}: a pattern may match parquet files only")
    return read_parquet(matches, source, columns, scratch)


def _folder(path: Path, source: str, role: str, columns: Columns, scratch: ExitStack) -> Labelled:
    idx = find_idx(path)
    if idx:
        return read_idx(pick_idx(idx, role), labelled=columns.label is not None)
    if hub.is_saved(path):
        return hub.read_saved(path, source, role, columns, scratch)
    parquet = sorted(path.rglob("*.parquet"))
    if parquet:
        return read_parquet(pick_parquet(parquet, role), source, columns, scratch)
    return read_folder(path, role, labelled=columns.label is not None)


def _file(path: Path, source: str, columns: Columns, scratch: ExitStack) -> Labelled:
    if path.suffix == ".parquet":
        return read_parquet([path], source, columns, scratch)
    if "ubyte" in path.name or "idx" in path.name:
        return read_idx(path, labelled=columns.label is not None)
    if path.suffix.lower() in SUFFIXES and columns.label is None:
        return read_file(path)
    raise TrainingError(
        f"{source} is no file of labelled images. Write an idx file (…-images-idx3-ubyte), a parquet file, "
        "or a folder with a folder of images for each class."
    )
