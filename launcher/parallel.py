"""A sweep's trials as lines over parallel axes (Inselberg, 1985): one axis for each key, one for the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from launcher.sweeps import Sweep, shown
from launcher.text import decimal
from trainers.tuning import Domain, place_in

if TYPE_CHECKING:
    from cluster.trials import Trial

_MOST = 1000  # trials drawn, the best
_FEW_VALUES = 12  # that are shown one by one
_LONGEST = 18  # letters of a value beside its axis
_WIDE = 20.0  # times the smallest loss is the largest: from there on a scale is logarithmic


@dataclass(frozen=True)
class Axis:
    """One axis, from 0 at its lower end to 1."""

    name: str
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Line:
    """One trial: where it crosses each axis, None where it has nothing there."""

    trial: str
    text: str  # as HTML
    places: Sequence[float | None]
    rank: float | None  # from 0, the worst, to 1, the best; None for one without a result


@dataclass(frozen=True)
class Parallel:
    """What is drawn, the best trial last."""

    axes: Sequence[Axis]
    lines: Sequence[Line]
    left_out: int  # trials that are worse than those drawn


Scale = tuple[Callable[[Any], float | None], list[tuple[float, str]]]  # where a value is, and the ticks


def build_parallel(sweep: Sweep, space: Mapping[str, Domain], order: Sequence[str] = ()) -> Parallel | None:
    """Return the trials as lines; None where nothing was searched. Of the keys in `order` the first stands last."""
    known = [trial for trial in sweep.ordered if trial.evaluations or trial.state == "FAILED"]
    trials = known[:_MOST]
    keys = [key for key in (space or sweep.names) if any(key in trial.point for trial in trials)]
    if not keys:
        return None
    keys.sort(key=lambda key: -order.index(key) if key in order else -len(order))
    scales = [_of_key(key, space.get(key), trials) for key in keys]
    columns = [
        (sweep.names[key], ticks, [place(trial.point[key]) if key in trial.point else None for trial in trials])
        for key, (place, ticks) in zip(keys, scales, strict=True)
    ]
    if any(trial.state == "PRUNED" for trial in trials):
        place, ticks = _stepwise(0, max(trial.epoch for trial in trials))
        columns.append(("epochs", ticks, [place(trial.epoch) for trial in trials]))
    values = {trial.id: trial.value(sweep.metric) for trial in trials if trial.state != "FAILED"}
    place, ticks = _of_result(sweep.metric, [value for value in values.values() if value is not None])
    columns.append((sweep.metric.removeprefix("eval_"), ticks, [place(values.get(trial.id)) for trial in trials]))
    places = [[column[2][row] for column in columns] for row in range(len(trials))]
    ranked = len([trial for trial in trials if values.get(trial.id) is not None])
    lines = [
        Line(
            trial.id,
            told(trial, sweep),
            places[row],
            1 - row / max(ranked - 1, 1) if values.get(trial.id) is not None else None,
        )
        for row, trial in enumerate(trials)
    ]
    axes = [Axis(escape(name), [(at, escape(text)) for at, text in ticks]) for name, ticks, _ in columns]
    return Parallel(axes, lines[::-1], len(known) - len(trials))


def _of_key(key: str, domain: Domain | None, trials: Sequence[Trial]) -> Scale:
    """Return the scale of a key: that of its domain or, where that is not known, of the values that it had."""
    if domain is None:
        found = [trial.point[key] for trial in trials if key in trial.point]
        return _of_list([value for number, value in enumerate(found) if value not in found[:number]], most=0)
    if listed := domain.choice or domain.grid:
        return _of_list(listed)
    low, high = domain.ends.values()
    if domain.loguniform is not None:
        return _logarithmic(low, high)
    values = domain.values or []
    if 1 < len(values) <= _FEW_VALUES:
        place, _ = _linear(values[0], values[-1])  # a sampler's 0.30000000000000004 is 0.3
        return place, [(place(value) or 0.0, shown(value)) for value in values]
    return _stepwise(low, high) if domain.randint is not None else _linear(low, high)


def _of_list(values: Sequence[Any], most: int = _FEW_VALUES) -> Scale:
    """Return the scale of listed values: one by one or, where there are more numbers than that, from end to end."""
    if len(values) > most and all(isinstance(each, int | float) and not isinstance(each, bool) for each in values):
        return _linear(min(values), max(values))
    return _listed(values)


def _of_result(metric: str, values: Sequence[float]) -> Scale:
    if is_wide(metric, values):
        return _logarithmic(min(values), max(values))
    return _linear(min(values, default=0.0), max(values, default=1.0), write=decimal)


def is_wide(metric: str, values: Sequence[float]) -> bool:
    """Whether a metric is a loss of such different sizes that only a logarithmic scale tells them apart."""
    return "loss" in metric and min(values, default=0.0) > 0 and max(values) > _WIDE * min(values)


def _listed(values: Sequence[Any]) -> Scale:
    at = [number / (len(values) - 1) if len(values) > 1 else 0.5 for number in range(len(values))]

    def place_of(value: Any) -> float | None:
        place = place_in(values, value)
        return at[place] if place is not None else None

    return place_of, [(place, _short(shown(value))) for place, value in zip(at, values, strict=True)]


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _linear(low: float, high: float, write: Callable[[float], str] = shown) -> Scale:
    width = high - low

    def place(value: Any) -> float | None:
        return None if value is None else min(max((value - low) / width, 0.0), 1.0) if width else 0.5

    quarters = [0.0, 0.25, 0.5, 0.75, 1.0] if width else [0.5]
    return place, [(share, write(float(low + share * width))) for share in quarters]


def _stepwise(low: int, high: int) -> Scale:
    """Return the scale of whole numbers."""
    place, _ = _linear(low, high)
    step = max(1, math.ceil((high - low) / 5))
    return place, [(place(value) or 0.0, str(value)) for value in range(low, high + 1, step)]


def _logarithmic(low: float, high: float) -> Scale:
    place, _ = _linear(math.log10(low), math.log10(high))
    powers = [
        10.0**power for power in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    ]
    step = max(1, math.ceil(len(powers) / 7))
    ends = [low, high] if len(powers) < 2 else []
    marked = sorted({*powers[::step], *ends})
    return lambda value: place(math.log10(value)) if value is not None and value > 0 else None, [
        (place(math.log10(value)) or 0.0, f"{value:.3g}") for value in marked
    ]


def told(trial: Trial, sweep: Sweep) -> str:
    """Say a trial in lines, as HTML."""
    value = trial.value(sweep.metric)
    found = trial.state.lower() if value is None or trial.state == "FAILED" else decimal(value)
    pairs = [f"{sweep.names[key]} {shown(value)}" for key, value in trial.point.items()]
    return "<br>".join([f"<b>{trial.id}</b>  {found}", *(escape(pair, quote=False) for pair in pairs)])
