"""Prepared images as the arrays that all workers of a machine share, and back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.errors import TrainingError
from trainers.data.decode import Decoded, Shape, decode_file, reshape, threads
from trainers.data.labelled import Encoded, Labelled
from trainers.data.remote import cache_folder

Arrays = Mapping[str, NDArray[Any]]


class Pixels(Protocol):
    """Images by their rows."""

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return a writable [rows, height, width, channels]."""
        ...


@dataclass(frozen=True)
class Part:
    """The samples of one side, train or eval: which rows of the pixels they are, and their labels."""

    pixels: Pixels
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]  # a sample's, not a row's


def pack(source: Labelled, decoded: Decoded, labels: NDArray[np.int64], prefix: str = "") -> dict[str, NDArray[Any]]:
    """Return the arrays of a source: its pixels where they were kept, else where to decode them from."""
    arrays: dict[str, NDArray[Any]] = {f"{prefix}labels": labels}
    images = decoded.pixels if decoded.pixels is not None else source.pixels
    if images is not None:
        images.setflags(write=False)
        return arrays | {f"{prefix}images": images}
    assert source.encoded is not None
    encoded = _keep_unpacked(source.encoded, decoded)
    return arrays | {f"{prefix}paths": encoded.paths, f"{prefix}spans": encoded.spans}


def _keep_unpacked(encoded: Encoded, decoded: Decoded) -> Encoded:
    """Give scratch files a name of their own, by their content, so that they outlive the preparation."""
    content = hashlib.sha256(b"".join(decoded.digests)).hexdigest()[:16]
    paths = []
    for number, name in enumerate(encoded.paths):
        path = Path(os.fsdecode(name))
        if path.parent == cache_folder() and path.name.startswith("unpacked-"):
            kept = path.with_name(f"images-{content}-{number}")
            os.replace(path, kept)
            path = kept
        paths.append(os.fsencode(path))
    return replace(encoded, paths=np.array(paths))


def unpack(arrays: Arrays, split: str, shape: Shape) -> Part | None:
    """Return the samples of a side, `train` or `eval`, or None where the arrays hold none."""
    if f"{split}_rows" not in arrays:
        return None
    prefix = "eval_" if split == "eval" and "eval_labels" in arrays else ""
    rows = arrays[f"{split}_rows"]
    return Part(pixels=_pixels(arrays, prefix, shape), rows=rows, labels=arrays[f"{prefix}labels"][rows])


def _pixels(arrays: Arrays, prefix: str, shape: Shape) -> Pixels:
    if f"{prefix}images" not in arrays:
        encoded = Encoded(paths=arrays[f"{prefix}paths"], spans=arrays[f"{prefix}spans"])
        return _Later(lambda row: _decode(encoded, row, shape), shape)
    images = arrays[f"{prefix}images"]
    if images.shape[1:] == shape:
        return _InMemory(images)
    return _Later(lambda row: reshape(images[row], shape), shape)


def _decode(encoded: Encoded, row: int, shape: Shape) -> NDArray[np.uint8]:
    try:
        with encoded.open(row) as file:
            return decode_file(file, shape)
    except Exception as error:  # a decoder may raise anything
        path = os.fsdecode(encoded.paths[encoded.spans[row, 0]])
        raise TrainingError(f"{path} could be read when the run began, but not now: {error}") from error


@dataclass(frozen=True)
class _InMemory:
    images: NDArray[np.uint8]

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.images.take(rows, axis=0)


class _Later:
    """Images that would not fit into memory, made whenever they are asked for; the values are the same."""

    def __init__(self, one: Callable[[int], NDArray[np.uint8]], shape: Shape) -> None:
        self._one = one
        self._shape = shape
        self._pool = ThreadPoolExecutor(min(4, threads()), thread_name_prefix="decode")

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        images = np.empty((len(rows), *self._shape), dtype=np.uint8)
        for position, image in enumerate(self._pool.map(self._one, rows.tolist())):
            images[position] = image
        return images
