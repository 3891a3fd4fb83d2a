"""raylift status: where one run stands."""

from __future__ import annotations

import typer

from launcher.cli.common import JsonOption, RunName, StorageOption


def status_command(name: RunName, storage: StorageOption = None, json: JsonOption = False) -> None:
    """Show where a run stands: state, progress, metrics, checkpoints, and where its time went."""
    from launcher.cli.common import open_run, print_json
    from launcher.goodput import describe
    from launcher.status import next_steps, summarize
    from launcher.text import decimal

    summary = summarize(open_run(name, storage))
    if json:
        print_json(summary.as_dict())
        return
    of = f" of {summary.last_step}" if summary.last_step else ""
    rows = {
        "run": summary.uri,
        "state": f"{summary.state}{': ' + summary.reason if summary.reason else ''}",
        "step": f"{summary.step}{of}{f', epoch {summary.epoch}' if summary.epoch else ''}",
        "ranks": str(summary.ranks) if summary.ranks else "",
        "loss": decimal(summary.loss) if summary.loss is not None else "",
        "metrics": "  ".join(f"{key} {decimal(value)}" for key, value in summary.metrics.items()),
        "goodput": describe(summary.goodput) if summary.goodput is not None else "",
        "checkpoints": ", ".join(str(step) for step in summary.checkpoints),
        "attempts": f"{summary.attempt}, on {summary.host}" if summary.attempt else "",
    }
    if summary.sweep is not None:
        best = summary.sweep.best if summary.state != "SUCCEEDED" else None  # then the state says it
        rows = {
            "run": rows["run"],
            "state": rows["state"],
            "trials": summary.sweep.counts(),
            "best": f"{best.id}  {summary.sweep.values_of(best)}" if best is not None else "",
            "attempts": rows["attempts"],
        }
    for key, value in rows.items():
        if value:
            typer.echo(f"{key:<12} {value}")
    if summary.traceback:
        typer.echo(f"\n{summary.traceback}")
    if summary.sweep is not None:
        import time

        from rich.console import Console

        from launcher.sweeps import summary_table

        Console(highlight=False).print(summary_table(summary.sweep, now=time.time()))
    for line in next_steps(summary):
        typer.echo(line)
