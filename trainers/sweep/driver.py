"""Ray Tune over a TrainJob: the driver of a sweep.

A trial trains inside its own Tune actor, which is kept for the next one; the data is prepared once. What Tune knows is
lost with it and nobody misses it: trials have their checkpoints in storage, and the searcher and the scheduler are told
again what the sweep's own events say.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import ray
from ray import tune as ray_tune
from ray.exceptions import RayTaskError
from ray.tune.schedulers import TrialScheduler

from cluster.attempts import Attempt
from cluster.config import Nodes, Workers
from cluster.errors import DeviceError, InfrastructureError, RayliftError, TrainingError
from cluster.outages import patient, through_outages
from cluster.records import Result
from cluster.runs import Run
from cluster.segments import SegmentWriter
from cluster.trials import ENDED, means_of, ranked, seeds_of
from trainers import processors
from trainers.data.identity import OTHER_PIXELS, PUT_BACK, has_other_pixels, identity, what_changed
from trainers.main import Driver, Ready, on_this_machine, start_ray_for
from trainers.sweep.actor import Shared, TrialActor
from trainers.sweep.bridge import Bridge, Generator, Listener
from trainers.sweep.length import longest
from trainers.sweep.prior import with_prior
from trainers.sweep.ranks import Ranks
from trainers.sweep.record import Record
from trainers.sweep.room import Room
from trainers.sweep.schedulers import build_scheduler, remember, remember_one
from trainers.sweep.search import build_searcher
from trainers.sweep.trial import ALL_OF_ITS_POD, data_key, threads_each
from trainers.sweep.watch import Watch
from trainers.tasks.base import Prepared
from trainers.tuning import Tune, describe, metric_of
from trainers.worker import explain

if TYPE_CHECKING:
    from trainers.config import TrainJob

_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a run's processes are known by their working directory
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # storage has it all
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails has none
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # Tune's own state is not needed
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # prints nothing at verbose=0
}


class SweepDriver(Driver):
    """One launch of a sweep."""

    def __init__(self, run: Run, job: TrainJob, whole: dict[str, Any]) -> None:
        super().__init__(run, job, whole)
        self.tune = Tune.model_validate(self.whole["tune"])
        self.metric, self.mode = metric_of(self.tune, self.job.task)
        self.room: Room

    @property
    def total(self) -> int:
        """How many trials there are to be."""
        return self.tune.tried * self.tune.repeats

    def _start_ray(self) -> tuple[Workers, bool]:
        """Start or join Ray, and settle what a trial takes; return the ranks of one, and whether each has a GPU."""
        each, cpus, most = self.tune.workers_per_trial, None, self.cluster.most_workers
        if self.cluster.address is None and self.cluster.accelerators is None:
            most = on_this_machine(self.cluster.workers)
            ranks = max(most or os.cpu_count() or 1, each)
            cpus = ranks if each == 1 else ranks + ranks // each  # a trial of several has a process of its own
        workers, gpus = start_ray_for(self.cluster, cpus)
        if gpus and self.cluster.address is None and each > workers.max:
            there = f"this machine has {workers.max} GPU{'' if workers.max == 1 else 's'}"
            raise InfrastructureError(f"tune.workers_per_trial: a trial has {each} workers, and {there}")
        self.room = Room(
            each,
            gpus=self.tune.gpus_per_trial if gpus else 0.0,
            most=most or (workers.max if gpus else None),
            grows=self.cluster.address is not None,
        )
        least = each + self.room.beside
        return Workers(min=least, max=max(least, self.room.slots() * each)), gpus

    def _wait_for_room(self, events: SegmentWriter, ready: Ready) -> Result | None:
        """Wait as a run does, but not for nodes that come only when trials ask for them."""
        nodes, workers = self.cluster.nodes, self.cluster.workers
        if isinstance(nodes, Nodes) or (isinstance(workers, Workers) and workers.min < ready.workers.min):
            return None
        return super()._wait_for_room(events, ready)

    def _fit(self, attempt: Attempt, events: SegmentWriter, ready: Ready) -> str:
        """Run the trials that are left; return what was lost, for a message, or write the sweep's result."""
        os.environ.update(_ENVIRONMENT)
        logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses the files that it need not write
        samples = self._samples(ready)
        data = identity(ready.meta, train=samples)
        record = Record(self.run, events, self.metric, self.tune.scheduler)
        _compare_data(record, data, events)
        events.append({"event": "sweep", "trials": self.total, "metric": self.metric, "mode": self.mode, "data": data})
        with Watch(attempt).looking() as watch:
            lengths = longest(self.job.train, self.tune, samples)
            scheduler = build_scheduler(self.tune, record, self.mode, lengths, lambda: bridge.is_stopping)
            remember(scheduler, record)
            searcher = build_searcher(self.tune, self.mode)
            searcher = with_prior(searcher, self.tune, self.job.model_dump(mode="json"))
            bridge = Bridge(
                self.tune,
                searcher,
                record,
                slots=None if self.tune.scheduler.pauses else self.room.slots,
                ahead=1 if self.room.is_full and not searcher.learns else 0,  # one that learns would know less
                grows=self.room.grows,
                mode=self.mode,
                is_stopping=lambda: watch.is_stopping or self.leaving,
                on_resumed=lambda name, trial: remember_one(scheduler, name, trial, record.metric),
            )
            self._run_trials(attempt, ready, bridge, scheduler)
        if watch.superseded is not None:
            raise watch.superseded
        if self.leaving:
            events.append({"event": "preempted", "step": 0})
            return "preempted: the machine asked the driver to end"
        reason = watch.reason or through_outages(self.run.stop_reason)  # the trials may have heard of it before us
        if bridge.device_failure is not None and reason is None:
            through_outages(record.flush)
            raise DeviceError(f"{bridge.device_failure}. Once that is mended: raylift resume {self.run.uri}")
        result = self._result(record, reason)
        through_outages(record.flush)  # nobody goes on with a sweep that has a result
        through_outages(lambda: attempt.finish(result))
        return ""

    def _run_trials(self, attempt: Attempt, ready: Ready, bridge: Bridge, scheduler: TrialScheduler) -> None:
        each = self.tune.workers_per_trial
        shared = Shared(
            uri=self.run.uri,
            attempt=attempt.number,
            document=self.whole,
            repeats=self.tune.repeats,
            key=data_key(self.job),
            arrays=ready.arrays,
            meta=ready.meta,
            metric=self.metric,
            ranks=Ranks(each, ready.gpus, self.own_ray, str(self.temporary), threads=self._threads_each(ready)),
        )
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(self.room.slots())
        ray_tune.run(  # a Tuner would pickle what it is given, to restore from: ours comes back from storage
            ray_tune.with_parameters(TrialActor, shared=shared),
            name=f"sweep-{attempt.number}",
            storage_path=os.path.join(os.getcwd(), "tune"),
            resources_per_trial=self.room.resources,
            search_alg=Generator(bridge),
            scheduler=scheduler,
            num_samples=-1,
            reuse_actors=True,
            max_failures=self.job.train.max_failures,
            raise_on_failed_trial=False,
            callbacks=[Listener(bridge)],
            trial_name_creator=lambda trial: str(trial.trial_id),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            verbose=0,
        )

    def _threads_each(self, ready: Ready) -> int:
        if processors.is_shared() and not ready.gpus:
            return ALL_OF_ITS_POD
        if ready.gpus and not self.own_ray and (threads := self.room.threads()) is not None:
            return threads
        return threads_each(self.room.slots() * self.tune.workers_per_trial)

    def _samples(self, ready: Ready) -> int:
        """Return how many samples there are to train on; a task of one's own tells in a process of its own."""
        if not self.job.is_own:
            return int(ready.meta["train"])
        count: Any = ray.remote(num_cpus=0)(count_samples)
        try:
            return int(ray.get(count.remote(self.job, self.run.uri)))
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, RayliftError) else error from None

    def _result(self, record: Record, reason: str | None) -> Result:
        trials = list(record.trials.values())
        best = next(iter(ranked(trials, self.metric, self.mode)), None)
        left = self.total - sum(trial.state in ENDED for trial in trials)
        if reason is not None and left:
            message = f"{reason}; {left} {'trial is' if left == 1 else 'trials are'} left to do"
            return Result(state="STOPPED", message=message, exit_code=4)
        if best is None or all(trial.state == "FAILED" for trial in trials):
            failed = [trial for trial in trials if trial.state == "FAILED"]
            why = "succeeded" if len(failed) == len(trials) else f"has a finite {self.metric}"
            cause = f"; the first, {failed[0].id}: {failed[0].message}" if failed else ""
            return Result(state="FAILED", message=f"no trial of {len(trials)} {why}{cause}", exit_code=1)
        newest = best.newest
        assert newest is not None, "those that are ranked were evaluated"
        of = f"{len(trials)} {'trial' if len(trials) == 1 else 'trials'}"
        message = f"best of {of}: {best.id}  {describe(dict(best.point))}"
        if (repeats := self.tune.repeats) > 1:
            seeds = seeds_of(best.number, trials, self.metric)
            over = f"{repeats}" if seeds == repeats else f"{seeds} of {repeats}"
            message += f"; mean over {over} seeds: {means_of(trials, self.metric)[best.number]:.4f}"
        return Result(state="SUCCEEDED", message=message, step=newest.step, metrics=dict(newest.metrics))


def _compare_data(record: Record, now: dict[str, Any], events: SegmentWriter) -> None:
    """Raise TrainingError where trials have trained on other samples, before any goes on."""
    if what := what_changed(record.data, now):
        raise TrainingError(f"the samples are not those that this sweep began with: {what}. {PUT_BACK}")
    if has_other_pixels(record.data, now):
        events.append({"event": "warning", "message": OTHER_PIXELS})


def count_samples(job: TrainJob, uri: str) -> int:
    """Return how many samples a task of the user's own trains on. Raises UserCodeError, TrainingError."""
    from trainers.tasks.registry import build_task
    from trainers.user_code import code_of

    try:
        train, evaluation = build_task(job, Prepared(arrays={}, meta={}), code_of(job, patient(Run.at(uri)))).datasets()
        if evaluation is None:
            raise TrainingError("tune: trials are compared by an evaluation, and the task has no data for one")
        return len(train)
    except (Exception, SystemExit) as error:
        raise explain(error, 0, None) from error
