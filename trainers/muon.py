"""Muon for the hidden matrices of a network, AdamW for all else, as one optimizer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from trainers.sharding import is_part

# The rate of AdamW beside that of Muon, and AdamW's own options: those of the reference implementation,
# SingleDeviceMuonWithAuxAdam in https://github.com/KellerJordan/Muon (0.02 and 3e-4).
ADAMW_SHARE = 0.015
ADAMW = {"betas": (0.9, 0.95), "eps": 1e-10}


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (Keller Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) with the AdamW that it needs.

    Muon updates the matrices between the layers, and convolution kernels as matrices of [out, in * height * width].
    Embeddings, the last linear layer, norms, biases and whatever is no matrix get AdamW at 0.015 of the learning
    rate. Weight decay is decoupled in both. For matrices this is torch.optim.Muon, but for the orthogonalisation,
    which is in bfloat16 on an accelerator only.
    """

    def __init__(
        self, model: nn.Module, lr: float, weight_decay: float = 0.0, momentum: float = 0.95, nesterov: bool = True
    ) -> None:
        outside = _outside(model)
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        muon = [pair for pair in named if _is_matrix(pair[1]) and id(pair[1]) not in outside]
        hidden = {name for name, _ in muon}
        rest = [pair for pair in named if pair[0] not in hidden]
        adamw = [
            {"params": [pair for pair in rest if pair[1].ndim >= 2], "weight_decay": weight_decay},
            {"params": [pair for pair in rest if pair[1].ndim < 2], "weight_decay": 0.0},
        ]
        options = {"lr": lr * ADAMW_SHARE, "muon": False, **ADAMW}
        self._adamw = torch.optim.AdamW([{**group, **options} for group in adamw if group["params"]])
        own = {"lr": lr, "muon": True, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        super().__init__([*([{"params": muon, **own}] if muon else []), *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"]:
                for parameter in group["params"]:
                    self._step_matrix(parameter, group)
        # AdamW works on our groups and our state: there is one state_dict, and loading it replaces both objects.
        self._adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
        self._adamw.state = self.state
        self._adamw.step()
        return loss

    def _step_matrix(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        if gradient is None:
            return
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        update = _orthogonalized(update)
        rows, columns = parameter.shape[0], parameter.shape[1:].numel()
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, rows / columns)))


def _orthogonalized(update: Tensor) -> Tensor:
    """Return an update orthogonalised as a matrix, in its own shape; one that is sharded is gathered for it."""
    if not is_part(update):
        return orthogonalize(update.flatten(1)).view(update.shape)
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(update, DTensor)
    whole = orthogonalize(update.full_tensor().flatten(1)).view(update.shape)
    everywhere = DTensor.from_local(whole, update.device_mesh, [Replicate()], run_check=False)
    return everywhere.redistribute(placements=update.placements)


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return about the nearest matrix whose singular values are all 1, by Newton and Schulz's iteration.

    The quintic of Keller Jordan's Muon, tuned to lift small singular values fast: they end between 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)  # no singular value above 1
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and min(parameter.flatten(1).shape) > 1


def _outside(model: nn.Module) -> set[int]:
    """Return the ids of the embeddings and of the last linear layer's weight."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return embeddings | {id(layer.weight) for layer in layers[-1:]}
