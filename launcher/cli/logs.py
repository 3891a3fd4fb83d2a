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
    from cluster.errors import UsageError
    from cluster.local import LocalProvider
    from launcher.cli.common import open_run
    from launcher.logs import print_logs, print_rows
    from launcher.remote import remote_of

    if json and follow:
        raise UsageError("--json and --follow exclude each other")
    run = open_run(name, storage)
    if json:
        print_rows(run)
        return
    if follow:
        from launcher.following import watch_only

        raise typer.Exit(watch_only(run))
    if not print_logs(run):
        for chunk in (remote_of(run) or LocalProvider()).logs(run.id, follow=False):
            typer.echo(chunk.decode(errors="replace"), nl=False)
