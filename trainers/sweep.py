"""Ray Tune over a TrainJob: the driver of a sweep.

A trial trains inside its own Tune actor, which is kept for the next one; the data is prepared once. What Tune knows is
lost with it and nobody misses it: trials have their checkpoints in storage, and the searcher and the scheduler are told
again what the sweep's own events say.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from pydantic import ValidationError
from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher as RaySearcher
from ruamel.yaml import YAML

from cluster.config import Workers
from cluster.errors import StorageError
from cluster.runs import Attempt, Result, Run, SupersededError
from cluster.segments import SegmentWriter
from cluster.trials import ENDED, Evaluation, Trial, ranked, read_trials, trial_id, trial_run
from trainers.config import TrainJob
from trainers.context import StopReason
from trainers.main import Driver, Ready
from trainers.search import Searcher, build_searcher
from trainers.tasks.base import Prepared
from trainers.trial import PATIENCE, News, Training, data_key, threads_each
from trainers.tuning import Point, Scheduler, Tune, apply, describe, metric_of

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as RayTrial

_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a run's processes are known by their working directory
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # storage has it all
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails has none
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # Tune's own state is not needed
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # prints nothing at verbose=0
}
_POLL = 2.0  # seconds


@dataclass(frozen=True)
class Shared:
    """What every trial of a sweep shares."""

    uri: str
    attempt: int  # of the sweep
    document: Mapping[str, Any]  # its frozen job file
    key: str  # of the data that `arrays` and `meta` are
    arrays: Mapping[str, Any]  # name -> object reference
    meta: Mapping[str, Any]
    metric: str
    threads: int


class TrialActor(ray_tune.Trainable):
    """Trains one trial after another."""

    def setup(self, config: dict[str, Any], *, shared: Shared) -> None:
        self._shared = shared
        self._sweep = Attempt.reopen(Run.at(shared.uri), shared.attempt)
        self._data: dict[str, Prepared] = {}
        self._begin(config)

    def step(self) -> dict[str, Any]:
        """Train up to the next evaluation, or to the trial's end."""
        news = self._training.next() if self._training is not None else self._refused
        if not news.state and self._shared.metric not in news.metrics:
            assert self._training is not None
            self._training.end(StopReason.PRUNED)
            why = f"there is no {self._shared.metric!r}; this task has {', '.join(news.metrics)}"
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
            "done": bool(news.state),
        }

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end(StopReason.PRUNED)
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        self._end(StopReason.PERSON)  # it may go on: of those that may not, the sweep's own events tell

    def _end(self, why: StopReason) -> None:
        if self._training is not None:
            self._training.end(why)

    def _begin(self, config: dict[str, Any]) -> None:
        name, point = trial_id(config["number"]), json.loads(config["point"])
        document = trial_job(self._shared.document, point)
        self._training, self._refused = None, News(0, 0, 0, state="FAILED")
        try:
            job = TrainJob.from_job(document)
        except ValidationError as error:
            self._refused = News(0, 0, 0, state="FAILED", message=f"no job file may have these values: {error}")
            return
        self._training = Training(
            trial_run(self._sweep.run, name), job, _as_yaml(document), self._sweep, self._shared.threads
        )
        self._training.start(self._prepare)

    def _prepare(self, job: TrainJob) -> Prepared:
        """Return the data of a trial: that of all of them, or what its own values make of it."""
        from trainers.tasks.registry import prepare

        key = data_key(job)
        if key not in self._data:
            if key == self._shared.key:
                arrays = dict(zip(self._shared.arrays, ray.get(list(self._shared.arrays.values())), strict=True))
                self._data[key] = Prepared(arrays=arrays, meta=self._shared.meta)
            else:
                self._data = {kept: data for kept, data in self._data.items() if kept == self._shared.key}
                self._data[key] = prepare(job)
        return self._data[key]


class Record:
    """What a sweep writes down, and what it finds written when it goes on."""

    def __init__(self, run: Run, events: SegmentWriter, metric: str) -> None:
        self.run = run
        self.metric = metric
        self.rows = [row for row in run.all_rows("events") if str(row["event"]).startswith("trial")]
        self._events = events
        self.rows += [
            row for trial in read_trials(self.rows) if trial.state not in ENDED for row in self._missed(trial)
        ]
        self.trials = {trial.number: trial for trial in read_trials(self.rows)}

    def begun(self, number: int, point: Point) -> Trial:
        trial = Trial(trial_id(number), number, point, time.time())
        self.trials[number] = trial
        self._write({"event": "trial", "trial": trial.id, "number": number, "point": point})
        return trial

    def evaluated(self, trial: Trial, one: Evaluation) -> None:
        trial.evaluations[one.iteration] = one
        self._write({"event": "trial.result", "trial": trial.id, **vars(one)})

    def ended(self, trial: Trial, state: str, message: str) -> None:
        trial.state, trial.message, trial.ended = state, message, time.time()
        self._write({"event": "trial.ended", "trial": trial.id, "state": state, "message": message})

    def flush(self) -> None:
        """Write down all so far. Raises StorageError."""
        self._events.flush()

    def values(self, trial: Trial) -> dict[int, float]:
        return {one.iteration: one.metrics[self.metric] for one in trial.evaluations.values()}

    def _write(self, row: Mapping[str, Any]) -> None:
        self._events.append(row)

    def _missed(self, trial: Trial) -> Iterable[dict[str, Any]]:
        """Yield what a trial's own folder knows of it that the sweep did not write down any more."""
        run = trial_run(self.run, trial.id)
        evaluations = [row for row in run.rows("metrics") if row["kind"] == "eval"]
        for iteration, row in enumerate(evaluations, 1):
            metrics = {key: value for key, value in row.items() if key.startswith("eval_")}
            known = {"event": "trial.result", "trial": trial.id, "iteration": iteration, "metrics": metrics}
            yield {**known, "time": row["time"], "step": row["step"], "epoch": row["epoch"]}
        result = run.result()
        if result is not None and result.state in ENDED:
            ended = {"event": "trial.ended", "trial": trial.id, "state": result.state, "message": result.message}
            self._events.append(ended)
            yield {**ended, "time": result.at}


class Bridge(RaySearcher):
    """Our searcher and record, as Ray Tune asks for trials and tells of results."""

    def __init__(
        self,
        sweep: Tune,
        searcher: Searcher,
        record: Record,
        *,
        slots: int,
        mode: str,
        is_stopping: Callable[[], bool],
        on_resumed: Callable[[str, Trial], None],
    ) -> None:
        super().__init__(metric=record.metric, mode=mode)
        self._sweep = sweep
        self._searcher = searcher
        self._record = record
        self._slots = slots
        self._is_stopping = is_stopping
        self._on_resumed = on_resumed
        self._running: dict[str, Trial] = {}
        self._proposed: Trial | None = None  # begun, but not safe in storage yet
        self._away_since: float | None = None  # when storage ceased to answer
        self._replay()
        self._waiting = [trial for trial in record.trials.values() if trial.state not in ENDED]
        self._next = max(record.trials, default=-1) + 1

    def suggest(self, trial_id: str) -> Any:
        if self._is_stopping():
            return RaySearcher.FINISHED
        if len(self._running) >= self._slots:
            return None
        if self._waiting:
            trial = self._waiting.pop(0)
            self._on_resumed(trial_id, trial)
        else:
            if self._proposed is None and self._next >= self._sweep.budget:
                return RaySearcher.FINISHED
            if not self._propose():
                return None
            trial, self._proposed = self._proposed, None
            assert trial is not None
        trial.state = "RUNNING"
        self._running[trial_id] = trial
        return {"number": trial.number, "point": json.dumps(trial.point)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._evaluated(self._running[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._running[trial_id]
        if error or result is None:
            return  # `on_lost` says why
        if result["state"] in ("", "SUCCEEDED"):
            self._evaluated(trial, result)
        pruned = f"ended by {self._sweep.scheduler.name} after epoch {result['epoch']}"
        self._end(trial_id, result["state"] or "PRUNED", result["message"] or ("" if result["state"] else pruned))

    def on_lost(self, trial_id: str, why: str) -> None:
        """Take a trial for failed whose actor was lost more often than is allowed."""
        if trial_id in self._running:
            self._end(trial_id, "FAILED", why)

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...

    def _propose(self) -> bool:
        """Choose the next point and write it down; return whether storage took it."""
        if self._proposed is None:
            self._proposed = self._record.begun(self._next, self._searcher.ask(self._next))
            self._next += 1
        try:
            self._record.flush()
        except StorageError:
            self._away_since = self._away_since or time.monotonic()
            if time.monotonic() - self._away_since > PATIENCE:
                raise
            return False
        self._away_since = None
        return True

    def _evaluated(self, trial: Trial, result: Mapping[str, Any]) -> None:
        metrics = {key: value for key, value in result.items() if key.startswith("evaluation/")}
        metrics = {key.removeprefix("evaluation/"): value for key, value in metrics.items()}
        if metrics:
            one = Evaluation(result["training_iteration"], result["step"], result["epoch"], metrics)
            self._record.evaluated(trial, one)

    def _end(self, trial_id: str, state: str, message: str) -> None:
        trial = self._running.pop(trial_id)
        self._record.ended(trial, state, message)
        if state in ENDED:
            self._tell(trial)

    def _tell(self, trial: Trial) -> None:
        values = {} if trial.state == "FAILED" else self._record.values(trial)
        self._searcher.tell(trial.number, values, completed=trial.state == "SUCCEEDED")

    def _replay(self) -> None:
        """Have the searcher see again, in the same order, what it chose and what came of it."""
        for row in self._record.rows:
            if row["event"] == "trial":
                self._searcher.know(row["number"], row["point"])
            elif row["event"] == "trial.ended" and row["state"] in ENDED:
                self._tell(self._record.trials[int(row["trial"])])


class Losses(ray_tune.Callback):
    """Hears why Tune gave a trial up."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def on_trial_error(self, *_: Any, trial: RayTrial, **__: Any) -> None:
        error = trial.get_pickled_error()
        lines = str(error).strip().splitlines() if error is not None else []
        self._bridge.on_lost(trial.trial_id, lines[-1][:300] if lines else "its process was lost")


class SweepDriver(Driver):
    """One launch of a sweep."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.tune = Tune.model_validate(self.whole["tune"])
        self.metric, self.mode = metric_of(self.tune, self.job.task)

    def _start_ray(self) -> tuple[Workers, bool]:
        """Start or join Ray; return how many trials run at once, and whether each has a GPU."""
        slots, gpus = super()._start_ray()
        if self.cluster.workers is None and not gpus:
            slots = Workers(min=1, max=int(ray.cluster_resources().get("CPU", 1)))
        return Workers(min=1, max=slots.max), gpus

    def _fit(self, attempt: Attempt, events: SegmentWriter, ready: Ready) -> str:
        """Run the trials that are left; return what was lost, for a message, or write the sweep's result."""
        os.environ.update(_ENVIRONMENT)
        logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses the files that it need not write
        record = Record(self.run, events, self.metric)
        events.append({"event": "sweep", "trials": self.tune.budget, "metric": self.metric, "mode": self.mode})
        scheduler = build_scheduler(self.tune.scheduler, self.metric, self.mode, self._longest(ready))
        remember(scheduler, record)
        stopping = threading.Event()
        with _watching(self.run, attempt, stopping) as superseded:
            bridge = Bridge(
                self.tune,
                build_searcher(self.tune, self.mode),
                record,
                slots=ready.workers.max,
                mode=self.mode,
                is_stopping=lambda: stopping.is_set() or self.leaving,
                on_resumed=lambda name, trial: remember_one(scheduler, name, trial, record.metric),
            )
            self._run_trials(attempt, ready, bridge, scheduler)
        if superseded:
            raise superseded[0]
        if self.leaving:
            events.append({"event": "preempted", "step": 0})
            return "preempted: the machine asked the driver to end"
        attempt.finish(self._result(record, reason=self.run.stop_reason()))
        return ""

    def _run_trials(self, attempt: Attempt, ready: Ready, bridge: Bridge, scheduler: TrialScheduler) -> None:
        shared = Shared(
            uri=self.run.uri,
            attempt=attempt.number,
            document=self.whole,
            key=data_key(self.job),
            arrays=ready.arrays,
            meta=ready.meta,
            metric=self.metric,
            threads=threads_each(ready.workers.max),
        )
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(ready.workers.max)
        resources = {"CPU": 1.0, **({"GPU": 1.0} if ready.gpus else {})}
        ray_tune.run(  # a Tuner would pickle what it is given, to restore from: ours comes back from storage
            ray_tune.with_parameters(TrialActor, shared=shared),
            name=f"sweep-{attempt.number}",
            storage_path=os.path.join(os.getcwd(), "tune"),
            resources_per_trial=resources,
            search_alg=bridge,
            scheduler=scheduler,
            num_samples=-1,
            reuse_actors=True,
            max_failures=self.job.train.max_failures,
            raise_on_failed_trial=False,
            callbacks=[Losses(bridge)],
            trial_name_creator=lambda trial: str(trial.trial_id),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            verbose=0,
        )

    def _longest(self, ready: Ready) -> dict[str, int]:
        """Return how long a trial of the job as it stands is, in what a scheduler may count."""
        train = self.job.train
        epoch = -(-int(ready.meta["train"]) // train.batch_size)
        steps = min(
            train.max_steps or 10**9, (train.epochs or 1) * epoch if train.epochs or not train.max_steps else 10**9
        )
        every = train.eval_every.count * (epoch if train.eval_every.unit == "epoch" else 1)
        return {
            "step": steps,
            "epoch": max(1, -(-steps // epoch)),
            "training_iteration": max(1, int(steps / every)),
        }

    def _result(self, record: Record, reason: str | None) -> Result:
        trials = list(record.trials.values())
        best = next(iter(ranked(trials, self.metric, self.mode)), None)
        if reason is not None:
            left = self.tune.budget - sum(trial.state in ENDED for trial in trials)
            return Result(state="STOPPED", message=f"{reason}; {left} trials are left to do", exit_code=4)
        if best is None or all(trial.state == "FAILED" for trial in trials):
            first = next((trial for trial in trials if trial.state == "FAILED"), None)
            cause = f"; the first, {first.id}: {first.message}" if first is not None else ""
            return Result(state="FAILED", message=f"no trial of {len(trials)} succeeded{cause}", exit_code=1)
        newest = best.evaluations[max(best.evaluations)]
        message = f"best of {len(trials)} trials: {best.id}  {describe(dict(best.point))}"
        return Result(state="SUCCEEDED", message=message, step=newest.step, metrics=dict(newest.metrics))


def build_scheduler(config: Scheduler, metric: str, mode: str, longest: Mapping[str, int]) -> TrialScheduler:
    """Return Ray's scheduler; what the job file leaves open follows from how long a trial is."""
    common = {"metric": metric, "mode": mode, "time_attr": config.time_attr}
    grace = config.grace_period or 1
    match config.name:
        case "asha":
            return ASHAScheduler(
                **common,
                grace_period=grace,
                max_t=config.max_t or max(longest[config.time_attr], grace),
                reduction_factor=config.reduction_factor or 3,
                brackets=config.brackets or 1,
                stop_last_trials=config.max_t is not None,  # where trials differ in length, the longest go on
            )
        case "median":
            return _Median(**common, grace_period=grace, min_samples_required=config.min_samples_required or 3)
        case _:
            return FIFOScheduler()


class _Median(MedianStoppingRule):
    """Goes on where there is nothing to compare with: to pause would cost more than it could save."""

    def _on_insufficient_samples(self, *_: Any) -> str:
        return str(TrialScheduler.CONTINUE)


@dataclass(frozen=True)
class _Past:
    """A trial of before, as a scheduler sees it."""

    trial_id: str


def remember(scheduler: TrialScheduler, record: Record) -> None:
    """Tell a scheduler of the trials that ended before."""
    for trial in record.trials.values():
        if trial.state in ENDED:
            remember_one(scheduler, trial.id, trial, record.metric)


def remember_one(scheduler: TrialScheduler, name: str, trial: Trial, metric: str) -> None:
    """Tell a scheduler of the evaluations that a trial, which Tune knows by this name, has had."""
    past: Any = _Past(name)
    tell = scheduler.on_trial_complete if isinstance(scheduler, _Median) else scheduler.on_trial_result
    scheduler.on_trial_add(None, past)
    for one in sorted(trial.evaluations.values(), key=lambda one: one.iteration):
        if metric in one.metrics:
            told = {"training_iteration": one.iteration, "step": one.step, "epoch": one.epoch, **one.metrics}
            tell(None, past, told)


def trial_job(sweep: Mapping[str, Any], point: Point) -> dict[str, Any]:
    """Return the job file of a trial: the sweep's with the values of a point, on one worker."""
    document = {key: value for key, value in apply(sweep, point).items() if key != "tune"}
    document["cluster"] = {**document.get("cluster", {}), "workers": 1, "accelerators": None}
    return document


def _as_yaml(document: Mapping[str, Any]) -> bytes:
    stream = io.BytesIO()
    YAML(typ="safe", pure=True).dump(dict(document), stream)
    return stream.getvalue()


@contextlib.contextmanager
def _watching(run: Run, attempt: Attempt, stopping: threading.Event) -> Any:
    """Look now and then whether a person wants the sweep to stop, or a newer attempt has taken over."""
    closed = threading.Event()
    superseded: list[SupersededError] = []

    def watch() -> None:
        while not closed.wait(_POLL):
            try:
                attempt.check_current()
                if run.stop_reason() is not None:
                    stopping.set()
            except SupersededError as error:
                superseded.append(error)
                stopping.set()
                return
            except StorageError:
                continue

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield superseded
    finally:
        closed.set()
        thread.join()
