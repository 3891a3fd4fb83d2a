"""raylift clusters: the clusters with a name."""

from __future__ import annotations

import typer

from launcher.cli.common import JsonOption, OnOption


def clusters_command(on: OnOption = None, json: JsonOption = False) -> None:
    """List the clusters that raylift up has made, and what runs there."""
    from dataclasses import asdict

    from cluster.kubernetes.clusters import NamedClusters
    from launcher.cli.common import kubernetes_block, print_json

    cluster = kubernetes_block(on)
    found = NamedClusters(cluster).all()
    if json:
        print_json([asdict(each) for each in found])
        return
    if not found:
        typer.echo(f"no clusters in the namespace {cluster.namespace}. Make one: raylift up NAME --on {on}")
        return
    width = max(len("CLUSTER"), *(len(each.name) for each in found))
    typer.echo(f"{'CLUSTER':<{width}}  {'STATE':<12}  {'IDLE END':>8}  RUNS")
    for each in found:
        told = ", ".join(each.runs) + (f"  ({each.reason})" if each.reason else "")
        typer.echo(f"{each.name:<{width}}  {each.state:<12}  {each.idle // 60:>4} min  {told.strip()}".rstrip())
