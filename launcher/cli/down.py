"""raylift down: take a cluster with a name away."""

from __future__ import annotations

import typer

from launcher.cli.common import JsonOption, OnOption, YesOption
from launcher.cli.up import ClusterName


def down_command(name: ClusterName, on: OnOption = None, yes: YesOption = False, json: JsonOption = False) -> None:
    """End a cluster that raylift up has made, and prove that nothing of it is left."""
    from cluster.errors import RunNotFoundError
    from cluster.kubernetes.clusters import NamedClusters
    from cluster.provider import Receipt
    from launcher.cli.common import confirm, kubernetes_block, print_json, waiting

    clusters = NamedClusters(kubernetes_block(on))
    if runs := clusters.runs_on(name):
        there = "a run is" if len(runs) == 1 else f"{len(runs)} runs are"
        confirm(f"{there} on {name}: {', '.join(runs)}. They end, and raylift resume goes on. End them?", yes=yes)
    try:
        receipt, nothing = clusters.down(name, waiting(json=json)), ""
    except RunNotFoundError as error:
        receipt, nothing = Receipt(), f"nothing to end: {error}"
    left = [str(each) for each in receipt.leftovers]
    if json:
        print_json(
            {
                "cluster": name,
                "removed": len(receipt.removed),
                "runs": runs,
                "leftovers": left,
                "not_looked_for": receipt.unseen,
            }
        )
    else:
        told = nothing or f"removed {name}: {len(receipt.removed)} objects; left over: {len(left)}"
        typer.echo("\n".join([told, *receipt.remarks]))
    if left:
        raise typer.Exit(6)
