"""Labelled images as a source gives them: decoded already, or still encoded somewhere on disk."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from cluster.errors import TrainingError

NO_LABEL = -1


@dataclass(frozen=True)
class Encoded:
    """Where the bytes of encoded images lie: files of their own, or parts of a larger file."""

    paths: NDArray[np.bytes_]  # names of files, in the file system's encoding
    spans: NDArray[np.int64]  # [images, 3]: the position of its file in `paths`, first byte, length (-1: the file)

    def __len__(self) -> int:
        return len(self.spans)

    def open(self, item: int) -> BinaryIO:
        """Open the bytes of one image for reading."""
        path, start, length = self.spans[item].tolist()
        file = open(os.fsdecode(self.paths[path]), "rb")  # noqa: SIM115 - handed to the caller where it is whole
        if length < 0:
            return file
        with file:
            file.seek(start)
            return io.BytesIO(file.read(length))


@dataclass(frozen=True)
class Labelled:
    """Images with their labels: `pixels` where the source keeps them decoded, else `encoded`."""

    name: str
    labels: NDArray[np.int64]  # [images]: positions in `classes`, or NO_LABEL
    classes: tuple[str, ...]
    item: Callable[[int], str]  # what to call an image when speaking to a person
    pixels: NDArray[np.uint8] | None = None  # [images, height, width, channels]
    encoded: Encoded | None = None

    def __len__(self) -> int:
        return len(self.labels)


def in_order(classes: Collection[str]) -> tuple[str, ...]:
    """Sort the names of classes: by number where all are numbers, so that 10 follows 9."""
    if all(name.isdecimal() for name in classes):
        return tuple(sorted(classes, key=lambda name: (int(name), name)))
    return tuple(sorted(classes))


def recode(source: Labelled, classes: tuple[str, ...], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the labels of a source as positions in the classes that training knows, NO_LABEL outside of `rows`.

    Raises TrainingError with the names of the classes that training does not know.
    """
    known = {name: number for number, name in enumerate(classes)}
    used = np.unique(source.labels[rows])
    unknown = [source.classes[label] for label in used if source.classes[label] not in known]
    if unknown:
        raise TrainingError(
            f"{source.name} has labels that training has no samples of: {some(unknown)}. Training knows "
            f"{some(classes)}. Add samples of them to data.train, or take them out of {source.name}."
        )
    table = np.zeros(len(source.classes), dtype=np.int64)
    for label in used:
        table[label] = known[source.classes[label]]
    labels = np.full(len(source), NO_LABEL, dtype=np.int64)
    labels[rows] = table[source.labels[rows]]
    return labels


def some(names: Collection[str], most: int = 20) -> str:
    """List names for a message, cut off where there are very many."""
    shown = ", ".join(list(names)[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
