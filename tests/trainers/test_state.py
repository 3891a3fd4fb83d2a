"""trainers/state.py: an optimizer that is saved and loaded goes on as if nothing had happened."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cluster.errors import CorruptObjectError, TrainingError
from trainers.config import OPTIMIZERS, Optimizer
from trainers.config import Schedule as ScheduleConfig
from trainers.optim import Schedule, build_optimizer
from trainers.state import empty_state, flatten, load_optimizer, metadata_of
from trainers.tensor_file import tensor_file

SCHEDULE = Schedule(ScheduleConfig(name="cosine", warmup=2), 10)
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # as a rank; more of them wait for each other where the machine is busy


def network(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 3)
    )


def build(model: nn.Module, name: str) -> torch.optim.Optimizer:
    momentum = 0.9 if name in ("sgd", "rmsprop") else None
    return build_optimizer(model, Optimizer.model_validate({"name": name, "weight_decay": 0.01, "momentum": momentum}))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    dtype = next(model.parameters()).dtype
    for step in steps:
        images = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(step)).to(dtype)
        SCHEDULE.apply(optimizer, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.arange(5) % 3).backward()
        optimizer.step()


@every_optimizer
def test_what_an_optimizer_holds_is_forgotten_before_a_saved_state_takes_its_place(name: str) -> None:
    model = network()
    optimizer = build(model, name)
    train(model, optimizer, range(2))
    tensors, rest = flatten(optimizer)
    saved = {key: (value.dtype, value.shape) for key, value in tensors.items()}
    with pytest.raises(TrainingError):
        empty_state(optimizer, saved, {**rest, "layout": {**rest["layout"], "optimizer": "another"}})
    assert len(optimizer.state)
    empty_state(optimizer, saved, rest)
    assert not len(optimizer.state)


def write(tensors: dict[str, Tensor], rest: dict[str, Any], path: Path) -> None:
    path.write_bytes(b"".join(tensor_file(tensors, metadata_of(rest)).pieces()))


def save_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    write(*flatten(optimizer), path)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {**model.state_dict(), **flatten(optimizer)[0]}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


def assert_resumes_exactly(model: nn.Module, name: str, path: Path) -> None:
    optimizer = build(model, name)
    train(model, optimizer, range(3))
    save_optimizer(optimizer, path)
    resumed = copy.deepcopy(model)
    own = build(resumed, name)
    load_optimizer(own, path)
    assert_same(everything(model, optimizer), everything(resumed, own))
    train(model, optimizer, range(3, 7))
    train(resumed, own, range(3, 7))
    assert_same(everything(model, optimizer), everything(resumed, own))
    assert own.param_groups[0].keys() == optimizer.param_groups[0].keys()


@every_optimizer
def test_a_resumed_optimizer_takes_the_same_steps_to_the_bit(name: str, tmp_path: Path) -> None:
    assert_resumes_exactly(network(), name, tmp_path / "optimizer.safetensors")


@every_optimizer
def test_it_does_so_for_weights_in_channels_last_too(name: str, tmp_path: Path) -> None:
    model = network()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotations lack it
    assert_resumes_exactly(model, name, tmp_path / "optimizer.safetensors")


@pytest.mark.parametrize("name", ["sgd", "adamw", "nadam", "radam", "muon"])
def test_it_does_so_for_weights_in_bfloat16_too(name: str, tmp_path: Path) -> None:
    assert_resumes_exactly(network().bfloat16(), name, tmp_path / "optimizer.safetensors")


def test_tensors_are_named_after_their_parameters(tmp_path: Path) -> None:
    model = network()
    optimizer = build(model, "adam")
    train(model, optimizer, range(1))
    save_optimizer(optimizer, tmp_path / "optimizer.safetensors")
    tensors = load_file(tmp_path / "optimizer.safetensors")
    assert tensors["state.4.weight.exp_avg"].shape == (8, 64)
    assert tensors["state.4.weight.step"].shape == ()
    assert len(tensors) == 3 * len(list(model.parameters()))


def test_an_optimizer_without_names_is_saved_by_number(tmp_path: Path) -> None:
    weights = [torch.ones(2, requires_grad=True) for _ in range(2)]
    optimizers = [torch.optim.Adam([weight]) for weight in weights]
    weights[0].sum().backward()
    optimizers[0].step()
    save_optimizer(optimizers[0], tmp_path / "optimizer.safetensors")
    load_optimizer(optimizers[1], tmp_path / "optimizer.safetensors")
    assert_same(flatten(optimizers[0])[0], flatten(optimizers[1])[0])


def test_a_copy_of_the_state_can_be_written_while_training_goes_on(tmp_path: Path) -> None:
    model = network()
    optimizer = build(model, "adam")
    train(model, optimizer, range(2))
    tensors, rest = flatten(optimizer)
    copied = {name: tensor.clone() for name, tensor in tensors.items()}
    before = {name: tensor.clone() for name, tensor in copied.items()}
    train(model, optimizer, range(2, 4))
    write(copied, rest, tmp_path / "optimizer.safetensors")
    load_optimizer(optimizer, tmp_path / "optimizer.safetensors")
    assert_same(flatten(optimizer)[0], before)


def saved(path: Path, name: str = "adam", width: int = 8) -> Path:
    model = network(width)
    optimizer = build(model, name)
    train(model, optimizer, range(1))
    save_optimizer(optimizer, path / "optimizer.safetensors")
    return path / "optimizer.safetensors"


def test_the_state_of_another_optimizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="it is of SGD, this job's optimizer is Adam"):
        load_optimizer(build(network(), "adam"), saved(tmp_path, "sgd"))


def test_a_parameter_of_another_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"4\.weight is \[9, 64\] there and \[8, 64\] in this model"):
        load_optimizer(build(network(), "adam"), saved(tmp_path, width=9))


def test_a_parameter_that_is_missing_is_named(tmp_path: Path) -> None:
    model = network().append(nn.Linear(3, 3))
    with pytest.raises(TrainingError, match=r"6\.weight is missing there"):
        load_optimizer(build(model, "adam"), saved(tmp_path))


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_damaged_file_is_refused_and_the_optimizer_stays_as_it_was(keep: int, tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    model = network()
    optimizer = build(model, "adam")
    train(model, optimizer, range(2))
    before = copy.deepcopy(flatten(optimizer)[0])
    with pytest.raises(CorruptObjectError, match="holds no optimizer state"):
        load_optimizer(optimizer, path)
    assert_same(flatten(optimizer)[0], before)
