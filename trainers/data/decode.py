"""Encoded images to pixels: what they are, what they look like in training's size, and what they sum up to."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainers.data.labelled import Labelled
from trainers.processors import cpu_count

if TYPE_CHECKING:
    from PIL.Image import Image

Shape = tuple[int, int, int]  # height, width, channels

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"})
_ORIENTATION = 0x0112  # the EXIF tag
_CHUNK = 64  # encoded images that a thread takes at once
_DECODED_CHUNK = 1024


@dataclass(frozen=True)
class Decoded:
    """All images of a source in one size."""

    pixels: NDArray[np.uint8] | None  # [images, height, width, channels]; None where they were not to be kept
    digests: list[bytes]  # of every image's pixels before resizing
    moments: NDArray[np.float64]  # [images, 2, channels]: the sums of the values and of their squares
    problems: dict[int, str]  # images that do not decode


def threads() -> int:
    return cpu_count()


def read_headers(source: Labelled) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Return [images, 3] heights, widths and channels, and what is wrong with those that cannot be read (0, 0, 0)."""
    if source.pixels is not None:
        return np.tile(np.array(source.pixels.shape[1:], dtype=np.int64), (len(source), 1)), {}
    assert source.encoded is not None
    encoded = source.encoded
    found = np.zeros((len(source), 3), dtype=np.int64)
    problems: dict[int, str] = {}

    def scan(rows: range) -> None:
        for row in rows:
            try:
                with encoded.open(row) as file:
                    found[row] = _header(file)
            except Exception as error:  # a decoder that meets arbitrary bytes may raise anything
                problems[row] = _describe(error)

    _in_threads(scan, len(source))
    return found, problems


def decode_all(source: Labelled, shape: Shape, skip: Iterable[int], *, keep: bool) -> Decoded:
    """Decode every image but those to skip to one shape; those that fail are all zero and stand in `problems`."""
    count = len(source)
    as_is = source.pixels is not None and source.pixels.shape[1:] == shape
    pixels = source.pixels if as_is else np.zeros((count, *shape), np.uint8) if keep else None
    digests = [b""] * count
    moments = np.zeros((count, 2, shape[2]))
    problems: dict[int, str] = {}
    skipped = frozenset(skip)

    def work(rows: range) -> None:
        if as_is:
            assert pixels is not None
            chunk = pixels[rows.start : rows.stop]
            digests[rows.start : rows.stop] = _digests(chunk)
        else:
            chunk = np.zeros((len(rows), *shape), np.uint8)
            for position, row in enumerate(rows):
                if row not in skipped:
                    try:
                        digests[row], chunk[position] = _decode_item(source, row, shape)
                    except Exception as error:  # as above
                        problems[row] = _describe(error)
            if pixels is not None:
                pixels[rows.start : rows.stop] = chunk
        moments[rows.start : rows.stop] = _moments(chunk)

    _in_threads(work, count, _DECODED_CHUNK if as_is else _CHUNK)
    return Decoded(pixels=pixels, digests=digests, moments=moments, problems=problems)


def decode_file(file: BinaryIO, shape: Shape) -> NDArray[np.uint8]:
    """Return the pixels of one encoded image in a shape. Raises whatever a decoder raises for bytes it dislikes."""
    return _resize(_read(file, shape), shape)


def reshape(pixels: NDArray[np.uint8], shape: Shape) -> NDArray[np.uint8]:
    """Return one decoded image in another size and number of channels."""
    return _resize(_with_channels(pixels, shape[2]), shape)


def _in_threads(work: Callable[[range], None], count: int, chunk: int = _CHUNK) -> None:
    from PIL import Image

    Image.init()  # its lazy loading of plugins is not safe in threads
    chunks = [range(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    with ThreadPoolExecutor(threads()) as pool:
        for _ in pool.map(work, chunks):
            pass


def _describe(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    text = "no image" if "cannot identify image file" in str(error) else str(error)
    return text or type(error).__name__


def _header(file: BinaryIO) -> Shape:
    from PIL import Image

    with Image.open(file) as image:
        width, height = image.size
        if _is_turned(image):
            width, height = height, width
        return height, width, 1 if image.mode in _GREY_MODES else 3


def _is_turned(image: Image) -> bool:
    """True where EXIF turns the picture by a quarter. Only of JPEG: other formats decode all of it to tell."""
    return image.format in ("JPEG", "MPO") and image.getexif().get(_ORIENTATION, 1) >= 5


def _decode_item(source: Labelled, row: int, shape: Shape) -> tuple[bytes, NDArray[np.uint8]]:
    if source.pixels is not None:
        full = _with_channels(source.pixels[row], shape[2])
    else:
        assert source.encoded is not None
        with source.encoded.open(row) as file:
            full = _read(file, shape)
    return _digests(full[None])[0], _resize(full, shape)


def _read(file: BinaryIO, shape: Shape) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps

    mode = "L" if shape[2] == 1 else "RGB"
    with Image.open(file) as image:
        image.draft(mode, (2 * shape[1], 2 * shape[0]))  # JPEG decodes many times faster at half its size or less
        upright = ImageOps.exif_transpose(image) if image.format in ("JPEG", "MPO") else image
        if upright.mode.startswith("I"):  # 16 bits a pixel
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        if upright.mode == "P":  # Pillow warns where a palette with transparency goes straight to RGB
            upright = upright.convert("RGBA")
        return np.asarray(upright.convert(mode)).reshape(upright.height, upright.width, shape[2])


def _with_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    from PIL import Image

    if pixels.shape[2] == channels:
        return pixels
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(*pixels.shape[:2], channels)


def _resize(pixels: NDArray[np.uint8], shape: Shape) -> NDArray[np.uint8]:
    """Scale to the shape's height and width, bilinear and with anti-aliasing as Pillow does it."""
    from PIL import Image

    if pixels.shape == shape:
        return pixels
    image = Image.fromarray(pixels[:, :, 0] if shape[2] == 1 else pixels)
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)).reshape(shape)


def _digests(images: NDArray[np.uint8]) -> list[bytes]:
    """Return a 128-bit hash of each image's pixels and shape."""
    salt = struct.pack("<IIB", *images.shape[1:])
    rows = np.ascontiguousarray(images).reshape(-1).data
    size = len(rows) // max(len(images), 1)
    return [
        hashlib.blake2b(rows[start : start + size], digest_size=16, salt=salt).digest()
        for start in range(0, len(rows), size)
    ]


def _moments(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return [images, 2, channels] sums of values and squares: whole numbers, exact in whatever order."""
    sums = np.empty((len(images), 2, images.shape[3]))
    for channel in range(images.shape[3]):
        values = images[..., channel].reshape(len(images), -1).astype(np.float64)
        sums[:, 0, channel] = values.sum(axis=1)
        sums[:, 1, channel] = np.einsum("ij,ij->i", values, values)
    return sums
