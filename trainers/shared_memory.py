"""Sums over the ranks of one machine, through memory that they share.

Gloo sends every byte through the network stack: for a small network on two cores that takes as long as half of the
computing. Here a rank writes its numbers where all see them, sums its part of everybody's, and reads the sums.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import sys
import time

import numpy as np
import psutil
import torch
from torch import Tensor

from cluster.errors import InfrastructureError
from trainers.context import COLLECTIVE_TIMEOUT

_NAME = "raylift-sums"
_SLOT = 1 << 20  # bytes of a rank that are summed at once: they stay in its processor's cache
_LINE = 128  # bytes between two counters, so that no two are in one cache line
_SPINS = 200
_NAP = 20e-6  # seconds; doubled up to
_LONGEST_NAP = 1e-3
_LOOK = 1.0  # seconds between looks whether the others are alive


def is_supported() -> bool:
    """Whether this machine orders its stores as the counters here rely on, and has memory without a name."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and hasattr(os, "memfd_create")


class SharedSums:
    """One area of memory of all ranks; every call is collective, and blocks."""

    def __init__(self, rank: int, world_size: int) -> None:
        """Raises OSError on every rank where one has no memory for it, or must not see another's."""
        self._rank = rank
        self._world_size = world_size
        self._memory = _share(rank, (world_size + 1) * _SLOT + world_size * _LINE)
        slots = torch.frombuffer(self._memory, dtype=torch.uint8, count=(world_size + 1) * _SLOT)
        *self._slots, self._sums = slots.split(_SLOT)
        counters = np.frombuffer(self._memory, dtype=np.int64, offset=(world_size + 1) * _SLOT)
        self._arrived = counters[:: _LINE // 8]
        self._round = 0
        self._processes = [psutil.Process(pid) for pid in _gathered(os.getpid())]

    def add(self, values: Tensor) -> None:
        """Replace the numbers of a contiguous tensor by their sums over all ranks, the same bits on each.

        Sums go by rank, so they are the same in every run. Raises InfrastructureError where a rank is gone.
        """
        for part in values.view(-1).split(_SLOT // values.element_size()):
            self._add(part)

    def _add(self, part: Tensor) -> None:
        size = part.numel() * part.element_size()
        slots = [slot[:size].view(part.dtype) for slot in self._slots]
        slots[self._rank].copy_(part)
        self._wait_for_all()
        start, end = (part.numel() * rank // self._world_size for rank in (self._rank, self._rank + 1))
        sums = self._sums[:size].view(part.dtype)
        own = torch.add(slots[0][start:end], slots[1][start:end], out=sums[start:end])
        for slot in slots[2:]:
            own.add_(slot[start:end])
        self._wait_for_all()
        part.copy_(sums)  # nobody sums again before all have come to the next round, so have read these

    def _wait_for_all(self) -> None:
        """Return once every rank has called this as often as we have."""
        self._round += 1
        self._arrived[self._rank] = self._round
        spins, nap, began = 0, _NAP, time.monotonic()
        looked = began
        while self._arrived.min() < self._round:
            spins += 1
            if spins < _SPINS:
                continue
            time.sleep(nap)
            nap = min(2 * nap, _LONGEST_NAP)
            if time.monotonic() - looked > _LOOK:
                looked = time.monotonic()
                self._look_for_the_others(looked - began)

    def _look_for_the_others(self, waited: float) -> None:
        for rank, process in enumerate(self._processes):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    continue
            raise InfrastructureError(f"another rank is gone: rank {rank}")
        if waited > COLLECTIVE_TIMEOUT.total_seconds():
            raise InfrastructureError(f"another rank has not come for {waited:.0f} s")


def _share(rank: int, size: int) -> mmap.mmap:
    """Return memory that all ranks have; it has no name, so none of it is left when they are gone."""
    own = _reserve(size) if rank == 0 else -1
    memory = _map(f"/proc/{_from_rank_0(os.getpid())}/fd/{_from_rank_0(own)}", size)
    ready = _gathered(memory is not None)
    if own >= 0:
        os.close(own)
    if memory is None or not all(ready):
        raise OSError(f"rank {ready.index(0)} has no memory that the ranks share")
    return memory


def _reserve(size: int) -> int:
    """Return the descriptor of new memory; -1 where there is too little."""
    descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(descriptor, 0, size)  # now: a page that is missing later would kill us
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor


def _map(path: str, size: int) -> mmap.mmap | None:
    """Return the memory of a descriptor of rank 0, if we may see it and it is what it should be."""
    with contextlib.suppress(OSError):
        if _NAME in os.readlink(path):
            with open(path, "r+b", buffering=0) as file:
                return mmap.mmap(file.fileno(), size)
    return None


def _from_rank_0(value: int) -> int:
    told = torch.tensor([value])
    torch.distributed.broadcast(told, src=0)
    return int(told.item())


def _gathered(value: int) -> list[int]:
    values = [torch.zeros(1, dtype=torch.int64) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(values, torch.tensor([int(value)]))
    return [int(one.item()) for one in values]
