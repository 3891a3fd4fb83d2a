"""What a RayJob meets of Kueue: it is held until its turn comes, and taken back when somebody else's has come.

After Kueue's integration of RayJobs (https://github.com/kubernetes-sigs/kueue, pkg/controller/jobs/rayjob), without its
quotas: a test says when a turn comes, and why not.
"""

from __future__ import annotations

from tests.stand_ins.kubernetes.kinds import Kind, Object
from tests.stand_ins.kubernetes.server import ApiServer

_QUEUE, _GROWS = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/elastic-job"
_MOST_GROUPS = 7  # of workers: a Workload has eight sets of pods
_ANY = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_WORKLOAD = Kind(
    "kueue.x-k8s.io",
    "v1beta2",
    "workloads",
    "Workload",
    schema={"type": "object", "properties": {"spec": _ANY, "status": _ANY}},
)


class Kueue:
    """Kueue on a server, for the jobs of one namespace."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.server = server
        self.namespace = namespace
        server.kinds.append(_WORKLOAD)
        server.on_create = self._hold
        server.admit = refusal

    def wait(self, name: str, message: str) -> None:
        """Say why a job's turn has not come."""
        self._say(name, QuotaReserved=("False", message))

    def admit(self, name: str) -> None:
        """Let a job go."""
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


def refusal(kind: Kind, value: Object) -> str:
    """Return what Kueue's webhook says to a job in a queue that it cannot look after; an empty text where it can."""
    if kind.name != "RayJob" or _QUEUE not in value["metadata"].get("labels", {}):
        return ""
    spec, said = value["spec"], ""
    cluster = spec.get("rayClusterSpec", {})
    if spec.get("clusterSelector"):
        said = "spec.clusterSelector: a kueue managed job should not use an existing cluster"
    elif not spec.get("shutdownAfterJobFinishes"):
        said = "spec.shutdownAfterJobFinishes: a kueue managed job should delete the cluster after finishing"
    elif cluster.get("enableInTreeAutoscaling") and value["metadata"].get("annotations", {}).get(_GROWS) != "true":
        said = "spec.rayClusterSpec.enableInTreeAutoscaling: a kueue managed job should not use autoscaling"
    elif len(cluster.get("workerGroupSpecs", [])) > _MOST_GROUPS:
        said = f"spec.rayClusterSpec.workerGroupSpecs: Too many: must have at most {_MOST_GROUPS} items"
    return f'admission webhook "vrayjob.kb.io" denied the request: {said}' if said else ""
