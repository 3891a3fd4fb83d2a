"""Task name -> its module, imported only when chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainers.config import TrainJob
    from trainers.tasks.base import Prepared, Task


def prepare(job: TrainJob) -> Prepared:
    """Make a job's data ready, once; imports no torch. Raises TrainingError."""
    from trainers.data.images import prepare as prepare_images

    return {"image-classification": prepare_images}[job.task](job)


def build_task(job: TrainJob, prepared: Prepared) -> Task:
    """Return the task of a job over its prepared data."""
    from trainers.tasks.images import ImageClassification

    return {"image-classification": ImageClassification}[job.task](job, prepared)
