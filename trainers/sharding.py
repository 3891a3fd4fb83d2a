"""Fully sharded data parallelism (FSDP2): each rank holds its part of weights, gradients and optimizer state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from trainers.config import TrainJob
    from trainers.context import WorkerContext

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def is_sharded(job: TrainJob, context: WorkerContext) -> bool:
    """Whether the ranks hold parts; a rank alone holds the whole."""
    return job.train.parallel == "fsdp" and context.world_size > 1


def shard(model: nn.Module, world_size: int, device: torch.device, precision: str) -> None:
    """Leave on each rank its part of every parameter, cut along the first dimension. Collective.

    The parts of a block are gathered for as long as it computes. In bf16 and fp16 they travel in that precision, into
    which autocast would round them for its products in any case: it rounds nothing a second time, and keeps no copies.
    Gradients are summed in fp32, at every micro-batch: whole ones, kept until the last, would take back what is saved.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (world_size,))
    dtype = _DTYPES.get(precision)
    policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False) if dtype else MixedPrecisionPolicy()
    for block in blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Return the modules whose parameters are gathered together: the repeated layers, else each that has parameters.

    Repeated layers are those of a ModuleList, as transformers have them; what is in none is gathered for a whole step.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inside = {id(module) for one in lists for layer in one for module in layer.modules()}
    layers = [layer for one in lists if id(one) not in inside for layer in one]
    if not layers:
        layers = [module for module in model.modules() if module is not model and list(module.parameters(False))]
    return (layer for layer in layers if list(layer.parameters()))


def own_part(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor: its part of one that is sharded, else all of it."""
    part: Tensor = tensor.to_local() if is_part(tensor) else tensor  # type: ignore[attr-defined]  # of a DTensor
    return part


def is_part(tensor: Tensor) -> bool:
    """Whether a tensor is sharded. DTensor, which takes a second to import, is not asked for by name."""
    return hasattr(type(tensor), "to_local")
