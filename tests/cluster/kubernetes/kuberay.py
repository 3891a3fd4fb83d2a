"""What KubeRay makes of a RayJob, as objects alone: nothing runs."""

from __future__ import annotations

from typing import Any

from tests.stand_ins.kubernetes.server import ApiServer

Object = dict[str, Any]


def take_up(server: ApiServer, run_id: str, *, finalizer: bool = False) -> dict[str, Object]:
    """Make a RayCluster, its pods and services and the submitter's Job, as KubeRay labels and owns them."""
    job = server.get("RayJob", "raylift", run_id)
    assert job is not None
    name = f"{run_id}-x7k2p"
    spec = job["spec"]["rayClusterSpec"]
    origin = {"ray.io/originated-from-cr-name": run_id, "ray.io/originated-from-crd": "RayJob"}
    cluster = _make(server, "RayCluster", name, {**job["metadata"]["labels"], **origin}, job, spec=spec)
    submitter = _make(server, "Job", run_id, origin, job, spec={})
    found = {"cluster": cluster, "submitter": submitter}
    head, workers = spec["headGroupSpec"]["template"], spec["workerGroupSpecs"][0]["template"]
    for role, template in (("head", head), ("worker", workers)):
        labels = {**template["metadata"]["labels"], "ray.io/cluster": name, "ray.io/node-type": role}
        found[role] = _make(server, "Pod", f"{name}-{role}", labels, cluster, spec=template["spec"])
    _make(server, "Service", f"{name}-head-svc", {"ray.io/cluster": name}, cluster, spec={})
    _make(server, "Service", f"{run_id}-head-svc", origin, job, spec={})
    server.change("RayJob", "raylift", run_id, lambda value: _begin(value, name, finalizer=finalizer))
    return found


def submit(server: ApiServer, run_id: str, name: str = "first") -> Object:
    """Make the pod that submits the driver."""
    job, submitter = server.get("RayJob", "raylift", run_id), server.get("Job", "raylift", run_id)
    assert job is not None
    assert submitter is not None
    template = job["spec"]["submitterPodTemplate"]
    pod = _make(server, "Pod", f"{run_id}-{name}", template["metadata"]["labels"], submitter, spec=template["spec"])
    server.set_status("Pod", "raylift", f"{run_id}-{name}", phase="Running")
    return pod


def _begin(job: Object, cluster: str, *, finalizer: bool) -> None:
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        group["scaleStrategy"] = {}  # Go writes what is empty too, when KubeRay writes the object
    job["status"] = {"jobDeploymentStatus": "Initializing", "rayClusterName": cluster}
    if finalizer:
        job["metadata"]["finalizers"] = ["ray.io/rayjob-finalizer"]


def _make(server: ApiServer, kind: str, name: str, labels: dict[str, str], owner: Object, spec: Object) -> Object:
    reference = {key: owner[key] for key in ("apiVersion", "kind")}
    reference |= {key: owner["metadata"][key] for key in ("name", "uid")}
    metadata = {"name": name, "labels": labels, "ownerReferences": [reference]}
    return server.create(kind, {"metadata": metadata, "spec": spec}, "raylift")
