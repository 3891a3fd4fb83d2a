"""raylift run: submit a job file and follow it."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.common import (
    ClusterOption,
    EnvOption,
    IdOption,
    JobFile,
    JsonOption,
    NameOption,
    OnOption,
    SecretOption,
    SetOption,
    StorageOption,
    YesOption,
)


def run_command(
    job_file: JobFile,
    set_: SetOption = None,
    on: OnOption = None,
    cluster: ClusterOption = None,
    name: NameOption = None,
    run_id: IdOption = None,
    storage: StorageOption = None,
    env: EnvOption = None,
    secret: SecretOption = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not follow; the run goes on alone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be created, and stop.")] = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Run a job file, and follow it. Ctrl-C saves and stops the run; a second Ctrl-C ends it at once."""
    from launcher.cli.common import confirm, print_json
    from launcher.following import follow_to_the_end
    from launcher.planned import as_dict, print_plan
    from launcher.spec import load
    from launcher.submit import prepare, submit
    from launcher.text import typed

    job = load(
        job_file,
        overrides=set_ or [],
        on=on,
        name=name,
        storage=storage,
        env=env or [],
        secrets=secret or [],
        cluster=cluster,
    )
    submission = prepare(job, run_id)
    if dry_run:
        print_json(as_dict(submission)) if json else print_plan(submission)
        return
    if price := submission.plan.usd_per_hour:
        confirm(f"Start it for ${price:.2f} an hour?", yes=yes)
    run = submit(submission)
    if detach:
        if json:
            print_json({"run_id": run.id, "run_uri": run.uri})
        else:
            name = typed(run.uri)
            typer.echo(f"started {run.uri}\nfollow it: raylift logs -f {name}\nstop it:   raylift stop {name}")
        return
    raise typer.Exit(follow_to_the_end(run, submission.provider, json=json))
