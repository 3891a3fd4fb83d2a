"""How long a trial of a sweep may be, in what its scheduler may count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice, product
from typing import Any

from trainers.config import Train, TrainJob
from trainers.tuning import Point, Tune, apply

_LENGTH = ("train.epochs", "train.max_steps", "train.eval_every", "train.batch_size")  # what it depends on
_MOST = 1000  # combinations of their values that are looked at


def longest(sweep: Mapping[str, Any], tune: Tune, samples: int) -> dict[str, int]:
    """Return the most steps, epochs and evaluations (`training_iteration`) of any trial of a frozen job file.

    Where the space has what that depends on, the ends of its ranges and all of its lists are looked at.
    """
    jobs = (TrainJob.from_job(apply(sweep, point)) for point in islice(_points(tune), _MOST))
    lengths = [_length(job.train, samples) for job in jobs]
    return {name: max(length[name] for length in lengths) for name in lengths[0]}


def _points(tune: Tune) -> Iterator[Point]:
    """Yield the combinations of such values; a key with a condition may be there or not."""
    values = [
        [*({key: value} for value in domain.ends.values()), *([{}] if domain.when else [])]
        for key, domain in tune.ordered.items()
        if key in _LENGTH
    ]
    for chosen in product(*values):
        yield {key: value for one in chosen for key, value in one.items()}


def _length(train: Train, samples: int) -> dict[str, int]:
    epoch = -(-samples // train.batch_size)
    steps = min(train.max_steps or 10**9, (train.epochs or 1) * epoch if train.epochs or not train.max_steps else 10**9)
    every = train.eval_every.count * (epoch if train.eval_every.unit == "epoch" else 1)
    return {
        "step": steps,
        "epoch": max(1, -(-steps // epoch)),
        "training_iteration": max(1, int(steps / every)),
    }
