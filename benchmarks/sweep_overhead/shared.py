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

from benchmarks.cnn.shared import load_mnist
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
    parser.add_argument("--data", type=Path, help="folder with MNIST; default: scikit-learn's digits")
    return parser.parse_args()


def train(rate: float, steps: int, seed: int, marks: Path, mnist: Path | None = None) -> float:
    """Train the network for some steps on digits, and return its accuracy on those held out."""
    began = time.time()
    torch.manual_seed(seed)
    (images, labels), (held_out, answers) = _digits() if mnist is None else _mnist(mnist)
    model = CNN(channels=1, classes=10, image_size=images.shape[-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    order = np.random.default_rng(seed)
    for _ in range(steps):
        chosen = torch.from_numpy(order.choice(len(images), BATCH_SIZE, replace=False))
        optimizer.zero_grad()
        functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        guesses = torch.cat([model(part).argmax(1) for part in held_out.split(1000)])
        accuracy = float((guesses == answers).float().mean())
    with marks.open("a") as file:
        file.write(json.dumps({"began": began, "ended": time.time(), "accuracy": accuracy}) + "\n")
    return accuracy


@cache
def _digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return images [n, 1, 8, 8] and labels [n] to train on, and those held out: a fifth."""
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float()[:, None]
    labels = torch.from_numpy(digits.target)
    cut = len(images) * 4 // 5
    return (images[:cut], labels[:cut]), (images[cut:], labels[cut:])


@cache
def _mnist(folder: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return all images [n, 1, 28, 28] and labels [n] to train on, and those of the test set."""
    found = []
    for part in ("train", "t10k"):
        images, labels = load_mnist(folder, part)
        found.append((torch.from_numpy(images).float()[:, None] / 255, torch.from_numpy(labels).long()))
    return found[0], found[1]
