"""The pods of a run: what they run, where they may be placed, and how little they may do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cluster.config import KubernetesCluster, Resources, Spot
from cluster.kubernetes.versions import IMAGE

Manifest = dict[str, Any]

CONTAINER = "ray"
SAYS_WHY = "FallbackToLogsOnError"  # the end of what a container printed is kept in its status, where that fails
RUN_LABEL = "raylift.dev/run"
ROLE_LABEL = "ray.io/node-type"  # KubeRay's, of a pod: head or worker
URI_ANNOTATION = "raylift.dev/run-uri"
MANAGED_BY = {"app.kubernetes.io/managed-by": "raylift"}
RUN_URI = "RAYLIFT_RUN_URI"  # of the run: not on the command line, which several shells would read
_SCRATCH = "/tmp"  # the one place of a container that can be written to, beside shared memory
# A runtime of NVIDIA's shows all of a node's to a container that asked for none, where its image says so as CUDA's do:
# https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html
_NO_GPUS = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}
# KubeRay has a submitter wait for the head without an end, also once its run has failed and the cluster is gone, when
# Kubernetes still starts it again (BuildJobSubmitCommand, and the RayJob controller's state Failed, which keeps the
# Job): one that finds no head for five minutes is ended, as often as `submitterConfig` has it tried.
_HEAD_IS_THERE = (
    "import os, urllib.request as r; address = os.environ['RAY_DASHBOARD_ADDRESS'].rpartition('//')[2]; "
    "r.urlopen(f'http://{address}/api/gcs_healthz', timeout=5)"
)
_UNITS = {"Mi": 1, "Gi": 1024, "Ti": 1024**2}

# What machines with an accelerator are labelled, by those who know: NVIDIA's GPU feature discovery
# (https://github.com/NVIDIA/k8s-device-plugin/tree/main/docs/gpu-feature-discovery), GKE
# (https://cloud.google.com/kubernetes-engine/docs/how-to/gpus) and Karpenter
# (https://karpenter.sh/docs/reference/instance-types).
_NVIDIA = "nvidia.com/gpu.product"
_GKE = "cloud.google.com/gke-accelerator"
_KARPENTER = "karpenter.k8s.aws/instance-gpu-name"
PRODUCT_LABELS = (_NVIDIA, _GKE, _KARPENTER)
_PRODUCTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "T4": {_NVIDIA: ["Tesla-T4"], _GKE: ["nvidia-tesla-t4"], _KARPENTER: ["t4"]},
    "V100": {
        _NVIDIA: ["Tesla-V100-SXM2-16GB", "Tesla-V100-SXM2-32GB", "Tesla-V100-PCIE-16GB", "Tesla-V100-PCIE-32GB"],
        _GKE: ["nvidia-tesla-v100"],
        _KARPENTER: ["v100"],
    },
    "L4": {_NVIDIA: ["NVIDIA-L4"], _GKE: ["nvidia-l4"], _KARPENTER: ["l4"]},
    "L40S": {_NVIDIA: ["NVIDIA-L40S"], _KARPENTER: ["l40s"]},
    "A10G": {_NVIDIA: ["NVIDIA-A10G"], _KARPENTER: ["a10g"]},
    "A100": {
        _NVIDIA: [
            "NVIDIA-A100-SXM4-40GB",
            "NVIDIA-A100-SXM4-80GB",
            "NVIDIA-A100-PCIE-40GB",
            "NVIDIA-A100-80GB-PCIe",
        ],
        _GKE: ["nvidia-tesla-a100", "nvidia-a100-80gb"],
        _KARPENTER: ["a100"],
    },
    "H100": {
        _NVIDIA: ["NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe", "NVIDIA-H100-NVL"],
        _GKE: ["nvidia-h100-80gb", "nvidia-h100-mega-80gb"],
        _KARPENTER: ["h100"],
    },
    "H200": {_NVIDIA: ["NVIDIA-H200"], _GKE: ["nvidia-h200-141gb"], _KARPENTER: ["h200"]},
    "B200": {_NVIDIA: ["NVIDIA-B200"], _GKE: ["nvidia-b200"], _KARPENTER: ["b200"]},
}
# How a spot machine is labelled, by GKE, a managed node group of EKS, Karpenter and AKS, of which the first and the
# last taint it too.
_SPOT = {
    "cloud.google.com/gke-spot": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
_TAINTS = ("cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority")


def secret_name(name: str) -> str:
    """Return a name that no Secret of others has: an apply would add to it, and a teardown take it away, unread."""
    return f"raylift.{name}"


def head_pod(run_id: str, cluster: KubernetesCluster, env: Sequence[Manifest], secrets: Sequence[str]) -> Manifest:
    """Return the template of the pod with the driver: no accelerator, on no spot machine, and no rank trains there."""
    container = _ray_container("head", cluster, amounts(cluster.head), [dict(_NO_GPUS), *env], secrets)
    terms = _terms([], on_spot=False) if cluster.spot is not None else []
    return _pod(run_id, cluster, container, _affinity(terms, []))


def worker_pod(run_id: str, cluster: KubernetesCluster, env: Sequence[Manifest], secrets: Sequence[str]) -> Manifest:
    """Return the template of the pods with the ranks."""
    kind, count = accelerators(cluster)
    asked = amounts(cluster.resources, count, cluster.accelerator_resource)
    container = _ray_container("worker", cluster, asked, env, secrets)
    terms = _terms(_kinds(kind), on_spot=cluster.spot if isinstance(cluster.spot, bool) else None)
    preferred = list(_SPOT.items()) if isinstance(cluster.spot, Spot) else []
    pod = _pod(run_id, cluster, container, _affinity(terms, preferred))
    together = {"matchLabels": {RUN_LABEL: run_id, ROLE_LABEL: "worker"}}
    spec = pod["spec"]
    near = {"topologyKey": "topology.kubernetes.io/zone", "labelSelector": together}
    spec["affinity"] = {
        **spec.get("affinity", {}),
        # between zones, gradients cost time and money
        "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": near}]},
    }
    spec["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": together,
        }
    ]
    tolerations = [{"key": cluster.accelerator_resource, "operator": "Exists", "effect": "NoSchedule"}] if count else []
    if cluster.spot:
        tolerations += [
            {"key": key, "operator": "Equal", "value": _SPOT[key], "effect": "NoSchedule"} for key in _TAINTS
        ]
    if tolerations:
        spec["tolerations"] = tolerations
    return pod


def submitter_pod(run_id: str, cluster: KubernetesCluster) -> Manifest:
    """Return the template of the pod that submits the job to the head's Ray, and prints what the driver does."""
    few: Manifest = {"cpu": "500m", "memory": "1Gi", "ephemeral-storage": "1Gi"}
    container = {
        "name": "ray-job-submitter",
        "image": image(cluster),
        "imagePullPolicy": cluster.pull_policy,
        "env": [{"name": "HOME", "value": _SCRATCH}, dict(_NO_GPUS), {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}],
        "resources": {"requests": few, "limits": dict(few)},
        "livenessProbe": {
            "exec": {"command": ["python", "-c", _HEAD_IS_THERE]},
            "periodSeconds": 20,
            "timeoutSeconds": 10,
            "failureThreshold": 15,
        },
        "securityContext": container_security(),
        "volumeMounts": [{"name": "scratch", "mountPath": _SCRATCH}],
    }
    spec: Manifest = {
        "restartPolicy": "Never",
        "serviceAccountName": cluster.service_account,
        "automountServiceAccountToken": False,
        "securityContext": pod_security(),
        "containers": [container],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": few["ephemeral-storage"]}}],
    }
    return {"metadata": {"labels": labels(run_id)}, "spec": {**spec, **_chosen(cluster)}}


def labels(run_id: str) -> dict[str, str]:
    """Return what marks everything of a run: it is found by it again."""
    return {**MANAGED_BY, RUN_LABEL: run_id}


def image(cluster: KubernetesCluster) -> str:
    """Return the image of all pods."""
    return cluster.image or (IMAGE if cluster.accelerators is None else f"{IMAGE}-gpu")


def amounts(resources: Resources, count: int = 0, resource: str = "") -> Manifest:
    """Return what a pod with `count` accelerators asks for, as Kubernetes writes it."""
    cpu = resources.cpu if resources.cpu is not None else float(3 * count or 1)
    asked = {
        "cpu": f"{cpu:.0f}" if cpu == int(cpu) else f"{cpu * 1000:.0f}m",
        "memory": resources.memory or f"{12 * count or 4}Gi",
        "ephemeral-storage": resources.disk,
    }
    return {**asked, resource: str(count)} if count else asked


def accelerators(cluster: KubernetesCluster) -> tuple[str, int]:
    """Return the kind of accelerators of a node and how many it has; ("", 0) on processors."""
    if cluster.accelerators is None:
        return "", 0
    kind, _, count = cluster.accelerators.partition(":")
    return kind.upper(), int(count or 1)


def container_security() -> Manifest:
    """Return what the Pod Security Standard `restricted` asks of a container, and that it writes to volumes alone."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def pod_security() -> Manifest:
    """Return the user of the image, by number, and the group to which volumes belong."""
    return {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 100,
        "fsGroup": 100,
        "fsGroupChangePolicy": "OnRootMismatch",  # else each pod would go through all files of a volume
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _pod(run_id: str, cluster: KubernetesCluster, container: Manifest, affinity: Manifest) -> Manifest:
    asked = container["resources"]["limits"]
    spec: Manifest = {
        "restartPolicy": "Never",  # KubeRay makes a new pod, maybe on another node
        "serviceAccountName": cluster.service_account,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": cluster.termination_grace_period_seconds,
        "securityContext": pod_security(),
        **({"affinity": affinity} if affinity else {}),
        "containers": [container],
        "volumes": [
            {"name": "scratch", "emptyDir": {"sizeLimit": asked["ephemeral-storage"]}},
            # Ray's objects and the sums of gradients; it counts as memory of the container
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": _half(asked["memory"])}},
        ],
    }
    return {"metadata": {"labels": labels(run_id)}, "spec": {**spec, **_chosen(cluster)}}


def _chosen(cluster: KubernetesCluster) -> Manifest:
    """Return what the cluster block adds to any pod."""
    chosen: Manifest = {}
    if cluster.node_selector:
        chosen["nodeSelector"] = dict(cluster.node_selector)
    if cluster.priority_class is not None:
        chosen["priorityClassName"] = cluster.priority_class
    if cluster.pull_secret is not None:
        chosen["imagePullSecrets"] = [{"name": cluster.pull_secret}]
    return chosen


def _ray_container(
    role: str, cluster: KubernetesCluster, asked: Manifest, env: Sequence[Manifest], secrets: Sequence[str]
) -> Manifest:
    container: Manifest = {
        "name": CONTAINER,
        "image": image(cluster),
        "imagePullPolicy": cluster.pull_policy,
        "workingDir": _SCRATCH,
        "env": [{"name": "HOME", "value": _SCRATCH}, *env],
        "resources": {"requests": asked, "limits": dict(asked)},
        # a save while the node is drained; a pod whose run is over has nothing to wait for
        "lifecycle": {"preStop": {"exec": {"command": ["python", "-P", "-m", "trainers.leaving", role]}}},
        "terminationMessagePolicy": SAYS_WHY,
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "scratch", "mountPath": _SCRATCH},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    if secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in secrets]
    return container


def _kinds(kind: str) -> list[tuple[str, Sequence[str]]]:
    """Return the labels, any of which says that a node has a kind of accelerator; none where any kind will do."""
    return list(_PRODUCTS[kind].items()) if kind not in ("", "GPU") else []


def _terms(kinds: Iterable[tuple[str, Sequence[str]]], *, on_spot: bool | None) -> list[Manifest]:
    """Return terms of which a node must match one, each being all that it says."""
    wanted = [_is_in(label, products) for label, products in kinds]
    if on_spot is None:
        return [{"matchExpressions": [each]} for each in wanted]
    if on_spot:
        spots = [_is_in(label, [value]) for label, value in _SPOT.items()]
        return [{"matchExpressions": [kind, spot]} for kind in wanted for spot in spots if _same_cloud(kind, spot)] or [
            {"matchExpressions": [spot]} for spot in spots
        ]
    none = [{**_is_in(label, [value]), "operator": "NotIn"} for label, value in _SPOT.items()]
    return [{"matchExpressions": [kind, *none]} for kind in wanted] or [{"matchExpressions": none}]


def _same_cloud(kind: Manifest, spot: Manifest) -> bool:
    """Whether a node may have both labels; NVIDIA's may be anywhere."""
    cloud = {_GKE: "cloud.google.com/", _KARPENTER: "karpenter.sh/"}.get(kind["key"], "")
    return str(spot["key"]).startswith(cloud)


def _is_in(label: str, values: Sequence[str]) -> Manifest:
    return {"key": label, "operator": "In", "values": list(values)}


def _affinity(terms: Sequence[Manifest], preferred: Sequence[tuple[str, str]]) -> Manifest:
    node: Manifest = {}
    if terms:
        node["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": list(terms)}
    if preferred:
        node["preferredDuringSchedulingIgnoredDuringExecution"] = [
            {"weight": 100, "preference": {"matchExpressions": [_is_in(label, [value])]}} for label, value in preferred
        ]
    return {"nodeAffinity": node} if node else {}


def _half(memory: str) -> str:
    """Return half of an amount of memory."""
    return f"{int(memory[:-2]) * _UNITS[memory[-2:]] // 2}Mi"
