"""Losses as sums and counts: ranks add up both, so that an average never depends on how samples were shared."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cluster.errors import TrainingError
from trainers.config import Loss

LossFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
IGNORED = -100  # a target that is not counted, as in torch and transformers


def build(config: Loss) -> LossFunction:
    """Return `loss(output, targets) -> (sum over targets, number of targets)`, both 0-dimensional.

    The sum is at least float32 whatever the precision of the output, and the number int64. With no samples at all
    the sum is a zero that still belongs to the graph: a rank with nothing to do can join the backward pass.
    """
    smoothing = config.label_smoothing or 0.0
    losses: dict[str, LossFunction] = {
        "cross-entropy": partial(cross_entropy, label_smoothing=smoothing),
        "bce": partial(binary_cross_entropy, label_smoothing=smoothing),
        "mse": partial(elementwise, F.mse_loss),
        "mae": partial(elementwise, F.l1_loss),
        "huber": partial(elementwise, partial(F.huber_loss, delta=config.delta or 1.0)),
    }
    return losses[config.name]


def cross_entropy(output: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cross-entropy of logits [..., K] with class indices [...], of which -100 is left out, or probabilities [..., K].

    Smoothing mixes a target with the uniform distribution over the K classes (Szegedy et al. 2016).
    """
    logits = _full_precision(output)
    if targets.is_floating_point():
        _check_shapes(output.shape, targets.shape)
        loss = F.cross_entropy(
            logits.flatten(0, -2), targets.flatten(0, -2), reduction="sum", label_smoothing=label_smoothing
        )
        return loss, _count(targets[..., 0])
    _check_shapes(output.shape[:-1], targets.shape)
    loss = F.cross_entropy(
        logits.flatten(0, -2),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return loss, (targets != IGNORED).sum()


def binary_cross_entropy(output: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of logits [N, K] with class indices [N], or with K yes-or-no targets each [N, K].

    Every class is a question of its own. A sample's loss is the sum over its K questions, and the number of targets
    is N. With K = 1, indices are the yes-or-no targets. Smoothing moves targets towards 1/2, as Keras does.
    """
    logits = _full_precision(output)
    answers = targets
    if not targets.is_floating_point() and targets.ndim < output.ndim:
        answers = targets.unsqueeze(-1)
        if output.shape[-1] > 1:  # scatter rather than F.one_hot, which waits for the device
            answers = torch.zeros_like(logits).scatter_(-1, answers, 1.0)
    _check_shapes(output.shape, answers.shape)
    answers = answers.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, answers, reduction="sum"), _count(output[..., 0])


def elementwise(function: Callable[..., Tensor], output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum a regression loss over all elements; each is a target. Outputs [N, 1] may meet targets [N]."""
    values = _full_precision(output)
    answers = targets.unsqueeze(-1) if output.shape == (*targets.shape, 1) else targets
    _check_shapes(output.shape, answers.shape)
    return function(values, answers.to(values.dtype), reduction="sum"), _count(output)


def _full_precision(output: Tensor) -> Tensor:
    return output.to(torch.promote_types(output.dtype, torch.float32))


def _count(targets: Tensor) -> Tensor:
    return torch.full((), targets.numel(), dtype=torch.int64, device=targets.device)


def _check_shapes(expected: torch.Size, found: torch.Size) -> None:
    """Refuse what torch would broadcast: it gives a number, and the wrong one."""
    if expected != found:
        raise TrainingError(
            f"the targets have shape {list(found)}, the model's output takes {list(expected)}: "
            "check the model's number of outputs and the label column"
        )
