"""Ray Train's TorchTrainer, as its guide to PyTorch does it, around the loop of the plain PyTorch contestant."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam
from torch.utils.data import DataLoader, DistributedSampler

from benchmarks.cnn.shared import arguments, mark
from benchmarks.cnn.torch_parts import MNIST, Net

_WORKERS = 2


def train_func(config: dict[str, Any]) -> None:
    args = argparse.Namespace(**config)
    context = ray.train.get_context()
    first_rank = context.get_world_rank() == 0
    torch.manual_seed(args.seed)
    model = prepare_model(Net())
    optimizer = Adam(model.parameters(), lr=args.lr)

    training_data = MNIST(args.data, "train")
    batch_size = args.batch_size // context.get_world_size()
    # the guide's loader works in the rank's own process
    train_loader = DataLoader(training_data, batch_size=batch_size, shuffle=True, num_workers=args.loader_workers or 0)
    train_loader = prepare_data_loader(train_loader)
    test_loader = prepare_data_loader(DataLoader(MNIST(args.data, "t10k"), batch_size=1000))

    for epoch in range(1, args.epochs + 1):
        started = time.perf_counter()
        if isinstance(train_loader.sampler, DistributedSampler):
            train_loader.sampler.set_epoch(epoch)
        model.train()
        for batch_idx, (data, target) in enumerate(train_loader):
            output = model(data)
            loss = functional.nll_loss(output, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if first_rank and epoch == 1 and batch_idx == 0:
                mark(args.marks, "first step")
        seconds = time.perf_counter() - started

        accuracy = test(model, test_loader)
        if first_rank:
            mark(args.marks, "epoch", epoch=epoch, samples=len(training_data), seconds=seconds, accuracy=accuracy)
        with tempfile.TemporaryDirectory() as folder:
            plain = model.module if isinstance(model, DistributedDataParallel) else model
            torch.save(plain.state_dict(), Path(folder) / "model.pt")
            ray.train.report(
                {"loss": loss.item(), "accuracy": accuracy, "epoch": epoch},
                checkpoint=Checkpoint.from_directory(folder),
            )


def test(model: torch.nn.Module, loader: DataLoader) -> float:  # type: ignore[type-arg]
    """Return the accuracy over all ranks."""
    model.eval()
    counts = torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        for data, target in loader:
            counts += torch.tensor([(model(data).argmax(1) == target).sum().item(), len(target)])
    torch.distributed.all_reduce(counts)
    return float(counts[0] / counts[1])


def main() -> None:
    args = arguments("Ray Train MNIST")
    trainer = TorchTrainer(
        train_func,
        train_loop_config=vars(args),
        scaling_config=ScalingConfig(num_workers=_WORKERS),
        run_config=RunConfig(name="mnist", storage_path=str(args.scratch)),
    )
    result = trainer.fit()
    print(result.metrics)


if __name__ == "__main__":
    main()
