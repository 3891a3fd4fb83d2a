"""raylift tensorboard: runs in TensorBoard."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.common import StorageOption


def tensorboard_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...", help="Runs, by id or URI; without any, all of the storage.", show_default=False
        ),
    ] = None,
    storage: StorageOption = None,
    logdir: Annotated[
        str | None,
        typer.Option("--logdir", metavar="DIR", help="Write the event files to this folder, and serve nothing."),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: one that is free.")] = 6006,
) -> None:
    """Show the curves of runs in TensorBoard, also while they train: no step twice, whatever was repeated."""
    import tempfile
    from pathlib import Path

    from cluster.errors import UsageError
    from cluster.runs import list_runs
    from cluster.storage.open import open_storage
    from launcher.cli.common import open_run
    from launcher.settings import default_storage
    from launcher.tensorboard import serve, write_event_files
    from launcher.text import typed

    root = default_storage(storage)
    runs = [open_run(name, storage) for name in names] if names else list_runs(open_storage(root))
    if not runs:
        raise UsageError(f"no runs in {root}. Start one: raylift run JOB.yaml; look elsewhere: --storage URI")
    if logdir is not None:
        folder = Path(logdir).expanduser()
        rows = write_event_files(runs, folder)
        typer.echo(f"wrote {rows} rows of {len(runs)} runs. Look at them: tensorboard --logdir {typed(str(folder))}")
        return
    with tempfile.TemporaryDirectory(prefix="raylift-tensorboard-") as temporary:
        raise typer.Exit(serve(runs, Path(temporary), port))
