"""A sweep as people look at it: how many trials stand where, which are best, and what they were given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cluster.errors import UsageError
from cluster.job_file import freeze
from cluster.runs import Run
from cluster.trials import ENDED, Trial, means_of, ranked, read_trials, trial_run
from launcher.text import decimal, duration, so_many, typed

if TYPE_CHECKING:
    from rich.table import Table

_BEST = 5  # shown of the best
_RUNNING = 10  # shown of those that run
_WIDEST = 12  # letters of a metric's name above its numbers
_STATES = ("RUNNING", "WAITING", "SUCCEEDED", "PRUNED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Sweep:
    """A sweep's trials, and what they are compared by."""

    metric: str
    mode: str
    budget: int  # trials in all
    trials: Sequence[Trial]

    @property
    def by(self) -> dict[str, str]:
        """The metric and mode, as manifests have them."""
        return {"metric": self.metric, "mode": self.mode}

    @cached_property
    def ranked(self) -> list[Trial]:
        return ranked(self.trials, self.metric, self.mode)

    @cached_property
    def ordered(self) -> list[Trial]:
        """All trials, the best first and those without a value last."""
        known = {trial.id for trial in self.ranked}
        return [*self.ranked, *(trial for trial in self.trials if trial.id not in known)]

    @cached_property
    def names(self) -> dict[str, str]:
        """The keys that were searched, and names for them as short as tells them apart."""
        return short_names(list(dict.fromkeys(key for trial in self.trials for key in trial.point)))

    @property
    def best(self) -> Trial | None:
        return next(iter(self.ranked), None)

    @property
    def running(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.state == "RUNNING"]

    def at_rest(self) -> Sweep:
        """Return it where nothing of it runs: what it left running was stopped, and goes on with a resume."""
        trials = [trial if trial.state in ENDED else replace(trial, state="STOPPED") for trial in self.trials]
        return replace(self, trials=trials)

    def counts(self) -> str:
        """Say how many trials stand where: "7 of 20 trials done: 3 succeeded, 4 pruned; 2 running"."""
        found = Counter(trial.state for trial in self.trials)
        done = sum(found[state] for state in ENDED)
        ended = ", ".join(f"{found[state]} {state.lower()}" for state in ENDED if found[state])
        others = "".join(
            f"; {found[state]} {state.lower()}" for state in ("RUNNING", "WAITING", "STOPPED") if found[state]
        )
        return f"{done} of {so_many(self.budget, 'trial')} done{f': {ended}' if ended else ''}{others}"

    @cached_property
    def longest(self) -> int:
        """The epochs of the trial that has had the most."""
        return max((trial.epoch for trial in self.trials), default=0)

    @cached_property
    def means(self) -> dict[int, float]:
        """The mean value of each point's trials, by its number."""
        return means_of(self.trials, self.metric)

    @cached_property
    def repeats(self) -> bool:
        """Whether a point was trained more than once."""
        return any(trial.repeat for trial in self.trials)

    def values_of(self, trial: Trial) -> str:
        """Say what a trial was given, its keys as short as tells them apart."""
        return _told(trial.point, self.names)

    def as_dict(self) -> dict[str, Any]:
        """Return it for programs, the best trial first."""
        found = Counter(trial.state for trial in self.trials)
        return {
            "metric": self.metric,
            "mode": self.mode,
            "budget": self.budget,
            "counts": {state.lower(): found[state] for state in _STATES},
            "best": self.best.id if self.best is not None else None,
            "trials": [self.trial_dict(trial) for trial in self.ordered],
        }

    def trial_dict(self, trial: Trial) -> dict[str, Any]:
        """Return a trial for programs."""
        evaluation = trial.newest
        return {
            "trial": trial.id,
            "repeat": trial.repeat,
            "state": trial.state,
            "message": trial.message,
            "value": trial.value(self.metric),
            "mean": self.means.get(trial.number),
            "epoch": trial.epoch,
            "step": evaluation.step if evaluation is not None else 0,
            "metrics": dict(evaluation.metrics) if evaluation is not None else {},
            "seconds": round(trial.trained, 3) if trial.ended is not None else None,
            "point": dict(trial.point),
        }


def read_sweep(rows: Iterable[Mapping[str, Any]]) -> Sweep | None:
    """Return what a run's events say of its sweep; None where the run is none, or has not begun one."""
    rows = list(rows)
    head = next((row for row in reversed(rows) if row["event"] == "sweep"), None)
    return Sweep(head["metric"], head["mode"], head["trials"], read_trials(rows)) if head is not None else None


def described_trial(row: Mapping[str, Any]) -> str:
    """Say an event of a sweep in a line: what it is to do, that a trial began, and how it ended; of others nothing."""
    match row["event"]:
        case "sweep":
            return f"sweep: {so_many(row['trials'], 'trial')} for the {row['mode']}imum of {row['metric']}"
        case "trial":
            return f"trial {row['trial']}: {_told(row['point'], short_names(list(row['point'])))}"
        case "trial.ended":
            return f"trial {row['trial']} {row['state'].lower()}{': ' if row['message'] else ''}{row['message']}"
        case _:
            return ""


def best_of(sweep: Sweep, run: Run) -> Trial:
    """Return the best trial of a run's sweep. Raises UsageError where none is best yet."""
    if sweep.best is None:
        said = f"no trial of {run.uri} was evaluated yet"
        if sweep.trials and all(trial.state == "FAILED" for trial in sweep.trials):
            said = f"every trial of {run.uri} failed"
        elif any(trial.evaluations for trial in sweep.trials):
            said = f"no trial of {run.uri} has a finite {sweep.metric}"
        raise UsageError(f"{said}: raylift status {typed(run.uri)}")
    return sweep.best


def job_of(trial: Trial, sweep: Sweep, run: Run) -> str:
    """Return the job file of one trial of a run's sweep, ready to run, with the values that the trial has come to."""
    from ruamel.yaml import YAML

    from launcher.spec import as_written
    from trainers.tuning import lone_job

    whole = YAML(typ="safe", pure=True).load(run.job())
    text = freeze(as_written(lone_job(whole, trial.point, trial.repeat, gpus=has_gpus(run)))).decode()
    value = trial.value(sweep.metric)
    told = f": {sweep.metric} {decimal(value)}" if value is not None else ""
    return f"# trial {trial.id} of {run.uri}{told}\n{text}"


def has_gpus(run: Run) -> bool:
    """Whether the workers of a sweep's trials had one each, as far as it has begun."""
    return any(row["event"] == "cluster" and row.get("gpus") for row in run.all_rows("events"))


def winner_of(run: Run) -> tuple[Run, dict[str, str] | None]:
    """Return the run of a sweep's best trial, and by which metric and mode; of another run itself, and None.

    Raises UsageError where none is best yet.
    """
    sweep = read_sweep(run.all_rows("events"))
    return (run, None) if sweep is None else (trial_run(run, best_of(sweep, run).id), sweep.by)


def summary_table(sweep: Sweep, *, now: float | None = None, running: int = _RUNNING) -> Table:
    """Return the best few trials and of those that run the first; with `now`, for how long they have.

    Where there is neither, it has the first trials.
    """
    best = sweep.ranked[:_BEST]
    known = {trial.id for trial in best}
    others = [trial for trial in sweep.running if trial.id not in known]
    return trials_table(sweep, [*best, *others[:running]] or sweep.trials[:_BEST], now=now)  # where all failed, these


def trials_table(sweep: Sweep, trials: Sequence[Trial], *, now: float | None = None) -> Table:
    """Return a table that fits the screen: what is too long of a trial's values is cut."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="", expand=True)
    measured = sweep.metric.removeprefix("eval_").upper()
    measured = measured if len(measured) <= _WIDEST else f"{measured[: _WIDEST - 1]}…"
    means = {"MEAN": 6} if sweep.repeats else {}
    widths = {"TRIAL": 6, "STATE": 9, "EPOCH": 5, **means, measured: 6, "TIME": 10}
    for name, width in widths.items():
        left = name in ("TRIAL", "STATE")
        table.add_column(name, no_wrap=True, min_width=max(width, len(name)), justify="left" if left else "right")
    table.add_column("VALUES", no_wrap=True, overflow="ellipsis", ratio=1)
    best = sweep.best
    for trial in trials:
        value = trial.value(sweep.metric)
        seconds = trial.trained_by(now)
        mean = sweep.means.get(trial.number)
        table.add_row(
            f"{trial.id}{'*' if best is not None and trial.id == best.id else ''}",
            trial.state,
            str(trial.epoch or ""),
            *([decimal(mean) if mean is not None else ""] if sweep.repeats else []),
            decimal(value) if value is not None else "",
            duration(seconds) if seconds else "",
            Text(sweep.values_of(trial)),  # brackets in it are no markup
        )
    return table


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last parts of keys, as many as tell them apart: lr, optimizer.name."""
    split = [key.split(".") for key in keys]

    def short(parts: list[str]) -> str:
        others = [other for other in split if other != parts]
        alone = (count for count in range(1, len(parts)) if all(parts[-count:] != one[-count:] for one in others))
        count = next(alone, len(parts))
        return ".".join(parts[-max(count, 2 if parts[-1] == "name" else 1) :])  # a name says nothing by itself

    return {key: short(parts) for key, parts in zip(keys, split, strict=True)}


def _told(point: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return "  ".join(f"{names[key]} {shown(value)}" for key, value in point.items())


def shown(value: object, digits: int = 3) -> str:
    """A value of a trial in a few characters, as a job file would say it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {shown(each, digits)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(shown(each, digits) for each in value)}]"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
