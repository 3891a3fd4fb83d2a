"""What the tests of a GPU share: whether there is one, and how a rank leaves it alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from trainers.context import LocalContext

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can compute on"),
]


class OnProcessors(LocalContext):
    """A rank that has no accelerator."""

    def device(self) -> torch.device:
        return torch.device("cpu")


class AloneInAGroup(LocalContext):
    """The only rank of a process group of NCCL, which takes no two ranks on one GPU."""

    def join(self) -> None:
        super().join()
        store = HashStore()
        torch.distributed.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=self.device())


@contextmanager
def occupied(*, left: int) -> Iterator[None]:
    """Hold all memory of the GPU but so many bytes."""
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(max(0, free - left), dtype=torch.uint8, device="cuda")
    yield
    del held
    torch.cuda.empty_cache()
