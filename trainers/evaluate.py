"""Measure a trained model.

python -m trainers.evaluate RUN|DIR [--data SOURCE]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cluster.errors import TrainingError, UsageError
from trainers.command import run_command
from trainers.data.loader import split
from trainers.data.order import largest_share, share
from trainers.loop import mixed_precision
from trainers.saved import Saved, image_task, load_saved

if TYPE_CHECKING:
    from trainers.tasks.base import Batch, Dataset

_SMALLEST_BATCH = 256


@dataclass(frozen=True)
class Evaluation:
    """What was measured; `confusion` counts [true class, predicted class]."""

    model: str
    step: int
    data: str
    samples: int
    metrics: dict[str, float]
    classes: list[str]
    confusion: list[list[int]]

    def per_class(self) -> list[dict[str, Any]]:
        """Return precision, recall and F1 of every class; 0 where a class was never predicted, or has no sample."""
        counts = np.array(self.confusion).reshape(len(self.classes), len(self.classes))
        right, predicted, there = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)
        return [
            {
                "class": name,
                "samples": int(there[index]),
                "precision": float(right[index] / max(predicted[index], 1)),
                "recall": float(right[index] / max(there[index], 1)),
                "f1": float(2 * right[index] / max(predicted[index] + there[index], 1)),
            }
            for index, name in enumerate(self.classes)
        ]


def evaluate(saved: Saved, source: str | None = None) -> Evaluation:
    """Measure a model on a labelled source, or, where that is None, on what its job evaluates on.

    Then metrics are those of the training's own evaluation, bit for bit on the same kind of machine: the samples are
    cut into batches as its ranks had them. Raises UsageError, TrainingError.
    """
    data = _own_data(saved) if source is None else _other_data(saved, source)
    metrics = saved.task.metrics().to(saved.device)
    classes = list(saved.meta.get("classes", []))  # a task of one's own has none
    confusion = torch.zeros(len(classes) ** 2, dtype=torch.int64, device=saved.device)
    autocast, _ = mixed_precision(saved.meta.get("precision", saved.job.train.precision), saved.device)
    sums = torch.zeros(2, dtype=torch.float64, device=saved.device)
    with torch.inference_mode():
        for batches in _batches_by_rank(saved, data):
            of_rank = torch.zeros_like(sums)
            for batch in batches:
                with autocast:
                    loss, count, output = saved.task.loss(saved.model, batch)
                of_rank += torch.stack([loss, count]).double()
                metrics.update(output.float(), batch["targets"])
                if classes:
                    cells = batch["targets"] * len(classes) + output.argmax(dim=1)
                    confusion += torch.bincount(cells, minlength=len(confusion))
            sums += of_rank
    values = {name: float(value) for name, value in metrics.compute().items()}
    return Evaluation(
        model=saved.source,
        step=saved.step,
        data=source or ("its own data" if saved.job.is_own else "data.eval of its job"),
        samples=len(data),
        metrics={"loss": float(sums[0] / sums[1].clamp(min=1)), **values},
        classes=classes,
        confusion=confusion.reshape(len(classes), len(classes)).tolist(),
    )


def _own_data(saved: Saved) -> Dataset:
    from trainers.tasks.base import Prepared
    from trainers.tasks.registry import build_task, prepare

    if saved.job.is_own:
        _, own = saved.task.datasets()
        if own is None:
            raise UsageError(f"{saved.source}: its task, {saved.job.task}, has no data to evaluate on")
        return own
    if saved.job.data.eval is None:
        raise UsageError(f"{saved.source}: its job evaluates on nothing (data.eval). Name a labelled source: --data")
    prepared = prepare(saved.job)
    for key in ("classes", "image", "train", "eval"):
        if prepared.meta[key] != saved.meta[key]:
            raise TrainingError(
                f"{saved.job.data.train} has changed since the training: {key} was {saved.meta[key]} and is "
                f"{prepared.meta[key]} now. To measure on what is there: --data SOURCE"
            )
    _, data = build_task(saved.job, Prepared(arrays=prepared.arrays, meta=saved.meta), None).datasets()
    assert data is not None
    return data


def _other_data(saved: Saved, source: str) -> Dataset:
    from trainers.data.images import load_images

    task, columns = image_task(saved, "--data"), saved.job.data
    found = load_images(source, saved.meta, image_column=columns.image_column, label_column=columns.label_column)
    for note in found.notes:
        print(f"warning: {note['count']} left out ({note['reason']}): {', '.join(note['items'][:3])}", file=sys.stderr)
    return task.dataset(found.arrays)


def _batches_by_rank(saved: Saved, data: Dataset) -> Iterator[Iterator[Batch]]:
    for rank in range(saved.world_size):
        own = share(np.arange(len(data)), rank, saved.world_size)
        largest = largest_share(len(data), saved.world_size)
        parts = [part for part in split(own, max(saved.job.train.batch_size, _SMALLEST_BATCH), largest) if len(part)]
        yield ({name: tensor.to(saved.device) for name, tensor in data.batch(part, None).items()} for part in parts)


def as_dict(found: Evaluation) -> dict[str, Any]:
    return {**vars(found), "per_class": found.per_class()}


def print_table(found: Evaluation) -> None:
    print(f"{found.model}, step {found.step}, on {found.data}: {found.samples} samples")
    print("  ".join(f"{name} {value:.4f}" for name, value in found.metrics.items()))
    if not found.classes:
        return
    width = max(len("class"), *(len(name) for name in found.classes))
    print(f"\n{'class':<{width}}  samples  precision  recall      f1")
    for row in found.per_class():
        measures = f"{row['precision']:>9.4f}  {row['recall']:.4f}  {row['f1']:.4f}"
        print(f"{row['class']:<{width}}  {row['samples']:>7}  {measures}")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainers.evaluate")
    parser.add_argument("model", help="a run's URI, or a folder of raylift export")
    parser.add_argument("--data", help="a labelled source; default: what the job evaluates on")
    parser.add_argument("--checkpoint", default="last")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    found = evaluate(load_saved(given.model, given.checkpoint), given.data)
    if given.json:
        print(json.dumps(as_dict(found), indent=2))
    else:
        print_table(found)
    return 0


if __name__ == "__main__":
    run_command(main)
