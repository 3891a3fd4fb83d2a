"""What the contestants that are scripts share: their arguments, the training of a trial, and the marks it leaves."""

from __future__ import annotations

import argparse
import json
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from trainers.models.cnn import CNN

BATCH_SIZE = 64
RATES = (1e-4, 1e-1)  # learning rates to search


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--marks", type=Path, required=True, help="file for what is measured")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for what a contestant writes")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--slots", type=int, default=2, help="trials that run at once")
    parser.add_argument("--steps", type=int, default=40, help="of each trial")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def train(rate: float, steps: int, seed: int, marks: Path) -> float:
    """Train the network for some steps on the digits, and return its accuracy on those held out."""
    began = time.time()
    torch.manual_seed(seed)
    model = CNN(channels=1, classes=10, image_size=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    (images, labels), (held_out, answers) = _data()
    order = np.random.default_rng(seed)
    for _ in range(steps):
        chosen = torch.from_numpy(order.choice(len(images), BATCH_SIZE, replace=False))
        optimizer.zero_grad()
        functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        accuracy = float((model(held_out).argmax(1) == answers).float().mean())
    with marks.open("a") as file:
        file.write(json.dumps({"began": began, "ended": time.time(), "accuracy": accuracy}) + "\n")
    return accuracy


@cache
def _data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return images [n, 1, 8, 8] and labels [n] to train on, and those held out: a fifth."""
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float()[:, None]
    labels = torch.from_numpy(digits.target)
    cut = len(images) * 4 // 5
    return (images[:cut], labels[:cut]), (images[cut:], labels[cut:])
