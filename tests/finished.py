"""Runs that are over: one written by hand, one really trained."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.attempts import Attempt
from cluster.records import Result
from cluster.runs import Run
from cluster.segments import SegmentWriter
from cluster.storage.open import open_storage
from tests.harness import environment

DIGITS = """\
name: digits
task: image-classification
data: {train: builtin:digits, eval: {split: 0.2}}
train: {epochs: 1, batch_size: 64, seed: 3, optimizer: {name: adam, lr: 2e-3}}
"""
META = {"train": 8, "eval": 4, "classes": ["cat", "dog"], "image": [8, 8, 1], "mean": [0.3], "std": [0.4]}


def new_run(folder: Path, run_id: str = "story", job: str = DIGITS) -> Run:
    """Create a run that has not begun."""
    run = Run(open_storage(str(folder)), run_id)
    run.create(job.encode())
    return run


def claim(run: Run, *, at: float) -> Attempt:
    """Claim an attempt, by a clock that says `at`."""
    attempt = run.claim()
    path = run.path(f"attempts/{attempt.number:06d}/claim.json")
    run.storage.write(path, json.dumps({**json.loads(run.storage.read(path)), "at": at}).encode())
    return Attempt.reopen(run, attempt.number)


def write_rows(attempt: Attempt, stream: str, rows: Sequence[Mapping[str, Any]], by: str = "rank-0") -> None:
    """Write rows as rank 0 does, once a writer; a row's own time counts."""
    writer = SegmentWriter(attempt.run, attempt.number, stream, by)
    for row in rows:
        writer.append(row)
    writer.close()


def training(first: int, last: int, *, begin: float, per_epoch: int = 4) -> list[dict[str, Any]]:
    """Return the metrics of the steps after `first` up to `last`, a tenth of a second each."""
    rows: list[dict[str, Any]] = []
    for step in range(first + 1, last + 1):
        at = begin + (step - first) * 0.1
        epoch = (step - 1) // per_epoch + 1
        row = {"time": at, "kind": "step", "step": step, "epoch": epoch, "loss": 2 / step}
        rows.append({**row, "lr": 0.001, "grad_norm": 1 / step, "samples_per_s": 640.0})
        if step % per_epoch == 0:
            measured = {"seconds": 0.02, "eval_loss": 2.5 / step, "eval_accuracy": 1 - 1 / step}
            rows.append({"time": at, "kind": "eval", "step": step, "epoch": epoch, **measured})
            rows.append({"time": at, "kind": "epoch", "step": step, "epoch": epoch, "train_loss": 2.2 / step})
    return rows


def started(step: int, *, at: float, last_step: int = 12) -> dict[str, Any]:
    """Return the event that training began."""
    row = {"time": at, "event": "training", "step": step, "last_step": last_step, "steps_per_epoch": 4}
    return {**row, "world_size": 2, "device": "cpu", "parameters": 1234}


def save(attempt: Attempt, step: int, files: Sequence[Path], metrics: Mapping[str, float] | None = None) -> None:
    """Commit a checkpoint, and say so as rank 0 does."""
    checkpoint = attempt.commit(step, files, {"metrics": dict(metrics or {}), "torch": "2.13.0"})
    row = {"event": "checkpoint", "step": step, "bytes": checkpoint.size, "seconds": 0.2, "blocked": 0.01}
    write_rows(attempt, "events", [row], by=f"saver-{step}")


def write_story(folder: Path) -> Run:
    """Write a run that lost a rank at step 10, went on from step 8 and ended well at step 12."""
    run = new_run(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(b"weights")
    now = float(int(time.time()))
    first = claim(run, at=now)
    events = [
        {"time": now, "event": "claimed", "base": None},
        {"time": now, "event": "data.ready", **META, "seconds": 0.5},
        {"time": now + 0.1, "event": "cluster", "ranks": 2, "gpus": False, "seconds": 1.0},
        started(0, at=now + 0.2),
        {"time": now + 2, "event": "recovering", "reason": "rank 1 died"},
    ]
    write_rows(first, "events", events)
    write_rows(first, "metrics", training(0, 10, begin=now + 0.2))
    first.commit(8, [weights], {"metrics": {"eval_loss": 0.31, "eval_accuracy": 0.87}, "torch": "2.13.0"})
    second = claim(run, at=now + 2.5)
    write_rows(
        second,
        "events",
        [started(8, at=now + 3), {"time": now + 4, "event": "finished", "state": "SUCCEEDED", "message": ""}],
    )
    write_rows(second, "metrics", training(8, 12, begin=now + 3))
    second.commit(12, [weights], {"metrics": {"eval_loss": 0.2, "eval_accuracy": 0.92}, "torch": "2.13.0"})
    second.finish(Result(state="SUCCEEDED", step=12, metrics={"eval_accuracy": 0.92}, at=now + 5))
    return run


def train(folder: Path, job: str = DIGITS, run_id: str = "digits", *, ranks: int = 1, timeout: float = 240) -> Run:
    """Really train a run, without Ray."""
    run = new_run(folder, run_id, job)
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, "-P", *launcher, "-m", "trainers.worker", run.uri]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    return run
