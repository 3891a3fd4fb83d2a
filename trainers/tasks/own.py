"""A task of the user's own: a class of theirs with a model, data, a loss and, where they like, metrics.

    class Diabetes:
        def __init__(self, params): ...                 # the `params` of the job file
        def build_model(self): ...                      # a torch.nn.Module; what is random in it is seeded
        def datasets(self): ...                         # data to train on, and to evaluate on or None
        def loss(self, model, batch): ...               # (sum over the samples, their number[, output for metrics])
        def metrics(self): ...                          # may be left out; torchmetrics' MetricCollection will do

A dataset is one of PyTorch with `__len__` and `__getitem__`, whose samples are dicts, or pairs of inputs and targets,
and always the same; or one of our own kind, `trainers.tasks.base.Dataset`, which makes whole batches, and may augment
them by what it is handed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset, default_collate

from cluster.errors import TrainingError
from trainers.randomness import OWN, seed_all, seed_for
from trainers.user_code import load_object

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trainers.config import TrainJob
    from trainers.metrics import Metrics
    from trainers.tasks.base import Batch, Dataset, Draw


class OwnTask:
    """A task around an object of the user's class."""

    def __init__(self, job: TrainJob, meta: Mapping[str, Any], folder: Path) -> None:
        """Make that object, of the class in `folder`. Raises what that raises, and TrainingError."""
        self.meta = meta
        self._name = job.task
        self._seed = seed_for(job.train.seed, OWN)
        seed_all(self._seed)
        self._task = load_object(job.task, folder)(dict(job.params))
        missing = [name for name in ("build_model", "datasets", "loss") if not hasattr(self._task, name)]
        if missing:
            raise TrainingError(
                f"task: {job.task} has no {', '.join(missing)}; a task has build_model, datasets and loss"
            )

    def build_model(self) -> nn.Module:
        model = self._task.build_model()
        if not isinstance(model, nn.Module):
            raise self._wrong("build_model", model, "a torch.nn.Module")
        return model

    def datasets(self) -> tuple[Dataset, Dataset | None]:
        """Return what to train on, and what to evaluate on where there is any; random splits are always the same."""
        seed_all(self._seed)
        found = self._task.datasets()
        if not isinstance(found, tuple) or len(found) != 2 or found[0] is None:
            raise self._wrong("datasets", found, "two: one to train on, and one to evaluate on, or None")
        train, evaluation = found
        return self._batched(train), self._batched(evaluation) if evaluation is not None else None

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        found = self._task.loss(model, batch)
        if isinstance(found, tuple) and len(found) == 2 and hasattr(self._task, "metrics"):
            raise self._wrong("loss", found, "the model's output as a third, as there are metrics() that take it")
        if not isinstance(found, tuple) or len(found) not in (2, 3) or not isinstance(found[0], Tensor):
            raise self._wrong(
                "loss", found, "the sum over the samples and their number, and the model's output for metrics"
            )
        total, count, output = found if len(found) == 3 else (*found, found[0].detach())
        if total.dim():
            raise self._wrong("loss", total, "first a sum: one number, not one for each sample")
        if not isinstance(output, Tensor):
            raise self._wrong("loss", output, "a tensor for the metrics")
        if not isinstance(count, Tensor):
            count = torch.full((), float(count), device=total.device)  # filled there: a copy would wait for a GPU
        return total, count, output

    def metrics(self) -> Metrics:
        found: Metrics = self._task.metrics() if hasattr(self._task, "metrics") else NoMetrics()
        return found

    def _batched(self, dataset: Any) -> Dataset:
        is_ours = hasattr(dataset, "batch") and not hasattr(dataset, "__getitem__")
        made: Dataset = dataset if is_ours else Collated(dataset, self._collate, self._name)
        if len(made) == 0:
            raise TrainingError(f"task: a dataset of {self._name} is empty")
        return made

    @property
    def _collate(self) -> Callable[[list[Any]], Any]:
        return getattr(self._task, "collate", default_collate)

    def _wrong(self, method: str, found: object, wanted: str) -> TrainingError:
        what = f"shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        return TrainingError(f"task: {self._name}.{method} returned {what}; it must return {wanted}")


class Collated:
    """A map-style dataset of PyTorch, in batches."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any], name: str) -> None:
        self._dataset = dataset
        self._collate = collate
        self._name = name

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, samples: NDArray[np.int64], draw: Draw | None) -> Batch:  # noqa: ARG002  # nothing is augmented
        if isinstance(self._dataset, TensorDataset):
            numbers = torch.from_numpy(samples)
            return self._named([tensor[numbers] for tensor in self._dataset.tensors])
        items = [self._dataset[int(number)] for number in samples] or [self._dataset[0]]
        found = self._named(self._collate(items))
        return found if len(samples) else {name: tensor[:0] for name, tensor in found.items()}

    def _named(self, found: Mapping[str, Tensor] | Sequence[Tensor]) -> Batch:
        if isinstance(found, list | tuple) and len(found) == 2:
            found = {"inputs": found[0], "targets": found[1]}
        if isinstance(found, Mapping) and "targets" in found:
            if others := [name for name, value in found.items() if not isinstance(value, Tensor)]:
                raise TrainingError(f"task: in a batch of {self._name}, {others[0]} is no tensor: give it a collate()")
            return dict(found)
        keys = f"a dict of {', '.join(map(str, found))}" if isinstance(found, Mapping) else type(found).__name__
        raise TrainingError(
            f"task: a batch of {self._name} is {keys}; it must be a dict of tensors, `targets` among them, or a pair "
            "of inputs and targets"
        )


class NoMetrics:
    """What a task measures that has no metrics: its loss alone."""

    def to(self, device: torch.device) -> Self:  # noqa: ARG002
        return self

    def update(self, output: Tensor, targets: Tensor) -> None: ...

    def compute(self) -> dict[str, Tensor]:
        return {}
