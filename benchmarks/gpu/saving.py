"""What the save of a state on a GPU costs the training there."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoint.state import Training
from cluster.runs import Run
from cluster.storage.open import open_storage
from trainers.checkpoint import Checkpointer
from trainers.record import Recorder

_MEMORY = Path("/dev/shm")  # a disk would slow down no more than the next save
_SIDE, _PRODUCTS = 8192, 64  # of a step that takes an H100 about a tenth of a second


@dataclass(frozen=True)
class Saved:
    """Seconds, of every repeat."""

    size: int  # bytes
    pinned: list[float]  # a plain copy into pinned memory that is there
    torch_save: list[float]  # into memory
    first: float  # raylift's, which makes its pinned memory
    blocked: list[float]  # that the loop stood still for raylift's later ones
    durable: list[float]  # until one was in storage, here memory
    step: list[float]  # of a training, without a save
    step_saved: list[float]  # with one: how much longer it is, the GPU stood still


def measure(size: int, repeats: int) -> Saved:
    training = Training(size, seed=1, device="cuda")
    tensors = training.tensors()
    memory = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in tensors]

    def copy() -> None:
        for target, tensor in zip(memory, tensors, strict=True):
            target.copy_(tensor, non_blocking=True)

    copy()
    pinned = [_timed(copy) for _ in range(repeats)]
    memory.clear()
    torch_save = [_timed(lambda: torch.save(training.as_dict(), io.BytesIO())) for _ in range(min(repeats, 2))]
    with tempfile.TemporaryDirectory(dir=_MEMORY) as folder:
        return Saved(
            sum(one.nbytes for one in tensors), pinned, torch_save, **_raylift(training, Path(folder), repeats)
        )


def _raylift(training: Any, folder: Path, repeats: int) -> dict[str, Any]:
    run = Run(open_storage(str(folder)), "bench")
    run.create(b"name: bench\n")
    attempt = run.claim()
    recorder = Recorder(attempt, 0, log_every=1)
    saving = Checkpointer(attempt, 0, keep=1, keep_best=False, recorder=recorder, meta={})
    for parameter in training.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    matrix = torch.randn(_SIDE, _SIDE, device="cuda", dtype=torch.bfloat16)

    def save() -> None:
        training.progress.step += 1
        saving.save(training)

    def step() -> None:
        for _ in range(_PRODUCTS):
            torch.mm(matrix, matrix)
        saving.hold()
        training.optimizer.step()

    def step_saved() -> None:
        save()
        step()

    def wait() -> None:
        saving.confirm()
        saving.wait()

    first = _timed(save, synchronized=False)
    wait()
    step()
    found: dict[str, list[float]] = {"blocked": [], "durable": [], "step": [], "step_saved": []}
    for _ in range(repeats):
        found["blocked"].append(blocked := _timed(save, synchronized=False))
        found["durable"].append(blocked + _timed(wait))
        found["step"].append(_timed(step))
        found["step_saved"].append(_timed(step_saved))
        wait()
    saving.close()
    return {"first": first, **found}


def _timed(act: Callable[[], object], *, synchronized: bool = True) -> float:
    """Return how long something takes; with what it asked of the GPU, or until it returns."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    act()
    if synchronized:
        torch.cuda.synchronize()
    return time.perf_counter() - began
