"""raylift rm: remove a run for good."""

from __future__ import annotations

from launcher.cli.common import JsonOption, RunName, StorageOption, YesOption


def rm_command(name: RunName, storage: StorageOption = None, yes: YesOption = False, json: JsonOption = False) -> None:
    """Remove a run with all its checkpoints, and what is left of it on this machine."""
    import typer

    from launcher.cli.common import confirm, open_run, print_json
    from launcher.status import tear_down
    from launcher.submit import refuse_while_running
    from launcher.text import typed

    run = open_run(name, storage)
    refuse_while_running(run)
    confirm(f"Remove {run.uri} with its {len(run.checkpoints())} checkpoints?", yes=yes)
    receipt = tear_down(run)
    left = [f"{resource.kind} {resource.name} {resource.detail}" for resource in receipt.leftovers]
    count = run.delete() if not left else 0  # by the run what is left is found again
    if json:
        print_json({"run_id": run.id, "run_uri": run.uri, "objects": count, "leftovers": left})
    elif left:
        kept = f"{run.uri} is kept, as something of it stays. Once that is gone: raylift rm {typed(run.uri)}"
        typer.echo("\n".join([*(f"left over: {each}" for each in left), kept]))
    else:
        typer.echo(f"removed {run.uri}: {count} objects")
    if left:
        raise typer.Exit(6)
