"""A rank of torchrun that a watchdog looks after, as under Ray: python -m tests.trainers.watched RUN_URI."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from cluster.attempts import Attempt
from trainers import worker
from trainers.context import LocalContext
from trainers.loop import Outcome

run_rank = worker.run_rank


def watched(context: LocalContext, attempt: Attempt, *arguments: Any) -> Outcome:
    return run_rank(context, attempt, *arguments, pulse=worker.show_life(context, attempt))


if __name__ == "__main__":
    with patch("trainers.worker.run_rank", watched):
        worker.end_with(worker.main)
