"""What a run on Kubernetes needs of its cluster, each asked for real."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from cluster.config import KubernetesCluster
from cluster.errors import InfrastructureError
from cluster.kubernetes import api, rights
from cluster.kubernetes.api import Api, ApiError, Kind
from cluster.kubernetes.fits import obstacles, required_labels, room, total
from cluster.kubernetes.manifest import node_counts, render
from cluster.kubernetes.pods import PRODUCT_LABELS, ROLE_LABEL
from cluster.kubernetes.probe import probe
from cluster.kubernetes.reach import may_reach
from cluster.kubernetes.versions import CLIENTS, KUBERAY, KUBERNETES
from cluster.provider import LaunchRequest
from launcher.checks import Finding, check_storage_at

_QUOTAS = Kind("", "v1", "resourcequotas")
_NODES = Kind("", "v1", "nodes")
_SLICES = Kind("discovery.k8s.io", "v1", "endpointslices")
_NEWEST = "networkPolicy"  # of a RayCluster's spec, which KUBERAY brought
_OF_A_POD = ("kuberay", "rights", "manifest")  # without these none can be made
# What a quota may count of one run: its job and cluster, the job that submits, two services of the head, Ray's token
_OBJECTS = {
    "count/rayjobs.ray.io": ["1"],
    "count/rayclusters.ray.io": ["1"],
    "count/jobs.batch": ["1"],
    **{name: ["1", "1"] for name in ("services", "count/services")},
    **{name: ["1"] for name in ("secrets", "count/secrets")},
}


def check_cluster(cluster: KubernetesCluster, storage: str) -> list[Finding]:
    """Look at the API server, KubeRay, rights, quota, nodes and storage; without an answer, at storage alone."""
    try:
        server = Api(cluster.context)
        version = server.get("/version")["gitVersion"]
    except InfrastructureError as error:
        return [Finding("api", False, str(error)), _storage(storage)]
    job = _job(cluster, storage)
    spec = job["spec"]["rayClusterSpec"]
    head, worker = spec["headGroupSpec"]["template"], spec["workerGroupSpecs"][0]["template"]
    if "autoscalerOptions" in spec:  # KubeRay puts it into the head's pod
        containers = [*head["spec"]["containers"], {"name": "autoscaler", **spec["autoscalerOptions"]}]
        head = {**head, "spec": {**head["spec"], "containers": containers}}
    pods = [job["spec"]["submitterPodTemplate"], head, *[worker] * max(1, node_counts(cluster)[0])]
    found = [
        _version(version, server.host),
        _asked("kuberay", lambda: _kuberay(server)),
        _asked("rights", lambda: _rights(server, cluster.namespace, queued=cluster.queue is not None)),
        _asked("manifest", lambda: _manifest(server, job)),
        _asked("quota", lambda: _quota(server, cluster.namespace, pods)),
        _asked("nodes", lambda: _nodes(server, head, worker, max(1, node_counts(cluster)[0]))),
        *(
            [_asked("package cache", partial(_package_cache, server, cluster.namespace, cluster.package_cache))]
            if cluster.package_cache is not None
            else []
        ),
        *(
            [_asked("autoscaler", lambda: _autoscaler(server, cluster.namespace, head))]
            if "autoscalerOptions" in spec
            else []
        ),
        _storage(storage),
    ]
    if not _is_bucket(storage) or any(each.ok is False for each in found if each.name in _OF_A_POD):
        return found  # no pod sees a folder of this machine; or none can be made
    return [*found, _asked("storage there", lambda: _from_a_pod(server, cluster, storage))]


def _storage(storage: str) -> Finding:
    """Write to a bucket, and read it back; a run refuses anything else."""
    if _is_bucket(storage):
        return check_storage_at(storage)
    there = f"{storage} is on this machine, where no pod sees it"
    return Finding("storage", False, f"{there}: --storage s3://bucket/prefix or gs://bucket/prefix")


def _is_bucket(storage: str) -> bool:
    return storage.partition("://")[0] in CLIENTS


def _job(cluster: KubernetesCluster, storage: str) -> dict[str, Any]:
    """Return the RayJob of a run as it would be launched, with what its pods fetch where the image has no raylift."""
    uri = f"{storage.rstrip('/')}/raylift-check"
    fetches = cluster.image is None and storage.partition("://")[0] in CLIENTS
    request = LaunchRequest(
        run_id="raylift-check",
        run_uri=uri,
        cluster=cluster,
        max_failures=0,
        bundle=f"{uri}/code/raylift.zip" if fetches else "",
    )
    return render(request)[0]


def _version(version: str, host: str) -> Finding:
    found = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if found >= KUBERNETES:
        return Finding("api", True, f"Kubernetes {version} at {host}")
    least = ".".join(map(str, KUBERNETES))
    return Finding("api", False, f"Kubernetes {version} at {host}: what runs are made of takes {least} or newer")


def _asked(name: str, ask: Callable[[], tuple[bool | None, str]]) -> Finding:
    try:
        return Finding(name, *ask())
    except InfrastructureError as error:
        return Finding(name, False, str(error))


def _from_a_pod(server: Api, cluster: KubernetesCluster, storage: str) -> tuple[bool, str]:
    probe(server, cluster, storage)
    return True, f"a pod has written to {storage}, and is gone again"


def _kuberay(server: Api) -> tuple[bool, str]:
    """Look for what KubeRay has the API server know; no version is in it, but each one brought fields."""
    served = {each["name"] for each in server.get("/apis/ray.io/v1")["resources"]}
    needed = {api.RAY_JOBS.plural, api.RAY_CLUSTERS.plural}
    if absent := sorted(needed - served):
        return False, f"ray.io/v1 has no {', '.join(absent)}: is KubeRay installed?"
    try:
        schemas = server.get("/openapi/v3/apis/ray.io/v1")["components"]["schemas"].values()
    except ApiError as error:
        if error.status not in (403, 404):
            raise
        return True, "ray.io/v1 with RayJob and RayCluster, of which version is not told"
    fields = next((_cluster_fields(each) for each in schemas if _is_ray_job(each)), {})
    if _NEWEST not in fields:
        return False, (
            f"ray.io/v1 is of a KubeRay before {KUBERAY}: rayClusterSpec has no {_NEWEST}. An upgrade by helm "
            "leaves it as it was: https://docs.ray.io/en/latest/cluster/kubernetes/user-guides/upgrade-guide.html"
        )
    return True, f"ray.io/v1 with RayJob and RayCluster, of KubeRay {KUBERAY} or newer"


def _is_ray_job(schema: Mapping[str, Any]) -> bool:
    kinds = schema.get("x-kubernetes-group-version-kind", [])
    return any((each["group"], each["kind"]) == ("ray.io", "RayJob") for each in kinds)


def _cluster_fields(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    for field in ("spec", "rayClusterSpec"):
        schema = schema.get("properties", {}).get(field, {})
    fields: Mapping[str, Any] = schema.get("properties", {})
    return fields


def _rights(server: Api, namespace: str, *, queued: bool) -> tuple[bool | None, str]:
    beside = (*rights.PROVING, *(rights.QUEUEING if queued else ()))
    lacking = rights.missing(server, namespace, (*rights.NEEDED, *beside))
    needed = [each for each in lacking if each in rights.NEEDED]
    if needed:
        named = ", ".join(map(str, needed))
        return False, f"in the namespace {namespace} you may not: {named}. See k8s/base/role.yaml"
    if lacking:
        named = ", ".join(map(str, lacking))
        role = "k8s/base/role.yaml" if {*lacking} & {*rights.PROVING} else "k8s/components/kueue/role.yaml"
        return None, f"you may do what a run needs; for `rm` and `status` to say all, you may not: {named}. See {role}"
    return True, f"all {len(rights.NEEDED)} that are needed in the namespace {namespace}"


def _manifest(server: Api, job: dict[str, Any]) -> tuple[bool, str]:
    """Have the server go through an apply without keeping it: its fields, webhooks, quotas of objects."""
    server.apply(api.RAY_JOBS, job, "raylift-check", dry_run=True)
    return True, "the API server would take a RayJob as raylift makes it"


def _quota(server: Api, namespace: str, pods: list[dict[str, Any]]) -> tuple[bool | None, str]:
    from kubernetes.utils.quantity import parse_quantity

    try:
        quotas = server.select(_QUOTAS, namespace)
    except ApiError as error:
        if error.status != 403:
            raise
        return None, "you may not read quotas: whether there is room for a run is not known"
    requests, limits = (total([pod["spec"] for pod in pods], [of]) for of in ("requests", "limits"))
    asked = {
        **requests,  # cpu and memory are other words for requests.cpu and requests.memory
        **{f"requests.{resource}": amounts for resource, amounts in requests.items()},
        **{f"limits.{resource}": amounts for resource, amounts in limits.items()},
        **{name: ["1"] * len(pods) for name in ("pods", "count/pods")},
        **_OBJECTS,
    }
    short = []
    for quota in quotas:
        hard, used = quota["spec"].get("hard", {}), quota.get("status", {}).get("used", {})
        for resource, amounts in asked.items():
            if resource in hard:
                left = parse_quantity(hard[resource]) - parse_quantity(str(used.get(resource, "0")))
                if sum(map(parse_quantity, amounts)) > left:
                    short.append(f"{resource}: {' + '.join(amounts)} of {hard[resource]}, {used.get(resource, 0)} used")
    if short:
        over = ". Runs that are over count until raylift rm" if any("rayjobs" in each for each in short) else ""
        return False, f"there is no room for this run in the namespace: {'; '.join(short)}{over}"
    return True, f"there is room for this run and its {len(pods)} pods" if quotas else "there is none"


def _package_cache(server: Api, namespace: str, claim: str) -> tuple[bool | None, str]:
    """Look whether a volume is there: where its storage class waits for a pod, it has none yet."""
    try:
        found = server.find(api.CLAIMS, namespace, claim)
    except ApiError as error:
        if error.status != 403:
            raise
        return None, f"you may not look for the PersistentVolumeClaim {claim}: k8s/components/package-cache lets you"
    if found is None:
        return False, (
            f"the namespace {namespace} has no PersistentVolumeClaim {claim}: k8s/components/package-cache makes "
            "raylift-packages"
        )
    phase = found.get("status", {}).get("phase", "Pending")
    if phase == "Lost":
        return False, f"the PersistentVolumeClaim {claim} has lost its volume: make it anew"
    if phase == "Pending":
        return None, (
            f"the PersistentVolumeClaim {claim} is Pending, and has no volume yet: node-folders.yaml in "
            "k8s/components/package-cache makes one, and says what to do where one was released"
        )
    return True, f"the PersistentVolumeClaim {claim} is {phase}"


def _nodes(server: Api, head: dict[str, Any], worker: dict[str, Any], least: int) -> tuple[bool | None, str]:
    """Look how many nodes of which types could take a worker, and whether all of them could take all workers."""
    from kubernetes.utils.quantity import parse_quantity

    asked = ", ".join(f"{' + '.join(amounts)} {resource}" for resource, amounts in total([worker["spec"]]).items())
    wanted = f"{least} {'worker' if least == 1 else 'workers'} with {asked}"
    try:
        nodes = server.select(_NODES, None)
    except ApiError as error:
        if error.status != 403:
            raise
        return None, f"you may not list nodes: whether they could take {wanted} is not known"
    heads = sum(not obstacles(node, head, parse_quantity) for node in nodes)
    types: dict[str, list[int]] = {}  # of nodes, with what keeps a worker from them: how many each has room for
    for node in nodes:
        kept = obstacles(node, worker, parse_quantity)
        of = f"{_type(node)}, which has {', '.join(kept)}" if kept else _type(node)
        types.setdefault(of, []).append(0 if kept else room(node, worker, parse_quantity))
    free = [count for each in types.values() for count in each if count]
    told = "; ".join(
        [
            f"{wanted}: {len(free)} of {len(nodes)} nodes could take one, were they empty, and together {sum(free)}",
            f"{heads} could take the head",
            *(f"{len(each)} × {of}" for of, each in types.items()),
        ]
    )
    if heads and sum(free) >= least:
        return True, told
    if any("other labels" in of for of in types) and (wanted_labels := required_labels(worker)):
        told += f". A worker's node has to have a label of {', '.join(wanted_labels)}"
    return False, f"{told}. Only where the cluster adds nodes by itself will this run start"


def _type(node: Mapping[str, Any]) -> str:
    """Return the type of a machine, and its accelerators, as its labels have them."""
    labels = node["metadata"].get("labels", {})
    product = next((f" ({labels[each]})" for each in PRODUCT_LABELS if each in labels), "")
    return f"{labels.get('node.kubernetes.io/instance-type', 'a node of no type')}{product}"


def _autoscaler(server: Api, namespace: str, head: dict[str, Any]) -> tuple[bool | None, str]:
    """Look whether network policies let an autoscaler, which is in the head's pod, out to the API server."""
    opens = "k8s/components/autoscaler opens the way"
    try:
        policies = server.select(api.POLICIES, namespace)
        slices = server.select(_SLICES, "default", "kubernetes.io/service-name=kubernetes")
    except ApiError as error:
        if error.status != 403:
            raise
        return None, f"you may not read whether network policies keep it from the API server; {opens}"
    if not policies:
        return True, f"no network policy is in the namespace {namespace}"
    labels = {**head["metadata"]["labels"], ROLE_LABEL: "head"}
    there = [
        (address, int(port["port"]))
        for each in slices
        for endpoint in each.get("endpoints") or []
        for address in endpoint["addresses"]
        for port in each.get("ports") or []
    ]
    named = ", ".join(f"{address}:{port}" for address, port in there)
    if all(may_reach(policies, labels, address, port) for address, port in there):
        return True, f"network policies let the head out to the API server, {named}"
    return False, f"no network policy lets the head out to the API server, {named}, so no worker would come; {opens}"
