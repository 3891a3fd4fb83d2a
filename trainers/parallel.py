"""Data parallelism: gradients averaged by DDP, and the sums that ride along with every step."""

from __future__ import annotations

import time
import warnings
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainers import shared_memory
from trainers.context import StopReason, WorkerContext
from trainers.pulse import Pulse
from trainers.shared_memory import SharedSums

_REASONS = tuple(StopReason)  # to iterate over an Enum takes its time
_SUMS = 4 + len(_REASONS)  # of a step: see Reduction.start
_NO_WISHES = 3  # at their beginning
_BEHIND = 2  # steps that a GPU may be behind the loop
_ASKED_EVERY = 1.0  # seconds


def share_memory(context: WorkerContext, device: torch.device) -> SharedSums | None:
    """Return a quicker way between ranks that compute on the processors of one machine. Collective."""
    together = context.world_size == context.local_world_size > 1 and device.type == "cpu"
    if not together or not shared_memory.is_supported():
        return None
    try:
        return SharedSums(context.rank, context.world_size)
    except OSError:
        return None


def replicate(model: nn.Module, device: torch.device, shared: SharedSums | None, *, uses_all: bool) -> nn.Module:
    """Return the model as the ranks train it together, each on the whole of it; `uses_all` of it each time. Collective.

    A model of which that is not known may do what DDP cannot take where it looks for unused parameters, such as to
    compute a part of it once more in its backward pass.
    """
    world_size = torch.distributed.get_world_size()
    # After its first step DDP lays gradients out anew, and gloo's order of summing follows from where one lies: so a
    # resume would add in another order at one step. It lays none out anew where it looks for unused parameters.
    keeps_layout = uses_all and device.type == "cpu" and shared is None and world_size > 2
    if keeps_layout:
        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified in DDP")
    parallel = DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=keeps_layout,
    )
    if shared is not None:
        parallel.register_comm_hook(shared, lambda shared, bucket: _averaged(shared, bucket.buffer(), world_size))
    return parallel


def _averaged(shared: SharedSums, gradients: Tensor, world_size: int) -> torch.futures.Future[Tensor]:
    shared.add(gradients)
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(gradients.div_(world_size))
    return done


def without_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which backward only accumulates gradients on this rank, where it holds whole ones."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


@dataclass(frozen=True)
class StepSums:
    """One step, summed over all ranks."""

    step: int
    loss_sum: float
    count: float
    seen: int  # the fingerprint of its samples
    stop: StopReason | None
    wants_save: bool
    norm: float
    lr: float


class Reduction:
    """Sums loss, number of targets, samples and wishes over the ranks, behind the backward pass.

    One all-reduce a step carries everything, so a wish to stop costs no synchronisation of its own. The sums stay on
    the device until `read`.
    """

    def __init__(self, world_size: int, device: torch.device, shared: SharedSums | None) -> None:
        self._world_size = world_size
        self._device = device
        self._shared = shared
        self._sums = torch.zeros(_SUMS, dtype=torch.float64, device=device)
        self._work: torch.distributed.Work | None = None
        self._kept: list[tuple[int, Tensor, Tensor, float]] = []
        self._told: deque[tuple[Tensor, torch.cuda.Event]] = deque()  # wishes on their way from a GPU

    @property
    def count(self) -> Tensor:
        """The number of targets of the step over all ranks, at least 1; valid after `wait`."""
        return self._sums[1].clamp(min=1.0)

    def start(self, loss_sum: Tensor, count: Tensor, *, seen: int, stop: StopReason | None, wants_save: bool) -> None:
        """Begin to sum; returns at once. Every rank calls it once a step, before its last backward."""
        told = [float(seen), float(wants_save), *(float(stop is reason) for reason in _REASONS)]
        host = torch.tensor(told, dtype=torch.float64)
        self._sums = torch.cat([torch.stack([loss_sum, count]).double(), host.to(self._device, non_blocking=True)])
        if self._world_size > 1 and self._shared is None:
            self._work = torch.distributed.all_reduce(self._sums, async_op=True)

    def agreement(self, pulse: Pulse) -> Agreement:
        """Return what the ranks of one evaluation agree by."""
        return Agreement(self._world_size, self._device, self._shared, pulse)

    def wait(self) -> None:
        if self._shared is not None:
            self._shared.add(self._sums)
        if self._work is not None:
            self._work.wait()
            self._work = None

    def keep(self, *, step: int, norm: Tensor, lr: float) -> None:
        self._kept.append((step, self._sums, norm, lr))
        if self._device.type == "cuda":
            sums = torch.empty(_SUMS, dtype=self._sums.dtype, pin_memory=True).copy_(self._sums, non_blocking=True)
            self._told.append((sums[_NO_WISHES:], torch.cuda.current_stream(self._device).record_event()))

    def has_wishes(self) -> bool:
        """Whether a rank of the step before last wished something; waits until a GPU is no more than that behind.

        It is so on all ranks or on none. A loop that ran further ahead would hear of wishes late, and seem to hang
        where it waits for its GPU at last.
        """
        if len(self._told) <= _BEHIND:
            return False
        wishes, is_there = self._told.popleft()
        is_there.synchronize()
        return bool(wishes.any())

    def read(self) -> list[StepSums]:
        """Return the steps since the last call; waits for the device."""
        kept, self._kept = self._kept, []
        self._told.clear()
        found = []
        for step, sums, norm, lr in kept:
            loss_sum, count, seen, wants_save, *wishes = sums.tolist()
            stops = [reason for reason, ranks in zip(_REASONS, wishes, strict=True) if ranks]
            found.append(
                StepSums(
                    step=step,
                    loss_sum=loss_sum,
                    count=count,
                    seen=int(seen),
                    stop=stops[0] if stops else None,
                    wants_save=bool(wants_save),
                    norm=float(norm),
                    lr=lr,
                )
            )
        return found


class Agreement:
    """What the ranks of an evaluation wish in common, asked before its batches, about once a second.

    A rank alone shows as often that it goes on: how long that takes is what its watchdog goes by.
    Each time costs an all-reduce, so it is not before every batch: before which, all work out alike, from the time that
    the batches since the last time took them together.
    """

    def __init__(self, world_size: int, device: torch.device, shared: SharedSums | None, pulse: Pulse) -> None:
        self._world_size = world_size
        self._device = device
        self._shared = shared
        self._pulse = pulse
        self._every = 0  # batches: the first are asked before
        self._batches = 0  # since they asked
        self._asked = time.monotonic()

    def ask(self, wish: StopReason | None) -> StopReason | None:
        """Return the first of the ranks' wishes, None where it is not time to ask; called by all before each batch."""
        if self._world_size == 1:
            if time.monotonic() - self._asked > _ASKED_EVERY:
                wait_for_own_work(self._device)
                with self._pulse.agreeing():
                    self._asked = time.monotonic()
            return wish
        if self._batches < self._every:
            self._batches += 1
            return None
        now = time.monotonic()
        took = float(round((now - self._asked) * 1e6))  # whole, so that each rank has the same sum
        told = [took, *(float(wish is reason) for reason in _REASONS)]
        sums = torch.tensor(told, dtype=torch.float64, device=self._device)
        wait_for_own_work(self._device)
        with self._pulse.agreeing():
            if self._shared is not None:
                self._shared.add(sums)
            else:
                torch.distributed.all_reduce(sums)
            took_all, *wishes = sums.tolist()
        a_batch = took_all / 1e6 / self._world_size / max(self._batches, 1)
        self._every = max(1, min(2 * self._every, int(_ASKED_EVERY / max(a_batch, 1e-6))))
        self._batches, self._asked = 1, now
        return next((reason for reason, ranks in zip(_REASONS, wishes, strict=True) if ranks), None)


def share_buffers(model: nn.Module, device: torch.device) -> None:
    """Give all ranks the buffers of rank 0, whose checkpoint has them: statistics of batches differ. Collective."""
    wait_for_own_work(device)
    for buffer in model.buffers():
        shared = buffer.contiguous()
        torch.distributed.broadcast(shared, src=0)
        if shared is not buffer:
            buffer.copy_(shared)
    wait_for_own_work(device)


def wait_for_own_work(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given, before what is for the other ranks."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model keeps statistics of its batches, which no worker shares with the others."""
    return any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in model.modules())
