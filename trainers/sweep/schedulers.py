"""Which trials end early: Ray Tune's schedulers, and how one that was lost comes to know what it knew."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.schedulers.pbt import _PBTTrialState

from cluster.outages import through_outages
from cluster.trials import ENDED, Copied, Evaluation, Trial
from trainers.randomness import seed_for
from trainers.sweep.actor import from_path
from trainers.sweep.bridge import config_of
from trainers.sweep.record import Record
from trainers.sweep.search import perturb
from trainers.tuning import Tune

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial as RayTrial


_BRACKET, _BETTER = 1, 2  # what is drawn by a key
_FAR = 1e300  # from every value, and percentiles can still be taken of it


def build_scheduler(
    tune: Tune, record: Record, mode: str, longest: Mapping[str, int], is_stopping: Callable[[], bool]
) -> TrialScheduler:
    """Return Ray's scheduler; what the job file leaves open follows from how long a trial is."""
    config, metric = tune.scheduler, record.metric
    common: dict[str, Any] = {"metric": metric, "mode": mode, "time_attr": config.time_attr}
    grace = config.grace_period or 1
    match config.name:
        case "asha":
            return _Asha(
                tune.search.seed,
                record,
                is_stopping,
                **common,
                grace_period=grace,
                max_t=config.max_t or max(longest[config.time_attr], grace),
                reduction_factor=config.reduction_factor or 3,
                brackets=config.brackets or 1,
                stop_last_trials=config.max_t is not None,  # where trials differ in length, the longest go on
            )
        case "median":
            return _Median(
                record, is_stopping, **common, grace_period=grace, min_samples_required=config.min_samples_required or 3
            )
        case "hyperband":
            return _HyperBand(
                record,
                is_stopping,
                **common,
                max_t=config.max_t or longest[config.time_attr],
                reduction_factor=config.reduction_factor or 3,
                stop_last_trials=config.max_t is not None,
            )
        case "pbt":
            return _Population(
                tune,
                record,
                is_stopping,
                **common,
                perturbation_interval=config.perturbation_interval or -(-longest[config.time_attr] // 5),
                burn_in_period=config.burn_in_period or 0,
                quantile_fraction=config.quantile_fraction or 0.25,
                custom_explore_fn=dict,  # it wants one, or a space of its own
                log_config=False,
                synch=bool(config.synch),
            )
        case _:
            return _All(is_stopping)


class _Stopping:
    """What Ray's schedulers lack: an end when the sweep stops, and a place for a metric that is no number."""

    _is_stopping: Callable[[], bool]

    def __init__(self, is_stopping: Callable[[], bool], **options: Any) -> None:
        super().__init__(**options)
        self._is_stopping = is_stopping
        self._compared: str | None = options.get("metric")
        self._least = -_FAR if options.get("mode") == "max" else _FAR

    def on_trial_result(self, tune_controller: TuneController, trial: RayTrial, result: dict[str, Any]) -> str:
        return str(super().on_trial_result(tune_controller, trial, self._comparable(result)))  # type: ignore[misc]

    def on_trial_complete(self, tune_controller: TuneController, trial: RayTrial, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, trial, self._comparable(result))  # type: ignore[misc]

    def _comparable(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return what a trial told, with the worst of values for one that is not finite: nothing is less than NaN."""
        if self._compared is None or math.isfinite(result.get(self._compared, 0.0)):
            return result
        return {**result, self._compared: self._least}

    def choose_trial_to_run(self, tune_controller: TuneController) -> RayTrial | None:
        """Begin nothing when the sweep stops: what waits has saved, and those that run end by themselves."""
        if self._is_stopping():
            for trial in tune_controller.get_trials():
                if trial.status in ("PENDING", "PAUSED") and not trial.is_saving:
                    tune_controller.stop_trial(trial)
            return None
        chosen: RayTrial | None = super().choose_trial_to_run(tune_controller)  # type: ignore[misc]
        return chosen


class _All(_Stopping, FIFOScheduler):
    """Trains every trial to its end."""


class _Asha(_Stopping, ASHAScheduler):
    """Ray's own, but that a trial's bracket follows from the seed and the trial, also after a resume.

    Tune gives a trial that goes on elsewhere another name: it is judged by all that it has reached, and counts once.
    """

    def __init__(self, seed: int, record: Record, is_stopping: Callable[[], bool], **options: Any) -> None:
        super().__init__(is_stopping, **options)
        self._seed = seed
        self._record = record
        self._names: dict[str, str] = {}  # of trials, at Tune, by our own

    def on_trial_add(self, tune_controller: TuneController, trial: RayTrial) -> None:
        before = self._names.get(trial.config["trial"])
        self._names[trial.config["trial"]] = trial.trial_id
        if before is not None and before != trial.trial_id:
            for bracket in self._brackets:
                for _, recorded in bracket._rungs:
                    recorded.pop(before, None)
        super().on_trial_add(tune_controller, trial)  # which draws one from numpy's own generator
        own = self._record.trials[trial.config["trial"]]
        rungs = np.array([len(bracket._rungs) for bracket in self._brackets])
        shares = np.exp(rungs - rungs.max())
        generator = np.random.default_rng(seed_for(self._seed, own.number, own.repeat, _BRACKET))
        drawn = generator.choice(len(self._brackets), p=shares / shares.sum())
        self._trial_info[trial.trial_id] = self._brackets[drawn]


class _Median(_Stopping, MedianStoppingRule):
    """Goes on where there is nothing to compare with: to pause would cost more than it could save."""

    def __init__(self, record: Record, is_stopping: Callable[[], bool], **options: Any) -> None:
        super().__init__(is_stopping, **options)
        self._record = record
        self._taken_up: dict[str, RayTrial] = {}  # by our own name of it

    def on_trial_add(self, tune_controller: TuneController, trial: RayTrial) -> None:
        """Take up a trial with what it has reached before, in the place of the one that it was before it went on."""
        if (before := self._taken_up.get(trial.config["trial"])) is not None:
            self._results.pop(before, None)
        self._taken_up[trial.config["trial"]] = trial
        super().on_trial_add(tune_controller, trial)
        past = told_of(self._record.trials[trial.config["trial"]], self._record.metric)
        if past:
            self._results[trial] = [self._comparable(told) for told in past]

    def on_trial_result(self, tune_controller: TuneController, trial: RayTrial, result: dict[str, Any]) -> str:
        action = super().on_trial_result(tune_controller, trial, result)
        self._count_once(trial)
        return action

    def on_trial_complete(self, tune_controller: TuneController, trial: RayTrial, result: dict[str, Any]) -> None:
        if result["state"] == "SUCCEEDED":  # else there is no evaluation with it
            super().on_trial_complete(tune_controller, trial, result)
            self._count_once(trial)

    def _count_once(self, trial: RayTrial) -> None:
        """Keep the last of equal evaluations: a trial that goes on from before one does that again."""
        told = {one["training_iteration"]: one for one in self._results.get(trial, ())}
        if told:
            self._results[trial] = [told[iteration] for iteration in sorted(told)]

    def _on_insufficient_samples(self, *_: Any) -> str:
        return str(TrialScheduler.CONTINUE)


class _Pausing(_Stopping):
    """The same where trials wait for others that run, and the record of who does."""

    def __init__(self, record: Record, is_stopping: Callable[[], bool], **options: Any) -> None:
        super().__init__(is_stopping, **options)
        self._record = record

    def on_trial_result(self, tune_controller: TuneController, trial: RayTrial, result: dict[str, Any]) -> str:
        action = str(super().on_trial_result(tune_controller, trial, result))
        if action == TrialScheduler.PAUSE or trial.status == "PAUSED":
            self._record.is_now(self._record.trials[trial.config["trial"]], "WAITING")
        return action


class _HyperBand(_Pausing, HyperBandScheduler):
    """Looks after every trial that ends whether the others of its bracket can go on; Ray's own does so only once."""

    def _process_bracket(self, tune_controller: TuneController, bracket: Any) -> str:
        if self._is_stopping():
            return str(TrialScheduler.PAUSE)  # who is left is no judgement on the others
        action = super()._process_bracket(tune_controller, bracket)
        bracket.is_being_processed = False
        return action


class _Population(_Pausing, PopulationBasedTraining):
    """Ray's population based training, with our own way to perturb, which a resume repeats."""

    def __init__(self, tune: Tune, record: Record, is_stopping: Callable[[], bool], **options: Any) -> None:
        super().__init__(record, is_stopping, **options)
        self._tune = tune
        left = [trial.newest for trial in record.trials.values() if trial.state not in ENDED]
        reached = min((as_told(one)[self._time_attr] if one is not None else 0 for one in left), default=0)
        while self._next_perturbation_sync <= reached:  # they have all met there before
            self._next_perturbation_sync += self._perturbation_interval

    def on_trial_add(self, tune_controller: TuneController, trial: RayTrial) -> None:  # noqa: ARG002
        """Take up a trial, from where it stands where it has trained before; Ray's own takes none of a searcher."""
        state = self._trial_state[trial] = _PBTTrialState(trial)
        past = self._record.trials[trial.config["trial"]]
        if past.newest is not None:
            told = as_told(past.newest)
            time = told[self._time_attr]
            last = int(time // self._perturbation_interval * self._perturbation_interval)
            if self._synch:  # a trial may have come to where it waits for the others
                last = min(last, int(self._next_perturbation_sync - self._perturbation_interval))
            state.last_perturbation_time = last
            if self._metric in told:
                self._save_trial_state(state, time, self._comparable(told), trial)

    def choose_trial_to_run(self, tune_controller: TuneController) -> RayTrial | None:
        """Have trials go on that wait for one which has ended; Ray's own would wait for ever."""
        live = [trial for trial in tune_controller.get_live_trials() if not trial.is_finished()]  # it has lost ones too
        times = [self._trial_state[trial].last_train_time for trial in live]
        if self._synch and times and min(times) >= self._next_perturbation_sync:
            self._next_perturbation_sync += self._perturbation_interval
        return super().choose_trial_to_run(tune_controller)

    def _checkpoint_or_exploit(
        self,
        trial: RayTrial,
        tune_controller: TuneController,
        upper_quantile: list[RayTrial],
        lower_quantile: list[RayTrial],
    ) -> None:
        """Leave one of the best for a poor trial to copy, drawn by the seed, its number and its iteration."""
        if trial in lower_quantile:
            number = self._record.trials[trial.config["trial"]].number
            told: Any = self._trial_state[trial].last_result
            drawn = seed_for(self._tune.search.seed, number, int(told["training_iteration"]), _BETTER)
            upper_quantile = [upper_quantile[drawn % len(upper_quantile)]]
        super()._checkpoint_or_exploit(trial, tune_controller, upper_quantile, lower_quantile)

    def _get_new_config(self, trial: RayTrial, trial_to_clone: RayTrial) -> tuple[dict[str, Any], dict[str, Any]]:
        better = self._trial_state[trial_to_clone]
        saved: Any = better.last_checkpoint
        told: Any = better.last_result
        iteration = int(told["training_iteration"])
        own = self._record.trials[trial.config["trial"]]
        point = perturb(self._tune, json.loads(trial_to_clone.config["point"]), number=own.number, iteration=iteration)
        copied = Copied(replace(from_path(saved.path), nonce=secrets.token_hex(8)), iteration)
        self._record.copied(own, copied, point)
        through_outages(self._record.flush)  # the trial leaves its own weights at once, and no resume may miss why
        return config_of(own), {}


def as_told(one: Evaluation) -> dict[str, Any]:
    """Return an evaluation as schedulers hear of it."""
    return {"training_iteration": one.iteration, "step": one.step, "epoch": one.epoch, **one.metrics}


def told_of(trial: Trial, metric: str) -> list[dict[str, Any]]:
    """Return the evaluations of a trial that have the metric, in their order, as schedulers hear of them."""
    evaluations = sorted(trial.evaluations.values(), key=lambda one: one.iteration)
    return [as_told(one) for one in evaluations if metric in one.metrics]


@dataclass(frozen=True)
class _Past:
    """A trial of before, as a scheduler sees it."""

    trial_id: str
    config: Mapping[str, str] = field(compare=False)


def remember(scheduler: TrialScheduler, record: Record) -> None:
    """Tell a scheduler of the trials that ended before."""
    for trial in record.trials.values():
        if trial.state not in ENDED:
            continue
        if isinstance(scheduler, _Median):
            past: Any = _Past(trial.id, {"trial": trial.id})
            controller: Any = None  # which it asks nothing
            scheduler.on_trial_add(controller, past)
        else:
            remember_one(scheduler, trial.id, trial, record.metric)


def remember_one(scheduler: TrialScheduler, name: str, trial: Trial, metric: str) -> None:
    """Tell a scheduler of the evaluations that a trial, which Tune knows by this name, has had."""
    if not isinstance(scheduler, ASHAScheduler):
        return  # others see for themselves, HyperBand begins new brackets with the trials that are left
    past: Any = _Past(name, {"trial": trial.id})
    controller: Any = None  # which it asks nothing
    scheduler.on_trial_add(controller, past)
    for told in told_of(trial, metric):
        scheduler.on_trial_result(controller, past, told)
