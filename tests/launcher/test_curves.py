"""Rows become curves that fit a page and hide nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest

from launcher.curves import Chart, build_charts, smoothed, thinned


def steps(count: int, **values: float) -> list[dict[str, Any]]:
    row = {"kind": "step", "epoch": 1, "loss": 1.0, "lr": 0.1, "grad_norm": 1.0, "samples_per_s": 10.0}
    return [{**row, "step": step, **values} for step in range(1, count + 1)]


def chart(charts: list[Chart], title: str) -> Chart:
    return next(chart for chart in charts if chart.title == title)


def test_a_long_curve_keeps_its_spikes() -> None:
    y: list[float | None] = [0.0] * 100_000
    y[12_345], y[67_890] = 9.0, -9.0
    _, kept = thinned(range(len(y)), y)
    assert {9.0, -9.0} <= set(kept)


def test_a_long_curve_is_cut_to_what_a_screen_shows() -> None:
    x, y = thinned(range(100_000), [math.sin(step) for step in range(100_000)])
    assert len(x) == len(y) <= 2000
    assert (x[0], x[-1]) == (0, 99_999)


def test_a_short_curve_is_kept_as_it_is() -> None:
    assert thinned([1, 2], [3.0, None]) == ([1, 2], [3.0, None])


def test_smoothing_leaves_a_constant_alone() -> None:
    assert smoothed([2.0] * 50, span=10) == pytest.approx([2.0] * 50)


def test_smoothing_starts_at_the_first_value() -> None:
    assert smoothed([8.0, 0.0, 0.0], span=10)[0] == pytest.approx(8.0)


def test_a_value_that_is_not_finite_is_a_gap() -> None:
    rows = [*steps(1), *steps(2, grad_norm=math.inf)[1:], *steps(3)[2:]]
    norm = chart(build_charts(rows, 4), "Gradient norm")
    assert norm.series[0].y == [1.0, None, 1.0]
    assert norm.series[1].y == pytest.approx([1.0, 1.0])


def test_evaluations_stand_where_they_were_made_in_epochs() -> None:
    rows = [{"kind": "eval", "step": step, "epoch": 1, "eval_loss": 1.0, "eval_accuracy": 0.5} for step in (2, 6)]
    charts = build_charts(rows, steps_per_epoch=4)
    assert chart(charts, "Evaluation").series[0].x == [0.5, 1.5]
    assert chart(charts, "Training and evaluation loss").series[0].x == [0.5, 1.5]


def test_a_run_without_evaluation_has_no_chart_of_it() -> None:
    assert "Evaluation" not in {chart.title for chart in build_charts(steps(3), 4)}


def test_a_run_without_rows_has_no_charts() -> None:
    assert build_charts([], None) == []
