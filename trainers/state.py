"""Optimizer state <-> one safetensors file, exact to the bit, with no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cluster.errors import CorruptObjectError, TrainingError

_KEY = "optimizer"  # of the file's metadata
_ON_HOST = ("step", "mu_product")  # torch keeps these on the CPU, but for optimizers in one kernel
_OF_THE_MACHINE = ("params", "param_names", "foreach", "fused")  # not restored: chosen anew where a run resumes


def flatten(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state as tensors by name (`state.conv1.weight.exp_avg`) and the rest as plain JSON.

    They go into a safetensors file, with `metadata_of` the rest; that knows no strides, which `load_optimizer` gives
    back. The tensors are the optimizer's own: copy them to write them later, while training goes on.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for name, (parameter, _) in _by_name(optimizer).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"state.{name}.{key}"] = value.detach()
            else:
                scalars[f"state.{name}.{key}"] = value
    groups = [
        {key: value for key, value in group.items() if key not in _OF_THE_MACHINE} for group in optimizer.param_groups
    ]
    return tensors, {"layout": _layout(optimizer), "groups": groups, "scalars": scalars}


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Give an optimizer the state in a file; its next steps are those of the one that was saved.

    It must have been built as the saved one was. Raises TrainingError where it was not, and CorruptObjectError where
    the file is damaged; the optimizer is then as before.
    """
    tensors, rest = _read(path)
    state = empty_state(optimizer, {name: (value.dtype, value.shape) for name, value in tensors.items()}, rest)
    for name, value in state.items():
        value.copy_(tensors[name])
    set_state(optimizer, state, rest)


def empty_state(
    optimizer: torch.optim.Optimizer,
    saved: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    rest: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Return tensors for a state that was saved, by its types and shapes, where the optimizer wants them.

    They are to be filled, and then set. What the optimizer holds is forgotten: an accelerator may not have the memory
    for both. Raises TrainingError where the saved optimizer was built otherwise; it is then as before.
    """
    _check_layout(rest["layout"], _layout(optimizer))
    optimizer.state.clear()
    named = _by_name(optimizer)
    found = {}
    for full_name, (dtype, shape) in saved.items():
        name, key = _split(full_name)
        found[full_name] = _place(key, dtype, torch.Size(shape), *named[name])
    return found


def set_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Give an optimizer a state: the tensors of `empty_state`, filled, and the rest of what `flatten` returned."""
    named = _by_name(optimizer)
    state: dict[Tensor, dict[str, Any]] = {}
    for full_name, value in {**tensors, **rest["scalars"]}.items():
        name, key = _split(full_name)
        state.setdefault(named[name][0], {})[key] = value
    optimizer.state.clear()
    optimizer.state.update(state)
    for group, saved in zip(optimizer.param_groups, rest["groups"], strict=True):
        # JSON has no tuples
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()})


def options_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the options of each group: learning rate, decay and so on."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def set_options(optimizer: torch.optim.Optimizer, options: Sequence[Mapping[str, Any]]) -> None:
    """Give each group its options, and none but these."""
    for group, own in zip(optimizer.param_groups, options, strict=True):
        for key in set(group) - set(own) - {"params"}:
            del group[key]
        group.update(own)


def metadata_of(rest: Mapping[str, Any]) -> dict[str, str]:
    """Return what the file of an optimizer carries beside its tensors."""
    return {_KEY: json.dumps(rest)}


def rest_in(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """Return what `metadata_of` was given. Raises CorruptObjectError, which speaks of `name`."""
    try:
        rest: dict[str, Any] = json.loads(metadata[_KEY])
    except (KeyError, json.JSONDecodeError) as error:
        raise CorruptObjectError(f"{name} holds no optimizer state that can be read: {error}") from error
    return rest


def _split(full_name: str) -> tuple[str, str]:
    name, _, key = full_name.removeprefix("state.").rpartition(".")
    return name, key


def _by_name(optimizer: torch.optim.Optimizer) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """Return the parameters and their groups by name, or by number where the optimizer knows no names."""
    named = {}
    for number, group in enumerate(optimizer.param_groups):
        names = group.get("param_names") or [f"{number}-{index}" for index in range(len(group["params"]))]
        named.update({name: (parameter, group) for name, parameter in zip(names, group["params"], strict=True)})
    return named


def _layout(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return what must be the same in the optimizer that is saved and the one that is loaded."""
    shapes = {name: list(parameter.shape) for name, (parameter, _) in _by_name(optimizer).items()}
    groups = [len(group["params"]) for group in optimizer.param_groups]
    return {"optimizer": type(optimizer).__name__, "groups": groups, "shapes": shapes}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            rest = rest_in(file.metadata() or {}, str(path))
            return {name: file.get_tensor(name) for name in file.keys()}, rest  # noqa: SIM118
    except SafetensorError as error:
        raise CorruptObjectError(f"{path} holds no optimizer state that can be read: {error}") from error


def _check_layout(saved: dict[str, Any], own: dict[str, Any]) -> None:
    if saved == own:
        return
    if saved["optimizer"] != own["optimizer"]:
        reason = f"it is of {saved['optimizer']}, this job's optimizer is {own['optimizer']}"
    else:
        names = [*own["shapes"], *saved["shapes"]]
        differing = [name for name in names if saved["shapes"].get(name) != own["shapes"].get(name)]
        reason = "its parameters are grouped otherwise"
        if differing:
            name = differing[0]
            sides = [shapes.get(name, "missing") for shapes in (saved["shapes"], own["shapes"])]
            reason = f"{name} is {sides[0]} there and {sides[1]} in this model"
    raise TrainingError(
        f"the saved optimizer does not fit: {reason}. A run resumes with the model and the optimizer that it started "
        "with; start a new run to change them"
    )


def _place(key: str, dtype: torch.dtype, shape: torch.Size, parameter: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Return a tensor where torch wants it, in the memory layout of its parameter: fused kernels rely on that.

    One of the shape of a parameter that is sharded is sharded as that is.
    """
    if key in _ON_HOST and not (group.get("fused") or group.get("capturable")):
        return torch.empty(shape, dtype=dtype)
    if shape == parameter.shape:
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(shape, dtype=dtype, device=parameter.device)
