"""raylift logs: what a run printed."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.common import JsonOption, RunName, StorageOption


def logs_command(
    name: RunName,
    storage: StorageOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over.")] = False,
    json: JsonOption = False,
) -> None:
    """Show what a run's processes printed and what happened to it; with -f, as it happens."""
    from launcher.cli.common import open_run
    from launcher.logs import print_launch, print_logs, print_rows
    from launcher.text import typed

    run = open_run(name, storage)
    if follow:
        from launcher.following import watch_only

        raise typer.Exit(watch_only(run, json=json))
    if not (print_rows(run) if json else print_logs(run)) and not print_launch(run, json=json):
        typer.echo(f"nothing is printed yet. See where it stands: raylift status {typed(run.uri)}", err=True)
