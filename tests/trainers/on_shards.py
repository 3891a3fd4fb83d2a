"""What two ranks of torchrun compute on parts, and one alone on the whole: printed as JSON for test_sharding.py."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from trainers.config import NOT_ON_SHARDS, OPTIMIZERS, Optimizer
from trainers.context import LocalContext
from trainers.loop import mixed_precision
from trainers.models.cnn import CNN
from trainers.optim import build_optimizer, clip_and_scale
from trainers.sharding import own_part, shard

CPU = torch.device("cpu")
STEPS, BATCH = 4, 30
IMAGES = torch.randn(BATCH, 1, 16, 16, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(BATCH) % 10


def build(context: LocalContext, precision: str, *, sharded: bool) -> nn.Module:
    torch.manual_seed(0)
    model = CNN(1, 10, 16)
    if sharded:
        shard(model, context.world_size, CPU, precision)
    return model


def train(context: LocalContext, name: str, precision: str = "fp32", *, sharded: bool) -> dict[str, list[float]]:
    """Return the loss and the gradient's norm of each step, over the whole batch."""
    model = build(context, precision, sharded=sharded)
    optimizer = build_optimizer(model, Optimizer(name=name, weight_decay=0.01))  # type: ignore[arg-type]
    autocast, _ = mixed_precision(precision, CPU)
    ranks = context.world_size if sharded else 1
    own = slice(context.rank, None, ranks) if sharded else slice(None)
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        total = torch.zeros(())
        for images, labels in zip(IMAGES[own].split(8), LABELS[own].split(8), strict=True):
            with autocast:
                loss = nn.functional.cross_entropy(model(images), labels, reduction="sum")
            (loss * ranks / BATCH).backward()
            total += loss.detach()
        if sharded:
            torch.distributed.all_reduce(total)
        norms.append(float(clip_and_scale(model.parameters(), 0.5, 0.1)))
        losses.append(float(total))
        optimizer.step()
    return {"losses": losses, "norms": norms}


def steps_that_a_scaler_took(context: LocalContext) -> list[bool]:
    """Return whether the weights moved in a step where all gradients are finite, and where one of rank 1 is not."""
    model = build(context, "fp32", sharded=True)
    optimizer = build_optimizer(model, Optimizer(name="sgd", lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    moved = []
    for spoiled in (False, True):
        optimizer.zero_grad()
        scaler.scale(model(IMAGES).square().mean()).backward()
        parts: list[Tensor] = [
            own_part(parameter.grad) for parameter in model.parameters() if parameter.grad is not None
        ]
        if spoiled and context.rank == 1:
            parts[0].fill_(float("inf"))
        before = [own_part(parameter.detach()).clone() for parameter in model.parameters()]
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        after = [own_part(parameter.detach()) for parameter in model.parameters()]
        moved.append(not all(torch.equal(one, two) for one, two in zip(before, after, strict=True)))
    return moved


def main() -> None:
    torch.set_num_threads(1)
    context = LocalContext()
    context.join()
    found: dict[str, Any] = {"moved": steps_that_a_scaler_took(context)}
    for name in OPTIMIZERS:
        if name not in NOT_ON_SHARDS:
            found[name] = [train(context, name, sharded=sharded) for sharded in (True, False)]
    found["bf16"] = [train(context, "adamw", "bf16", sharded=sharded) for sharded in (True, False)]
    model = build(context, "fp32", sharded=True)
    found["held"] = sum(own_part(one).numel() for one in model.parameters()) / sum(
        one.numel() for one in model.parameters()
    )
    if context.rank == 0:
        print(json.dumps(found))
    context.leave()


if __name__ == "__main__":
    main()
