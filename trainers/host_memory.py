"""Copies of the state on the host, which stay as they are while training goes on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class HostMemory:
    """Memory that copies of the state go into, the same one for every save: to get new pages takes as long again.

    What comes from an accelerator goes into pinned memory, and behind the loop's back: `wait` for it.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def copy(self, part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies, contiguous in memory as their file wants them."""
        copies = {name: self._copy(f"{part}/{name}", tensor.detach()) for name, tensor in tensors.items()}
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._copied = torch.cuda.Event()
            self._copied.record()  # a later one holds for those before: all go through one stream
        return copies

    @property
    def size(self) -> int:
        """In bytes, once something was copied."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def wait(self) -> None:
        """Block until what was copied is there."""
        if self._copied is not None:
            self._copied.synchronize()

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[name] = buffer
        return buffer.copy_(tensor, non_blocking=tensor.is_cuda)
