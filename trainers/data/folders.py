"""Images in folders: one folder a class, perhaps below `train` and `val` or `test`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cluster.errors import TrainingError
from trainers.data.labelled import NO_LABEL, Encoded, Labelled, in_order, some

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"})
_EVAL_FOLDERS = ("val", "valid", "validation", "dev", "eval", "test")


def read_folder(folder: Path, role: str, *, labelled: bool = True) -> Labelled:
    """Return the images below a folder; the first folder on the way to an image names its class.

    A folder `train` marks the part to train on; beside it the first of val, valid, validation, dev, eval and test
    is the part to evaluate on. Files that are no images by their suffix, and hidden ones, are passed over.
    """
    root = _part(folder, role)
    names = list(_images_below(root, ""))
    if not names:
        raise TrainingError(f"{root} holds no images (files ending in {some(sorted(SUFFIXES))})")
    loose = [name for name in names if "/" not in name]
    if labelled and loose:
        raise TrainingError(
            f"{root}: {len(loose)} images lie in no class folder ({some(loose, 3)}). "
            "Put each into a folder that is named after its class."
        )
    of_image = [name.split("/", 1)[0] for name in names] if labelled else []
    classes = in_order(set(of_image))
    code = {name: number for number, name in enumerate(classes)}
    return Labelled(
        name=str(root),
        labels=np.array([code[name] for name in of_image] or [NO_LABEL] * len(names), dtype=np.int64),
        classes=classes,
        item=lambda row: names[row],
        encoded=whole_files([os.path.join(root, name) for name in names]),
    )


def read_file(path: Path) -> Labelled:
    """Return a single image, without a label."""
    return Labelled(
        name=str(path),
        labels=np.array([NO_LABEL], dtype=np.int64),
        classes=(),
        item=lambda _: path.name,
        encoded=whole_files([str(path)]),
    )


def whole_files(paths: list[str]) -> Encoded:
    """Say that each path is one encoded image."""
    spans = np.zeros((len(paths), 3), dtype=np.int64)
    spans[:, 0] = np.arange(len(paths))
    spans[:, 2] = -1
    return Encoded(paths=np.array([os.fsencode(path) for path in paths]), spans=spans)


def _part(folder: Path, role: str) -> Path:
    if not (folder / "train").is_dir():
        return folder
    if role == "train":
        return folder / "train"
    for name in _EVAL_FOLDERS:
        if (folder / name).is_dir():
            return folder / name
    raise TrainingError(f"{folder} has a folder train, but none to evaluate on: looked for {', '.join(_EVAL_FOLDERS)}")


def _images_below(folder: Path, prefix: str) -> Iterator[str]:
    """Yield the images' paths relative to the first folder, always in the same order."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _images_below(Path(entry.path), f"{prefix}{entry.name}/")
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            yield f"{prefix}{entry.name}"
