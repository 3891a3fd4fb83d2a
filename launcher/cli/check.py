"""raylift check: whether this machine can run jobs."""

from __future__ import annotations

import typer

from launcher.cli.common import JsonOption, StorageOption


def check_command(storage: StorageOption = None, json: JsonOption = False) -> None:
    """Check this machine: Python, packages, memory, accelerators, and that storage can be written."""
    from dataclasses import asdict

    from launcher.checks import check_machine
    from launcher.cli.common import print_json
    from launcher.settings import default_storage

    findings = check_machine(default_storage(storage))
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            typer.echo(f"{'ok' if finding.ok else 'NO':<4} {finding.name:<14} {finding.detail}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(3)
