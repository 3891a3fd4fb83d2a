"""What a launch in Kubernetes would create, for people."""

from __future__ import annotations

from dataclasses import replace

from cluster.config import KubernetesCluster, Spot
from cluster.kubernetes import pods
from cluster.kubernetes.documents import to_yaml
from cluster.kubernetes.manifest import node_counts, render
from cluster.provider import LaunchRequest, Plan, Resource

_NOT_SHOWN = "not shown: a secret"


def plan(request: LaunchRequest) -> Plan:
    """Return what would be created, and what would be applied, with no secret in it. Pure. Raises UsageError."""
    request = replace(request, secrets=dict.fromkeys(request.secrets, _NOT_SHOWN))
    cluster = request.cluster
    assert isinstance(cluster, KubernetesCluster)
    documents = render(request)
    if request.ray_cluster:
        return _on_a_cluster(request, cluster, documents)
    least, most = node_counts(cluster)
    _, count = pods.accelerators(cluster)
    asked = pods.amounts(cluster.resources, count, cluster.accelerator_resource)
    number = f"{least} pods" if least == most else f"{least} to {most} pods"
    where = f"in {cluster.namespace}{f', queue {cluster.queue}' if cluster.queue else ''}"
    found = [
        *(
            Resource(kind=each["kind"], name=each["metadata"]["name"], run_id=request.run_id, detail=where)
            for each in documents
        ),
        Resource(kind="head", name="1 pod", run_id=request.run_id, detail=_words(pods.amounts(cluster.head))),
        Resource(
            kind="workers",
            name=number.replace("1 pods", "1 pod") if number == "1 pods" else number,
            run_id=request.run_id,
            detail=f"{_words(asked)}{_accelerator(cluster)}{_spot(cluster)}",
        ),
        Resource(kind="image", name=pods.image(cluster), run_id=request.run_id),
        *([Resource(kind="raylift", name=request.bundle, detail="fetched by each pod")] if request.bundle else []),
        Resource(kind="ends", name=_ends(request, cluster), run_id=request.run_id),
    ]
    price = cluster.usd_per_hour or 0.0
    return Plan(provider="kubernetes", resources=found, usd_per_hour=price, manifest=to_yaml(documents))


def _on_a_cluster(request: LaunchRequest, cluster: KubernetesCluster, documents: list[pods.Manifest]) -> Plan:
    """Return what comes to a cluster that is there already, and is paid for whether or not a run is there."""
    found = [
        Resource(kind="RayJob", name=request.run_id, run_id=request.run_id, detail=f"in {cluster.namespace}"),
        Resource(kind="cluster", name=str(cluster.name), run_id=request.run_id, detail="is there, and stays"),
    ]
    return Plan(provider="kubernetes", resources=found, manifest=to_yaml(documents))


def _words(asked: pods.Manifest) -> str:
    shown = {"cpu": "CPU", "ephemeral-storage": "disk"}
    return "each " + ", ".join(f"{amount} {shown.get(resource, resource)}" for resource, amount in asked.items())


def _accelerator(cluster: KubernetesCluster) -> str:
    kind, _ = pods.accelerators(cluster)
    return f" ({kind})" if kind not in ("", "GPU") else ""


def _spot(cluster: KubernetesCluster) -> str:
    if isinstance(cluster.spot, Spot):
        return ", on spot machines where there are some"
    return {True: ", on spot machines alone", False: ", on no spot machine", None: ""}[cluster.spot]


def _ends(request: LaunchRequest, cluster: KubernetesCluster) -> str:
    limit = f", or after {request.deadline / 3600:g} h" if request.deadline is not None else ""
    tries = f", {request.max_failures + 1} times in a row" if request.max_failures else ""  # each is a failure of a try
    return (
        f"its pods go {cluster.ttl_seconds_after_finished} s after its end{limit}; "
        f"given up if they have not started within {cluster.pre_running_deadline_seconds} s{tries}"
    )
