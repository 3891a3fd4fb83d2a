"""trainers/optim.py: optimizers, schedules, clipping."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cluster.errors import TrainingError
from trainers.config import OPTIMIZERS, Optimizer, Schedule
from trainers.optim import Schedule as AppliedSchedule
from trainers.optim import build_optimizer, clip_and_scale

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # as a rank; more of them wait for each other where the machine is busy


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)
    )


def loss_of(model: nn.Module) -> Tensor:
    classes = torch.arange(12) % 3
    images = torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    images[torch.arange(12), 0, classes] += 2.0  # a bright row tells the class
    return nn.functional.cross_entropy(model(images), classes)


def built(name: str, model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return build_optimizer(model, Optimizer.model_validate({"name": name, **options}))


@every_optimizer
def test_every_optimizer_lowers_the_loss(name: str) -> None:
    model = network()
    optimizer = built(name, model)
    before = loss_of(model).item()
    for _ in range(25):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    assert loss_of(model).item() < before


@every_optimizer
def test_the_default_learning_rate_is_the_one_that_the_job_files_reference_names(name: str) -> None:
    description = Optimizer.model_fields["lr"].description or ""
    sides = {
        word: part.split()[0] for part in description.removeprefix("default: ").split(", ") for word in part.split()
    }
    assert built(name, network()).param_groups[0]["lr"] == float(sides.get(name, sides["others"]))


@every_optimizer
def test_weight_decay_shrinks_matrices_and_kernels_and_leaves_norms_and_biases(name: str) -> None:
    model = network()
    optimizer = built(name, model, weight_decay=0.1)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])}
    assert changed == {"0.weight", "4.weight", "6.weight"}


@every_optimizer
def test_frozen_parameters_are_left_out(name: str) -> None:
    model = network()
    model[0].requires_grad_(False)
    names = [key for group in built(name, model).param_groups for key in group["param_names"]]
    assert sorted(names) == ["1.bias", "1.weight", "4.bias", "4.weight", "6.bias", "6.weight"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": True, "lr": 0.5}),
        ("adam", {"betas": (0.8, 0.99), "eps": 1e-6}),
        ("rmsprop", {"momentum": 0.5}),
        ("adagrad", {"eps": 1e-3}),
        ("muon", {"momentum": 0.9, "nesterov": False}),
    ],
)
def test_options_reach_the_optimizer(name: str, options: dict[str, Any]) -> None:
    group = built(name, network(), **options).param_groups[0]
    assert {key: group[key] for key in options} == options


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(TrainingError, match="no trainable parameters"):
        built("adam", network().requires_grad_(False))


def schedule(total: int = 100, **options: Any) -> AppliedSchedule:
    return AppliedSchedule(Schedule.model_validate(options), total)


def test_a_constant_schedule_never_moves() -> None:
    assert {schedule(name="constant").factor(step) for step in range(200)} == {1.0}


def test_a_linear_schedule_falls_in_equal_steps_to_its_final_share() -> None:
    line = schedule(name="linear", final=0.2)
    assert [line.factor(step) for step in (0, 50, 100)] == pytest.approx([1.0, 0.6, 0.2])


def test_a_cosine_schedule_is_that_of_torch() -> None:
    ours = schedule(name="cosine", final=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=0.2)
    for step in range(100):
        assert 2.0 * ours.factor(step) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_warm_up_rises_in_equal_steps_and_already_learns_in_the_first() -> None:
    rising = schedule(name="cosine", warmup=4)
    assert [rising.factor(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_warm_up_below_one_is_a_share_of_the_run() -> None:
    assert [schedule(name="linear", warmup=share).warmup_steps for share in (0.05, 0.5, 0)] == [5, 50, 0]


@given(
    st.sampled_from(["constant", "linear", "cosine"]),
    st.one_of(st.floats(0, 0.99), st.integers(1, 300).map(float)),
    st.floats(0, 1),
    st.integers(1, 200),
    st.integers(0, 400),
)
def test_every_factor_lies_between_zero_and_one(name: str, warmup: float, final: float, total: int, step: int) -> None:
    assert 0 <= schedule(total, name=name, warmup=warmup, final=final).factor(step) <= 1 + 1e-12


def test_a_schedule_sets_every_group_from_its_own_base_rate_whatever_was_set_before() -> None:
    optimizer = built("muon", network(), lr=0.02)
    line = schedule(name="linear")
    for step in (90, 10, 50):
        line.apply(optimizer, step)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.00015, 0.00015])


def gradients(*rows: list[float]) -> list[Tensor]:
    parameters = [torch.zeros(len(row), requires_grad=True) for row in rows]
    for parameter, row in zip(parameters, rows, strict=True):
        parameter.grad = torch.tensor(row)
    return parameters


def test_gradients_above_the_norm_are_scaled_and_then_shrunk_to_it() -> None:
    parameters = gradients([3.0, 0.0], [4.0])
    norm = clip_and_scale(parameters, 2.0, 1.0)
    assert norm.item() == 10
    assert [parameter.grad.tolist() for parameter in parameters if parameter.grad is not None] == [
        pytest.approx([0.6, 0.0]),
        pytest.approx([0.8]),
    ]


@pytest.mark.parametrize("clip_norm", [None, 11.0])
def test_gradients_below_the_norm_are_scaled_alone(clip_norm: float | None) -> None:
    parameters = gradients([3.0, 0.0], [4.0])
    assert clip_and_scale(parameters, torch.tensor(2.0), clip_norm).item() == 10
    assert [parameter.grad.tolist() for parameter in parameters if parameter.grad is not None] == [[6.0, 0.0], [8.0]]


def test_clipping_agrees_with_torch() -> None:
    torch.manual_seed(1)
    ours, theirs = network(), network()
    loss_of(ours).backward()
    loss_of(theirs).backward()
    norm = clip_and_scale(ours.parameters(), 1.0, 0.1)
    assert torch.equal(norm, nn.utils.clip_grad_norm_(theirs.parameters(), 0.1))
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


def test_the_norm_of_no_gradients_is_zero() -> None:
    assert clip_and_scale([torch.zeros(1, requires_grad=True)], 1.0, 1.0).item() == 0


def test_a_gradient_that_is_not_finite_shows_in_the_norm() -> None:
    assert math.isnan(clip_and_scale(gradients([1.0, math.nan]), 1.0, 1.0).item())
