"""Rows of a sweep's events, as its driver writes them."""

from __future__ import annotations

from typing import Any

HEAD = {"event": "sweep", "time": 0.5, "trials": 8, "metric": "eval_accuracy", "mode": "max"}


def begun(number: int, at: float = 1.0) -> dict[str, Any]:
    row = {"event": "trial", "time": at, "trial": f"{number:05d}", "number": number}
    return {**row, "point": {"train.optimizer.lr": number / 10}}


def evaluated(number: int, iteration: int, value: float) -> dict[str, Any]:
    row = {"event": "trial.result", "time": 2.0, "trial": f"{number:05d}", "iteration": iteration}
    return {**row, "step": 10 * iteration, "epoch": iteration, "metrics": {"eval_accuracy": value}}


def ended(number: int, state: str, at: float = 3.0) -> dict[str, Any]:
    return {"event": "trial.ended", "time": at, "trial": f"{number:05d}", "state": state, "message": ""}


STORY = [
    HEAD,
    *(begun(number) for number in range(4)),
    evaluated(0, 1, 0.7),
    evaluated(1, 1, 0.8),
    evaluated(1, 2, 0.9),
    ended(1, "SUCCEEDED"),
    ended(0, "PRUNED"),
    {**ended(2, "FAILED"), "message": "training diverged: the loss is nan at step 3"},
]
