"""The trials of a sweep, as its events tell of them. Each trial is a run in miniature below the sweep's own folder."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from cluster.errors import StorageDeniedError, UsageError
from cluster.records import Origin
from cluster.runs import Run
from cluster.storage.open import open_storage

FOLDER = "trials"
ENDED = ("SUCCEEDED", "PRUNED", "FAILED")  # such a trial is never run again


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a trial; `iteration` counts them from 1."""

    iteration: int
    step: int
    epoch: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Copied:
    """The checkpoint of another trial that one goes on from."""

    origin: Origin
    iteration: int  # evaluations up to it

    @classmethod
    def from_json(cls, text: str) -> Copied:
        value = json.loads(text)
        return cls(Origin(**value["origin"]), value["iteration"])

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass
class Trial:
    """A trial: the values it was given, and what came of them."""

    id: str
    number: int  # of its point
    point: Mapping[str, Any]
    started: float
    repeat: int = 0  # of those with the same point, each with another seed
    state: str = "RUNNING"  # or WAITING for others, STOPPED, which goes on with a resume, or one of ENDED
    message: str = ""
    ended: float | None = None
    evaluations: dict[int, Evaluation] = field(default_factory=dict)
    copied: Copied | None = None  # from another trial, the last time that it was
    trained: float = 0.0  # seconds, without those that it waited for others, for a resume, or was lost for
    training_since: float | None = None  # in seconds since the epoch, beside that
    seen: float = 0.0  # when it was last heard of
    pace: float | None = None  # seconds an epoch, between evaluations; None before the second
    timed: tuple[float, int] | None = None  # since when, in seconds since the epoch, and from which epoch on

    def trains(self, at: float) -> None:
        self.seen = at
        if self.training_since is None:
            self.training_since = at

    def rests(self, at: float) -> None:
        if self.training_since is not None:
            self.trained += max(at - self.training_since, 0.0)
        self.training_since, self.seen, self.timed = None, max(at, self.seen), None

    def reaches(self, epoch: int, at: float) -> None:
        """Take the time of an evaluation."""
        self.timed = self.timed or (at, epoch)
        since, first = self.timed
        if epoch > first:
            self.pace = max(at - since, 0.0) / (epoch - first)

    def trained_by(self, now: float | None) -> float:
        """Return for how many seconds it has trained; without `now`, up to the last time that it rested."""
        running = now - self.training_since if now is not None and self.training_since is not None else 0.0
        return self.trained + max(running, 0.0)

    @property
    def newest(self) -> Evaluation | None:
        return self.evaluations[max(self.evaluations)] if self.evaluations else None

    def value(self, metric: str) -> float | None:
        """Return the metric of the newest evaluation; None where there was none, or it is no finite number."""
        value = self.newest.metrics.get(metric) if self.newest is not None else None
        return value if value is not None and math.isfinite(value) else None

    def values(self, metric: str) -> dict[int, float]:
        """Return the metric of every evaluation that has it, where it is a finite number."""
        found = {iteration: one.metrics.get(metric, math.nan) for iteration, one in self.evaluations.items()}
        return {iteration: value for iteration, value in found.items() if math.isfinite(value)}

    def go_on_from(self, copied: Copied, point: Mapping[str, Any]) -> None:
        """Take over what another trial has become, with new values."""
        self.copied, self.point, self.timed = copied, point, None
        self.evaluations = {key: one for key, one in self.evaluations.items() if key <= copied.iteration}

    @property
    def epoch(self) -> int:
        return max((one.epoch for one in self.evaluations.values()), default=0)


def trial_id(number: int, repeat: int = 0, *, repeats: int = 1) -> str:
    return f"{number:05d}" if repeats == 1 else f"{number:05d}-{repeat}"


def trial_run(sweep: Run, name: str) -> Run:
    """Return the run of a trial."""
    return Run(open_storage(f"{sweep.uri}/{FOLDER}"), name)


def sweep_of(run: Run) -> Run | None:
    """Return the sweep that a run is a trial of; None where it lies in no other run's folder."""
    above, _, folder = run.storage.uri.rstrip("/").rpartition("/")
    if folder != FOLDER:
        return None
    try:
        sweep = Run.at(above)
        return sweep if sweep.job().startswith(f"# run {sweep.id},".encode()) else None
    except (UsageError, StorageDeniedError):  # a storage of that name
        return None


def read_trials(rows: Iterable[Mapping[str, Any]]) -> list[Trial]:
    """Return the trials that a sweep's events tell of, by number."""
    found: dict[str, Trial] = {}
    attempt, began = None, 0.0
    for row in rows:
        if row.get("attempt") != attempt:
            attempt, began = row.get("attempt"), row["time"]
            for trial in found.values():  # whoever trained them is gone
                trial.rests(trial.seen)
        match row["event"]:
            case "trial" if row["trial"] not in found:
                found[row["trial"]] = Trial(
                    row["trial"], row["number"], row["point"], row["time"], row.get("repeat", 0)
                )
                found[row["trial"]].trains(row["time"])
            case "trial.result" if row["trial"] in found:
                if found[row["trial"]].training_since is None:
                    found[row["trial"]].trains(max(began, found[row["trial"]].seen))
                found[row["trial"]].trains(row["time"])
                if not row.get("missed", False):  # else it is known since when a resume found it
                    found[row["trial"]].reaches(row["epoch"], row["time"])
                one = Evaluation(row["iteration"], row["step"], row["epoch"], row["metrics"])
                found[row["trial"]].evaluations[one.iteration] = one
                if found[row["trial"]].state == "STOPPED":  # it was, and goes on
                    found[row["trial"]].state, found[row["trial"]].ended = "RUNNING", None
            case "trial.copied" if row["trial"] in found:
                copied = Copied(Origin(**row["origin"]), row["iteration"])
                found[row["trial"]].go_on_from(copied, row["point"])
            case "trial.state" if row["trial"] in found:
                trial = found[row["trial"]]
                trial.state = row["state"]
                if trial.state == "RUNNING":
                    trial.trains(row["time"])
                    if not trial.evaluations:  # it had only waited
                        trial.started = row["time"]
                else:
                    trial.rests(row["time"])
            case "trial.ended" if row["trial"] in found:
                trial = found[row["trial"]]
                trial.state, trial.message, trial.ended = row["state"], row["message"], row["time"]
                trial.rests(row["time"])
    return sorted(found.values(), key=lambda trial: (trial.number, trial.repeat))


def ranked(trials: Sequence[Trial], metric: str, mode: str) -> list[Trial]:
    """Return the trials with a value, the best first, those of one point together.

    Points go by the mean of their trials; those that were trained to their end stand before the others, and last those
    of which the mean is not of all seeds.
    """
    sign = -1 if mode == "max" else 1
    means = means_of(trials, metric)
    failed, unfinished = failed_points(trials, metric), unfinished_points(trials)

    def rank(trial: Trial) -> tuple[int, float, int, float]:
        own = sign * float(trial.value(metric) or 0.0)
        behind = 2 if trial.number in failed else 1 if trial.number in unfinished else 0
        return behind, sign * means[trial.number], trial.number, own

    return sorted(measured(trials, metric), key=rank)


def failed_points(trials: Iterable[Trial], metric: str) -> set[int]:
    """Return the numbers of points of which a trial has failed, or its newest evaluation has no finite value."""
    return {
        trial.number
        for trial in trials
        if trial.state == "FAILED" or (trial.newest is not None and trial.value(metric) is None)
    }


def unfinished_points(trials: Sequence[Trial]) -> set[int]:
    """Return the numbers of points of which a trial was not trained to its end, or has not begun, beside others."""
    counts = Counter(trial.number for trial in trials)
    most = max(counts.values(), default=0)  # of as many seeds as others have
    begun = {number for number, count in counts.items() if count < most}
    return begun | {trial.number for trial in trials if trial.state != "SUCCEEDED"}


def measured(trials: Iterable[Trial], metric: str) -> list[Trial]:
    """Return the trials that have a value and have not failed: those that are compared, and that means are of."""
    return [trial for trial in trials if trial.value(metric) is not None and trial.state != "FAILED"]


def seeds_of(number: int, trials: Iterable[Trial], metric: str) -> int:
    """Return of how many trials a point's mean is."""
    return sum(trial.number == number for trial in measured(trials, metric))


def means_of(trials: Iterable[Trial], metric: str) -> dict[int, float]:
    """Return the mean value of each point's trials, by its number: at the last evaluation that all of them have had."""
    found: dict[int, list[dict[int, float]]] = {}
    for trial in measured(trials, metric):
        found.setdefault(trial.number, []).append(trial.values(metric))
    return {number: _mean_of(values) for number, values in found.items()}


def _mean_of(values: Sequence[Mapping[int, float]]) -> float:
    shared = set.intersection(*({*each} for each in values))
    return fmean(each[max(shared or each)] for each in values)
