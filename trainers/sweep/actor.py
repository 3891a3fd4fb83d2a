"""The Tune actor in which trials train, one after another."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from pyarrow.fs import LocalFileSystem
from pydantic import ValidationError
from ray import tune as ray_tune
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint

from cluster.attempts import Attempt
from cluster.errors import PreemptedError
from cluster.job_file import freeze
from cluster.outages import through_outages
from cluster.records import Origin
from cluster.runs import Run
from cluster.trials import Copied, trial_run
from trainers import notice
from trainers.config import TrainJob
from trainers.context import StopReason
from trainers.pulse import Pulse, pulse_folder, show_stacks_when_asked
from trainers.sweep.ranks import RankedTraining, Ranks, References
from trainers.sweep.trial import News, OneRankTraining, Training, data_key
from trainers.tasks.base import Prepared
from trainers.tuning import trial_job
from trainers.watchdog import Keeper


@dataclass(frozen=True)
class Shared:
    """What every trial of a sweep shares."""

    uri: str
    attempt: int  # of the sweep
    document: Mapping[str, Any]  # its frozen job file
    repeats: int
    key: str  # of the data that `arrays` and `meta` are
    arrays: Mapping[str, Any]  # name -> object reference
    meta: Mapping[str, Any]
    metric: str
    ranks: Ranks  # of each trial


class Lifeline:
    """Lets the watchdog of an actor listen to the trials that train in it, one after another."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._watchdog = Keeper(folder, world_size=1)
        show_stacks_when_asked()

    def show_life(self, attempt: Attempt) -> Pulse:
        """Return the pulse of an attempt of a trial."""
        self._folder.mkdir(mode=0o700, exist_ok=True)  # the trial before took it along
        look = self._watchdog.look
        return Pulse(0, self._folder, run_uri=attempt.run.uri, attempt=attempt.number, at_each_beat=look)

    def close(self) -> None:
        self._watchdog.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class TrialActor(ray_tune.Trainable):
    """Trains one trial after another."""

    def setup(self, config: dict[str, Any], *, shared: Shared) -> None:  # type: ignore[override]  # with_parameters adds it
        self._shared = shared
        self._sweep = through_outages(lambda: Attempt.reopen(Run.at(shared.uri), shared.attempt))
        alone = shared.ranks.number == 1
        folder = pulse_folder(Path(shared.ranks.temporary), shared.uri, os.getpid())
        self._lifeline = Lifeline(folder) if alone else None  # ranks have watchdogs of their own
        if alone and not shared.ranks.own_ray:
            os.environ[notice.JOINED] = "1"
        self._data: dict[str, Prepared] = {}
        self._told: dict[str, Any] = {}  # the newest, of the trial that trains
        self._begin(config)  # Tune may have given the trial to another actor meanwhile: it begins when it is asked for

    def step(self) -> dict[str, Any]:
        """Train up to the next evaluation, or to the trial's end."""
        self._told = self._next()
        return self._told

    def save(self, checkpoint_dir: str | None = None) -> _TrainingResult:  # noqa: ARG002  # ours lie in storage
        """Have the trial save and wait; its next step, here or in another actor, goes on from there."""
        origin = self._training.pause() if self._training is not None else None
        saved = Checkpoint(as_path(origin), LocalFileSystem()) if origin is not None else None
        return _TrainingResult(saved, self._told)

    def restore(self, checkpoint_path: Any) -> None:
        """Do nothing: what a trial starts from, its folder and its config say."""

    def _next(self) -> dict[str, Any]:
        news = self._training.next() if self._training is not None else self._refused
        if news.state == "PREEMPTED" and self._is_leaving():
            # an end would have Tune keep this actor for another trial, though its machine goes
            raise PreemptedError(news.message)
        lacks_metric = news.state in ("", "SUCCEEDED") and self._shared.metric not in news.metrics
        if lacks_metric:
            if self._training is not None and not news.state:
                self._training.end(StopReason.PRUNED)
            known = ", ".join(name for name in news.metrics if name.startswith("eval_"))
            has = f"this task has {known}" if known else "the trial has no data to evaluate on"
            why = f"there is no {self._shared.metric!r}; {has}"
            news = News(news.step, news.epoch, news.iteration, state="FAILED", message=f"tune.metric: {why}")
        return {
            self._shared.metric: float("nan"),  # what fails has none, and a scheduler wants one
            **news.metrics,
            "training_iteration": news.iteration,
            "step": news.step,
            "epoch": news.epoch,
            "evaluation": {key: value for key, value in news.metrics.items() if key.startswith("eval_")},
            "state": news.state,
            "message": news.message,
            "lacks_metric": lacks_metric,
            "done": bool(news.state),
        }

    def _is_leaving(self) -> bool:
        """Whether the machine of this process goes; where the ranks are others, none of them may be on it."""
        if self._lifeline is None and not self._shared.ranks.own_ray:
            from trainers.backend import seconds_until_drained

            with contextlib.suppress(RuntimeError):  # Ray is busy
                return seconds_until_drained() is not None
        return notice.is_given()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end(StopReason.PRUNED)
        self._begin(new_config)
        if self._training is not None:
            self._training.start()  # while Tune hears that the actor is ready, and tells it to go on
        return True

    def cleanup(self) -> None:
        self._end(StopReason.LET_GO)
        if self._lifeline is not None:
            self._lifeline.close()

    def _end(self, why: StopReason) -> None:
        if self._training is not None:
            self._training.end(why)

    def _begin(self, config: dict[str, Any]) -> None:
        document = trial_job(self._shared.document, json.loads(config["point"]), config["repeat"])
        self._training: Training | None = None
        self._refused = News(0, 0, 0, state="FAILED")
        try:
            job = TrainJob.from_job(document)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            self._refused = News(0, 0, 0, state="FAILED", message=f"no job file may have these values: {problems}")
            return
        run = trial_run(self._sweep.run, config["trial"])
        copied = Copied.from_json(config["copied"]) if config["copied"] else None
        arguments = run, job, freeze(document), self._sweep, copied
        if self._lifeline is None:
            self._training = RankedTraining(
                *arguments, ranks=self._shared.ranks, share=self._share, metric=self._shared.metric
            )
        else:
            self._training = OneRankTraining(
                *arguments,
                prepare=self._prepare,
                threads=self._shared.ranks.threads,
                show_life=self._lifeline.show_life,
                metric=self._shared.metric,
            )

    def _prepare(self, job: TrainJob) -> Prepared:
        """Return the data of a trial: that of all of them, or what its own values make of it."""
        from trainers.tasks.registry import prepare

        key = data_key(job)
        if key not in self._data:
            if key == self._shared.key:
                arrays = dict(zip(self._shared.arrays, ray.get(list(self._shared.arrays.values())), strict=True))
                self._data[key] = Prepared(arrays=arrays, meta=self._shared.meta)
            else:
                while len(self._data) > self._shared.repeats:  # each seed may split it anew
                    del self._data[next(iter(self._data))]
                self._data[key] = prepare(job)
        return self._data[key]

    def _share(self, job: TrainJob) -> References:
        """Return the data of a trial for its ranks."""
        if data_key(job) == self._shared.key:
            return References(self._shared.arrays, self._shared.meta)
        prepared = self._prepare(job)
        return References({name: ray.put(array) for name, array in prepared.arrays.items()}, prepared.meta)


def as_path(origin: Origin) -> str:
    """Say where a checkpoint is, to Ray, which asks no more than that."""
    return f"{origin.run}/{origin.attempt}/{origin.step}"


def from_path(path: str) -> Origin:
    run, attempt, step = path.split("/")
    return Origin(run, int(attempt), int(step))
