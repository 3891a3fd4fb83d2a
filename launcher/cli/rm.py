"""raylift rm: remove a run for good."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.common import JsonOption, RunName, StorageOption, YesOption


def rm_command(
    name: RunName,
    storage: StorageOption = None,
    abandon_cluster: Annotated[
        bool, typer.Option("--abandon-cluster", help="Remove it from storage alone: its cluster is gone for good.")
    ] = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Remove a run with all its checkpoints, and what is left of it on this machine or its cluster."""
    from cluster.provider import Receipt
    from cluster.trials import read_trials
    from launcher.cli.common import confirm, open_run, print_json, waiting
    from launcher.remote import or_abandoned, place_of
    from launcher.status import is_sweep, summarize, tear_down
    from launcher.submit import refuse_while_heard_of, refuse_while_running
    from launcher.text import so_many, typed

    run = open_run(name, storage)
    abandoned = place_of(run) if abandon_cluster else None
    with or_abandoned(run):
        if abandoned is not None:
            refuse_while_heard_of(run, summarize(run, brief=True))
        else:
            refuse_while_running(run)
        if is_sweep(run):
            what = so_many(len(read_trials(run.all_rows("events"))), "trial")
        else:
            what = so_many(len(run.checkpoints()), "checkpoint")
        asked = f"Remove {run.uri} with its {what}"
        confirm(f"{asked}{', and look for nothing of it in its cluster' if abandoned else ''}?", yes=yes)
        receipt = tear_down(run, waiting(json=json)) if abandoned is None else Receipt()
    left = [str(resource) for resource in receipt.leftovers]
    count = run.delete() if not left else 0  # by the run what is left is found again
    if json:
        told = {"objects": count, "leftovers": left, "cluster_abandoned": abandoned is not None}
        told |= {"not_looked_for": receipt.unseen}
        print_json({"run_id": run.id, "run_uri": run.uri, **told})
    elif left:
        kept = f"{run.uri} is kept, as something of it stays. Once that is gone: raylift rm {typed(run.uri)}"
        typer.echo("\n".join([*receipt.remarks, kept]))
    else:
        typer.echo("\n".join([*receipt.remarks, f"removed {run.uri}: {count} objects"]))
        if abandoned is not None:
            typer.echo(f"not looked for: what may be left of it in {abandoned}. If that is there: raylift audit --on …")
    if left:
        raise typer.Exit(6)
