"""raylift trials: the trials of a sweep, or the best one's job file."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.common import JsonOption, RunName, StorageOption

_FAILED = 5  # shown with their reasons


def trials_command(
    name: RunName,
    storage: StorageOption = None,
    best: Annotated[bool, typer.Option("--best", help="Print the best trial's job file, ready to run.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many of the best.")] = 100,
    json: JsonOption = False,
) -> None:
    """List a sweep's trials, the best first. Each is a run of its own: raylift logs SWEEP/trials/00007."""
    from cluster.trials import trial_run
    from launcher.cli.common import open_run, print_json
    from launcher.status import open_sweep
    from launcher.sweeps import best_of, job_of, trials_table

    run = open_run(name, storage)
    sweep = open_sweep(run)
    if best:
        winner = best_of(sweep, run)
        job = job_of(winner, sweep, run)
        if json:
            print_json({**sweep.trial_dict(winner), "uri": trial_run(run, winner.id).uri, "job": job})
        else:
            typer.echo(job, nl=False)
        return
    if json:
        print_json(sweep.as_dict())
        return
    from rich.console import Console

    trials = sweep.ordered[:limit]
    console = Console(highlight=False)
    console.print(trials_table(sweep, trials))
    if len(sweep.trials) > limit:
        console.print(f"… and {len(sweep.trials) - limit} more: --limit {len(sweep.trials)}")
    failed = [trial for trial in trials if trial.state == "FAILED"]
    for trial in failed[:_FAILED]:
        console.print(f"{trial.id} failed: {trial.message}", markup=False, soft_wrap=True)
    if len(failed) > _FAILED:
        console.print(f"… and {len(failed) - _FAILED} more failed: --json has all reasons")
