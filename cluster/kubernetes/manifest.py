"""From a run to what is applied for it in Kubernetes: a RayJob (ray.io/v1), and a Secret with its environment. Pure.

KubeRay starts a head and workers as the RayJob says, has a pod submit the driver to the head's Ray, and removes the
pods once the driver has ended. A driver that ends has written the run's result in storage, whatever it is; one that
was lost is started again, on the same cluster or on a new one, and goes on from the newest checkpoint.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from cluster import code, redaction
from cluster.config import KubernetesCluster, LocalCluster, Nodes, Workers
from cluster.errors import UsageError
from cluster.kubernetes import pods
from cluster.kubernetes.bundled import with_bundle
from cluster.kubernetes.identity import WHERE, require_identity
from cluster.kubernetes.pods import Manifest, secret_name
from cluster.kubernetes.reasons import QUEUE
from cluster.kubernetes.versions import RAY_VERSION
from cluster.provider import LaunchRequest
from cluster.ticket import Ticket

ON_CLUSTER = "raylift.dev/on-cluster"  # of a run: the cluster with a name that it is on
RAY_CLUSTER = "ray.io/cluster"  # KubeRay's label for what belongs to a RayCluster
NAME_LENGTH = 47  # KubeRay adds six characters for the RayCluster, and up to ten for its services: 63 in all
# What KubeRay's ray start is told; the network policies under k8s/ open these ports, and no others.
_PORTS = {
    "node-manager-port": "6380",
    "object-manager-port": "6381",
    "runtime-env-agent-port": "6382",
    "dashboard-agent-grpc-port": "6383",
}
_SUBMISSIONS = 4  # times that the submitter is started again, as when the head was lost and a new one comes
_SUBMITTING = 7 * 86_400  # seconds of one such pod, where the run has no budget
_KEYS = ("mountPath", "groupName", "name")  # of mounts, of worker groups, of all else
_ADDED = ("tolerations", "envFrom")  # lists whose items have no key, and do not stand in each other's way
# What overrides say for a cluster with a name, and KubeRay does not take, or heed, of a job on it
_OF_ITS_CLUSTER = (
    *("rayClusterSpec", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "suspend"),
    "deletionStrategy",
)
_LARGEST_SECRET = 1 << 20  # bytes
_VALUES = ("value", "valueFrom")  # of a variable: one of the two
_PLACING = (  # what a pod template says that holds for the pod that submits, too: where it may be
    *("tolerations", "nodeSelector", "affinity", "nodeName", "schedulerName", "priorityClassName", "runtimeClassName"),
    "imagePullSecrets",
)
_IDLE = 120  # seconds until a node that nobody needs is given back


def render(request: LaunchRequest) -> list[Manifest]:
    """Return what is applied for a run, in this order.

    Raises UsageError where Kubernetes takes no such name, or where the head could not go to storage.
    """
    cluster = request.cluster
    assert isinstance(cluster, KubernetesCluster)
    name = object_name(request.run_id)
    if request.ray_cluster:
        return [_guest(request, cluster, name)]
    secrets = [secret_name(name)] if request.env or request.secrets else []
    job = ray_job(
        name,
        cluster,
        labels=queue_label(cluster),
        annotations={pods.URI_ANNOTATION: request.run_uri, **slices(cluster)},
        spec={
            # the run is named in the environment: this line goes through two shells
            "entrypoint": "python -P -m trainers.submitted",
            "submissionMode": "K8sJobMode",
            "submitterConfig": {"backoffLimit": _SUBMISSIONS},
            "backoffLimit": request.max_failures,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": cluster.ttl_seconds_after_finished,
            "preRunningDeadlineSeconds": cluster.pre_running_deadline_seconds,
            **_deadline(request, cluster),
            "submitterPodTemplate": _submitter(request, cluster),
            "rayClusterSpec": ray_cluster(name, cluster, _environment(request, cluster), secrets, request.bundle),
        },
    )
    documents = [merge(job, cluster.overrides)]
    require_identity(documents[0], secret_name(name), {*request.env, *request.secrets})
    if secrets:
        documents.append(secret_of(name, cluster, {**request.env, **request.secrets}))
    return documents


def ray_job(
    name: str,
    cluster: KubernetesCluster,
    *,
    labels: Manifest,
    annotations: Manifest,
    spec: Manifest,
) -> Manifest:
    """Return a RayJob by which a run, or a cluster with a name, is found again."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": name,
            "namespace": cluster.namespace,
            "labels": {**pods.labels(name), **labels},
            "annotations": annotations,
        },
        "spec": spec,
    }


def ray_cluster(
    run_id: str, cluster: KubernetesCluster, env: list[Manifest], secrets: list[str], bundle: str
) -> Manifest:
    """Return the spec of a RayCluster whose pods have these variables, those of these Secrets, and maybe a bundle."""
    least, most = node_counts(cluster)
    _, count = pods.accelerators(cluster)
    secrets = [*secrets, *filter(None, [cluster.storage_secret])]
    head = pods.head_pod(run_id, cluster, env, secrets)
    worker = pods.worker_pod(run_id, cluster, env, secrets)
    head, worker = (_as_the_block_says(each, cluster, bundle) for each in (head, worker))
    spec: Manifest = {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},  # KubeRay makes the token, in a Secret that goes with the cluster
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            # no rank is placed here, also where Ray would find an accelerator
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", **_PORTS},
            "template": head,
        },
        "workerGroupSpecs": [
            {
                "groupName": group_name(cluster),
                "replicas": least,
                "minReplicas": least,
                "maxReplicas": most,
                # a rank takes one processor of Ray's, or one accelerator: so a pod on processors has room for one
                "rayStartParams": {**_PORTS} if count else {"num-cpus": "1", **_PORTS},
                "template": worker,
            }
        ],
    }
    if least != most:
        # KubeRay gives the autoscaler, in the head's pod, a service account of its own, unless it has one: see k8s/base
        spec["headGroupSpec"]["template"] = merge(head, {"spec": _autoscalers_account(cluster)})
        spec |= {"enableInTreeAutoscaling": True, "autoscalerOptions": _autoscaler(cluster)}
    if cluster.network_policy:
        # with egress denied too, KubeRay lets pods out to their own cluster and to DNS, but to no storage
        spec["networkPolicy"] = {"mode": "DenyAllIngress", "head": {"ingressRules": [_submitting(run_id)]}}
    return spec


def _submitter(request: LaunchRequest, cluster: KubernetesCluster) -> Manifest:
    """Return the template of the pod that submits, which is placed where the others may be.

    Where KubeRay has given a run up, and taken its cluster and the token away, one that is to submit once more cannot
    begin, and would stand for ever. One that follows a run which takes longer is started again, and follows on.
    """
    said = cluster.pod_template.get("spec", {})
    placing = {key: said[key] for key in _PLACING if key in said}
    limit = _deadline(request, cluster).get("activeDeadlineSeconds", _SUBMITTING)
    added = {"spec": {"activeDeadlineSeconds": limit, **placing}}
    merged: Manifest = merge(pods.submitter_pod(request.run_id, cluster), added)
    return merged


def _as_the_block_says(template: Manifest, cluster: KubernetesCluster, bundle: str) -> Manifest:
    """Return the template of a pod with what fetches raylift, if it has to, and with what the cluster block adds."""
    changed: Manifest = merge(template, cluster.pod_template)
    if bundle:
        _, count = pods.accelerators(cluster)
        with_it = with_bundle(template, changed, bundle, on_gpus=count > 0, claim=cluster.package_cache)
        changed = merge(with_it, cluster.pod_template)
    return changed


def secret_of(name: str, cluster: KubernetesCluster, variables: Mapping[str, str]) -> Manifest:
    """Return the Secret of a run, or of a cluster with a name, with variables for its pods.

    Raises UsageError where Kubernetes takes no such one.
    """
    if (size := sum(len(value.encode()) for value in variables.values())) > _LARGEST_SECRET:
        raise UsageError(
            f"env and secrets: together they have {size:,} bytes, and a Secret of Kubernetes {_LARGEST_SECRET:,} at "
            "most: put what is large into a file, in workdir or in the bucket"
        )
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": secret_name(name), "namespace": cluster.namespace, "labels": pods.labels(name)},
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in variables.items()},
    }


def group_name(cluster: KubernetesCluster) -> str:
    """Return what the pods with the ranks are called: by what they train on."""
    return pods.accelerators(cluster)[0].lower() or "cpu"


def object_name(run_id: str) -> str:
    """Return the name of a run's objects, which is its id. Raises UsageError where that cannot be a name."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", run_id) or len(run_id) > NAME_LENGTH:
        raise UsageError(
            f"--id {run_id}: in Kubernetes a run's id begins with a letter and does not end with a dash, "
            f"and has at most {NAME_LENGTH} characters"
        )
    return run_id


def driver_cluster(cluster: KubernetesCluster) -> LocalCluster:
    """Return what the driver, which is in the cluster, is told of it: a Ray that runs already, and how many ranks."""
    _, count = pods.accelerators(cluster)
    if not count:
        return LocalCluster(address="auto", workers=cluster.workers if cluster.workers is not None else 1)
    return LocalCluster(address="auto", nodes=cluster.nodes or 1, accelerators=f"GPU:{count}")


def node_counts(cluster: KubernetesCluster) -> tuple[int, int]:
    """Return how many worker pods there are at least and at most."""
    counted = cluster.workers if cluster.accelerators is None else cluster.nodes
    if isinstance(counted, Workers | Nodes):
        return counted.min, counted.max
    return (counted or 1,) * 2


def merge(base: Any, over: Any) -> Any:
    """Return `base` with `over` laid over it: blocks key by key, lists by what tells items apart; null takes away.

    Tolerations, and where variables are from, are added to those that there are.
    """
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        changed = {
            key: _added(base.get(key), value) if key in _ADDED else merge(base.get(key), value)
            for key, value in over.items()
            if value is not None
        }
        return {key: value for key, value in {**base, **changed}.items() if over.get(key, value) is not None}
    if isinstance(base, list) and isinstance(over, list) and (key := _key([*base, *over])):
        named = {each[key]: each for each in over}
        kept = [merge(_without_other(each, named.get(each[key], {})), named.pop(each[key], {})) for each in base]
        return [*kept, *named.values()]
    return over


def _without_other(base: Mapping[str, Any], over: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a variable without the kind of value that it had, where it gets one of another kind: it has but one."""
    return {key: value for key, value in base.items() if key not in _VALUES or not {*over} & {*_VALUES} - {key}}


def _added(base: Any, over: Any) -> Any:
    """Return a list with what another adds to it; the latter alone where one of them is none."""
    if not isinstance(base, list) or not isinstance(over, list):
        return over
    return [*base, *(each for each in over if each not in base)]


def _guest(request: LaunchRequest, cluster: KubernetesCluster, name: str) -> Manifest:
    """Return the job of a run on a cluster with a name, which KubeRay then neither makes nor deletes.

    Nor does it start a driver there again: it takes no backoffLimit for such a job, and would delete the cluster first
    (KubeRay's ValidateRayJobSpec, and its RayJob controller's state Retrying). Its deadline would leave the driver
    running. Both are left to trainers.attended, which is told by its command line, as the pods are older than the run.
    That line is in the RayJob, and in the log that Ray keeps of a job: the environment is read from storage, but for
    where that is. KubeRay's deadline is for a cluster that has gone, which it would look for without an end.
    """
    limit = request.deadline + cluster.termination_grace_period_seconds if request.deadline is not None else None
    ticket = Ticket(
        variables={
            pods.RUN_URI: request.run_uri,
            "RAYLIFT_CLUSTER": driver_cluster(cluster).model_dump_json(exclude_none=True),
            **_launch(request),
            **({code.DIGEST: request.code} if request.code else {}),
            **({redaction.NAMES: ",".join(request.secrets)} if request.secrets else {}),
            **{name: value for name, value in request.env.items() if name in WHERE},
        },
        max_failures=request.max_failures,
        deadline=limit,
    )
    assert cluster.name is not None
    labels = {ON_CLUSTER: cluster.name}
    job = ray_job(
        name,
        cluster,
        labels=labels,
        annotations={pods.URI_ANNOTATION: request.run_uri},
        spec={
            "entrypoint": f"python -P -m trainers.attended {ticket.word()}",
            "clusterSelector": {RAY_CLUSTER: request.ray_cluster},
            "submissionMode": "K8sJobMode",
            "submitterConfig": {"backoffLimit": _SUBMISSIONS},
            "backoffLimit": 0,
            "preRunningDeadlineSeconds": cluster.pre_running_deadline_seconds,
            "activeDeadlineSeconds": _given_up(limit),
            "submitterPodTemplate": merge(_submitter(request, cluster), {"metadata": {"labels": labels}}),
        },
    )
    said = cluster.overrides.get("spec", {})
    spec = {key: value for key, value in said.items() if key not in _OF_ITS_CLUSTER}
    merged: Manifest = merge(job, {**cluster.overrides, "spec": spec})
    merged["metadata"]["labels"].pop(QUEUE, None)  # Kueue refuses a job on a cluster that is there
    return merged


def _given_up(limit: int | None) -> int:
    """Return after how many seconds a run on a cluster with a name is given up: long after its driver has ended.

    KubeRay's clock runs while the pod that submits still waits for room. Without a budget that is when no pod is left
    to submit it.
    """
    return _SUBMITTING + limit if limit is not None else (_SUBMISSIONS + 1) * _SUBMITTING


def _deadline(request: LaunchRequest, cluster: KubernetesCluster) -> dict[str, int]:
    """Return when KubeRay ends what has not ended by itself: its clock starts before there are pods.

    It starts anew with each try (KubeRay's initRayJobStatusIfNeed), so that a run whose driver is lost again and again
    may take `max_failures` + 1 times as long until KubeRay ends it. The driver itself counts over all tries.
    """
    if request.deadline is None:
        return {}
    margin = cluster.pre_running_deadline_seconds + cluster.termination_grace_period_seconds
    return {"activeDeadlineSeconds": request.deadline + margin}


def _environment(request: LaunchRequest, cluster: KubernetesCluster) -> list[Manifest]:
    driver = driver_cluster(cluster).model_dump_json(exclude_none=True)
    return [
        {"name": pods.RUN_URI, "value": request.run_uri.replace("$", "$$")},  # Kubernetes would expand $(NAME)
        {"name": "RAYLIFT_CLUSTER", "value": driver},
        *({"name": name, "value": value} for name, value in _launch(request).items()),
        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        *([{"name": code.DIGEST, "value": request.code}] if request.code else []),
        *([{"name": redaction.NAMES, "value": ",".join(request.secrets)}] if request.secrets else []),
        *of_its_pod(cluster),
    ]


def _launch(request: LaunchRequest) -> dict[str, str]:
    """Return by what the drivers of one launch, each of which may be lost, are told from those of an earlier one."""
    newest = request.newest_attempt
    return {"RAYLIFT_LAUNCH": f"after-{newest}", "RAYLIFT_NEWEST_ATTEMPT": str(newest)}


def of_its_pod(cluster: KubernetesCluster) -> list[Manifest]:
    """Return variables that tell each pod its address, its processors, which are not all its machine's, and its end."""
    return [
        {"name": "RAYLIFT_GRACE_SECONDS", "value": str(cluster.termination_grace_period_seconds)},
        {"name": "RAYLIFT_NODE_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {
            "name": "RAYLIFT_CPUS",
            "valueFrom": {"resourceFieldRef": {"containerName": pods.CONTAINER, "resource": "limits.cpu"}},
        },
    ]


def _submitting(name: str) -> Manifest:
    """Return a rule that lets in to the head of a run, or of a cluster with a name, the pods that submit there.

    KubeRay knows of those of its own job alone.
    """
    labels = ({pods.RUN_LABEL: name}, {ON_CLUSTER: name})
    return {
        "from": [{"podSelector": {"matchLabels": {**pods.MANAGED_BY, **each}}} for each in labels],
        "ports": [{"protocol": "TCP", "port": 8265}],
    }


def _autoscalers_account(cluster: KubernetesCluster) -> Manifest:
    account = cluster.head_service_account
    return {"serviceAccountName": account, "automountServiceAccountToken": True if account is not None else None}


def _autoscaler(cluster: KubernetesCluster) -> Manifest:
    few: Manifest = {"cpu": "500m", "memory": "512Mi"}
    return {
        "version": "v2",
        "idleTimeoutSeconds": _IDLE,
        "imagePullPolicy": cluster.pull_policy,
        "resources": {"requests": few, "limits": dict(few)},
        "securityContext": {**pods.container_security(), "readOnlyRootFilesystem": False},
    }


def queue_label(cluster: KubernetesCluster) -> dict[str, str]:
    """Return the label that has Kueue decide when a job starts."""
    return {QUEUE: cluster.queue} if cluster.queue is not None else {}


def slices(cluster: KubernetesCluster) -> dict[str, str]:
    """Tell Kueue that a run's size changes: without, it takes none with an autoscaler."""
    least, most = node_counts(cluster)
    return {"kueue.x-k8s.io/elastic-job": "true"} if cluster.queue is not None and least != most else {}


def _key(items: list[Any]) -> str:
    """Return by which key all items are told apart, as Kubernetes does; an empty text where there is none."""
    return next((key for key in _KEYS if all(isinstance(each, Mapping) and key in each for each in items)), "")
