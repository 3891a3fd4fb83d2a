"""Clusters with a name: made once, used by several runs, and gone by themselves when no run has been there for a while.

Each is a RayJob of its name (cluster.kubernetes.named), so that it is launched, looked at and taken away as a run is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.config import KubernetesCluster
from cluster.errors import MaybeLaunchedError, RunExistsError, RunNotFoundError, UsageError
from cluster.kubernetes import api, reasons, rights
from cluster.kubernetes.api import Object
from cluster.kubernetes.manifest import ON_CLUSTER, RAY_CLUSTER, group_name, node_counts
from cluster.kubernetes.named import CLUSTER_LABEL, CODE, IDLE, SECRETS, SETTINGS, ClusterRequest, render_cluster
from cluster.kubernetes.pods import RUN_LABEL, accelerators
from cluster.kubernetes.provider import KubernetesProvider, new_manager, owned
from cluster.provider import LaunchRequest, OnWait, Receipt, State

_MANAGER = "raylift-cluster"  # who applies a Secret
_TAKEN_UP = 30.0  # seconds for KubeRay to take a cluster up
_POLL = 0.5  # seconds


@dataclass(frozen=True, kw_only=True)
class NamedCluster:
    """A cluster with a name, as it stands."""

    name: str
    state: State
    reason: str
    idle: int  # seconds without a run, after which it ends
    runs: Sequence[str]  # the ids of those that have not ended


class NamedClusters:
    """The clusters with a name of one namespace."""

    def __init__(self, cluster: KubernetesCluster) -> None:
        self.provider = KubernetesProvider(cluster)
        self.server, self.namespace = self.provider.server, cluster.namespace

    def up(self, request: ClusterRequest) -> bool:
        """Make a cluster; False where it is there already. What fails half-way is deleted again.

        Raises UsageError where it is there with other settings, MaybeLaunchedError where it could not be deleted.
        """
        job, *secrets = render_cluster(request)
        rights.require(self.server, self.namespace)
        there, manager = self._job(request.name), new_manager()
        if there is not None and _has_ended(there):
            self.provider.clear(request.name, there)
            there = None
        if there is not None:
            _require_same(there, job, request.name)
        there = self.provider.take_up(there, manager)
        try:
            made = there or self.provider.make(job, manager, lambda: self._same(job, request.name))
            for secret in secrets:  # also where it is there already: a laptop may have died before this
                self.server.apply(api.SECRETS, owned(secret, made), _MANAGER)
        except BaseException as error:
            if there is None and not self.provider.withdraw(job, manager):
                raise MaybeLaunchedError(
                    f"{str(error) or type(error).__name__}. The cluster {request.name} may be there all the same. "
                    f"Complete it: {_up(request.name)}; or take it away: raylift down {request.name} --on …"
                ) from error
            raise
        return there is None

    def all(self) -> list[NamedCluster]:
        """List the clusters, also those that have ended and left their RayJob, which costs nothing."""
        return [self._described(job) for job in self.server.select(api.RAY_JOBS, self.namespace, CLUSTER_LABEL)]

    def runs_on(self, name: str) -> list[str]:
        """Return the ids of the runs on a cluster that have not ended."""
        job = self._job(name)
        return self._runs_on(job) if job is not None else []

    def _runs_on(self, job: Object) -> list[str]:
        there, name = job.get("status", {}).get("rayClusterName"), job["metadata"]["name"]
        return [each["metadata"]["name"] for each in self._jobs_on(name) if _selected(each) == there]

    def down(self, name: str, on_wait: OnWait | None = None) -> Receipt:
        """Delete a cluster and the jobs of the runs on it, wait until all is gone, and list what is not. Idempotent."""
        runs = [job["metadata"]["name"] for job in self._jobs_on(name)]
        if self._job(name) is None and not runs and not self._is_left(name):
            raise RunNotFoundError(self._unknown(name))
        receipts = [self.provider.teardown(each, on_wait=on_wait) for each in (*runs, name)]
        return Receipt(
            removed=[each for receipt in receipts for each in receipt.removed],
            leftovers=[each for receipt in receipts for each in receipt.leftovers],
            unseen=receipts[-1].unseen,
        )

    def _is_left(self, name: str) -> bool:
        """Whether an earlier teardown did not see the end of a cluster whose own object has gone."""
        kinds = (api.RAY_CLUSTERS, api.PODS)
        return any(self.server.select(kind, self.namespace, f"{RUN_LABEL}={name}") for kind in kinds)

    def _jobs_on(self, name: str) -> list[Object]:
        """Return the jobs of runs that have not ended on a cluster of this name, also on one that has gone."""
        jobs = self.server.select(api.RAY_JOBS, self.namespace, f"{ON_CLUSTER}={name}")
        return [job for job in jobs if not _has_ended(job)]

    def place(self, request: LaunchRequest) -> LaunchRequest:
        """Return the launch of a run with the cluster that its block names. Raises UsageError where it does not fit."""
        cluster = request.cluster
        assert isinstance(cluster, KubernetesCluster)
        assert cluster.name is not None
        job = self._job(cluster.name)
        if job is None:
            raise UsageError(self._unknown(cluster.name))
        if _has_ended(job):
            raise UsageError(f"the cluster {cluster.name} has ended. Start it again: {_up(cluster.name)}")
        annotations = job["metadata"].get("annotations", {})
        if annotations.get(CODE, "") not in ("", request.code):
            raise UsageError(
                f"the cluster {cluster.name} has another raylift than this machine. Start it anew: "
                f"raylift down {cluster.name} --on …, then {_up(cluster.name)}"
            )
        if lacking := sorted({*request.secrets} - {*annotations.get(SECRETS, "").split(",")}):
            options = " ".join(f"--secret {each}" for each in lacking)
            raise UsageError(
                f"secrets: the pods of the cluster {cluster.name} have no {', '.join(lacking)}, and get theirs when "
                f"they start. Start it anew: raylift down {cluster.name} --on …, then {_up(cluster.name)} {options}"
            )
        _require_room(job, cluster)
        return replace(request, ray_cluster=self._ray_cluster(cluster.name, job))

    def _ray_cluster(self, name: str, job: Object) -> str:
        """Return the name of the RayCluster, which KubeRay chooses; that takes it a moment."""
        deadline = time.monotonic() + _TAKEN_UP
        while not (found := str(job.get("status", {}).get("rayClusterName") or "")):
            if time.monotonic() > deadline:
                raise UsageError(
                    f"the cluster {name} has not been taken up by KubeRay yet{_why(job)}. See: raylift clusters --on …"
                )
            time.sleep(_POLL)
            job = self._job(name) or job
        return found

    def _job(self, name: str) -> Object | None:
        """Return the RayJob of a cluster. Raises RunExistsError where something else has that name."""
        job = self.server.find(api.RAY_JOBS, self.namespace, name)
        if job is not None and job["metadata"].get("labels", {}).get(CLUSTER_LABEL) != name:
            raise RunExistsError(
                f"in the namespace {self.namespace} there is a RayJob {name} that is no cluster with a name. "
                "Choose another name"
            )
        return job

    def _same(self, job: Object, name: str) -> Object | None:
        """Return the RayJob of a cluster that another laptop, or a reply that was lost, has made meanwhile."""
        there = self._job(name)
        if there is not None:
            _require_same(there, job, name)
        return there

    def _described(self, job: Object) -> NamedCluster:
        name = job["metadata"]["name"]
        idle = int(job["metadata"].get("annotations", {}).get(IDLE, 0))
        status = self.provider.describe(name)
        reason = status.reason
        if status.state is State.SUCCEEDED:
            reason = f"ended: no run for {idle // 60} min"
        return NamedCluster(name=name, state=status.state, reason=reason, idle=idle, runs=self._runs_on(job))

    def _unknown(self, name: str) -> str:
        there = [job["metadata"]["name"] for job in self.server.select(api.RAY_JOBS, self.namespace, CLUSTER_LABEL)]
        known = f"there are {', '.join(there)}" if there else "there is none"
        return f"there is no cluster {name} in the namespace {self.namespace}: {known}. Make it: {_up(name)}"


def _up(name: str) -> str:
    return f"raylift up {name} --on …"


def _selected(job: Object) -> str | None:
    """Return the RayCluster that a run is on."""
    found: str | None = job["spec"].get("clusterSelector", {}).get(RAY_CLUSTER)
    return found


def _has_ended(job: Object) -> bool:
    return bool(job["metadata"].get("deletionTimestamp")) or reasons.where_it_stands(job, [], [], None)[0].is_final


def _why(job: Object) -> str:
    reason = reasons.where_it_stands(job, [], [], None)[1]
    return f": {reason}" if reason else ""


def _require_same(there: Object, job: Object, name: str) -> None:
    if there["metadata"].get("annotations", {}).get(SETTINGS) != job["metadata"]["annotations"][SETTINGS]:
        raise UsageError(
            f"the cluster {name} is there, and was made with other settings. Use it as it is, or start it anew: "
            f"raylift down {name} --on …, then {_up(name)}"
        )


def _require_room(job: Object, cluster: KubernetesCluster) -> None:
    """Raise UsageError where a run would wait on a cluster for what that never has."""
    groups = {each["groupName"]: each for each in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    wanted, (least, _) = group_name(cluster), node_counts(cluster)
    if wanted not in groups:
        has = ", ".join(groups)
        raise UsageError(f"the cluster {cluster.name} has workers of the kind {has}, and the job asks for {wanted}")
    most, (kind, count) = groups[wanted]["maxReplicas"], accelerators(cluster)
    if not count:
        if most < least:
            raise UsageError(
                f"the cluster {cluster.name} has {most} workers at most, and the job asks for {least}: "
                f"--set cluster.workers={most}"
            )
        return
    # ranks go wherever an accelerator is free, so that it does not matter on how many nodes they are
    limits = groups[wanted]["template"]["spec"]["containers"][0]["resources"]["limits"]
    there = int(limits.get(cluster.accelerator_resource, 0))
    if most * there < least * count:
        change = f": --set cluster.nodes={most} --set cluster.accelerators={kind}:{there}" if there else ""
        raise UsageError(
            f"the cluster {cluster.name} has {most} × {there} {cluster.accelerator_resource} at most, and the job asks "
            f"for {least} × {count}{change}"
        )
