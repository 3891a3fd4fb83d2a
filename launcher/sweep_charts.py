"""A sweep's trials as curves."""

from __future__ import annotations

from launcher.curves import Chart, Series
from launcher.sweeps import Sweep


def build_sweep_charts(sweep: Sweep) -> list[Chart]:
    """Return how the trials learnt, and how the best of them got better."""
    measured = sweep.metric.removeprefix("eval_").capitalize()
    charts = [
        Chart(f"{measured} of each trial", "epoch", _learning(sweep), from_zero=False),
        Chart(f"{measured} by trial", "trial", _history(sweep), from_zero=False),
    ]
    return [chart for chart in charts if chart.series]


def epochs_saved(sweep: Sweep) -> int:
    """Return the epochs that trials which ended early did not train: to as many as the longest has had."""
    longest = max((trial.epoch for trial in sweep.trials), default=0)
    return sum(longest - trial.epoch for trial in sweep.trials if trial.state == "PRUNED")


def _learning(sweep: Sweep) -> list[Series]:
    """Draw the best trial, and all others as one series with gaps between them."""
    if sweep.best is None:
        return []
    x: list[float] = []
    y: list[float | None] = []
    for trial in sweep.trials:
        if trial is not sweep.best and trial.evaluations:
            evaluations = sorted(trial.evaluations.values(), key=lambda one: one.iteration)
            x += [one.epoch for one in evaluations] + [evaluations[-1].epoch]
            y += [one.metrics.get(sweep.metric) for one in evaluations] + [None]
    best = sorted(sweep.best.evaluations.values(), key=lambda one: one.iteration)
    others = [Series("the others", x, y, "faint")] if x else []
    values = [one.metrics.get(sweep.metric) for one in best]
    return [*others, Series(f"the best, {sweep.best.id}", [one.epoch for one in best], values)]


def _history(sweep: Sweep) -> list[Series]:
    choose = max if sweep.mode == "max" else min
    x, y, best = list[float](), list[float](), list[float]()
    for trial in sweep.trials:
        value = trial.value(sweep.metric)
        if value is not None and trial.state != "FAILED":
            x.append(trial.number)
            y.append(value)
            best.append(choose([*best[-1:], value]))
    return [Series("each", x, y, "faint"), Series("the best so far", x, best)] if x else []
