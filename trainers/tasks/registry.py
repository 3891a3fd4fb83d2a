"""Task name -> its module, imported only when chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainers.tasks.base import Prepared

if TYPE_CHECKING:
    from pathlib import Path

    from trainers.config import TrainJob
    from trainers.tasks.base import Task


def prepare(job: TrainJob) -> Prepared:
    """Make a job's data ready, once; imports no torch. A task of one's own brings its data. Raises TrainingError."""
    if job.is_own:
        return Prepared(arrays={}, meta={"task": job.task, "params": job.params})
    from trainers.data.images import prepare as prepare_images

    return {"image-classification": prepare_images}[job.task](job)


def build_task(job: TrainJob, prepared: Prepared, code: Path | None) -> Task:
    """Return the task of a job over its prepared data; `code` is where the class of one's own is."""
    if code is not None:
        from trainers.tasks.own import OwnTask

        return OwnTask(job, prepared.meta, code)
    from trainers.tasks.images import ImageClassification

    return {"image-classification": ImageClassification}[job.task](job, prepared)
