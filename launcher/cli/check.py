"""raylift check: whether this machine can run jobs."""

from __future__ import annotations

import typer

from launcher.cli.common import JsonOption, OnOption, StorageOption

_WORDS = {True: "ok", False: "NO", None: "?"}


def check_command(on: OnOption = None, storage: StorageOption = None, json: JsonOption = False) -> None:
    """Check this machine, or the cluster that --on names: whether jobs can run there, and storage can be written."""
    from dataclasses import asdict

    from cluster.config import KubernetesCluster
    from launcher.checks import check_machine
    from launcher.cli.common import print_json
    from launcher.settings import default_storage
    from launcher.spec import load_cluster

    cluster = load_cluster(on) if on is not None else None
    if isinstance(cluster, KubernetesCluster):
        from launcher.cluster_checks import check_cluster

        findings = check_cluster(cluster, default_storage(storage))
    else:
        findings = check_machine(default_storage(storage))
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            typer.echo(f"{_WORDS[finding.ok]:<4} {finding.name:<14} {finding.detail}")
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(3)
