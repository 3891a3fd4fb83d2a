"""Plain PyTorch, as its MNIST example does it, with the mission's network and Adam.

Where it finds an accelerator, the example shuffles and loads its data in a process beside the training; on a CPU it
does neither. This script always shuffles, and is measured both with that process and without.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.optim import Adam, Optimizer
from torch.utils.data import DataLoader

from benchmarks.cnn.shared import arguments, mark
from benchmarks.cnn.torch_parts import MNIST, Net

_LOG_INTERVAL = 10


def train(args: argparse.Namespace, model: nn.Module, loader: DataLoader, optimizer: Optimizer, epoch: int) -> None:  # type: ignore[type-arg]
    model.train()
    for batch_idx, (data, target) in enumerate(loader):
        optimizer.zero_grad()
        output = model(data)
        loss = functional.nll_loss(output, target)
        loss.backward()
        optimizer.step()
        if epoch == 1 and batch_idx == 0:
            mark(args.marks, "first step")
        if batch_idx % _LOG_INTERVAL == 0:
            print(f"Train Epoch: {epoch} [{batch_idx * len(data)}/{len(loader) * args.batch_size}] {loss.item():.6f}")


def test(model: nn.Module, loader: DataLoader) -> float:  # type: ignore[type-arg]
    model.eval()
    correct = total = 0
    with torch.no_grad():
        for data, target in loader:
            output = model(data)
            pred = output.argmax(dim=1, keepdim=True)
            correct += int(pred.eq(target.view_as(pred)).sum().item())
            total += len(target)
    return correct / total


def main() -> None:
    args = arguments("PyTorch MNIST")
    workers = 1 if args.loader_workers is None else args.loader_workers
    torch.manual_seed(args.seed)
    training_data = MNIST(args.data, "train")
    more: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0, "shuffle": True}
    train_loader = DataLoader(training_data, batch_size=args.batch_size, **more)
    test_loader = DataLoader(MNIST(args.data, "t10k"), batch_size=1000, **more)

    model = Net()
    optimizer = Adam(model.parameters(), lr=args.lr)
    for epoch in range(1, args.epochs + 1):
        started = time.perf_counter()
        train(args, model, train_loader, optimizer, epoch)
        seconds = time.perf_counter() - started
        accuracy = test(model, test_loader)
        print(f"Test set: accuracy {accuracy:.4f}")
        mark(args.marks, "epoch", epoch=epoch, samples=len(training_data), seconds=seconds, accuracy=accuracy)
    torch.save(model.state_dict(), args.scratch / "mnist_cnn.pt")


if __name__ == "__main__":
    main()
