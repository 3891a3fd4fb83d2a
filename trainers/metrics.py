"""What evaluation measures beside the loss, from counts that add up over batches and ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, Self

import torch

if TYPE_CHECKING:
    from torch import Tensor


class Metrics(Protocol):
    """Collects what the batches of an evaluation show; torchmetrics' MetricCollection is such a thing too."""

    def to(self, device: torch.device) -> Self: ...

    def update(self, output: Tensor, targets: Tensor) -> None:
        """Take a batch: what the model made of it, and what is right."""
        ...

    def compute(self) -> Mapping[str, Tensor]:
        """Return each metric, by name, over what all ranks have taken. Collective."""
        ...


class ClassMetrics:
    """The share of right answers (`accuracy`), and F1 averaged over the classes that were there or guessed (`f1`).

    F1 of a class is 2 right / (guessed + there), as in scikit-learn's f1_score with average="macro". Written here
    because to import torchmetrics takes two seconds of processor time, in every process that trains.
    """

    def __init__(self, classes: int) -> None:
        self._counts = torch.zeros(3, classes, dtype=torch.int64)  # right, guessed, there

    def to(self, device: torch.device) -> Self:
        self._counts = self._counts.to(device)
        return self

    def update(self, output: Tensor, targets: Tensor) -> None:
        """Take logits [samples, classes] and classes [samples]."""
        guesses = output.argmax(dim=1)
        found = (targets[guesses == targets], guesses, targets)
        self._counts += torch.stack([torch.bincount(one, minlength=self._counts.shape[1]) for one in found])

    def compute(self) -> dict[str, Tensor]:
        counts = self._counts.clone()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
        right, guessed, there = counts.double()
        known = (guessed + there).count_nonzero()
        f1 = 2 * right / (guessed + there).clamp(min=1)
        return {"accuracy": right.sum() / there.sum().clamp(min=1), "f1": f1.sum() / known.clamp(min=1)}
