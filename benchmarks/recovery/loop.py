"""What the two contestants that are scripts share: the loop, its state on disk, and the marks of its steps."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.optim import Adam
from torch.utils.data import DataLoader, DistributedSampler

from benchmarks.cnn.shared import mark
from benchmarks.cnn.torch_parts import MNIST, Net

STATE_FILE = "state.pt"


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST's four idx files")
    parser.add_argument("--marks", type=Path, required=True, help="file for what is measured")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--save-every", type=int, required=True, help="steps from checkpoint to checkpoint")
    parser.add_argument("--max-failures", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=64, help="over all ranks")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


class State:
    """The model, its optimizer and the number of steps done."""

    def __init__(self, lr: float) -> None:
        self.model = Net()
        self.optimizer = Adam(self.model.parameters(), lr=lr)
        self.step = 0

    def save(self, path: Path) -> None:
        """Write all of it; a crash leaves the file as it was."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def train(args: argparse.Namespace, state: State, parallel: torch.nn.Module, rank: int, ranks: int) -> Iterator[int]:
    """Train without end, from where the state is; yield after every step that a checkpoint is due at."""
    mark(args.marks, "start", rank=rank, pid=os.getpid())
    data = MNIST(args.data, "train")
    sampler: DistributedSampler[Any] = DistributedSampler(data, ranks, rank, seed=args.seed)
    loader = DataLoader(data, batch_size=args.batch_size // ranks, sampler=sampler)
    while True:
        sampler.set_epoch(state.step // len(loader))  # a resume begins an epoch anew, as most scripts do
        for images, targets in loader:
            loss = functional.nll_loss(parallel(images), targets)
            state.optimizer.zero_grad()
            loss.backward()
            state.optimizer.step()
            state.step += 1
            if rank == 0:
                mark(args.marks, "step", step=state.step, pid=os.getpid())
            if state.step % args.save_every == 0:
                yield state.step
