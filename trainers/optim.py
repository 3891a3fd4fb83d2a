"""Optimizers by their names in torch, the schedule of the learning rate, and clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cluster.errors import TrainingError
from trainers.config import Optimizer as OptimizerConfig
from trainers.config import Schedule as ScheduleConfig
from trainers.muon import MuonWithAdamW
from trainers.sharding import is_part, own_part

_CLASSES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adafactor": torch.optim.Adafactor,
}
# One kernel for the whole update: 2.5 times as fast as torch's own choice on a CPU. Elsewhere torch chooses.
_FUSED = {"cpu": ("sgd", "adam", "adamw", "adagrad"), "cuda": ("sgd", "adam", "adamw")}
_FUSED_ON_SHARDS = ("adam", "adamw")  # those for which torch has a rule for DTensors


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the optimizer of the model's trainable parameters, which must be on their device already.

    Matrices and kernels are decayed; norms, biases and whatever else has fewer than two dimensions are not. Groups
    know their parameters by name (`param_names`). Muon comes with an AdamW for what is no hidden matrix.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise TrainingError("the model has no trainable parameters: every one has requires_grad=False")
    options = config.model_dump(include={"momentum", "nesterov", "betas", "eps"}, exclude_none=True)
    if config.name == "muon":
        return MuonWithAdamW(model, lr=config.rate, weight_decay=config.weight_decay, **options)
    if _can_fuse(config.name, [parameter for _, parameter in trainable]):
        options["fused"] = True
    groups: list[dict[str, Any]] = [
        {"params": [pair for pair in trainable if pair[1].ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [pair for pair in trainable if pair[1].ndim < 2], "weight_decay": 0.0},
    ]
    return _CLASSES[config.name]([group for group in groups if group["params"]], lr=config.rate, **options)


def _can_fuse(name: str, parameters: list[nn.Parameter]) -> bool:
    device = parameters[0].device.type
    if is_part(parameters[0]) and name not in _FUSED_ON_SHARDS:
        return False
    # torch 2.13's fused SGD with momentum is wrong on a CPU below 32 bits: it reads what was never written
    exact = device != "cpu" or all(parameter.dtype in (torch.float32, torch.float64) for parameter in parameters)
    return name in _FUSED.get(device, ()) and exact


class Schedule:
    """The learning rate as a function of the step alone, so that there is no state to save.

    With W warm-up steps of T in all, and p = (step - W) / (T - W), the share of the base rate is

        (step + 1) / (W + 1)                                while step < W
        1                                                   constant
        1 - (1 - final) p                                   linear
        final + (1 - final) (1 + cos(pi p)) / 2             cosine (Loshchilov and Hutter 2017, SGDR, eq. 5)

    Steps count from 0; the first one already learns, and `final` is reached as step T would begin.
    """

    def __init__(self, config: ScheduleConfig, total_steps: int) -> None:
        self.name = config.name
        self.final = config.final
        self.total_steps = total_steps
        self.warmup_steps = round(config.warmup * total_steps) if config.warmup < 1 else int(config.warmup)

    def factor(self, step: int) -> float:
        """Return the share of the base learning rate that a step uses."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        done = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        if self.name == "linear":
            return 1 - (1 - self.final) * done
        if self.name == "cosine":
            return self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2
        return 1.0

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rate of every group for a step."""
        factor = self.factor(step)
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


@torch.no_grad()
def clip_and_scale(parameters: Iterable[Tensor], scale: Tensor | float, clip_norm: float | None) -> Tensor:
    """Multiply all gradients by `scale`, then shrink them to a total 2-norm of `clip_norm` where it is larger.

    Returns the norm of the scaled gradients before clipping, on their device. Nothing waits for an accelerator. Where
    they are sharded it is a collective, and the norm that of all parts.
    """
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    gradients = [own_part(gradient) for gradient in found]
    norm = _total_norm(gradients)
    if any(map(is_part, found)):
        squares = norm.double().square()
        torch.distributed.all_reduce(squares)
        norm = squares.sqrt().to(norm.dtype)
    norm = norm * scale
    factor = scale if clip_norm is None else scale * (clip_norm / (norm + 1e-6)).clamp(max=1.0)
    if isinstance(factor, Tensor) and factor.device.type == "cpu":
        factor = factor.item()  # mostly 1
    if gradients and (isinstance(factor, Tensor) or factor != 1.0):
        torch._foreach_mul_(gradients, factor)
    return norm


def _total_norm(tensors: list[Tensor]) -> Tensor:
    """Return the 2-norm of all numbers of tensors; torch.nn.utils.get_total_norm first sorts them by device."""
    norms = torch._foreach_norm(tensors) if tensors else [torch.zeros(())]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm
