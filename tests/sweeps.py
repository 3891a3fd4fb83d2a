"""Sweeps that nobody trained: rows of their events, as a driver writes them."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from cluster.attempts import Attempt
from cluster.runs import Run
from cluster.segments import SegmentWriter
from cluster.trials import Evaluation, Trial, trial_id
from launcher.spec import load, load_frozen
from launcher.submit import prepare
from tests.finished import new_run
from trainers.sweep.record import Record
from trainers.sweep.search import Random

HEAD = {"event": "sweep", "time": 0.5, "trials": 8, "metric": "eval_accuracy", "mode": "max"}


def begun(number: int, at: float = 1.0) -> dict[str, Any]:
    row = {"event": "trial", "time": at, "trial": f"{number:05d}", "number": number}
    return {**row, "point": {"train.optimizer.lr": number / 10}}


def evaluated(number: int, iteration: int, value: float, at: float = 2.0) -> dict[str, Any]:
    row = {"event": "trial.result", "time": at, "trial": f"{number:05d}", "iteration": iteration}
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


SEARCHED = """\
name: searched
task: image-classification
data: {train: builtin:digits, eval: {split: 0.2}}
train: {epochs: 9, batch_size: 64, seed: 3}
tune:
  trials: 400
  search: random
  space:
    train.optimizer.name: [adamw, sgd, muon]
    train.optimizer.lr: {loguniform: [1e-4, 1e-1]}
    train.optimizer.momentum: {uniform: [0.8, 0.99], when: {train.optimizer.name: sgd}}
    train.batch_size: {randint: [16, 129]}
    train.schedule: [constant, {name: cosine, warmup: 0.1}]
    model.dropout: {quniform: [0, 0.5, 0.1]}
    data.augment.flip: [true, false]
"""


def searched(
    folder: Path, count: int, job: str = SEARCHED, *, metric: str = "eval_accuracy", each: bool = False
) -> tuple[Run, Attempt]:
    """Write a sweep whose learning rate decides, with a good value near 0.01 and, above 0.06, none at all.

    Of its trials some were ended early, two run and one was stopped. With `each` one is in storage before it trains, as
    those of a driver are.
    """
    folder.mkdir(exist_ok=True)
    file = folder / "searched.yaml"
    file.write_text(job, encoding="utf-8")
    loaded = load(file, storage=str(folder))
    run = new_run(folder, f"searched-{count}", prepare(loaded).document.decode())
    attempt = run.claim()
    events = SegmentWriter(run, attempt.number, "events", "driver")
    tune = load_frozen(run.job()).tune
    assert tune is not None
    events.append(
        {"event": "sweep", "trials": tune.tried, "metric": metric, "mode": "max" if "acc" in metric else "min"}
    )
    record, search = Record(run, events, metric, tune.scheduler), Random(tune)
    for number in range(count):
        trial = record.begun(trial_id(number), number, search.ask(number))
        if each:
            record.flush()
        _train(trial, record, running=number >= count - 2, stopped=number == count - 3)
    events.close()
    return run, attempt


def _train(trial: Trial, record: Record, *, running: bool, stopped: bool) -> None:
    generator = random.Random(trial.number)
    lr = trial.point["train.optimizer.lr"]
    best = 0.99 - 0.1 * (math.log10(lr) + 2) ** 2 - 0.02 * generator.random()
    last = 9 if best > 0.94 else 3 if best > 0.85 else 1
    for epoch in range(1, 3 if running or stopped else last + 1):
        if lr > 0.06 and epoch == 2:
            record.ended(trial, "FAILED", "training diverged: the loss is nan at step 30")
            return
        accuracy = best - 0.4 * math.exp(-epoch) + 0.01 * generator.random()
        metrics = {"eval_accuracy": accuracy, "eval_f1": accuracy, "eval_loss": 10 ** (4 * (1 - accuracy)) / 50}
        record.evaluated(trial, Evaluation(epoch, 23 * epoch, epoch, metrics))
    if stopped:
        record.ended(trial, "STOPPED", "stopped from the keyboard")
    elif not running:
        ended_early = f"ended by asha after epoch {last}"
        record.ended(trial, "SUCCEEDED" if last == 9 else "PRUNED", "" if last == 9 else ended_early)


def elsewhere(attempt: Attempt) -> None:
    """Have an attempt run on another machine, as far as anybody here can tell."""
    path = attempt.run.path(f"attempts/{attempt.number:06d}/claim.json")
    claim = json.loads(attempt.run.storage.read(path))
    attempt.run.storage.write(path, json.dumps({**claim, "host": "another-machine"}).encode())
