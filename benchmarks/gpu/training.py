"""How fast the CNN trains on a GPU: raylift's loop, and plain PyTorch around the same network."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks.cnn.torch_parts import MNIST
from cluster.runs import Run
from cluster.storage.open import open_storage
from trainers.config import TrainJob
from trainers.context import LocalContext
from trainers.models.cnn import CNN
from trainers.tasks.registry import prepare
from trainers.worker import run_rank

_IMAGES = 60_000
_SKIPPED = 100  # steps, at the start
_PROCESSES = 4  # that load data for plain PyTorch


def write_images(folder: Path) -> None:
    """Write as many images as MNIST has, of the same size; what they show takes no time."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (_IMAGES, 28, 28), np.uint8)
    labels = generator.integers(0, 10, _IMAGES, np.uint8)
    for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (folder / f"train-{name}-ubyte").write_bytes(head + array.tobytes())


def raylift(data: Path, batch_size: int, steps: int, *, log_every: int) -> float:
    """Return the samples a second of a run in this process, all else as raylift has it."""
    document: dict[str, Any] = {
        "task": "image-classification",
        "data": {"train": str(data), "clean": {"drop_duplicates": False}},
        "train": {"max_steps": steps, "batch_size": batch_size, "optimizer": "adam", "log_every": log_every},
        "checkpoint": {"every": "1000000 steps"},
    }
    job = TrainJob.from_job(document)
    run = Run(open_storage(str(data / "runs")), f"bench-{batch_size}-{log_every}-{time.monotonic_ns()}")
    run.create(b"name: bench\n")
    run_rank(LocalContext(), run.claim(), job, prepare(job))
    rows = [row for row in run.rows("metrics") if row["kind"] == "step" and row["step"] > _SKIPPED]
    return float((rows[-1]["step"] - rows[0]["step"]) * batch_size / (rows[-1]["time"] - rows[0]["time"]))


def loader(data: Path, batch_size: int, steps: int) -> float:
    """Return those of a loop that loads its batches as PyTorch's MNIST example does, in processes beside it."""
    batches = DataLoader(
        MNIST(data, "train"), batch_size, shuffle=True, drop_last=True, num_workers=_PROCESSES, pin_memory=True
    )
    endless = (batch for _ in iter(int, 1) for batch in batches)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = next(endless)
        return images.cuda(non_blocking=True), labels.cuda(non_blocking=True)

    return _plain(batch, batch_size, steps)


def resident(data: Path, batch_size: int, steps: int) -> float:
    """Return those of a loop whose data lies on the GPU, and which neither logs nor saves: it loads nothing."""
    whole = MNIST(data, "train")
    images = whole.data[:, None].cuda().float().div_(255)
    labels = whole.targets.cuda()

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randint(_IMAGES, (batch_size,), device="cuda")
        return images[chosen], labels[chosen]

    return _plain(batch, batch_size, steps)


def _plain(batch: Callable[[], tuple[torch.Tensor, torch.Tensor]], batch_size: int, steps: int) -> float:
    torch.manual_seed(0)
    model = CNN(1, 10, 28).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    began = 0.0
    for step in range(steps):
        if step == _SKIPPED:
            torch.cuda.synchronize()
            began = time.perf_counter()
        images, labels = batch()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    torch.cuda.synchronize()
    return (steps - _SKIPPED) * batch_size / (time.perf_counter() - began)
