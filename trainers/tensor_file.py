"""Tensors in memory as a safetensors file, which is sent from there and never written to a disk."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from functools import cache

import torch
from safetensors.torch import save
from torch import Tensor

from cluster.storage.sources import InMemory
from cluster.tensor_file import Entry, header_of


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


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


@cache
def _name_of(dtype: torch.dtype) -> str:
    """Return the format's name of a type, as the library writes it."""
    data = save({"x": torch.empty(0, dtype=dtype)})
    (length,) = struct.unpack("<Q", data[:8])
    return str(json.loads(data[8 : 8 + length])["x"]["dtype"])
