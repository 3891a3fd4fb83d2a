"""What the loop asks of a task, and what a task asks of its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from trainers.metrics import Metrics

    Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Prepared:
    """Data made ready once and shared by all workers of a machine.

    `arrays` are large and read-only (they travel through Ray's object store); `meta` is small, plain JSON,
    and stored with the model, so that evaluation and prediction treat an image as training did.
    """

    arrays: Mapping[str, NDArray[Any]]
    meta: Mapping[str, Any]
    notes: tuple[Mapping[str, Any], ...] = field(default=())  # events: what cleaning dropped, what was measured


@dataclass(frozen=True)
class Draw:
    """The randomness of one training batch: a function of (seed, epoch, sample) alone.

    `batch` lists the samples of the whole global batch, so that mixup can pair a sample with one that
    another worker holds.
    """

    seed: int
    epoch: int
    batch: NDArray[np.int64]


class Dataset(Protocol):
    """Samples by their number."""

    def __len__(self) -> int: ...

    def batch(self, samples: NDArray[np.int64], draw: Draw | None) -> Batch:
        """Return CPU tensors for these samples, augmented by `draw`; unchanged where it is None.

        The first dimension of every tensor is the sample's, and may be 0.
        """
        ...


class Task(Protocol):
    """A kind of training: its model, data, loss and metrics. Knows nothing of Ray."""

    meta: Mapping[str, Any]

    def build_model(self) -> nn.Module:
        """Return the model with its initial weights, on the CPU."""
        ...

    def datasets(self) -> tuple[Dataset, Dataset | None]:
        """Return the data to train on, and to evaluate on where there is any."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss summed over targets, the number of targets, and the model's output.

        Output and targets are what `metrics` takes: `metrics.update(output, batch["targets"])`.
        """
        ...

    def metrics(self) -> Metrics:
        """Return what evaluation measures, beside the loss."""
        ...
