"""A sweep as people look at it: how many trials stand where, which are best, and what they were given."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.errors import UsageError
from cluster.runs import Run
from cluster.trials import ENDED, Trial, means_of, ranked, read_trials, trial_run
from launcher.text import decimal, duration, typed

if TYPE_CHECKING:
    from rich.table import Table

_BEST = 5  # shown of the best
_STATES = ("RUNNING", "WAITING", "SUCCEEDED", "PRUNED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Sweep:
    """A sweep's trials, and what they are compared by."""

    metric: str
    mode: str
    budget: int  # trials in all
    trials: Sequence[Trial]

    @property
    def ranked(self) -> list[Trial]:
        return ranked(self.trials, self.metric, self.mode)

    @property
    def best(self) -> Trial | None:
        return next(iter(self.ranked), None)

    @property
    def running(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.state == "RUNNING"]

    def counts(self) -> str:
        """Say how many trials stand where: "7 of 20 trials done: 3 succeeded, 4 pruned; 2 running"."""
        found = Counter(trial.state for trial in self.trials)
        done = sum(found[state] for state in ENDED)
        ended = ", ".join(f"{found[state]} {state.lower()}" for state in ENDED if found[state])
        others = "".join(
            f"; {found[state]} {state.lower()}" for state in ("RUNNING", "WAITING", "STOPPED") if found[state]
        )
        return f"{done} of {self.budget} trials done{f': {ended}' if ended else ''}{others}"

    def as_dict(self) -> dict[str, Any]:
        """Return it for programs, the best trial first."""
        order = {trial.id: place for place, trial in enumerate(self.ranked)}
        trials = sorted(self.trials, key=lambda trial: (order.get(trial.id, len(order)), trial.number))
        means = means_of(self.trials, self.metric)
        found = Counter(trial.state for trial in self.trials)
        return {
            "metric": self.metric,
            "mode": self.mode,
            "budget": self.budget,
            "counts": {state.lower(): found[state] for state in _STATES},
            "best": self.best.id if self.best is not None else None,
            "trials": [{**_as_dict(trial, self.metric), "mean": means.get(trial.number)} for trial in trials],
        }


def read_sweep(rows: Iterable[Mapping[str, Any]]) -> Sweep | None:
    """Return what a run's events say of its sweep; None where the run is none, or has not begun one."""
    rows = list(rows)
    head = next((row for row in reversed(rows) if row["event"] == "sweep"), None)
    return Sweep(head["metric"], head["mode"], head["trials"], read_trials(rows)) if head is not None else None


def open_sweep(run: Run) -> Sweep:
    """Return a run's sweep. Raises UsageError where it is none."""
    sweep = read_sweep(run.all_rows("events"))
    if sweep is None:
        raise UsageError(
            f"{run.uri} has no trials: its job file has no tune: block, or it has not begun. "
            f"See where it stands: raylift status {typed(run.uri)}"
        )
    return sweep


def winner_of(run: Run) -> Run:
    """Return the run of a sweep's best trial, and of another run itself. Raises UsageError where none is best yet."""
    sweep = read_sweep(run.all_rows("events"))
    if sweep is None:
        return run
    if sweep.best is None:
        raise UsageError(f"no trial of {run.uri} was evaluated yet: raylift status {typed(run.uri)}")
    return trial_run(run, sweep.best.id)


def winners_job(run: Run) -> str:
    """Return the job file of a sweep's best trial. Raises UsageError where none is best yet."""
    best = open_sweep(run).best
    if best is None or best.copied is None:
        return winner_of(run).job().decode()
    from ruamel.yaml import YAML

    from trainers.tuning import trial_job

    job = trial_job(YAML(typ="safe", pure=True).load(run.job()), best.point)  # its own has the values it began with
    stream = io.StringIO()
    YAML(typ="safe", pure=True).dump(job, stream)
    return stream.getvalue()


def summary_table(sweep: Sweep, *, now: float | None = None) -> Table:
    """Return the best few trials and those that run; with `now`, for how long they have."""
    best = sweep.ranked[:_BEST]
    shown = [*best, *(trial for trial in sweep.running if trial not in best)]
    return trials_table(sweep, shown, now=now)


def trials_table(sweep: Sweep, trials: Sequence[Trial], *, now: float | None = None) -> Table:
    """Return a table that fits the screen: what is too long of a trial's values is cut."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="", expand=True)
    measured = sweep.metric.removeprefix("eval_").upper()
    means = means_of(sweep.trials, sweep.metric) if any(trial.repeat for trial in sweep.trials) else None
    widths = {"TRIAL": 6, "STATE": 9, "EPOCH": 5, **({"MEAN": 6} if means else {}), measured: 6, "TIME": 10}
    for name, width in widths.items():
        left = name in ("TRIAL", "STATE")
        table.add_column(name, no_wrap=True, min_width=max(width, len(name)), justify="left" if left else "right")
    table.add_column("VALUES", no_wrap=True, overflow="ellipsis", ratio=1)
    best = sweep.best
    for trial in trials:
        value = trial.value(sweep.metric)
        ended = trial.ended if trial.ended is not None else now
        mean = means.get(trial.number) if means else None
        table.add_row(
            f"{trial.id}{'*' if best is not None and trial.id == best.id else ''}",
            trial.state,
            str(trial.epoch or ""),
            *([decimal(mean) if mean is not None else ""] if means else []),
            decimal(value) if value is not None else "",
            duration(max(ended - trial.started, 0)) if ended is not None else "",
            values_of(trial, sweep.trials),
        )
    return table


def values_of(trial: Trial, among: Sequence[Trial]) -> str:
    """Say what a trial was given, its keys as short as tells them apart."""
    names = short_names(list(dict.fromkeys(key for each in among for key in each.point)))
    return "  ".join(f"{names[key]} {_shown(value)}" for key, value in trial.point.items())


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last parts of keys, as many as tell them apart: lr, optimizer.name."""
    split = [key.split(".") for key in keys]

    def short(parts: list[str]) -> str:
        others = [other for other in split if other != parts]
        alone = (count for count in range(1, len(parts)) if all(parts[-count:] != one[-count:] for one in others))
        count = next(alone, len(parts))
        return ".".join(parts[-max(count, 2 if parts[-1] == "name" else 1) :])  # a name says nothing by itself

    return {key: short(parts) for key, parts in zip(keys, split, strict=True)}


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _as_dict(trial: Trial, metric: str) -> dict[str, Any]:
    newest = max(trial.evaluations, default=None)
    evaluation = trial.evaluations[newest] if newest is not None else None
    return {
        "trial": trial.id,
        "repeat": trial.repeat,
        "state": trial.state,
        "message": trial.message,
        "value": trial.value(metric),
        "epoch": trial.epoch,
        "step": evaluation.step if evaluation is not None else 0,
        "metrics": dict(evaluation.metrics) if evaluation is not None else {},
        "seconds": round(trial.ended - trial.started, 3) if trial.ended is not None else None,
        "point": dict(trial.point),
    }
