"""A trained model as it was saved, in a run's checkpoint or in an exported folder."""

from __future__ import annotations

import atexit
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cluster.bundles import EXPORTED, own_code
from cluster.errors import CorruptObjectError, UsageError
from cluster.runs import Run
from cluster.selection import fetch_model
from trainers.checkpoint import META_FILE
from trainers.config import TrainJob
from trainers.context import LocalContext
from trainers.tasks.base import Prepared
from trainers.tasks.images import ImageClassification
from trainers.tasks.registry import build_task
from trainers.whole import MODEL_FILE

if TYPE_CHECKING:
    from torch import nn

    from trainers.tasks.base import Task


@dataclass(frozen=True)
class Saved:
    """A trained model, ready to answer."""

    source: str  # the run's URI, or the folder
    step: int
    job: TrainJob
    meta: Mapping[str, Any]
    task: Task
    model: nn.Module  # on `device`, in evaluation mode
    device: torch.device
    world_size: int  # of the training


def load_saved(source: str, which: str = "last") -> Saved:
    """Load the model of an exported folder, or the chosen checkpoint (last, best, a step) of a run.

    Raises UsageError where there is none such, CorruptObjectError where its files do not belong together.
    """
    folder = Path(source)
    if (folder / MODEL_FILE).is_file():
        return _load_export(source, folder, which)
    return _load_checkpoint(source, which)


def image_task(saved: Saved, asked: str) -> ImageClassification:
    """Return a model's task where it is that of images, which `asked` needs. Raises UsageError."""
    if not isinstance(saved.task, ImageClassification):
        raise UsageError(f"{asked}: {saved.source} is of a task of your own, {saved.job.task}, and takes no images")
    return saved.task


def _load_export(source: str, folder: Path, which: str) -> Saved:
    config = _read(folder / "config.json")
    if which not in ("last", str(config["step"])):
        raise UsageError(f"{source} holds step {config['step']} alone: --checkpoint {which} is for a run")
    job = TrainJob.from_job(config)
    code = (folder / EXPORTED).absolute() if job.is_own else None
    return _build(source, folder, code, job, step=config["step"], world_size=config["world_size"])


def _load_checkpoint(source: str, which: str) -> Saved:
    from trainers.jobs import load_job

    run = Run.at(source)
    job, _ = load_job(run)
    with tempfile.TemporaryDirectory(prefix="raylift-model-") as name:
        checkpoint = fetch_model(run, which, Path(name), lambda text: print(f"warning: {text}", file=sys.stderr))
        began = [row for row in run.rows("events") if row["event"] == "training" and row["step"] < checkpoint.step]
        world_size = began[-1]["world_size"] if began else 1
        return _build(source, Path(name), _code_of(job, run), job, step=checkpoint.step, world_size=world_size)


def _code_of(job: TrainJob, run: Run) -> Path | None:
    """Return a folder with the code of a task of one's own, which is gone when this process is."""
    if not job.is_own:
        return None
    folder = Path(tempfile.mkdtemp(prefix="raylift-code-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    own_code(run).extract(folder)
    return folder


def _build(source: str, folder: Path, code: Path | None, job: TrainJob, *, step: int, world_size: int) -> Saved:
    task = build_task(job, Prepared(arrays={}, meta=_read(folder / META_FILE)), code)
    model = task.build_model()
    try:
        model.load_state_dict(load_file(folder / MODEL_FILE))
    except (SafetensorError, RuntimeError) as error:
        raise CorruptObjectError(f"{folder / MODEL_FILE} is not the model that {folder} describes: {error}") from error
    device = LocalContext().device()
    return Saved(
        source=source,
        step=step,
        job=job,
        meta=task.meta,
        task=task,
        model=model.to(device).eval(),
        device=device,
        world_size=world_size,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} does not read: {error}. Export the model again: raylift export RUN DIR") from error
    return found
