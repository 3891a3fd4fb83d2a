"""raylift predict: what a trained model says of images."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.common import JsonOption, StorageOption
from launcher.cli.evaluate import ModelName
from launcher.cli.export import CheckpointOption


def predict_command(
    model: ModelName,
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Image files, or folders of them.")],
    top: Annotated[int, typer.Option("--top", min=1, help="How many labels an image.")] = 3,
    storage: StorageOption = None,
    checkpoint: CheckpointOption = None,
    json: JsonOption = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print a table: image, rank, label, probability.")] = False,
) -> None:
    """Print the likeliest labels of images, with their probabilities."""
    from cluster.errors import UsageError
    from launcher.torch_command import find_model, run_with_torch

    if json and csv:
        raise UsageError("--json and --csv exclude each other")
    arguments = [*find_model(model, storage, checkpoint), "--top", str(top)]
    arguments += ["--json"] if json else ["--csv"] if csv else []
    raise typer.Exit(run_with_torch("trainers.predict", [*arguments, "--", *inputs]))
