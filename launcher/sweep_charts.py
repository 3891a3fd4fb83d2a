"""A sweep as charts: how its trials learnt, how the best got better, what decided it, and what ending early saved."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.trials import Trial, failed_points, measured, unfinished_points
from launcher.curves import Chart, Series, thinned
from launcher.importance import Importance, assess
from launcher.parallel import Parallel, build_parallel, is_wide, told
from launcher.spec import JobSpec
from launcher.sweeps import Sweep

_MOST_POINTS = 40_000  # of all learning curves together
_FEW = 20
_GROUPS = {  # of trials, the last drawn on top
    "PRUNED": ("ended early", "faint"),
    "STOPPED": ("stopped", "calm"),
    "FAILED": ("failed", "bad"),
    "SUCCEEDED": ("to the end", "first"),
    "RUNNING": ("running", "third"),
}


@dataclass(frozen=True)
class Budget:
    """The epochs that trials have had, and those that they did not need."""

    trained: int
    saved: int
    seconds: float  # that the saved ones would have taken, at the speed of their trials or, not known, of others

    @property
    def share(self) -> float:
        return self.saved / (self.trained + self.saved) if self.saved else 0.0


@dataclass(frozen=True)
class Drawing:
    """All that is drawn of a sweep; without an evaluation, nothing."""

    charts: Sequence[Chart]
    importance: Importance | str  # or why it is not known
    parallel: Parallel | None


def draw(sweep: Sweep, spec: JobSpec | None) -> Drawing:
    """Return what there is to draw; without the job, as another version wrote it, less of it."""
    if not sweep.ranked:
        return Drawing([], "", None)
    space = spec.tune.ordered if spec is not None and spec.tune is not None else {}
    importance = assess(sweep, space) if space else "The job file does not say what was searched."
    charts = [_history(sweep), _learning(sweep)]
    if not isinstance(importance, str):
        charts.append(_shares(sweep, importance))
    if budget_of(sweep, spec).saved:
        charts.append(_reached(sweep, spec))
    order = [] if isinstance(importance, str) else list(importance.shares)
    return Drawing(charts, importance, build_parallel(sweep, space, order))


def budget_of(sweep: Sweep, spec: JobSpec | None) -> Budget:
    """Return what ending trials early saved: the epochs up to the end of their training, as the job file has it."""
    trained, saved, seconds = 0, 0, 0.0
    paces = [trial.pace for trial in sweep.trials if trial.pace is not None]
    usual = statistics.median(paces) if paces else None  # of one that was evaluated once, the start is most of its time
    for trial in sweep.trials:
        left = _length(trial, sweep, spec) - trial.epoch
        trained += trial.epoch
        saved += left
        if left and trial.ended is not None and trial.epoch:
            seconds += (trial.pace or usual or trial.trained / trial.epoch) * left
    return Budget(trained, saved, seconds)


def _length(trial: Trial, sweep: Sweep, spec: JobSpec | None) -> int:
    """Return the epochs that a trial would have had: as many as the longest one, where steps are all that is known."""
    if trial.state != "PRUNED":
        return trial.epoch
    max_t = spec.tune.scheduler.max_t if spec is not None and spec.tune is not None else None
    if max_t is not None or trial.point.get("train.max_steps") or (spec is not None and spec.train.max_steps):
        return sweep.longest
    known = spec.train.epochs if spec is not None else None
    return max(int(trial.point.get("train.epochs") or known or sweep.longest), trial.epoch)


def _history(sweep: Sweep) -> Chart:
    """Draw each trial's value, and the best of those that were trained to their end, or of all while there are none."""
    choose = max if sweep.mode == "max" else min
    shown = measured(sweep.trials, sweep.metric)
    series = []
    for state, (name, tone) in _GROUPS.items():
        own = [trial for trial in shown if _group(trial) == state]
        if own:
            values = [trial.value(sweep.metric) for trial in own]
            text = [told(trial, sweep) for trial in own]
            series.append(Series(name, [trial.number for trial in own], values, "points", tone, text))
    failed, unfinished = failed_points(sweep.trials, sweep.metric), unfinished_points(sweep.trials)
    intact = [trial for trial in shown if trial.number not in failed] or shown
    ended = [trial for trial in intact if trial.number not in unfinished] or intact
    best = list[float]()
    for trial in ended:
        best.append(choose([*best[-1:], sweep.means[trial.number]]))
    x = [trial.number for trial in ended]
    name = "best mean so far" if sweep.repeats else "best so far"
    line = Series(name, [*x, sweep.trials[-1].number], [*best, best[-1]], "steps", "second")
    return _chart(sweep, "Optimization history", "trial", [*series, line])


def _learning(sweep: Sweep) -> Chart:
    """Draw the best trial by itself, all others as one series a state, with gaps between them."""
    assert sweep.best is not None
    by = "step" if any(_repeats(trial) for trial in sweep.trials) else "epoch"
    most = max(_MOST_POINTS // len(sweep.trials), _FEW)
    series = []
    for state, (name, tone) in _GROUPS.items():
        x, y, text = list[float](), list[float | None](), list[str]()
        for trial in sweep.trials:
            if _group(trial) == state and trial.evaluations and trial.id != sweep.best.id:
                own_x, own_y = thinned(*_curve(trial, sweep.metric, by), most)
                x += [*own_x, own_x[-1]]
                y += [*own_y, None]
                text += [told(trial, sweep)] * (len(own_x) + 1)
        if any(value is not None for value in y):
            series.append(Series(name, x, y, "faint", tone, text))
    best_x, best_y = thinned(*_curve(sweep.best, sweep.metric, by))
    best = Series(f"best, {sweep.best.id}", best_x, best_y, "line", "second", [told(sweep.best, sweep)] * len(best_x))
    return _chart(sweep, "Learning curves", by, [*series, best])


def _shares(sweep: Sweep, importance: Importance) -> Chart:
    """Draw the share of each key, the largest on top."""
    keys = list(importance.shares)
    series = []
    for name, tone, own in (
        ("more than chance", "first", [key for key in keys if key not in importance.by_chance]),
        ("no more than chance", "faint", [key for key in keys if key in importance.by_chance]),
    ):
        if own:
            x = [importance.shares[key] for key in own]
            names = [sweep.names[key] for key in own]
            series.append(Series(name, x, names, "bars", tone, [f"{100 * share:.0f} %" for share in x]))
    return Chart("Parameter importance", "importance", series, unified=False)


def _reached(sweep: Sweep, spec: JobSpec | None) -> Chart:
    """Draw how many trials had each epoch; the area between the lines is what was saved."""
    full = [_length(trial, sweep, spec) for trial in sweep.trials]
    x = list(range(max(full) + 1))
    had = [sum(trial.epoch > epoch for trial in sweep.trials) for epoch in x]
    would = [sum(length > epoch for length in full) for epoch in x]
    areas = [Series("without ending early", x, would, "area", "faint"), Series("trained", x, had, "area", "first")]
    return Chart("Trials that had each epoch", "epoch", areas)


def _chart(sweep: Sweep, title: str, x: str, series: Sequence[Series]) -> Chart:
    name = sweep.metric.removeprefix("eval_")
    loss = "loss" in sweep.metric
    values = [value for trial in sweep.trials if (value := trial.value(sweep.metric)) is not None]
    wide = is_wide(sweep.metric, values)
    return Chart(f"{title}: {name}", x, series, loss=loss, logarithmic=wide, from_zero=False, unified=False)


def _group(trial: Trial) -> str:
    return trial.state if trial.state in _GROUPS else "RUNNING"


def _curve(trial: Trial, metric: str, by: str) -> tuple[list[float], list[float | None]]:
    rows = sorted(trial.evaluations.values(), key=lambda one: one.iteration)
    finite = [_finite(one.metrics.get(metric)) for one in rows]
    return [one.step if by == "step" else one.epoch for one in rows], finite


def _finite(value: Any) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None


def _repeats(trial: Trial) -> bool:
    """Whether a trial was evaluated more than once an epoch."""
    return len({one.epoch for one in trial.evaluations.values()}) < len(trial.evaluations)
