"""A rank of torchrun that is told of the end of its machine in the midst of an evaluation.

python -m tests.trainers.noticed RUN_URI RANK STEP BATCH: rank RANK is, at that batch of the evaluation of that step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from trainers import notice, worker
from trainers.loop import Trainer

SMALL_BATCHES = 8  # samples evaluated at once


def disturb(patch: pytest.MonkeyPatch, at: tuple[int, int, int], act: Callable[[Trainer], object]) -> None:
    """Have evaluations take several batches, and act before a rank's batch of the evaluation of a step."""
    whole = Trainer._evaluation_batches

    def batches(trainer: Trainer, data: Any) -> Iterator[Any]:
        for number, batch in enumerate(whole(trainer, data)):
            if (trainer.context.rank, trainer.progress.step, number) == at:
                act(trainer)
            yield batch

    patch.setattr("trainers.loop._EVALUATED_AT_ONCE", SMALL_BATCHES)
    patch.setattr(Trainer, "_evaluation_batches", batches)


def main() -> int:
    rank, step, batch = map(int, sys.argv[2:])
    disturb(pytest.MonkeyPatch(), (rank, step, batch), lambda _: notice.give())
    return worker.main()


if __name__ == "__main__":
    worker.end_with(main)
