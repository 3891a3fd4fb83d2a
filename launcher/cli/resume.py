"""raylift resume: go on with a run that stopped, failed or lost its machine."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.common import JsonOption, RunName, StorageOption, YesOption


def resume_command(
    name: RunName,
    storage: StorageOption = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not follow; the run goes on alone.")] = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Go on from the newest checkpoint, with the same samples, losses and random numbers as if nothing had happened."""
    from launcher.cli.common import confirm, open_run, print_json
    from launcher.following import follow_to_the_end
    from launcher.submit import relaunch
    from launcher.text import typed

    run = open_run(name, storage)
    after = max(run.attempts(), default=0)
    provider = relaunch(run, lambda price: confirm(f"Go on for ${price:.2f} an hour?", yes=yes))
    if detach:
        if json:
            print_json({"run_id": run.id, "run_uri": run.uri})
        else:
            typer.echo(f"resumed {run.uri}\nfollow it: raylift logs -f {typed(run.uri)}")
        return
    raise typer.Exit(follow_to_the_end(run, provider, after=after, json=json))
