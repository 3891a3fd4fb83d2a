"""raylift init: write a job file to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The job file to write.")] = Path("job.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented job file to start from, with every key and its default."""
    from cluster.errors import UsageError
    from launcher.spec import clean_name
    from launcher.starter import starter

    text = starter(str(file), clean_name(file.stem))
    try:
        with file.open("w" if force else "x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError as error:
        raise UsageError(f"{file} exists already. Replace it: raylift init --force {file}") from error
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}. Name another: raylift init FILE") from error
    typer.echo(f"wrote {file}. Show what it would do: raylift plan {file}; run it: raylift run {file}")
