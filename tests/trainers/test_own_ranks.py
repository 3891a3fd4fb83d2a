"""Trainings of a task of the user's own that draws wherever it likes, and whose model keeps statistics."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.bundles import WORKDIR, bundle_of
from cluster.runs import Run
from tests.finished import new_run
from tests.harness import losses
from tests.trainers.training import cut_off, numbers, train, train_ranks
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
        inputs = torch.randn(72, 2) * torch.linspace(1, 9, 72)[:, None]
        data = TensorDataset(inputs, inputs.sum(dim=1))
        return data, data

    def loss(self, model, batch):
        drawn = random.random() + np.random.rand() + torch.rand(len(batch["inputs"]), 1)
        output = model(batch["inputs"] + self.noise * drawn).squeeze(1)
        return ((output - batch["targets"]) ** 2).sum(), len(output)
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


def own_run(folder: Path, noise: float) -> Run:
    run = new_run(folder, "own", JOB.replace("NOISE", str(noise)))
    made = bundle_of([("own_of_ranks.py", TASK.encode())], run.id, prefix=WORKDIR)
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
    drawn = {row["eval_loss"] for row in numbers(run, "eval")[-2:]}
    assert len(drawn) == 2


@pytest.mark.usefixtures("one_thread")
def test_two_ranks_evaluate_by_the_statistics_that_the_checkpoint_has(tmp_path: Path) -> None:
    run = own_run(tmp_path, noise=0.0)
    train_ranks(run, 2)
    found = evaluate(load_saved(run.uri))
    assert numbers(run, "eval")[-1]["eval_loss"] == pytest.approx(found.metrics["loss"], rel=1e-6)
