"""The beginning of a safetensors file.

It has the length of its header in 8 bytes, the header in JSON, then the tensors' bytes
(https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cluster.errors import CorruptObjectError

_ALIGNMENT = 8
_LENGTH = 8  # bytes that tell how long the header is
_FIRST = 256 << 10  # bytes read first, which most headers are in


@dataclass(frozen=True)
class Entry:
    """A tensor of a file; `dtype` is the format's name of it, `width` the bytes of one number."""

    dtype: str
    shape: tuple[int, ...]
    width: int


def header_of(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """Return what stands before the tensors' bytes, and the names of the tensors in the order of these."""
    order = sorted(entries, key=lambda name: (-entries[name].width, name))  # the widest first, which keeps all aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        entry, start = entries[name], end
        end += math.prod(entry.shape) * entry.width
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text, order


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: the format's name of its type, and the bytes from `start` up to, not including, `end`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What stands before the tensors' bytes, and what it says of them, in the order of these."""

    data: bytes
    metadata: Mapping[str, str]
    tensors: Mapping[str, Stored]


def read_header(read: Callable[[int, int], bytes], size: int, name: str) -> Header:
    """Read the header of a file of `size` bytes, of which `read` returns those from a start to an end.

    Raises CorruptObjectError, which speaks of `name`, where the tensors do not follow one another to the file's end.
    """
    try:
        data = read(0, min(size, _FIRST))
        begin = _LENGTH + struct.unpack("<Q", data[:_LENGTH])[0]
        if begin > size:
            raise ValueError(f"its header is longer than its {size} bytes")
        data = data[:begin] if begin <= len(data) else data + read(len(data), begin)
        entries = json.loads(data[_LENGTH:])
        metadata = entries.pop("__metadata__", {})
        found = {
            key: Stored(entry["dtype"], tuple(entry["shape"]), *(begin + offset for offset in entry["data_offsets"]))
            for key, entry in entries.items()
        }
        tensors = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].end)))
        edges = [begin, *(edge for one in tensors.values() for edge in (one.start, one.end)), size]
        if any(one.start > one.end for one in tensors.values()) or any(a != b for a, b in list(pairwise(edges))[::2]):
            raise ValueError("its tensors do not follow one another to its end")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptObjectError(f"{name} is no safetensors file: {error}") from error
    return Header(data, metadata, tensors)
