"""The README of an exported model: what it is, what it learned from, how to load it without raylift."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.trials import FOLDER
from launcher.text import number

Shapes = Mapping[str, tuple[int, ...]]

_CARD = """\
---
library_name: pytorch
pipeline_tag: {task}
---
# {name}

A convolutional network that tells {classes} classes of images apart: {labels}.
It has {parameters} parameters and was trained by raylift.

| | |
|---|---|
| run | `{run}`, checkpoint of step {step} |
| data | `{data}`: {train} images to train on, {eval} to evaluate on |
| image | {width}×{height} pixels, {channels}, from 0 (black) to 1 (white), normalised by mean {mean} and std {std} |
| optimizer | {optimizer}, batch size {batch_size} |
{metrics}
## Load it in plain PyTorch

```python
{code}
```

`model` takes float32 [N, {depth}, {height}, {width}], normalised as above, and returns logits [N, {classes}].

## Use it with raylift

```
raylift predict . IMAGE…
raylift evaluate . --data FOLDER
```
"""

_OWN = """\
---
library_name: pytorch
---
# {name}

A model of {parameters} parameters, trained by raylift: the task `{task}`, whose code is in `code/`.

| | |
|---|---|
| run | `{run}`, checkpoint of step {step} |
| params | {params} |
| optimizer | {optimizer}, batch size {batch_size} |
{metrics}
## Load it in plain PyTorch

```python
import sys
from safetensors.torch import load_file
sys.path.insert(0, "code")
from {module} import {attribute}
model = {attribute}({values}).build_model().eval()
model.load_state_dict(load_file("model.safetensors"))
```

## Use it with raylift

```
raylift evaluate .
```
"""

_CNN = """\
from collections import OrderedDict
from safetensors.torch import load_file
from torch.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential
model = Sequential(OrderedDict(
    conv1=Conv2d({conv1}), relu1=ReLU(), pool1=MaxPool2d(2),
    conv2=Conv2d({conv2}), relu2=ReLU(), pool2=MaxPool2d(2),
    conv3=Conv2d({conv3}), relu3=ReLU(), flatten=Flatten(),
    dense=Linear({dense}), relu4=ReLU(), output=Linear({output}),
)).eval()
model.load_state_dict(load_file("model.safetensors"))"""


def own_card(config: Mapping[str, Any], shapes: Shapes) -> str:
    """Return the card of a model of a task of the user's own."""
    module, _, attribute = config["task"].partition(":")
    return _OWN.format(
        name=_name(config["run"]),
        parameters=_parameters(shapes),
        task=config["task"],
        run=config["run"],
        step=config["step"],
        params=_some([_code(f"{key}: {value}") for key, value in config["params"].items()]) or "none",
        optimizer=_optimizer(config),
        batch_size=config["train"]["batch_size"],
        metrics=_metrics(config["metrics"]),
        module=module,
        attribute=attribute,
        values=repr(dict(config["params"])),
    )


def model_card(config: Mapping[str, Any], shapes: Shapes) -> str:
    """Return the card of a model; `config` is its config.json, `shapes` those of its weights."""
    height, width = config["image_size"]
    return _CARD.format(
        task=config["task"],
        name=_name(config["run"]),
        classes=len(config["id2label"]),
        labels=_some([_code(name) for name in config["id2label"].values()]),
        parameters=_parameters(shapes),
        run=config["run"],
        step=config["step"],
        data=config["data"]["train"],
        train=f"{config['samples']['train']:,}",
        eval=f"{config['samples']['eval']:,}",
        width=width,
        height=height,
        channels="grey" if config["num_channels"] == 1 else "RGB",
        mean=_numbers(config["image_mean"]),
        std=_numbers(config["image_std"]),
        optimizer=_optimizer(config),
        batch_size=config["train"]["batch_size"],
        metrics=_metrics(config["metrics"]),
        code=_load_cnn(config, shapes),
        depth=config["num_channels"],
    )


def _parameters(shapes: Shapes) -> str:
    return number(sum(math.prod(shape) for shape in shapes.values()))


def _optimizer(config: Mapping[str, Any]) -> str:
    optimizer = config["train"]["optimizer"]
    return str(optimizer["name"]) + (f", lr {optimizer['lr']:g}" if optimizer["lr"] else "")


def _name(uri: str) -> str:
    """Return what a run is called: of a trial, by its sweep too."""
    *_, sweep, folder, name = ["", "", *uri.split("/")]
    return f"{sweep}, trial {name}" if folder == FOLDER else name


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of a safetensors file from its header: its length in 8 bytes, then JSON."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def _load_cnn(config: Mapping[str, Any], shapes: Shapes) -> str:
    """Return Python that builds and loads the network of trainers.models.cnn."""
    height, width = config["image_size"]
    features = shapes["dense.weight"][1]
    # the convolutions of small images are padded, and then only the two poolings make the image smaller
    padding = ", padding=1" if features == shapes["conv3.weight"][0] * (height // 4) * (width // 4) else ""
    layers = {name: f"{shapes[f'{name}.weight'][1]}, {shapes[f'{name}.weight'][0]}" for name in ("dense", "output")}
    for name in ("conv1", "conv2", "conv3"):
        out, into, side, _ = shapes[f"{name}.weight"]
        layers[name] = f"{into}, {out}, {side}{padding}"
    return _CNN.format(**layers)


def _metrics(metrics: Mapping[str, float]) -> str:
    if not metrics:
        return ""
    names = " | ".join(name.removeprefix("eval_") for name in metrics)
    values = " | ".join(f"{value:.4f}" for value in metrics.values())
    return f"\n## Metrics on the evaluation data\n\n| {names} |\n|{'---|' * len(metrics)}\n| {values} |\n"


def _some(names: list[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _code(name: str) -> str:
    """Return a name as Markdown shows it letter by letter, on one line."""
    return f"`` {' '.join(name.split())} ``" if "`" in name else f"`{' '.join(name.split())}`"


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
