"""raylift export: a run's model as a folder."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.common import JsonOption, RunName, StorageOption

CheckpointOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        metavar="last|best|STEP",
        help="Which one; best by checkpoint.metric, of those kept. Default: last, and of a sweep's best trial best.",
        show_default=False,
    ),
]


def export_command(
    name: RunName,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder that is new or empty.")],
    storage: StorageOption = None,
    checkpoint: CheckpointOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    json: JsonOption = False,
) -> None:
    """Write a run's model, or that of a sweep's best trial, into a folder, with a README that says how to load it."""
    from pathlib import Path

    from cluster.trials import trial_run
    from launcher.cli.common import open_run, print_json
    from launcher.export import export_model
    from launcher.sweeps import best_of, job_of, read_sweep

    run, job, of, which, by = open_run(name, storage), None, "", "last", None
    if (sweep := read_sweep(run.all_rows("events"))) is not None:
        best = best_of(sweep, run)
        job, of = job_of(best, sweep, run).encode(), f" of trial {best.id}, the best,"
        run, which, by = trial_run(run, best.id), "best", sweep.by

    def warn(text: str) -> None:
        typer.echo(f"warning: {text}", err=True)

    done = export_model(run, Path(folder), checkpoint or which, force=force, warn=warn, job=job, by=by)
    metrics = dict(done.info.get("metrics", {}))
    if json:
        print_json({"folder": str(Path(folder).absolute()), "run": run.uri, "step": done.step, "metrics": metrics})
        return
    said = "  ".join(f"{key} {value:.4f}" for key, value in metrics.items())
    typer.echo(f"exported the checkpoint of step {done.step}{of} to {folder}" + (f"  ({said})" if said else ""))
    typer.echo(f"load it: {folder}/README.md says how; try it: raylift predict {folder} IMAGE")
