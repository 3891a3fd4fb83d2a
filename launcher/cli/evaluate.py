"""raylift evaluate: measure a trained model."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.common import JsonOption, StorageOption
from launcher.cli.export import CheckpointOption

ModelName = Annotated[str, typer.Argument(metavar="RUN|DIR", help="A run's id or URI, or a folder of raylift export.")]


def evaluate_command(
    model: ModelName,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="SOURCE", help="Labelled images, as data.eval takes them; default: the job's."),
    ] = None,
    storage: StorageOption = None,
    checkpoint: CheckpointOption = None,
    json: JsonOption = False,
) -> None:
    """Measure a model's loss, accuracy and F1, over all and class by class."""
    from launcher.torch_command import find_model, run_with_torch

    arguments = find_model(model, storage, checkpoint)
    arguments += ["--data", data] if data is not None else []
    arguments += ["--json"] if json else []
    raise typer.Exit(run_with_torch("trainers.evaluate", arguments))
