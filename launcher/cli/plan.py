"""raylift plan: what `run` would create."""

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
)


def plan_command(
    job_file: JobFile,
    set_: SetOption = None,
    on: OnOption = None,
    cluster: ClusterOption = None,
    name: NameOption = None,
    run_id: IdOption = None,
    storage: StorageOption = None,
    env: EnvOption = None,
    secret: SecretOption = None,
    yaml: Annotated[
        bool, typer.Option("--yaml", help="Print exactly what would be applied, where that is a manifest.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show what `run` would create and do; create nothing. The same as run --dry-run."""
    from cluster.errors import UsageError
    from launcher.cli.common import print_json
    from launcher.planned import as_dict, print_plan
    from launcher.spec import load
    from launcher.submit import prepare

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
    if yaml:
        if not submission.plan.manifest:
            raise UsageError(f"--yaml: provider {submission.plan.provider} applies no manifest; kubernetes does")
        typer.echo(submission.plan.manifest, nl=False)
    elif json:
        print_json(as_dict(submission))
    else:
        print_plan(submission)
