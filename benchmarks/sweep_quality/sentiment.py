"""Is a movie review kind? A small network on the features of a frozen encoder, which reviews.py makes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.metrics import ClassMetrics


class Sentiment:
    """Two classes from 384 features. `params`: their file, hidden units, dropout, and the seed of the split."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params

    def build_model(self) -> nn.Module:
        hidden = self.params["hidden"]
        return nn.Sequential(
            nn.Linear(384, hidden), nn.ReLU(), nn.Dropout(self.params["dropout"]), nn.Linear(hidden, 2)
        )

    def datasets(self) -> tuple[TensorDataset, TensorDataset]:
        """Return four fifths to train on, and a fifth to evaluate on."""
        features, labels = load(self.params["features"])
        order = np.random.default_rng(self.params["split_seed"]).permutation(len(labels))
        held, train = np.split(order, [len(order) // 5])
        return TensorDataset(features[train], labels[train]), TensorDataset(features[held], labels[held])

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int, Tensor]:
        output = model(batch["inputs"])
        return nn.functional.cross_entropy(output, batch["targets"], reduction="sum"), len(output), output

    def metrics(self) -> ClassMetrics:
        import raylift

        return raylift.ClassMetrics(2)


@functools.cache
def load(path: str) -> tuple[Tensor, Tensor]:
    """Return features [samples, 384], float32, and labels [samples]."""
    with np.load(path) as file:
        return torch.from_numpy(file["features"]), torch.from_numpy(file["labels"])
