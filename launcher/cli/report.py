"""raylift report: a run as one page."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.common import JsonOption, RunName, StorageOption


def report_command(
    name: RunName,
    storage: StorageOption = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Where to; default: RUN.html.")
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    json: JsonOption = False,
) -> None:
    """Write one self-contained HTML page about a run: curves, checkpoints, attempts, data. It reads offline."""
    from pathlib import Path

    from launcher.cli.common import open_run, print_json
    from launcher.report import write_report
    from launcher.text import size

    run = open_run(name, storage)
    target = Path(output or f"{run.id}.html").expanduser().absolute()
    write_report(run, target)
    if json:
        print_json({"path": str(target), "bytes": target.stat().st_size})
    else:
        typer.echo(f"wrote {target}, {size(target.stat().st_size)}")
    if open_it:
        import webbrowser

        webbrowser.open(target.as_uri())
