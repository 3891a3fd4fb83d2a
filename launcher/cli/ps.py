"""raylift ps: the runs of a storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli.common import JsonOption, StorageOption

if TYPE_CHECKING:
    from cluster.runs import Run
    from launcher.status import Summary


def ps_command(
    storage: StorageOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many of the newest runs.")] = 20,
    json: JsonOption = False,
) -> None:
    """List the newest runs, with their states."""
    from concurrent.futures import ThreadPoolExecutor

    from cluster.runs import list_runs
    from cluster.storage.open import open_storage
    from launcher.cli.common import print_json
    from launcher.settings import default_storage

    root = default_storage(storage)
    runs = list_runs(open_storage(root), quick=True)
    with ThreadPoolExecutor(8) as pool:
        summaries = [summary for summary in pool.map(_summarize, runs[:limit]) if summary is not None]
    if json:
        print_json([summary.as_dict() for summary in summaries])
        return
    if not summaries:
        typer.echo(f"no runs in {root}. Start one: raylift run JOB.yaml; look elsewhere: --storage URI")
        return
    width = max(len(summary.id) for summary in summaries)
    typer.echo(f"{'RUN':<{width}}  {'STATE':<12}  {'STEP':>8}  RESTARTS")
    for summary in summaries:
        typer.echo(
            f"{summary.id:<{width}}  {summary.state:<12}  {summary.step or '':>8}  {summary.restarts or ''}".rstrip()
        )
    if len(runs) > limit:
        typer.echo(f"… and {len(runs) - limit} older: --limit {len(runs)}")


def _summarize(run: Run) -> Summary | None:
    from cluster.errors import RunNotFoundError
    from launcher.status import summarize

    try:
        return summarize(run, brief=True)
    except RunNotFoundError:
        return None  # a folder of somebody else's, or a run that was removed just now
