"""A run's rows of metrics as the curves that a person looks at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Rows = Sequence[Mapping[str, Any]]
_MOST_POINTS = 2000  # a curve; a screen has no more
_SMOOTHED_OVER = 40  # a smoothed point remembers about this part of the run, but a few steps at least
_FEW = 5


@dataclass(frozen=True)
class Series:
    """One line of a chart; a y of None is a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None] | Sequence[str]
    look: Literal["line", "faint", "points", "steps", "area", "bars"] = "line"  # bars lie, and have a word for their y
    tone: str = ""  # one of the page's colours, where it is not the next one
    text: Sequence[str] = ()  # of each point, as HTML


@dataclass(frozen=True)
class Chart:
    """What is drawn together."""

    title: str
    x: str
    series: Sequence[Series]
    loss: bool = False  # may be shown on a logarithmic scale
    logarithmic: bool = False  # at first
    from_zero: bool = True  # the scale, where it is linear
    unified: bool = True  # pointing at it shows all lines at once, else the nearest point


def build_charts(metrics: Rows, steps_per_epoch: int | None) -> list[Chart]:
    """Return the charts that the rows have something for."""
    steps = [row for row in metrics if row["kind"] == "step"]
    evaluations = [row for row in metrics if row["kind"] == "eval"]
    charts = [
        Chart("Training loss", "step", _with_trend(steps, "loss"), loss=True),
        Chart("Training and evaluation loss", "epoch", _losses(metrics, steps_per_epoch), loss=True),
        Chart(
            "Evaluation",
            "epoch" if steps_per_epoch else "step",
            _measures(evaluations, steps_per_epoch),
            from_zero=False,
        ),
        Chart("Learning rate", "step", _column(steps, "lr", "learning rate")),
        Chart("Gradient norm", "step", _with_trend(steps, "grad_norm")),
        Chart("Samples per second", "step", _with_trend(steps, "samples_per_s")),
    ]
    return [chart for chart in charts if chart.series]


def _with_trend(steps: Rows, key: str) -> list[Series]:
    raw = _column(steps, key, "every step", "faint")
    finite = [row for row in steps if row.get(key) is not None and math.isfinite(row[key])]
    if len(finite) < 2:
        return raw
    smooth = smoothed([row[key] for row in finite], span=max(len(finite) / _SMOOTHED_OVER, _FEW))
    return [*raw, _series("smoothed", [row["step"] for row in finite], smooth)]


def _losses(metrics: Rows, steps_per_epoch: int | None) -> list[Series]:
    """Draw the mean loss of each epoch's training over its end, and that of evaluation where it was measured."""
    epochs = [row for row in metrics if row["kind"] == "epoch"]
    train = [_series("training", [row["epoch"] for row in epochs], [row["train_loss"] for row in epochs])]
    measured = [row for row in metrics if row["kind"] == "eval" and "eval_loss" in row]
    if not steps_per_epoch:
        measured = []
    x = [row["step"] / (steps_per_epoch or 1) for row in measured]
    evaluation = [_series("evaluation", x, [row["eval_loss"] for row in measured])]
    return [series for series in [*train, *evaluation] if series.x]


def _measures(evaluations: Rows, steps_per_epoch: int | None) -> list[Series]:
    names = dict.fromkeys(key for row in evaluations for key in row if key.startswith("eval_") and key != "eval_loss")
    x = [row["step"] / (steps_per_epoch or 1) for row in evaluations]
    return [_series(name.removeprefix("eval_"), x, [row.get(name) for row in evaluations]) for name in names]


def _column(steps: Rows, key: str, name: str, look: Literal["line", "faint"] = "line") -> list[Series]:
    found = [row for row in steps if row.get(key) is not None]
    series = _series(name, [row["step"] for row in found], [row[key] for row in found], look)
    return [series] if found else []


def _series(
    name: str, x: Sequence[float], y: Sequence[float | None], look: Literal["line", "faint"] = "line"
) -> Series:
    finite = [value if value is not None and math.isfinite(value) else None for value in y]
    return Series(name, *thinned(x, finite), look)


def smoothed(values: Sequence[float], span: float) -> list[float]:
    """Return the exponential moving average of a span, corrected for its start (as Adam's is, Kingma and Ba, 2015)."""
    keep = 1 - 2 / (max(span, 1.0) + 1)
    mean, weight = 0.0, 0.0
    found = []
    for value in values:
        mean = keep * mean + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        found.append(mean / weight)
    return found


def thinned(
    x: Sequence[float], y: Sequence[float | None], most: int = _MOST_POINTS
) -> tuple[list[float], list[float | None]]:
    """Return at most `most` points: of every stretch the lowest and the highest, so that no spike is lost."""
    if len(x) <= most:
        return list(x), list(y)
    kept: set[int] = {0, len(x) - 1}
    stretches = most // 2 - 1
    for number in range(stretches):
        rows = range(len(x) * number // stretches, len(x) * (number + 1) // stretches)
        kept |= {min(rows, key=lambda row: _order(y[row])), max(rows, key=lambda row: _order(y[row]))}
    chosen = sorted(kept)
    return [x[row] for row in chosen], [y[row] for row in chosen]


def _order(value: float | None) -> tuple[bool, float]:
    return (value is not None, value or 0.0)
