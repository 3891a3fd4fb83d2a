"""Copies of the state on the host, which stay as they are while training goes on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class HostMemory:
    """Memory that copies of the state go into, the same one for every save: to get new pages takes as long again.

    What comes from a GPU goes into pinned memory and by a stream of its own, so beside what the loop computes next:
    `hold` before that changes the state, and `wait` before the copy is read.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._stream: torch.cuda.Stream | None = None
        self._copied: torch.cuda.Event | None = None

    def copy(self, part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies, contiguous in memory as their file wants them."""
        device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
        if device is None:
            return {name: self._copy(f"{part}/{name}", tensor.detach()) for name, tensor in tensors.items()}
        stream = self._stream = self._stream or torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))  # what the loop has computed is in the copy
        with torch.cuda.stream(stream):
            copies = {name: self._copy(f"{part}/{name}", tensor.detach()) for name, tensor in tensors.items()}
        self._copied = stream.record_event()  # a later one holds for those before: all go through one stream
        return copies

    @property
    def size(self) -> int:
        """In bytes, once something was copied."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def hold(self) -> None:
        """Have the GPU compute nothing that is asked of it from now on before all is copied. Does not block."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

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
