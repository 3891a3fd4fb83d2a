"""raylift rm: remove a run for good."""

from __future__ import annotations

from launcher.cli.common import JsonOption, RunName, StorageOption, YesOption


def rm_command(name: RunName, storage: StorageOption = None, yes: YesOption = False, json: JsonOption = False) -> None:
    """Remove a run with all its checkpoints, and what is left of it on this machine."""
    import typer

    from launcher.cli.common import confirm, open_run, print_json
    from launcher.status import tear_down
    from launcher.submit import refuse_while_running

    run = open_run(name, storage)
    refuse_while_running(run)
    confirm(f"Remove {run.uri} with its {len(run.checkpoints())} checkpoints?", yes=yes)
    receipt = tear_down(run)
    count = run.delete()
    left = [f"{resource.kind} {resource.name} {resource.detail}" for resource in receipt.leftovers]
    if json:
        print_json({"run_id": run.id, "run_uri": run.uri, "objects": count, "leftovers": left})
    else:
        typer.echo("\n".join([f"removed {run.uri}: {count} objects", *(f"left over: {each}" for each in left)]))
    if left:
        raise typer.Exit(6)
