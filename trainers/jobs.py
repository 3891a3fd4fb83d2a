"""A run's frozen job file, as the trainers read it."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from cluster.errors import UsageError
from cluster.runs import Run
from trainers.config import TrainJob


def load_job(run: Run) -> tuple[TrainJob, dict[str, Any]]:
    """Return the trainers' part of a run's job file, and all of it. Raises UsageError, RunNotFoundError."""
    data: dict[str, Any] = YAML(typ="safe", pure=True).load(run.job())
    try:
        return TrainJob.from_job(data), data
    except ValidationError as error:
        raise UsageError(f"{run.uri}/job.yaml was made for another version of raylift: {error}") from error
