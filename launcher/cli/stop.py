"""raylift stop: have a run save and stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli.common import JsonOption, RunName, StorageOption

if TYPE_CHECKING:
    from cluster.provider import Receipt


def stop_command(
    name: RunName,
    storage: StorageOption = None,
    now: Annotated[
        bool, typer.Option("--now", help="End it at once, without saving: its processes on this machine, or its pods.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Ask a run to save a checkpoint and stop; it hears within seconds, wherever it is.

    One that waits on a cluster, for machines or in a queue, has nothing to save, and is taken away. A trial stops with
    its sweep alone.
    """
    from cluster.errors import InfrastructureError
    from cluster.provider import Receipt
    from launcher.cli.common import open_run, print_json, waiting
    from launcher.remote import or_abandoned
    from launcher.status import is_launched_anew, tear_down, waits_to_begin
    from launcher.submit import refuse_while_its_sweep_runs
    from launcher.text import typed

    run = open_run(name, storage)
    result = run.result()
    try:
        if result is not None and is_launched_anew(run, max(run.attempts())):
            result = None
    except InfrastructureError:
        result = None  # a driver that may be there hears of it from storage
    receipt = Receipt()
    if result is None:
        refuse_while_its_sweep_runs(run)
        run.request_stop("stopped by raylift stop")
        now = now or waits_to_begin(run)
        with or_abandoned(run):
            receipt = tear_down(run, waiting(json=json)) if now else receipt
    if json:
        ended = {"ended": len(receipt.removed), "left": len(receipt.leftovers), "not_looked_for": receipt.unseen}
        print_json({"run_id": run.id, "run_uri": run.uri, "asked": result is None, **ended})
    elif result is not None:
        typer.echo(f"{run.uri} is over already: {result.state}")
    elif now:
        typer.echo(f"ended {len(receipt.removed)} {_what(receipt)}; {len(receipt.leftovers)} left")
        for line in receipt.remarks:
            typer.echo(line)
    else:
        typer.echo(f"{run.uri} is asked to save and stop. See it happen: raylift status {typed(run.uri)}")
    if receipt.leftovers:
        raise typer.Exit(6)


def _what(receipt: Receipt) -> str:
    return "processes" if all(each.kind == "process" for each in receipt.removed) else "objects"
