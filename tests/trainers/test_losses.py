"""trainers/losses.py: sums and counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cluster.errors import TrainingError
from trainers import losses
from trainers.config import Loss


def loss(name: str, output: Tensor, targets: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    return losses.build(Loss.model_validate({"name": name, **options}))(output, targets)


def mean(name: str, output: Tensor, targets: Tensor, **options: Any) -> Tensor:
    total, count = loss(name, output, targets, **options)
    return total / count


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LOGITS = numbers(6, 4)
CLASSES = torch.tensor([0, 3, 1, 1, 2, 0])
KINDS = [
    ("cross-entropy", (4,), torch.int64, ()),
    ("cross-entropy", (5, 4), torch.int64, (5,)),
    ("cross-entropy", (4,), torch.float32, (4,)),
    ("bce", (4,), torch.int64, ()),
    ("bce", (4,), torch.float32, (4,)),
    ("bce", (1,), torch.int64, ()),
    ("mse", (1,), torch.float32, ()),
    ("mae", (3,), torch.float32, (3,)),
    ("huber", (), torch.float32, ()),
]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_over_its_count_is_torchs_mean(smoothing: float) -> None:
    expected = F.cross_entropy(LOGITS, CLASSES, label_smoothing=smoothing)
    torch.testing.assert_close(mean("cross-entropy", LOGITS, CLASSES, label_smoothing=smoothing), expected)


def test_ignored_classes_are_neither_summed_nor_counted() -> None:
    some = CLASSES.clone()
    some[[1, 4]] = -100
    total, count = loss("cross-entropy", LOGITS, some, label_smoothing=0.1)
    assert count.item() == 4
    torch.testing.assert_close(total / count, F.cross_entropy(LOGITS, some, label_smoothing=0.1))


def test_every_position_of_a_sequence_is_a_target() -> None:
    logits = numbers(2, 3, 4)
    classes = torch.tensor([[0, 1, -100], [3, -100, -100]])
    total, count = loss("cross-entropy", logits, classes)
    assert count.item() == 3
    torch.testing.assert_close(total / count, F.cross_entropy(logits.transpose(1, 2), classes))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets_of_one_hot_are_class_indices(smoothing: float) -> None:
    soft = loss("cross-entropy", LOGITS, F.one_hot(CLASSES, 4).float(), label_smoothing=smoothing)
    hard = loss("cross-entropy", LOGITS, CLASSES, label_smoothing=smoothing)
    torch.testing.assert_close(soft, hard)


def test_binary_cross_entropy_adds_up_the_questions_of_a_sample_and_counts_samples() -> None:
    total, count = loss("bce", LOGITS, CLASSES)
    assert count.item() == 6
    expected = F.binary_cross_entropy_with_logits(LOGITS, F.one_hot(CLASSES, 4).float(), reduction="none")
    torch.testing.assert_close(total / count, expected.sum(1).mean())


def test_binary_cross_entropy_with_one_output_takes_indices_as_yes_and_no() -> None:
    logits = numbers(4, 1)
    answers = torch.tensor([0, 1, 1, 0])
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], answers.float())
    torch.testing.assert_close(mean("bce", logits, answers), expected)


def test_smoothing_moves_binary_targets_towards_a_half() -> None:
    smooth = loss("bce", LOGITS, CLASSES, label_smoothing=0.2)
    torch.testing.assert_close(smooth, loss("bce", LOGITS, F.one_hot(CLASSES, 4) * 0.8 + 0.1))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [("mse", {}, 4 + 0.25), ("mae", {}, 2 + 0.5), ("huber", {}, 1.5 + 0.125), ("huber", {"delta": 3.0}, 2 + 0.125)],
)
def test_regression_losses_sum_over_elements(name: str, options: dict[str, float], expected: float) -> None:
    total, count = loss(name, torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.5]]), **options)
    assert total.item() == pytest.approx(expected)
    assert count.item() == 2


def test_one_regression_output_meets_plain_targets() -> None:
    assert loss("mse", torch.zeros(3, 1), torch.ones(3))[0].item() == 3


@pytest.mark.parametrize(
    ("name", "output", "targets"),
    [
        ("mse", torch.zeros(3, 2), torch.zeros(3)),
        ("mse", torch.zeros(3), torch.zeros(3, 1)),
        ("bce", torch.zeros(3, 2), torch.zeros(3)),
        ("cross-entropy", torch.zeros(3, 5, 2), torch.zeros(3, dtype=torch.int64)),
        ("cross-entropy", torch.zeros(3, 2), torch.zeros(3, 4)),
    ],
)
def test_shapes_that_torch_would_broadcast_or_misread_are_refused(name: str, output: Tensor, targets: Tensor) -> None:
    with pytest.raises(TrainingError, match="the targets have shape"):
        loss(name, output, targets)


@pytest.mark.parametrize(("name", "output", "dtype", "targets"), KINDS)
def test_the_shares_of_a_batch_add_up_to_the_whole(
    name: str, output: tuple[int, ...], dtype: torch.dtype, targets: tuple[int, ...]
) -> None:
    outputs = numbers(7, *output)
    answers = (numbers(7, *targets, seed=1) > 0).to(dtype)
    whole = loss(name, outputs, answers)
    parts = [loss(name, outputs[share], answers[share]) for share in (slice(0, 5), slice(5, 5), slice(5, 7))]
    torch.testing.assert_close([sum(part) for part in zip(*parts, strict=True)], list(whole))


@pytest.mark.parametrize(("name", "output", "dtype", "targets"), KINDS)
def test_an_empty_batch_gives_a_zero_whose_gradients_are_zero(
    name: str, output: tuple[int, ...], dtype: torch.dtype, targets: tuple[int, ...]
) -> None:
    model = nn.Linear(2, output[-1] if output else 1)
    outputs = model(torch.zeros(0, *output[:-1], 2)).reshape(0, *output)
    options = {"label_smoothing": 0.1} if name in ("cross-entropy", "bce") else {}
    total, count = loss(name, outputs, torch.zeros(0, *targets, dtype=dtype), **options)
    total.backward()
    assert (total.item(), count.item()) == (0, 0)
    assert [parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters()] == [True, True]


@pytest.mark.parametrize(("name", "output", "dtype", "targets"), KINDS)
def test_sum_and_count_have_no_dimensions_and_keep_their_precision(
    name: str, output: tuple[int, ...], dtype: torch.dtype, targets: tuple[int, ...]
) -> None:
    total, count = loss(name, numbers(3, *output).bfloat16(), torch.zeros(3, *targets, dtype=dtype))
    assert (total.shape, total.dtype, count.shape, count.dtype) == ((), torch.float32, (), torch.int64)
