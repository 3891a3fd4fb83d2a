"""Real images (scikit-learn's digits) written the ways in which people keep theirs."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from trainers.config import TrainJob
from trainers.data.arrays import read_digits


def digits(count: int | None = None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return [count, 8, 8, 1] pixels and their labels."""
    source = read_digits()
    assert source.pixels is not None
    return source.pixels[:count], source.labels[:count]


def job(train: Path | str, *, train_block: dict[str, Any] | None = None, **data: Any) -> TrainJob:
    """Return a job over some data; paths may stand wherever sources do."""
    data = {key: str(value) if isinstance(value, Path) else value for key, value in data.items()}
    block = {"task": "image-classification", "data": {"train": str(train), **data}, "train": train_block or {}}
    return TrainJob.from_job(block)


def png(pixels: NDArray[np.uint8], kind: str = "png") -> bytes:
    """Encode one image [height, width, channels]."""
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, format=kind)
    return file.getvalue()


def in_colour(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Paint grey images [..., 1]: bright places red, dark ones blue."""
    return np.concatenate([pixels, pixels // 3, 255 - pixels], axis=-1)


def write_folder(root: Path, pixels: NDArray[np.uint8], labels: NDArray[np.int64], kind: str = "png") -> Path:
    """Write images as root/<label>/<number>.<kind>."""
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        folder = root / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:04}.{kind}").write_bytes(png(image, "jpeg" if kind == "jpg" else kind))
    return root


def write_idx(
    folder: Path, prefix: str, pixels: NDArray[np.uint8], labels: NDArray[np.int64], *, pack: bool = False
) -> Path:
    """Write images and labels as MNIST's files; return the file of images."""
    folder.mkdir(parents=True, exist_ok=True)
    images = folder / f"{prefix}-images-idx3-ubyte{'.gz' * pack}"
    for path, array, dimensions in (
        (images, pixels[..., 0], 3),
        (folder / f"{prefix}-labels-idx1-ubyte{'.gz' * pack}", labels.astype(np.uint8), 1),
    ):
        data = bytes([0, 0, 8, dimensions]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
        path.write_bytes(gzip.compress(data) if pack else data)
    return images


def write_parquet(
    path: Path, images: list[Any], labels: list[Any], columns: tuple[str, str] = ("image", "label")
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({columns[0]: images, columns[1]: labels}), path)
    return path
