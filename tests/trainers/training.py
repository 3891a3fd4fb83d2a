"""Real training on a few digits in this process: one rank, no Ray."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from cluster.attempts import Attempt
from cluster.runs import Run
from tests.finished import new_run
from tests.harness import environment
from tests.trainers.pictures import digits, write_idx
from trainers.context import LocalContext, WorkerContext
from trainers.jobs import load_job
from trainers.loop import Outcome
from trainers.tasks.base import Prepared
from trainers.tasks.registry import prepare
from trainers.worker import Elastic, run_rank

Change = dict[str, dict[str, Any]]  # keys of a job file's blocks
# 200 digits, 160 of them to train on: four steps an epoch, the last one of 13 samples
BLOCKS: Change = {
    "model": {"name": "cnn"},
    "data": {"eval": {"split": 0.2}},
    "train": {
        "epochs": 3,
        "batch_size": 49,
        "optimizer": {"name": "adamw", "lr": 2e-3},
        "precision": "fp32",  # what auto means depends on the machine; and sums of another order are nearly the same
        "seed": 5,
    },
    "checkpoint": {"every": "1 step", "keep": 100},
}
STEPS_PER_EPOCH = 4
# everything that draws random numbers or keeps a state
EVERYTHING: Change = {
    "model": {"dropout": 0.3},
    "data": {"augment": {"rotate": 10, "translate": 0.1, "noise": 0.05, "mixup": 0.3}},
    "train": {
        "schedule": {"name": "cosine", "warmup": 0.2},
        "early_stopping": {"metric": "eval_accuracy", "patience": 50},
        "clip_norm": 1.0,
        "micro_batch_size": 20,
        "eval_every": "3 steps",
    },
}


def start(folder: Path, *changes: Change, run_id: str = "digits") -> Run:
    """Create the run of a small job, with what each of `changes` replaces in its blocks."""
    images = write_idx(folder / "data", "train", *digits(200))
    blocks = {name: dict(block) for name, block in BLOCKS.items()}
    blocks["data"]["train"] = str(images)
    for change in changes:
        for name, block in change.items():
            blocks[name].update(block)
    stream = io.StringIO()
    YAML(typ="safe", pure=True).dump({"task": "image-classification", **blocks}, stream)
    return new_run(folder, run_id, stream.getvalue())


def train(
    run: Run, elastic: Elastic | None = None, context: WorkerContext | None = None, *, attempt: Attempt | None = None
) -> Outcome:
    """Run one attempt to its end, a new one unless given, from the newest checkpoint on."""
    job, _ = load_job(run)
    prepared = _prepared(run.uri, run.job())
    return run_rank(context or LocalContext(), attempt or run.claim(), job, prepared, elastic)


@cache
def _prepared(uri: str, _job: bytes) -> Prepared:
    return prepare(load_job(Run.at(uri))[0])


def cut_off(run: Run, step: int, folder: Path) -> Run:
    """Return a copy of a run as if it had been killed just after the checkpoint of a step."""
    shutil.copytree(run.uri, folder / run.id)
    copy = Run.at(str(folder / run.id))
    copy.storage.delete(copy.path("attempts/000001/result.json"))
    for checkpoint in copy.checkpoints():
        if checkpoint.step > step:
            copy.storage.delete(copy.path(f"{checkpoint.folder}/manifest.json"))
    return copy


def steps_of(run: Run, kind: str = "step") -> list[int]:
    return [row["step"] for row in run.rows("metrics") if row["kind"] == kind]


def events(run: Run, name: str) -> list[dict[str, Any]]:
    return [row for row in run.rows("events") if row["event"] == name]


def train_ranks(run: Run, ranks: int) -> None:
    """Run one attempt to its end on so many processes of torchrun."""
    done = subprocess.run(of_torchrun(run, ranks), capture_output=True, text=True, timeout=280, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]


def of_torchrun(run: Run, ranks: int, module: str = "trainers.worker") -> list[str]:
    """Return the command that runs one attempt on so many ranks."""
    launcher = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [*launcher, "-m", module, run.uri]


def numbers(run: Run, kind: str) -> list[dict[str, Any]]:
    """Return what training computed, of the rows of a kind."""
    keys = ("loss", "lr", "grad_norm", "train_loss", "eval_loss", "eval_accuracy", "eval_f1")
    found = [row for row in run.rows("metrics") if row["kind"] == kind]
    return [{key: row[key] for key in ("step", "epoch", *keys) if key in row} for row in found]


def assert_alike(run: Run, other: Run, kind: str) -> None:
    """Fail where two runs differ by more than sums that were taken in another order."""
    ours, theirs = numbers(run, kind), numbers(other, kind)
    assert ours
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        assert one == pytest.approx(two, rel=2e-4, abs=2e-5)
