"""raylift audit: what of raylift's exists now."""

from __future__ import annotations

import typer

from launcher.cli.common import JsonOption, OnOption


def audit_command(on: OnOption = None, json: JsonOption = False) -> None:
    """List all of raylift's that exists: processes of this machine, or objects of the cluster that --on names.

    Where you may list those of one namespace alone, it says so.
    """
    from dataclasses import asdict

    from cluster.config import LocalCluster
    from cluster.registry import open_provider
    from launcher.cli.common import print_json
    from launcher.spec import load_cluster

    provider = open_provider(load_cluster(on) if on is not None else LocalCluster())
    found = provider.audit(on_limit=lambda text: typer.echo(f"warning: {text}", err=True))
    if json:
        print_json([asdict(each) for each in found])
        return
    if not found:
        typer.echo(f"nothing of raylift's is {'there' if on is not None else 'on this machine'}")
        return
    rows = [("RUN", "KIND", "NAME", ""), *((each.run_id or "–", each.kind, each.name, each.detail) for each in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        typer.echo("  ".join([*(f"{row[column]:<{widths[column]}}" for column in range(3)), row[3]]).rstrip())
