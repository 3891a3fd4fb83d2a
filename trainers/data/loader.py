"""A rank's micro-batches of each step, ready on its device."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from trainers.data.keyed import fingerprint
from trainers.data.order import SampleOrder, largest_share, share
from trainers.tasks.base import Draw

if TYPE_CHECKING:
    from trainers.tasks.base import Batch, Dataset

_AHEAD = 2  # steps prepared while the accelerator computes


@dataclass(frozen=True)
class Loaded:
    """What one rank trains a step on."""

    batches: list[Batch]  # its micro-batches
    seen: int  # the fingerprint of the samples that were read for them


class Loader:
    """Yields the micro-batches of one rank, step after step, from any step on."""

    def __init__(
        self,
        dataset: Dataset,
        order: SampleOrder,
        *,
        rank: int,
        world_size: int,
        micro_batch_size: int | None,
        device: torch.device,
    ) -> None:
        self._dataset = dataset
        self._order = order
        self._rank = rank
        self._world_size = world_size
        self._micro = micro_batch_size
        self._device = device

    def steps(self, start: int, end: int) -> Iterator[Loaded]:
        """Yield the micro-batches of the steps from `start` up to, not including, `end`."""
        if self._device.type == "cpu":  # a thread would only take the core that computes
            for step in range(start, end):
                yield self._load(step)
            return
        with closing(_Ahead(self, start, end)) as ahead:
            for loaded in ahead:
                yield Loaded([self._moved(batch) for batch in loaded.batches], loaded.seen)

    def _moved(self, batch: Batch) -> Batch:
        return {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}

    def _load(self, step: int) -> Loaded:
        batch = self._order.batch(step)
        draw = Draw(seed=self._order.seed, epoch=step // self._order.steps_per_epoch, batch=batch)
        own = share(batch, self._rank, self._world_size)
        parts = split(own, self._micro, largest_share(len(batch), self._world_size))
        return Loaded([self._dataset.batch(part, draw) for part in parts], fingerprint(own))


class _Ahead:
    """Loads steps in a thread, into pinned memory, a few ahead of their use."""

    def __init__(self, loader: Loader, start: int, end: int) -> None:
        self._queue: queue.Queue[Loaded | BaseException | None] = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(loader, start, end), name="loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Loaded]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self, loader: Loader, start: int, end: int) -> None:
        try:
            if loader._device.type == "cuda":
                torch.cuda.set_device(loader._device)  # a thread's own is the first one
            for step in range(start, end):
                loaded = loader._load(step)
                self._put(Loaded([_pinned(batch) for batch in loaded.batches], loaded.seen))
                if self._closed.is_set():
                    return
        except BaseException as error:
            self._put(error)
        self._put(None)

    def _put(self, item: Loaded | BaseException | None) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return
            except queue.Full:
                continue


def _pinned(batch: Batch) -> Batch:
    return {name: tensor.pin_memory() for name, tensor in batch.items()}


def split(samples: NDArray[np.int64], size: int | None, largest: int) -> Sequence[NDArray[np.int64]]:
    """Cut a rank's share into micro-batches of at most `size`, as many as the largest of all shares needs.

    Where parameters are sharded every forward pass is a collective, so each rank takes as many; one may be empty.
    """
    if size is None or largest <= size:
        return [samples]
    return np.array_split(samples, math.ceil(largest / size))
