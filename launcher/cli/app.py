"""The commands. Their files import nothing heavy before they are called, so that --help is quick."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from launcher.cli import (
    audit,
    check,
    clusters,
    down,
    evaluate,
    export,
    init,
    logs,
    plan,
    predict,
    ps,
    rehearse,
    report,
    resume,
    rm,
    run,
    schema,
    status,
    stop,
    tensorboard,
    trials,
    up,
    verify,
)

app = typer.Typer(
    name="raylift",
    help="Take one job file from a laptop to a trained model, on Ray.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"raylift {version('raylift')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which one.")
    ] = False,
) -> None:
    if debug:
        os.environ["RAYLIFT_DEBUG"] = "1"


app.command("init")(init.init_command)
app.command("check")(check.check_command)
app.command("plan")(plan.plan_command)
app.command("run")(run.run_command)
app.command("ps")(ps.ps_command)
app.command("status")(status.status_command)
app.command("trials")(trials.trials_command)
app.command("logs")(logs.logs_command)
app.command("stop")(stop.stop_command)
app.command("resume")(resume.resume_command)
app.command("export")(export.export_command)
app.command("evaluate")(evaluate.evaluate_command)
app.command("predict")(predict.predict_command)
app.command("report")(report.report_command)
app.command("tensorboard")(tensorboard.tensorboard_command)
app.command("verify")(verify.verify_command)
app.command("rm")(rm.rm_command)
app.command("rehearse")(rehearse.rehearse_command)
app.command("up")(up.up_command)
app.command("clusters")(clusters.clusters_command)
app.command("down")(down.down_command)
app.command("audit")(audit.audit_command)
app.command("schema")(schema.schema_command)
