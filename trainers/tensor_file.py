"""Tensors in memory as a safetensors file, which goes from there to storage and back without a disk between."""

from __future__ import annotations

import json
import struct
import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cluster.errors import CorruptObjectError
from cluster.records import Checkpoint
from cluster.runs import Run
from cluster.storage.sources import InMemory
from cluster.tensor_file import Entry, Header, Stored, header_of, read_header
from trainers.memory import make_pages


def tensor_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> InMemory:
    """Return the file of tensors on the host. They are not copied, but where they are not contiguous.

    Raises SafetensorError where a type of numbers is none of the format's.
    """
    entries = {
        name: Entry(_name_of(tensor.dtype), tuple(tensor.shape), tensor.element_size())
        for name, tensor in tensors.items()
    }
    header, order = header_of(entries, metadata)
    return InMemory(header, *(_bytes_of(tensors[name]) for name in order))


def load_tensors(
    run: Run,
    checkpoint: Checkpoint,
    name: str,
    place: Callable[[Header], Mapping[str, Tensor]],
    on_arrival: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Read a file of a checkpoint, verified, into the tensors that `place` returns; return all of it, and its metadata.

    A tensor that `place` has none for, or one of another shape or type, is a new one on the host. `on_arrival` is
    called now and then, as bytes come. Raises CorruptObjectError; the tensors are then worth nothing.
    """
    path, expect = run.path(f"{checkpoint.folder}/{name}"), checkpoint.files[name]
    header = read_header(lambda start, end: run.storage.read(path, start=start, end=end), expect.size, path)
    try:
        wanted = place(header)
        tensors = {key: _fitting(wanted.get(key), stored, path) for key, stored in header.tensors.items()}
    except Exception:
        run.verify(checkpoint, [name])  # the header of a damaged file may say anything
        raise
    beginning = bytearray(len(header.data))
    memory = _Memory(beginning, [(stored.end, tensors[key]) for key, stored in header.tensors.items()], on_arrival)
    run.storage.download(path, memory, expect=expect)
    if beginning != header.data:
        raise CorruptObjectError(f"{path} is damaged: its header was another one a moment ago")
    return tensors, header.metadata


def dtype_of(stored: Stored, name: str) -> torch.dtype:
    """Return torch's type of a tensor in the file `name`. Raises CorruptObjectError where torch has none."""
    try:
        return _dtype_named(stored.dtype)
    except SafetensorError as error:
        raise CorruptObjectError(f"{name} has numbers of an unknown type: {stored.dtype}") from error


class _Memory:
    """Tensors as the memory that their file is read into.

    Where a tensor lies on an accelerator, or its numbers not in the file's order, its bytes go through memory that is
    there from its first byte to its last: of all tensors, no more at a time than storage reads ahead and one more.
    """

    def __init__(
        self, beginning: bytearray, tensors: Sequence[tuple[int, Tensor]], on_arrival: Callable[[], None]
    ) -> None:
        """Take the memory of the header, and each tensor with the end of its bytes in the file."""
        self._ends = [len(beginning), *(end for end, _ in tensors)]
        self._tensors = [torch.frombuffer(beginning, dtype=torch.uint8), *(tensor for _, tensor in tensors)]
        self._pieces: dict[int, memoryview] = {}
        self._staged: dict[int, Tensor] = {}
        self._lock = threading.Lock()
        self._settled = 0  # the first that is not in its place
        self._on_arrival = on_arrival

    def begin(self) -> None:
        self._settled = 0
        self._pieces.clear()
        self._staged.clear()

    def room(self, start: int, end: int) -> Sequence[memoryview]:
        found = []
        with self._lock:
            for index in range(bisect_right(self._ends, start), len(self._ends)):
                piece = self._piece(index)
                begin = self._ends[index] - len(piece)
                if begin >= end:
                    break
                found.append(piece[max(start - begin, 0) : end - begin])
        for piece in found:
            make_pages(piece)
        return found

    def arrived(self, end: int) -> None:
        self._on_arrival()
        for index in range(self._settled, bisect_right(self._ends, end)):
            with self._lock:
                self._pieces.pop(index, None)
                staged = self._staged.pop(index, None)
            if staged is not None:
                self._tensors[index].copy_(staged)
            self._settled = index + 1

    def _piece(self, index: int) -> memoryview:
        if index not in self._pieces:
            tensor = self._tensors[index].detach()
            if tensor.device.type != "cpu" or not tensor.is_contiguous():
                tensor = self._staged[index] = torch.empty(tensor.shape, dtype=tensor.dtype)
            self._pieces[index] = _bytes_of(tensor)
        return self._pieces[index]


def _fitting(tensor: Tensor | None, stored: Stored, name: str) -> Tensor:
    dtype, shape = dtype_of(stored, name), torch.Size(stored.shape)
    if shape.numel() * dtype.itemsize != stored.end - stored.start:
        raise CorruptObjectError(f"{name} is no safetensors file: a tensor has not the bytes that its shape needs")
    if tensor is not None and tensor.shape == shape and tensor.dtype == dtype:
        return tensor.detach()
    return torch.empty(shape, dtype=dtype)


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


@cache
def _name_of(dtype: torch.dtype) -> str:
    """Return the format's name of a type, as the library writes it."""
    data = save({"x": torch.empty(0, dtype=dtype)})
    (length,) = struct.unpack("<Q", data[:8])
    return str(json.loads(data[8 : 8 + length])["x"]["dtype"])


@cache
def _dtype_named(name: str) -> torch.dtype:
    """Return the type of a name of the format's, as the library reads it."""
    text = json.dumps({"x": {"dtype": name, "shape": [0], "data_offsets": [0, 0]}}).encode()
    return load(struct.pack("<Q", len(text)) + text)["x"].dtype
