"""Checkpoints whose tensors are cut into parts, each in the file of the rank that held it; no torch is needed here.

`shards.json` says which rank has which part of which tensor. The files are those of safetensors.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cluster.errors import CorruptObjectError
from cluster.tensor_file import Entry, header_of

INDEX_FILE = "shards.json"


@dataclass(frozen=True)
class Part:
    """A box of a tensor in a rank's file: where it begins in the tensor, and how long it is, by dimension."""

    rank: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class TensorLayout:
    """A tensor and the parts that it consists of; `dtype` is torch's name of it."""

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


Layout = Mapping[str, Mapping[str, TensorLayout]]  # by the name of the file, then of the tensor


@dataclass(frozen=True)
class Index:
    """What a sharded checkpoint holds: tensors by the name of their file ("model", "optimizer"), then by their own."""

    ranks: int
    tensors: Layout
    metadata: Mapping[str, Mapping[str, str]]  # that each whole file will carry

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def read(cls, path: Path) -> Index:
        """Raises CorruptObjectError where it does not read."""
        try:
            value = json.loads(path.read_bytes())
            tensors = {
                file: {name: layout_from(described) for name, described in named.items()}
                for file, named in value["tensors"].items()
            }
            return cls(ranks=value["ranks"], tensors=tensors, metadata=value["metadata"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptObjectError(f"{path} does not read: {error!r}") from error


def layout_from(described: Mapping[str, Any]) -> TensorLayout:
    boxes = (Part(part["rank"], tuple(part["offsets"]), tuple(part["sizes"])) for part in described["parts"])
    return TensorLayout(described["dtype"], tuple(described["shape"]), tuple(boxes))


def joined(layouts: Sequence[Layout], metadata: Mapping[str, Mapping[str, str]]) -> Index:
    """Return the index of what each rank holds, by rank. Raises CorruptObjectError where parts are missing."""
    files: dict[str, dict[str, TensorLayout]] = {}
    for layout in layouts:
        for file, named in layout.items():
            known = files.setdefault(file, {})
            for name, tensor in named.items():
                before = known[name].parts if name in known else ()
                known[name] = TensorLayout(tensor.dtype, tensor.shape, (*before, *tensor.parts))
    for file, named in files.items():
        for name, tensor in named.items():
            _check_whole(f"{name} of the {file}", tensor)
    return Index(len(layouts), files, metadata)


def shard_name(file: str, rank: int, ranks: int) -> str:
    return f"{file}-rank-{rank}-of-{ranks}.safetensors"


def model_shards(names: Iterable[str]) -> list[str]:
    """Return those of a checkpoint's files that hold parts of the model."""
    return [name for name in names if name.startswith("model-rank-")]


def consolidate(folder: Path, index: Index, file: str) -> None:
    """Write `<file>.safetensors` from the parts in a folder, which go.

    Only bytes are moved, a tensor at a time, so memory is no matter. Raises CorruptObjectError where parts are missing
    or not what the index says.
    """
    names = [folder / shard_name(file, rank, index.ranks) for rank in range(index.ranks)]
    tensors = index.tensors[file]
    with ExitStack() as stack:
        shards = [_Shard(stack.enter_context(path.open("rb")), path) for path in names]
        for name, tensor in tensors.items():
            _check_whole(f"{name} of the {file}", tensor)
        dtypes = {name: shards[tensor.parts[0].rank].entry(name)["dtype"] for name, tensor in tensors.items()}
        widths = {name: shards[tensor.parts[0].rank].width(name) for name, tensor in tensors.items()}
        entries = {name: Entry(dtypes[name], tensor.shape, widths[name]) for name, tensor in tensors.items()}
        header, order = header_of(entries, index.metadata[file])
        target = stack.enter_context((folder / f"{file}.safetensors").open("wb"))
        target.write(header)
        for name in order:
            for part in sorted(tensors[name].parts, key=lambda part: part.offsets):
                shards[part.rank].copy(name, part, target)
    for path in names:
        path.unlink()


class _Shard:
    """One rank's file, open to be read."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        try:
            length = struct.unpack("<Q", file.read(8))[0]
            self._entries: dict[str, Any] = json.loads(file.read(length))
        except (struct.error, ValueError, OverflowError) as error:
            raise CorruptObjectError(f"{path} is no safetensors file: {error}") from error
        self._start = 8 + length

    def entry(self, name: str) -> dict[str, Any]:
        try:
            return dict(self._entries[name])
        except KeyError as error:
            raise CorruptObjectError(f"{self._path} lacks {name}, which {INDEX_FILE} says it has") from error

    def width(self, name: str) -> int:
        """Return the bytes of one number of a tensor."""
        start, end = self.entry(name)["data_offsets"]
        return int((end - start) // math.prod(self.entry(name)["shape"]))

    def copy(self, name: str, part: Part, target: BinaryIO) -> None:
        entry = self.entry(name)
        if tuple(entry["shape"]) != part.sizes:
            raise CorruptObjectError(f"{self._path}: {name} is {entry['shape']}, {INDEX_FILE} says {part.sizes}")
        start, end = entry["data_offsets"]
        self._file.seek(self._start + start)
        _copy(self._file, target, end - start)


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size:
        data = source.read(min(size, 16 << 20))
        if not data:
            raise CorruptObjectError(f"{source.name} ends too early")
        target.write(data)
        size -= len(data)


def _check_whole(what: str, tensor: TensorLayout) -> None:
    """Raise CorruptObjectError unless the parts, cut along the first dimension, follow one another to its end."""
    place = 0
    for part in sorted(tensor.parts, key=lambda part: part.offsets):
        begins = (place, *(0 for _ in tensor.shape[1:])) if tensor.shape else ()
        if part.offsets != begins or part.sizes[1:] != tensor.shape[1:]:
            break
        place += part.sizes[0] if tensor.shape else 1
    else:
        if place == (tensor.shape[0] if tensor.shape else 1):
            return
    raise CorruptObjectError(f"{what} is not whole: its parts end at {place} of {tensor.shape}")
