"""How long a trial of a sweep may be, in what its scheduler may count."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from pydantic import TypeAdapter

from trainers.config import Interval, Train
from trainers.tuning import Tune

_LENGTH = ("epochs", "max_steps", "batch_size", "eval_every")  # keys of `train` that it depends on
_INTERVAL: TypeAdapter[Any] = TypeAdapter(Interval)


def longest(train: Train, tune: Tune, samples: int) -> dict[str, int]:
    """Return the most steps, epochs and evaluations (`training_iteration`) that a trial may have.

    What the space has of the keys that these depend on counts in every combination, whatever else a trial would need
    for it: no trial may turn out to be longer.
    """
    lengths = [_length(each, samples) for each in _combined(train, tune)]
    return {name: max(length[name] for length in lengths) for name in lengths[0]}


def _combined(train: Train, tune: Tune) -> Iterator[Train]:
    """Yield the job's own block with the values of a space; of numbers the least and the largest are enough."""
    values = []
    for name in _LENGTH:
        domain = tune.ordered.get(f"train.{name}")
        if domain is None:
            continue
        ends = list(domain.ends.values())
        if name == "eval_every":
            ends = [_INTERVAL.validate_python(each) for each in ends]
        else:
            numbers = [each for each in ends if each is not None]
            ends = [*([None] if None in ends else []), *({int(min(numbers)), int(max(numbers))} if numbers else [])]
        values.append([*({name: end} for end in ends), *([{}] if domain.when else [])])  # one with a condition may lack
    for chosen in product(*values):
        yield train.model_copy(update={name: value for one in chosen for name, value in one.items()})


def _length(train: Train, samples: int) -> dict[str, int]:
    epoch = -(-samples // train.batch_size)
    steps = min(train.max_steps or 10**9, (train.epochs or 1) * epoch if train.epochs or not train.max_steps else 10**9)
    every = train.eval_every.count * (epoch if train.eval_every.unit == "epoch" else 1)
    return {
        "step": steps,
        "epoch": max(1, -(-steps // epoch)),
        "training_iteration": max(1, int(steps / every)),
    }
