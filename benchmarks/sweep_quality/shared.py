"""What the contestants that are scripts share: a trial that trains by raylift's own loop, and the marks it leaves.

All train the same way, so what is compared is which values each tries, and which trials it ends early.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from benchmarks.sweep_quality.reviews import features
from cluster.attempts import Attempt
from cluster.runs import Run
from cluster.storage.open import open_storage
from cluster.trials import trial_run
from launcher.spec import load
from launcher.workdir import pack
from trainers.config import TrainJob
from trainers.context import StopReason
from trainers.sweep.trial import OneRankTraining, data_key
from trainers.tasks.base import Prepared
from trainers.tasks.registry import prepare
from trainers.tuning import Tune, trial_job

_HERE = Path(__file__).resolve().parent
DATA = ("digits", "sentiment")
Point = dict[str, Any]


def settings(data: str, seed: int) -> tuple[Path, list[str]]:
    """Return the job file of a data set, and what --set changes in it for a seed: of the split, and of the weights."""
    sets = [f"train.seed={seed}"]
    if data == "sentiment":
        sets += [f"params.split_seed={seed}", f"params.features={features()}"]
    return _HERE / f"{data}.yaml", sets


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--marks", type=Path, required=True, help="file for what is measured")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for what a contestant writes")
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slots", type=int, default=2, help="trials that run at once, where they do")
    return parser.parse_args()


@cache
def document(data: str, scratch: Path, seed: int) -> Mapping[str, Any]:
    """Return the job of every trial, and the space that raylift searches by default."""
    file, sets = settings(data, seed)
    return load(file, storage=str(scratch / "trials"), overrides=sets).document


def suggest(space: Callable[[str, str, Any], Any], data: str, scratch: Path, seed: int) -> Point:
    """Draw a point; `space` is told a key, the kind of its domain and what that holds, and returns a value."""
    point: Point = {}
    for key, domain in Tune.model_validate(document(data, scratch, seed)["tune"]).ordered.items():
        if domain.counts(point):
            point[key] = space(key, domain.kind, getattr(domain, domain.kind))
    return point


class Trial:
    """The training of one point."""

    def __init__(self, point: Point, number: int, *, data: str, scratch: Path, seed: int, marks: Path) -> None:
        job = trial_job(document(data, scratch, seed), point)
        stream = io.StringIO()
        YAML(typ="safe", pure=True).dump(job, stream)
        sweep = _sweep(scratch, job["task"], job.get("workdir"))
        run = trial_run(sweep.run, f"{number:05d}")
        parsed = TrainJob.from_job(job)
        self._training = OneRankTraining(run, parsed, stream.getvalue().encode(), sweep, prepare=_prepare)
        self._marks = marks
        self.done = False

    def epochs(self) -> Iterator[tuple[int, float]]:
        """Train, and yield each epoch with the accuracy on what is held out after it."""
        while not self.done:
            news = self._training.next()
            self.done = bool(news.state)
            if not news.metrics:
                return  # it diverged
            accuracy = news.metrics["eval_accuracy"]
            with self._marks.open("a") as file:
                file.write(json.dumps({"time": time.time(), "accuracy": accuracy}) + "\n")
            yield news.epoch, accuracy

    def end(self) -> None:
        self._training.end(StopReason.PRUNED)
        self.done = True


@cache
def _sweep(scratch: Path, task: str, workdir: str | None) -> Attempt:
    torch.set_num_threads(1)
    run = Run(open_storage(str(scratch / "trials")), f"sweep-{time.time_ns()}")
    run.create(b"task: image-classification\n")
    if workdir is not None:
        code = pack(Path(workdir), task, run.id, run.storage.uri)
        run.storage.write(code.path, code.data)
    return run.claim()


_prepared: dict[str, Prepared] = {}


def _prepare(job: TrainJob) -> Prepared:
    if (key := data_key(job)) not in _prepared:
        _prepared[key] = prepare(job)
    return _prepared[key]
