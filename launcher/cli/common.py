"""What several commands share: their options, and how they find a run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cluster.config import KubernetesCluster
    from cluster.runs import Run
    from launcher.waiting import Waiting

JobFile = Annotated[str, typer.Argument(metavar="JOB.yaml", help="The job file; raylift init writes one.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's id or URI, as raylift ps shows it.")]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URI",
        help="Where runs are: a folder, s3://bucket/prefix or gs://bucket/prefix.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the job file: --set train.epochs=3. Repeatable."),
]
OnOption = Annotated[
    str | None, typer.Option("--on", metavar="FILE|NAME", help="Run elsewhere: replaces the cluster: block.")
]
ClusterOption = Annotated[
    str | None, typer.Option("--cluster", metavar="NAME", help="Run on a cluster that raylift up has made.")
]
NameOption = Annotated[str | None, typer.Option("--name", help="The name that the run's id starts with.")]
IdOption = Annotated[str | None, typer.Option("--id", help="The run's id; made from its name unless given.")]
EnvOption = Annotated[
    list[str] | None, typer.Option("--env", metavar="KEY=VALUE", help="An environment variable. Repeatable.")
]
SecretOption = Annotated[
    list[str] | None,
    typer.Option("--secret", metavar="NAME", help="An environment variable that nothing shows. Repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def open_run(name: str, storage: str | None) -> Run:
    """Return the run that a person named. Raises RunNotFoundError."""
    from cluster.runs import Run
    from launcher.settings import resolve_run

    run = Run.at(resolve_run(name, storage))
    run.job()
    return run


def kubernetes_block(on: str | None) -> KubernetesCluster:
    """Return the cluster block that --on names, for what there is on Kubernetes alone. Raises UsageError."""
    from cluster.config import KubernetesCluster
    from cluster.errors import UsageError
    from launcher.spec import load_cluster

    if on is None:
        raise UsageError(
            "--on is missing: name a file with provider: kubernetes, or a cluster block of the config file"
        )
    cluster = load_cluster(on)
    if not isinstance(cluster, KubernetesCluster):
        raise UsageError(f"--on {on}: clusters with a name are on Kubernetes, and its provider is {cluster.provider}")
    return cluster


def print_json(value: Any) -> None:
    import json

    from launcher.text import finite

    print(json.dumps(finite(value), indent=2, default=str))


def waiting(*, json: bool) -> Waiting | None:
    """Return what says on standard error what a command waits for; to programs it says nothing."""
    from launcher.waiting import Waiting

    return None if json else Waiting(lambda line: typer.echo(line, err=True))


def confirm(question: str, *, yes: bool) -> None:
    """Ask, where somebody can answer. Raises UsageError where nobody can and --yes is missing."""
    from cluster.errors import UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody is here to answer: add --yes")
    if not typer.confirm(question):
        raise typer.Exit(4)
