"""The beginning of a safetensors file.

It has the length of its header in 8 bytes, the header in JSON, then the tensors' bytes
(https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ALIGNMENT = 8


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
