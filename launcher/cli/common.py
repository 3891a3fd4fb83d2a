"""What several commands share: their options, and how they find a run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cluster.runs import Run

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
NameOption = Annotated[str | None, typer.Option("--name", help="The name that the run's id starts with.")]
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


def print_json(value: Any) -> None:
    import json

    from launcher.text import finite

    print(json.dumps(finite(value), indent=2, default=str))


def confirm(question: str, *, yes: bool) -> None:
    """Ask, where somebody can answer. Raises UsageError where nobody can and --yes is missing."""
    from cluster.errors import UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody is here to answer: add --yes")
    if not typer.confirm(question):
        raise typer.Exit(4)
