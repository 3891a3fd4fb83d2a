"""raylift trials: the trials of a sweep, or the best one's job file."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.common import JsonOption, RunName, StorageOption


def trials_command(
    name: RunName,
    storage: StorageOption = None,
    best: Annotated[bool, typer.Option("--best", help="Print the best trial's job file, ready to run.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many of the best.")] = 100,
    json: JsonOption = False,
) -> None:
    """List a sweep's trials, the best first. Each is a run of its own: raylift logs SWEEP/trials/TRIAL."""
    from launcher.cli.common import open_run, print_json
    from launcher.sweeps import open_sweep, trials_table, winners_job

    run = open_run(name, storage)
    sweep = open_sweep(run)
    if best:
        typer.echo(winners_job(run), nl=False)
        return
    if json:
        print_json(sweep.as_dict())
        return
    from rich.console import Console

    ranked = sweep.ranked
    trials = [*ranked, *(trial for trial in sweep.trials if trial not in ranked)]
    console = Console(highlight=False)
    console.print(trials_table(sweep, trials[:limit]))
    if len(trials) > limit:
        console.print(f"… and {len(trials) - limit} more: --limit {len(trials)}")
    for trial in [trial for trial in trials[:limit] if trial.state == "FAILED"][:5]:
        console.print(f"{trial.id} failed: {trial.message}", markup=False)
