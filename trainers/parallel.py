"""Data parallelism: gradients averaged by DDP, and the sums that ride along with every step."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainers.context import StopReason


def distribute(model: nn.Module, world_size: int, device: torch.device) -> nn.Module:
    """Return the model as the ranks train it together; alone, as it is."""
    if world_size == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def without_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which backward only accumulates gradients on this rank."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


@dataclass(frozen=True)
class StepSums:
    """One step, summed over all ranks."""

    step: int
    loss_sum: float
    count: float
    stop: StopReason | None
    wants_save: bool
    norm: float
    lr: float


class Reduction:
    """Sums loss, number of targets and wishes over the ranks, behind the backward pass.

    One all-reduce a step carries everything, so a wish to stop costs no synchronisation of its own. The sums stay on
    the device until `read`.
    """

    def __init__(self, world_size: int, device: torch.device) -> None:
        self._world_size = world_size
        self._device = device
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        self._work: torch.distributed.Work | None = None
        self._kept: list[tuple[int, Tensor, Tensor, float]] = []

    @property
    def count(self) -> Tensor:
        """The number of targets of the step over all ranks, at least 1; valid after `wait`."""
        return self._sums[1].clamp(min=1.0)

    def start(self, loss_sum: Tensor, count: Tensor, *, stop: StopReason | None, wants_save: bool) -> None:
        """Begin to sum; returns at once. Every rank calls it once a step, before its last backward."""
        wishes = torch.tensor([float(stop or 0), float(wants_save)], dtype=torch.float64)
        self._sums = torch.cat([torch.stack([loss_sum, count]).double(), wishes.to(self._device, non_blocking=True)])
        if self._world_size > 1:
            self._work = torch.distributed.all_reduce(self._sums, async_op=True)

    def wait(self) -> None:
        if self._work is not None:
            self._work.wait()
            self._work = None

    def keep(self, *, step: int, norm: Tensor, lr: float) -> None:
        self._kept.append((step, self._sums, norm, lr))

    def read(self) -> list[StepSums]:
        """Return the steps since the last call; waits for the device."""
        kept, self._kept = self._kept, []
        found = []
        for step, sums, norm, lr in kept:
            loss_sum, count, stop, wants_save = sums.tolist()
            found.append(
                StepSums(
                    step=step,
                    loss_sum=loss_sum,
                    count=count,
                    stop=StopReason(int(stop)) if stop else None,
                    wants_save=bool(wants_save),
                    norm=float(norm),
                    lr=lr,
                )
            )
        return found
