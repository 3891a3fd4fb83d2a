"""What the save of a state on a GPU costs the training there, and how soon it is there again."""

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
from trainers.config import Checkpoint
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
    restored: list[float]  # until another model and optimizer had it, from memory, each byte verified
    torch_load: list[float]  # for theirs from `torch.save`'s file, mapped into memory, and nothing verified


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
    with tempfile.TemporaryDirectory(dir=_MEMORY) as name:
        folder = Path(name)
        run = Run(open_storage(str(folder)), "bench")
        run.create(b"name: bench\n")
        saved = _saves(training, run, repeats)
        torch.save(training.as_dict(), folder / "state.pt")
        loads = [(_restore(training, run), _load(training, folder / "state.pt")) for _ in range(repeats)]
    restored, torch_load = (list(seconds) for seconds in zip(*loads, strict=True))
    size = sum(one.nbytes for one in tensors)
    return Saved(size, pinned, torch_save, **saved, restored=restored, torch_load=torch_load)


def _checkpointer(run: Run) -> Checkpointer:
    attempt = run.claim()
    recorder = Recorder(attempt, 0, log_every=1)
    return Checkpointer(attempt, 0, config=Checkpoint(keep=1, best=False), recorder=recorder, meta={})


def _restore(training: Training, run: Run) -> float:
    fresh: Any = Training(training.size, seed=2, device="cuda", fresh=True)
    saving = _checkpointer(run)
    taken = _timed(lambda: saving.restore(fresh))
    saving.close()
    assert fresh.equals(training)
    return taken


def _load(training: Training, file: Path) -> float:
    fresh = Training(training.size, seed=2, device="cuda", fresh=True)
    taken = _timed(lambda: fresh.load(torch.load(file, map_location="cuda", mmap=True, weights_only=True)))
    assert fresh.equals(training)
    return taken


def _saves(training: Any, run: Run, repeats: int) -> dict[str, Any]:
    saving = _checkpointer(run)
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
    save()  # what the restores are compared with
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
