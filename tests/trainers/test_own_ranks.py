"""Trainings of a task of the user's own that draws wherever it likes, keeps statistics, compiles, or takes its time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.bundles import WORKDIR, bundle_of
from cluster.runs import Run
from tests.finished import new_run
from tests.harness import environment, losses
from tests.trainers.training import cut_off, numbers, of_torchrun, train, train_ranks
from trainers import user_code
from trainers.evaluate import evaluate
from trainers.saved import load_saved

TASK = """
import random
import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

class Mine:
    def __init__(self, params):
        self.noise = params["noise"]

    def build_model(self):
        return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def datasets(self):
        inputs = torch.randn(76, 2) * torch.linspace(1, 9, 76)[:, None]
        data = TensorDataset(inputs, inputs.sum(dim=1))
        return data, data

    def loss(self, model, batch):
        drawn = random.random() + np.random.rand() + torch.rand(len(batch["inputs"]), 1)
        output = model(batch["inputs"] + self.noise * drawn).squeeze(1)
        return ((output - batch["targets"]) ** 2).sum(), len(output)
"""
SLOW = """
import ctypes
import time

class Hangs(Mine):
    calls = 0

    def loss(self, model, batch):
        self.calls += model.training
        if self.calls == 20:
            time.sleep(1000)
        return super().loss(model, batch)

class Compiles(Mine):
    def build_model(self):
        return torch.compile(super().build_model(), backend=self.compile, dynamic=False)

    def compile(self, graph, _):
        time.sleep(12 * (torch.distributed.get_rank() == 0))  # where a batch has another size, or nothing is trained
        return graph

class Keeps(Mine):
    calls = 0

    def loss(self, model, batch):
        self.calls += model.training
        keep_the_lock = ctypes.PyDLL(None).sleep  # unlike CDLL, with the interpreter's
        keep_the_lock({5: 6, 7: 10, 10: 10}.get(self.calls, 0))  # in the third step, and later ones
        return super().loss(model, batch)
"""
JOB = """
task: own_of_ranks:Mine
params: {noise: NOISE}
train: {epochs: 3, batch_size: 16, micro_batch_size: 5, optimizer: {name: sgd, lr: 1e-3}, eval_every: 1 step}
checkpoint: {every: 1 step, keep: 100}
"""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Forget what was imported of the code of a run."""
    before = list(sys.path)
    yield
    sys.path[:] = before
    user_code._loaded.clear()
    sys.modules.pop("own_of_ranks", None)


def own_run(folder: Path, noise: float, what: str = "Mine") -> Run:
    run = new_run(folder, "own", JOB.replace("NOISE", str(noise)).replace("Mine", what))
    made = bundle_of([("own_of_ranks.py", f"{TASK}{SLOW}".encode())], run.id, prefix=WORKDIR)
    run.storage.write(made.path, made.data)
    return run


@pytest.mark.usefixtures("one_thread")
def test_what_a_loss_draws_from_any_generator_is_the_same_after_a_resume(tmp_path: Path) -> None:
    run = own_run(tmp_path, noise=0.5)
    train(run)
    resumed = cut_off(run, 4, tmp_path / "resumed")
    train(resumed)
    assert losses(resumed) == losses(run)
    assert numbers(resumed, "eval") == numbers(run, "eval")


@pytest.mark.usefixtures("one_thread")
def test_two_ranks_evaluate_by_the_statistics_that_the_checkpoint_has(tmp_path: Path) -> None:
    run = own_run(tmp_path, noise=0.0)
    train_ranks(run, 2)
    found = evaluate(load_saved(run.uri))
    assert numbers(run, "eval")[-1]["eval_loss"] == pytest.approx(found.metrics["loss"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["Hangs", "Compiles", "Keeps"])
def test_a_watchdog_leaves_a_rank_alone_that_compiles_at_a_late_step_or_keeps_the_interpreter_for_long(
    tmp_path: Path, what: str
) -> None:
    run = own_run(tmp_path, 0.0, what)
    command = of_torchrun(run, 2, "tests.trainers.watched")
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment())
    if what == "Hangs":
        assert "it hung: computing for " in done.stderr, done.stderr[-3000:]
    else:
        assert done.returncode == 0, done.stderr[-3000:]
        assert "is ended" not in done.stderr
