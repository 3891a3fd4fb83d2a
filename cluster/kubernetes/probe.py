"""Whether pods can write to a storage: asked by one that does nothing else, as short as it lives.

Whoever launches runs may make no pods, but RayJobs. So the pod is the head of one: its first container writes to
storage, and the job is deleted as soon as that has ended. Where nobody is left to do so, KubeRay takes the pod away,
and the next check what then is left of the job.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator

from cluster.config import KubernetesCluster, Resources
from cluster.errors import InfrastructureError
from cluster.kubernetes import api, events, reasons
from cluster.kubernetes.api import Api, ApiError, Object
from cluster.kubernetes.bundled import command
from cluster.kubernetes.fetch import DONE, TOLD
from cluster.kubernetes.manifest import ray_job, render
from cluster.kubernetes.pods import RUN_LABEL, Manifest
from cluster.kubernetes.versions import CLIENTS, RAY_VERSION
from cluster.provider import LaunchRequest

_LABEL = "raylift.dev/check"  # of the RayJob of one
_PROBE = "raylift-probe"
_PATIENCE = 300.0  # seconds: an image may have to be pulled
_HELD = 30.0  # that an image is not there, or a Secret: no autoscaler mends that
_GONE = 60.0
_POLL = 1.0
_OF_A_SERVER = ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe")  # none of what comes before it
_SMALL = Resources(cpu=0.5, memory="1Gi", disk="2Gi")


def probe(server: Api, cluster: KubernetesCluster, storage: str) -> None:
    """Have a pod write to a storage, read and delete. Raises InfrastructureError with what it said, or why it waits."""
    _sweep(server, cluster.namespace)
    document = render_probe(cluster, storage, f"raylift-check-{secrets.token_hex(3)}")
    with _applied(server, document) as name:
        _wait_for_its_end(server, cluster.namespace, name)


def render_probe(cluster: KubernetesCluster, storage: str, name: str) -> Manifest:
    """Return a RayJob of a head alone that is a run's but for its size: its image, account, Secret, placement, queue.

    Pure.
    """
    small = cluster.model_copy(update={"head": _SMALL, "termination_grace_period_seconds": 30})
    uri = f"{storage.rstrip('/')}/.raylift/{name}"
    run = render(LaunchRequest(run_id=name, run_uri=uri, cluster=small, max_failures=0))[0]
    cluster_spec = run["spec"]["rayClusterSpec"]
    template = cluster_spec["headGroupSpec"]["template"]
    template["spec"]["automountServiceAccountToken"] = False  # an autoscaler alone asks Kubernetes
    ray = template["spec"]["containers"][0]
    for key in _OF_A_SERVER:
        ray.pop(key, None)
    first = {key: value for key, value in ray.items() if key not in ("name", "command", "args", "ports")}
    first |= {"name": _PROBE, "command": command("probe")}
    first["args"] = [uri.replace("$", "$$"), "/tmp/raylift", CLIENTS[uri.partition("://")[0]]]
    template["spec"]["initContainers"] = [first]
    spec = {
        "entrypoint": "sleep 60",  # so that the pod stays until it has been read: the job is then deleted
        "submissionMode": "HTTPMode",  # by the operator: no other pod is needed
        "backoffLimit": 0,
        "activeDeadlineSeconds": round(_PATIENCE + _GONE),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 0,
        "rayClusterSpec": {
            "rayVersion": RAY_VERSION,
            "authOptions": {"mode": "token"},
            "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": template},
            "workerGroupSpecs": [],
            # which KubeRay refuses where its gate is off, and nobody else can tell
            **{key: cluster_spec[key] for key in ("networkPolicy",) if key in cluster_spec},
        },
    }
    return ray_job(name, cluster, labels={**run["metadata"]["labels"], _LABEL: name}, annotations={}, spec=spec)


def _sweep(server: Api, namespace: str) -> None:
    """Delete the jobs of checks that died before they did so themselves; one that goes on may be somebody else's."""
    for job in server.select(api.RAY_JOBS, namespace, _LABEL):
        if reasons.where_it_stands(job, [], [], None)[0].is_final:
            server.delete(api.RAY_JOBS, namespace, job["metadata"]["name"])


@contextlib.contextmanager
def _applied(server: Api, document: Manifest) -> Iterator[str]:
    """Have a job for as long as the block lasts, and wait until it is gone, also where the block fails.

    Raises InfrastructureError where it does not go.
    """
    namespace, name = document["metadata"]["namespace"], document["metadata"]["name"]
    problems = []
    try:
        server.apply(api.RAY_JOBS, document, "raylift-check")
        yield name
    except InfrastructureError as error:
        problems.append(str(error))
    finally:
        with contextlib.suppress(ApiError):
            server.delete(api.RAY_JOBS, namespace, name)
    if not _goes(server, namespace, name):
        left = f"the RayJob {name} of this check may still be there"
        problems.append(f"{left}: kubectl delete rayjob --namespace {namespace} {name}")
    if problems:
        raise InfrastructureError("; ".join(problems))


def _wait_for_its_end(server: Api, namespace: str, name: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    well = time.monotonic()
    while True:
        found = _pods(server, namespace, name)
        for pod in found:
            if (exit_code := _exit_code(pod)) is not None:
                printed = _printed(server, pod)
                said = next((each.removeprefix(TOLD) for each in reversed(printed) if each.startswith(TOLD)), "")
                if said == DONE:
                    return
                raise InfrastructureError(said or f"it ended with exit code {exit_code}: {' '.join(printed[-1:])}")
        job = server.find(api.RAY_JOBS, namespace, name)
        if job is None:
            raise InfrastructureError("somebody has deleted its RayJob")
        told = events.told(server, namespace, filter(None, [name, job.get("status", {}).get("rayClusterName")]))
        state, why = reasons.where_it_stands(job, found, told, None)
        if state.is_final:
            raise InfrastructureError(why or "it ended before anybody had read what it wrote")
        if not (held := reasons.held(found, told)):
            well = time.monotonic()
        elif time.monotonic() - well > _HELD:
            raise InfrastructureError(held)
        if time.monotonic() > deadline:
            raise InfrastructureError(f"not known after {_PATIENCE:.0f} s: {why or 'its pod has not written yet'}")
        time.sleep(_POLL)


def _pods(server: Api, namespace: str, name: str) -> list[Object]:
    return server.select(api.PODS, namespace, f"{RUN_LABEL}={name}")


def _goes(server: Api, namespace: str, name: str) -> bool:
    """Wait until nothing of a check is there; return whether that is known."""
    deadline = time.monotonic() + _GONE
    while time.monotonic() < deadline:
        with contextlib.suppress(ApiError):
            if not _is_there(server, namespace, name):
                return True
        time.sleep(_POLL)
    return False


def _is_there(server: Api, namespace: str, name: str) -> bool:
    """Whether something of a check is still there."""
    label = f"{RUN_LABEL}={name}"
    return any(server.select(kind, namespace, label) for kind in (api.RAY_JOBS, api.RAY_CLUSTERS, api.PODS))


def _exit_code(pod: Object) -> int | None:
    for status in pod.get("status", {}).get("initContainerStatuses", []):
        if status["name"] == _PROBE and "terminated" in status.get("state", {}):
            return int(status["state"]["terminated"]["exitCode"])
    return None


def _printed(server: Api, pod: Object) -> list[str]:
    """Return the lines that the container printed."""
    path = f"{api.PODS.path(pod['metadata']['namespace'], pod['metadata']['name'])}/log"
    with contextlib.suppress(ApiError):
        lines = server.read(path, container=_PROBE).decode(errors="replace").split("\n")
        return [line for line in lines if line.strip()]
    return []
