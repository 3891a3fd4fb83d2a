"""Images that come decoded: scikit-learn's digits and MNIST's idx files."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.errors import MissingExtraError, TrainingError
from trainers.data.labelled import NO_LABEL, Labelled, some

_UNSIGNED_BYTES = 0x08
_SPLIT_WORDS = {"train": ("train",), "eval": ("t10k", "test", "val")}


def read_digits() -> Labelled:
    """Return the 1,797 handwritten digits of 8×8 pixels that come with scikit-learn.

    The file is read directly, because importing scikit-learn takes longer than all the rest of the preparation.
    """
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("builtin:digits comes with scikit-learn, which is missing: pip install scikit-learn")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path) as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    pixels = np.round(table[:, :64].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)  # 0 to 16 in the file
    return Labelled(
        name="builtin:digits",
        labels=table[:, 64].astype(np.int64),
        classes=tuple("0123456789"),
        item=lambda row: f"builtin:digits[{row}]",
        pixels=pixels,
    )


def find_idx(folder: Path) -> list[Path]:
    """Return the idx files of images in a folder, sorted."""
    return sorted(path for path in folder.glob("*images*ubyte*") if path.is_file())


def pick_idx(files: list[Path], role: str) -> Path:
    """Choose the file for a role by its name: train… to train on, t10k…, test… or val… to evaluate on."""
    chosen = [path for path in files if any(word in path.name for word in _SPLIT_WORDS[role])]
    if not chosen and len(files) == 1 and role == "train":
        chosen = files
    if len(chosen) != 1:
        raise TrainingError(
            f"{files[0].parent}: which idx file is there to {role}? Found {some([path.name for path in files])}. "
            f"Name the file of images itself: data.{role}: {files[0]}"
        )
    return chosen[0]


def read_idx(path: Path, *, labelled: bool = True) -> Labelled:
    """Return the images of an idx file (magic 0x0803, or 0x0804 with channels) with the labels of the file beside it.

    Raises TrainingError where a file is missing or cut off, or images and labels differ in number.
    """
    pixels = _read_array(path)
    if pixels.ndim not in (3, 4):
        raise TrainingError(f"{path} holds {pixels.ndim} dimensions, no images: name the file …images-idx3-ubyte")
    labels = np.full(len(pixels), NO_LABEL, dtype=np.int64)
    if labelled:
        labels = _read_array(_labels_of(path)).astype(np.int64).reshape(-1)
    if len(labels) != len(pixels):
        raise TrainingError(f"{path} holds {len(pixels)} images, but {_labels_of(path).name} {len(labels)} labels")
    return Labelled(
        name=str(path),
        labels=labels,
        classes=tuple(str(number) for number in range(int(labels.max(initial=-1)) + 1)),
        item=lambda row: f"{path.name}[{row}]",
        pixels=pixels.reshape(*pixels.shape[:3], -1),
    )


def _labels_of(path: Path) -> Path:
    name = path.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    plain = path.with_name(name.removesuffix(".gz"))
    packed = plain.with_name(f"{plain.name}.gz")
    for candidate in (plain, packed):
        if candidate != path and candidate.is_file():
            return candidate
    raise TrainingError(f"{path} has no labels beside it: neither {plain.name} nor {packed.name} is there")


def _read_array(path: Path) -> NDArray[np.uint8]:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise TrainingError(f"{path} does not unpack: {error}. Fetch it again.") from error
    dimensions = data[3] if len(data) > 4 else 0
    start = 4 + 4 * dimensions
    if data[:2] != b"\0\0" or not 1 <= dimensions <= 4 or len(data) < start:
        raise TrainingError(f"{path} is no idx file: it starts with {data[:4].hex(' ') or 'nothing'}")
    if data[2] != _UNSIGNED_BYTES:
        raise TrainingError(f"{path} holds numbers of type 0x{data[2]:02x}; only unsigned bytes (0x08) are images")
    shape = tuple(np.frombuffer(data, dtype=">i4", count=dimensions, offset=4).tolist())
    expected = start + int(np.prod(shape))
    if len(data) != expected:
        raise TrainingError(f"{path} is damaged: {len(data)} bytes, its header says {expected}. Fetch it again.")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
