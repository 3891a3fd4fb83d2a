"""trainers/sharding.py: what is cut, and that training on the parts is training on the whole."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError
from torch import nn

from tests.harness import environment
from trainers.config import NOT_ON_SHARDS, OPTIMIZERS, Train
from trainers.models.cnn import CNN
from trainers.sharding import blocks


@pytest.fixture(scope="module")
def computed() -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.trainers.on_shards"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in NOT_ON_SHARDS])
def test_every_optimizer_steps_on_parts_as_on_the_whole(computed: dict[str, Any], name: str) -> None:
    sharded, whole = computed[name]
    assert sharded["losses"] == pytest.approx(whole["losses"], rel=1e-4)
    assert sharded["norms"] == pytest.approx(whole["norms"], rel=1e-3)
    assert whole["losses"][0] != pytest.approx(whole["losses"][-1], rel=1e-6), "it has learnt something"


def test_in_bf16_the_losses_are_those_of_autocast_on_whole_weights(computed: dict[str, Any]) -> None:
    sharded, whole = computed["bf16"]
    assert sharded["losses"] == pytest.approx(whole["losses"], rel=2e-3)


def test_each_of_two_ranks_holds_half(computed: dict[str, Any]) -> None:
    assert computed["held"] == pytest.approx(0.5, abs=0.01)


def test_a_gradient_that_overflows_on_one_rank_has_all_leave_the_step_out(computed: dict[str, Any]) -> None:
    assert computed["moved"] == [True, False]


def test_an_optimizer_that_does_not_work_on_parts_is_a_mistake_in_the_job_file() -> None:
    with pytest.raises(
        ValidationError, match=r"parallel: fsdp does not take the optimizer adafactor.*choose one of sgd, "
    ):
        Train.model_validate({"parallel": "fsdp", "optimizer": {"name": "adafactor"}})


class Transformer(nn.Module):
    """Repeated layers between an embedding and a head; each layer has a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 2)
        self.layers = nn.ModuleList(nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(2, 2)])}) for _ in range(3))
        self.head = nn.Linear(2, 4)


def test_the_repeated_layers_of_a_transformer_are_gathered_one_after_the_other() -> None:
    model = Transformer()
    assert list(blocks(model)) == list(model.layers)


def test_a_model_without_repeated_layers_is_gathered_by_the_modules_that_have_parameters() -> None:
    model = CNN(1, 10, 16)
    assert list(blocks(model)) == [model.conv1, model.conv2, model.conv3, model.dense, model.output]
