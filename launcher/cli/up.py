"""raylift up: make a cluster that several runs use."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.common import JsonOption, OnOption, SecretOption, StorageOption, YesOption

ClusterName = Annotated[str, typer.Argument(metavar="NAME", help="Of the cluster; raylift clusters lists them.")]


def up_command(
    name: ClusterName,
    on: OnOption = None,
    storage: StorageOption = None,
    idle: Annotated[float, typer.Option("--idle", metavar="MINUTES", min=0.1, help="Without a run, it ends.")] = 30.0,
    max_hours: Annotated[
        float | None, typer.Option("--max-hours", metavar="HOURS", min=0.1, help="It ends then, whatever runs there.")
    ] = None,
    secret: SecretOption = None,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Make a cluster on Kubernetes that runs share, and that ends by itself when none has been there for a while."""
    from dataclasses import replace

    from cluster import code
    from cluster.errors import UsageError
    from cluster.kubernetes.clusters import NamedClusters
    from cluster.kubernetes.named import ClusterRequest
    from cluster.storage.open import open_storage
    from launcher.cli.common import confirm, kubernetes_block, print_json
    from launcher.settings import default_storage
    from launcher.submit import bundle_for, from_this_shell
    from launcher.text import typed

    cluster = kubernetes_block(on)
    request = ClusterRequest(
        name=name,
        cluster=cluster,
        idle=round(idle * 60),
        deadline=round(max_hours * 3600) if max_hours is not None else None,
        code=code.digest(),
        secrets=from_this_shell(secret or []),
    )
    if cluster.usd_per_hour:
        confirm(f"Start it for ${cluster.usd_per_hour:.2f} an hour?", yes=yes)
    if (archive := bundle_for(cluster, None)) is not None:
        place = default_storage(storage)
        if "://" not in place:
            raise UsageError(
                f"--storage {place}: pods fetch raylift from there, and see nothing of this machine: give "
                "s3://bucket/prefix or gs://bucket/prefix, or name an image that has it"
            )
        open_storage(place).write(archive.path, archive.data)
        request = replace(request, bundle=f"{place.rstrip('/')}/{archive.path}")
    made = NamedClusters(cluster).up(request)
    if json:
        print_json({"cluster": name, "made": made})
        return
    where = f"--on {typed(str(on))}"
    at = f"{where} --storage {typed(storage)}" if storage is not None else where
    typer.echo(
        f"cluster {name} {'is being made' if made else 'is there already'}; it ends after {idle:g} min without a run\n"
        f"see it:      raylift clusters {where}\n"
        f"run there:   raylift run JOB.yaml {at} --cluster {name}\n"
        f"end it now:  raylift down {name} {where}"
    )
