"""What a RayJob meets of Kueue: it is held until its turn comes, and taken back when somebody else's has come.

After Kueue's integration of RayJobs (https://github.com/kubernetes-sigs/kueue, pkg/controller/jobs, rayjob and
raycluster), without its quotas: a test says when a turn comes, and why not. But never does that of a job come which
asks for what the ClusterQueue of k8s/components does not cover (pkg/scheduler/flavorassigner).
Of its own kinds (apis/kueue/v1beta2) it knows the fields that the project uses, and takes no others.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from kubernetes.utils.quantity import parse_quantity

from tests.stand_ins.kubernetes.kinds import Kind, Object
from tests.stand_ins.kubernetes.server import ApiServer

_QUEUE, _GROWS = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/elastic-job"
ELASTIC = "ElasticJobsViaWorkloadSlices"  # a feature gate, off before 0.18
_QUEUES = Path(__file__).parents[3] / "k8s" / "components" / "kueue" / "cluster-queue.yaml"
_MOST_GROUPS = 7  # of workers: a Workload has eight sets of pods
_ANY = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_NAME = {
    "type": "string",
    "maxLength": 253,
    "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}


def _fields(*required: str, **properties: Any) -> Object:
    return {"type": "object", "properties": properties, "required": list(required)}


def _items(item: Object, least: int, most: int, *, by_name: bool = True) -> Object:
    keys = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]} if by_name else {}
    return {"type": "array", "items": item, "minItems": least, "maxItems": most, **keys}


_QUOTA = _fields("name", "nominalQuota", name={"type": "string"}, nominalQuota={"x-kubernetes-int-or-string": True})
_FLAVOR = _fields("name", "resources", name=_NAME, resources=_items(_QUOTA, 1, 64))
_GROUP = _fields(
    "coveredResources",
    "flavors",
    coveredResources=_items({"type": "string"}, 1, 64, by_name=False),
    flavors=_items(_FLAVOR, 1, 64),
)


def _kind(name: str, schema: Object, *, namespaced: bool = True) -> Kind:
    return Kind("kueue.x-k8s.io", "v1beta2", f"{name.lower()}s", name, namespaced, schema=schema)


KINDS = (
    _kind("Workload", _fields(spec=_ANY, status=_ANY)),
    _kind("LocalQueue", _fields(spec=_fields(clusterQueue=_NAME))),
    _kind("ResourceFlavor", _fields(spec=_fields(nodeLabels={**_TEXTS, "maxProperties": 8})), namespaced=False),
    _kind(
        "ClusterQueue",
        _fields(
            spec=_fields(
                namespaceSelector=_fields(matchLabels=_TEXTS),
                resourceGroups=_items(_GROUP, 0, 16, by_name=False),
            )
        ),
        namespaced=False,
    ),
)


class Kueue:
    """Kueue on a server, for the jobs of one namespace."""

    def __init__(self, server: ApiServer, namespace: str, *, gates: Iterable[str] = (ELASTIC,)) -> None:
        self.server = server
        self.namespace = namespace
        server.kinds.extend(KINDS)
        server.on_create = self._hold
        server.admit = partial(refusal, gates=frozenset(gates))

    def wait(self, name: str, message: str) -> None:
        """Say why a job's turn has not come."""
        self._say(name, QuotaReserved=("False", message))

    def admit(self, name: str) -> None:
        """Let a job go. Raises LookupError where the queue cannot have a turn for it, and says so of its Workload."""
        job = self.server.get("RayJob", self.namespace, name)
        assert job is not None
        if uncovered := sorted(asked_for(job) - covered()):
            message = f"couldn't assign flavors: resource {uncovered[0]} unavailable in ClusterQueue"
            self.wait(name, message)
            raise LookupError(message)
        self._say(name, QuotaReserved=("True", ""), Admitted=("True", ""), Evicted=("False", ""))
        self._suspend(name, is_suspended=False)

    def evict(self, name: str, message: str) -> None:
        """Take a job's pods away; it waits for its next turn."""
        self._say(name, Evicted=("True", message))
        self._suspend(name, is_suspended=True)
        self._say(name, QuotaReserved=("False", "Pending"), Admitted=("False", ""))

    def _hold(self, kind: Kind, value: Object) -> None:
        if kind.name == "RayJob" and _QUEUE in value["metadata"].get("labels", {}):
            value["spec"]["suspend"] = True

    def _say(self, name: str, **conditions: tuple[str, str]) -> None:
        """Change the conditions of a job's Workload; make that where there is none."""
        job = self.server.get("RayJob", self.namespace, name)
        assert job is not None
        found = self.server.get("Workload", self.namespace, f"rayjob-{name}") or {}
        said = {each["type"]: each for each in found.get("status", {}).get("conditions", [])}
        for kind, (is_so, message) in conditions.items():
            said[kind] = {"type": kind, "status": is_so, "reason": "AsTheTestSays", "message": message}
        owner = {key: job[key] for key in ("apiVersion", "kind")}
        owner |= {key: job["metadata"][key] for key in ("name", "uid")}
        labels = {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]}
        metadata = {"name": f"rayjob-{name}", "labels": labels, "ownerReferences": [owner]}
        status = {"conditions": list(said.values())}
        self.server.create("Workload", {"metadata": metadata, "spec": {}, "status": status}, self.namespace)

    def _suspend(self, name: str, *, is_suspended: bool) -> None:
        def change(job: Object) -> None:
            job["spec"]["suspend"] = is_suspended

        self.server.change("RayJob", self.namespace, name, change, "kueue-admission")


def asked_for(job: Object) -> set[str]:
    """Return what resources the pods of a RayJob ask for, that of its submitter too."""
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]
    templates = [*(group["template"] for group in groups), job["spec"].get("submitterPodTemplate", {"spec": {}})]
    containers = [
        each
        for template in templates
        for key in ("containers", "initContainers")
        for each in template["spec"].get(key, [])
    ]
    return {resource for each in containers for resource in each.get("resources", {}).get("requests", {})}


def covered() -> set[str]:
    """Return what the ClusterQueue that comes with the project hands out."""
    (queue,) = (each for each in yaml.safe_load_all(_QUEUES.read_text()) if each["kind"] == "ClusterQueue")
    return {resource for group in queue["spec"]["resourceGroups"] for resource in group["coveredResources"]}


def refusal(kind: Kind, value: Object, gates: frozenset[str] = frozenset({ELASTIC})) -> str:
    """Return what Kueue's webhooks say to a queue that cannot be, or a job in one that it cannot look after.

    An empty text where there is nothing to say.
    """
    if kind.name == "ClusterQueue":
        said = next(filter(None, map(_mistake_in, value["spec"].get("resourceGroups", []))), "")
        return f'admission webhook "vclusterqueue.kb.io" denied the request: {said}' if said else ""
    if kind.name != "RayJob" or _QUEUE not in value["metadata"].get("labels", {}):
        return ""
    spec, said = value["spec"], ""
    cluster = spec.get("rayClusterSpec", {})
    if spec.get("clusterSelector"):
        said = "spec.clusterSelector: a kueue managed job should not use an existing cluster"
    elif not spec.get("shutdownAfterJobFinishes"):
        said = "spec.shutdownAfterJobFinishes: a kueue managed job should delete the cluster after finishing"
    elif cluster.get("enableInTreeAutoscaling") and not (
        ELASTIC in gates and value["metadata"].get("annotations", {}).get(_GROWS) == "true"
    ):
        said = (
            "spec.rayClusterSpec.enableInTreeAutoscaling: Invalid value: true: a kueue managed job can use autoscaling "
            f"only when the {ELASTIC} feature gate is on and the job is an elastic job"
        )
    elif len(cluster.get("workerGroupSpecs", [])) > _MOST_GROUPS:
        said = f"spec.rayClusterSpec.workerGroupSpecs: Too many: must have at most {_MOST_GROUPS} items"
    return f'admission webhook "vrayjob.kb.io" denied the request: {said}' if said else ""


def _mistake_in(group: Object) -> str:
    """Return what is wrong with a group of resources: each flavor has all of them, in their order."""
    for flavor in group["flavors"]:
        if [each["name"] for each in flavor["resources"]] != group["coveredResources"]:
            return "flavors must have the resources that are covered, in the same order"
        for each in flavor["resources"]:
            if parse_quantity(each["nominalQuota"]) < 0:
                return f"nominalQuota: Invalid value: {each['nominalQuota']}: must be greater than or equal to 0"
    return ""
