"""What KubeRay refuses of RayJobs and RayClusters that their CustomResourceDefinitions let through.

After ray-operator/controllers/ray/utils/validation.go of https://github.com/ray-project/kuberay, as it was when spec
had networkPolicy and tlsOptions, which is 1.7; of what raylift never says (fault tolerance of the GCS, TLS, a history
server, rules of deletion), nothing is here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any

from tests.stand_ins.kubernetes.kinds import Object

SELECTED = "ray.io/cluster"  # the key of a clusterSelector
_LONGEST = {"RayCluster": 53, "RayJob": 47}
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_OF_RAY = ("num-cpus", "num-gpus", "memory", "resources")
_V2 = "RAY_enable_autoscaler_v2"
_FIRST_WITH_TOKENS = (2, 52, 0)


def mistake_in(job: Object, gates: Collection[str] = ()) -> str:
    """Return what KubeRay, with these feature gates on, refuses of a RayJob; an empty text where it takes it."""
    return next(chain(_name("RayJob", job), _of_job(job["spec"]), _of_its_cluster(job["spec"], gates)), "")


def mistake_in_cluster(cluster: Object, gates: Collection[str] = ()) -> str:
    """Return what it refuses of a RayCluster."""
    return next(chain(_name("RayCluster", cluster), _of_cluster(cluster["spec"], gates)), "")


def _name(kind: str, value: Object) -> Iterator[str]:
    name = value["metadata"]["name"]
    if len(name) > _LONGEST[kind]:
        yield f"{kind} name should be no more than {_LONGEST[kind]} characters"
    if not _DNS_1035.fullmatch(name):
        yield f"{kind} name should be a valid DNS1035 label"


def _of_job(spec: Object) -> Iterator[str]:
    selected, ends = spec.get("clusterSelector"), spec.get("shutdownAfterJobFinishes")
    mode, again = spec.get("submissionMode"), spec.get("backoffLimit", 0)
    if spec.get("suspend") and not ends:
        yield "a RayJob with shutdownAfterJobFinishes set to false is not allowed to be suspended"
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "TTLSecondsAfterFinished must be a non-negative integer"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not ends:
        yield "a RayJob with shutdownAfterJobFinishes set to false cannot have TTLSecondsAfterFinished"
    if spec.get("suspend") and selected:
        yield "the ClusterSelector mode doesn't support the suspend operation"
    if "rayClusterSpec" not in spec and not selected:
        yield "one of RayClusterSpec or ClusterSelector must be set"
    if selected and not selected.get(SELECTED):
        yield "cluster name in ClusterSelector should not be empty"
    if selected and mode == "SidecarMode":
        yield "ClusterSelector is not supported in SidecarMode"
    if selected and again > 0:
        yield "BackoffLimit is incompatible with ClusterSelector mode"
    if mode == "InteractiveMode" and again > 0:
        yield "BackoffLimit is incompatible with InteractiveMode"
    if mode == "SidecarMode" and "submitterPodTemplate" in spec:
        yield "SidecarMode doesn't support SubmitterPodTemplate"
    if mode == "SidecarMode" and "submitterConfig" in spec:
        yield "SidecarMode doesn't support SubmitterConfig"
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(key, 1) <= 0:
            yield f"{key} must be a positive integer"
    if again < 0:
        yield "backoffLimit must be a positive integer"


def _of_its_cluster(spec: Object, gates: Collection[str]) -> Iterator[str]:
    if "rayClusterSpec" not in spec:
        return
    if spec["rayClusterSpec"].get("authOptions", {}).get("enableK8sTokenAuth"):
        yield "K8s token auth mode is currently not supported for RayJob"
    yield from _of_cluster(spec["rayClusterSpec"], gates)


def _of_cluster(spec: Object, gates: Collection[str]) -> Iterator[str]:
    head, workers = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    grows, options = bool(spec.get("enableInTreeAutoscaling")), spec.get("autoscalerOptions", {})
    if not head["template"]["spec"].get("containers"):
        yield "headGroupSpec should have at least one container"
        return
    yield from _group("Head", head)
    for group in workers:
        yield from _workers(group, grows=grows)
    env = {each["name"]: each.get("value") for each in head["template"]["spec"]["containers"][0].get("env", [])}
    if "RAY_REDIS_ADDRESS" in env:
        yield "RAY_REDIS_ADDRESS is set which implicitly enables GCS fault tolerance"
    if not grows and env.get(_V2) in ("1", "true"):
        yield f"environment variable {_V2} cannot be set when enableInTreeAutoscaling is false"
    if grows and "version" in options and _V2 in env:
        yield f"both .spec.autoscalerOptions.version and head Pod env var {_V2} are set"
    if grows and options.get("version") == "v2":
        for name, group in (("head Pod", head), *((f"worker group {each['groupName']}", each) for each in workers)):
            if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
                yield f"restartPolicy for {name} should be Never or unset when using autoscaler V2"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds must be non-negative"
    if spec.get("authOptions", {}).get("mode") == "token" and _version(spec.get("rayVersion", "")) < _FIRST_WITH_TOKENS:
        yield f"authOptions.mode is 'token' but minimum Ray version is 2.52.0, got {spec.get('rayVersion', '')}"
    for field, gate in (("networkPolicy", "RayClusterNetworkPolicy"), ("tlsOptions", "RayClusterMTLS")):
        if field in spec and gate not in gates:
            yield f"spec.{field} requires the {gate} feature gate to be enabled"


def _workers(group: Mapping[str, Any], *, grows: bool) -> Iterator[str]:
    name, least, most = group["groupName"], group.get("minReplicas"), group.get("maxReplicas")
    if not group["template"]["spec"].get("containers"):
        yield "workerGroupSpec should have at least one container"
    if not grows and (least is None or most is None):
        yield f"worker group {name} must set both minReplicas and maxReplicas when autoscaling is disabled"
    for key, count in (("minReplicas", least), ("maxReplicas", most)):
        if count is not None and count < 0:
            yield f"worker group {name} has negative {key} {count}"
    if least is not None and most is not None and least > most:
        yield f"worker group {name} has minReplicas {least} greater than maxReplicas {most}"
    yield from _group(name, group)


def _group(name: str, group: Mapping[str, Any]) -> Iterator[str]:
    params = group.get("rayStartParams", {})
    if group.get("resources") and any(params.get(key) for key in _OF_RAY):
        yield f"resource fields should not be set in both rayStartParams and Resources for {name} group"
    if "labels" in params:
        yield f"rayStartParams['labels'] is not supported for {name} group"


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:3]))
