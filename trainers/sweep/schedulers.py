"""Which trials end early: Ray Tune's schedulers, and how one that was lost comes to know what it knew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from cluster.trials import ENDED, Trial
from trainers.sweep.record import Record
from trainers.tuning import Scheduler


def build_scheduler(config: Scheduler, metric: str, mode: str, longest: Mapping[str, int]) -> TrialScheduler:
    """Return Ray's scheduler; what the job file leaves open follows from how long a trial is."""
    common: dict[str, Any] = {"metric": metric, "mode": mode, "time_attr": config.time_attr}
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
    controller: Any = None  # which asks it nothing
    tell = scheduler.on_trial_complete if isinstance(scheduler, _Median) else scheduler.on_trial_result
    scheduler.on_trial_add(controller, past)
    for one in sorted(trial.evaluations.values(), key=lambda one: one.iteration):
        if metric in one.metrics:
            told = {"training_iteration": one.iteration, "step": one.step, "epoch": one.epoch, **one.metrics}
            tell(controller, past, told)
