"""Runs on a Kubernetes cluster that has KubeRay, a RayJob each.

KubeRay does what has to be done while nobody looks: it starts the pods, starts a lost driver again, and removes the
pods at the end. What is asked here is asked of the API server alone, and everything of a run is found by its label.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from cluster.config import KubernetesCluster
from cluster.errors import InfrastructureError, MaybeLaunchedError, RunExistsError, RunNotFoundError
from cluster.kubernetes import api, events, reasons, rights
from cluster.kubernetes.api import Api, ApiError, Kind, Object
from cluster.kubernetes.manifest import ON_CLUSTER, RAY_CLUSTER, object_name, render
from cluster.kubernetes.planned import plan
from cluster.kubernetes.pods import MANAGED_BY, RUN_LABEL, URI_ANNOTATION, secret_name
from cluster.kubernetes.printed import Printed
from cluster.provider import LaunchRequest, OnLimit, OnWait, Plan, Receipt, Resource, RunStatus, State

_OF_JOB = "ray.io/originated-from-cr-name"  # KubeRay's own label
_SINGULAR = {
    api.RAY_JOBS: "RayJob",
    api.RAY_CLUSTERS: "RayCluster",
    api.PODS: "Pod",
    api.JOBS: "Job",
    api.SERVICES: "Service",
    api.ACCOUNTS: "ServiceAccount",
    api.ROLES: "Role",
    api.BINDINGS: "RoleBinding",
    api.POLICIES: "NetworkPolicy",
    api.CONFIG_MAPS: "ConfigMap",
}
_LAUNCHER = "raylift-launch-"
_TAKEN_UP = "raylift.dev/taken-up-by"  # an annotation: the last launch that found the job of another, and left it
_TRIES = 5
_POLL = 1.0  # seconds
_BEYOND_GRACE = 60.0  # seconds that a teardown waits, beside the grace period of the pods


class KubernetesProvider:
    """The provider `kubernetes`."""

    def __init__(self, cluster: KubernetesCluster) -> None:
        self.cluster = cluster
        self.namespace = cluster.namespace
        self._unseen: set[Kind] = set()  # that this person may not list

    @cached_property
    def server(self) -> Api:
        return Api(self.cluster.context)

    def render(self, request: LaunchRequest) -> Plan:
        return plan(request)

    def launch(self, request: LaunchRequest) -> None:
        """Apply the run's RayJob, and its Secret, which goes with it. The same run launched twice is one job.

        A job of a launch that fails is deleted again. Raises MaybeLaunchedError where that could not be done.
        """
        job, *others = render(request)
        rights.require(self.server, self.namespace)
        manager = new_manager()
        there = self.take_up(self._launched(request), manager)
        try:
            made = there or self.make(job, manager, lambda: self._launched(request))
            for secret in others:
                self._apply(api.SECRETS, owned(secret, made), _manager(request.run_uri))
        except BaseException as error:
            if there is None:
                self._withdraw(request, job, manager, error)
            raise

    def describe(self, run_id: str) -> RunStatus:
        job = self.server.find(api.RAY_JOBS, self.namespace, object_name(run_id))
        if job is None:
            raise RunNotFoundError(
                f"nothing of run {run_id} is in the namespace {self.namespace} of {self.server.host}"
            )
        return self._status(job)

    def changes(self, run_id: str) -> Iterator[RunStatus]:
        """Yield where a run stands, now and whenever its RayJob changes, until that is gone. Raises ApiError."""
        for change, job in self.server.watch(api.RAY_JOBS, self.namespace, f"{RUN_LABEL}={run_id}"):
            if change == "DELETED":
                return
            yield self._status(job)

    def logs(self, run_id: str, *, follow: bool, offset: int = 0) -> Iterator[bytes]:
        """Yield what the head's pod prints while it fetches raylift, and the submitters of what the driver prints."""
        printed = Printed(self.server, self.namespace, run_id, lambda: self._goes_on(run_id))
        for data in printed.follow() if follow else printed.read():
            if fresh := data[offset:]:
                yield fresh
            offset = max(0, offset - len(data))

    def stop(self, run_id: str) -> None:
        """Have the RayJob deleted; KubeRay then ends the job, and Kubernetes what belongs to it."""
        self.server.delete(api.RAY_JOBS, self.namespace, object_name(run_id))

    def teardown(self, run_id: str, *, launch: str | None = None, on_wait: OnWait | None = None) -> Receipt:
        """Delete all of a run, wait until it is gone, and list what is not. `on_wait` hears what is still there.

        With the `launch` that was described, nothing of another one: raises RunExistsError where that has come since.
        """
        found = self._existing(run_id)
        self._delete_job(run_id, launch)
        self._refuse_another(run_id, launch)
        for cluster in self.server.select(api.RAY_CLUSTERS, self.namespace, f"{RUN_LABEL}={run_id}"):
            owners = [each["uid"] for each in cluster["metadata"].get("ownerReferences", [])]
            if launch is None or not owners or launch in owners:
                self.server.delete(api.RAY_CLUSTERS, self.namespace, cluster["metadata"]["name"])
        left = self._wait_until_gone(run_id, launch, on_wait)
        held = {each.name for each in left if each.kind == "RayCluster"}
        self._refuse_another(run_id, launch)  # whose Secret has the same name
        # they go with their owners; KubeRay's token is in one of its cluster's name
        named = [secret_name(run_id), *(each.name for each in found if each.kind == "RayCluster")]
        gone = [each for each in named if each not in held]
        secrets = [each for each in gone if self.server.delete(api.SECRETS, self.namespace, each)]
        for each in secrets:
            # secrets may not be read, but a second deletion that finds nothing is proof enough
            if self.server.delete(api.SECRETS, self.namespace, each):
                left.append(Resource(kind="Secret", name=each, run_id=run_id, detail="is still being deleted"))
        removed = [*found, *(Resource(kind="Secret", name=each, run_id=run_id) for each in secrets)]
        return Receipt(removed=removed, leftovers=left, unseen=sorted(kind.name for kind in self._unseen))

    def clear(self, run_id: str, job: Object) -> None:
        """Delete this job, which is over, and wait until all of it is gone.

        Raises InfrastructureError where that stays, RunExistsError where another has come since.
        """
        self._delete_job(run_id, job["metadata"]["uid"])
        if left := self._wait_until_gone(run_id, job["metadata"]["uid"]):
            names = ", ".join(f"{each.kind} {each.name}" for each in left)
            raise InfrastructureError(f"what an earlier launch left is still being deleted: {names}")

    def make(self, document: Object, manager: str, find: Callable[[], Object | None]) -> Object:
        """Apply the RayJob of a launch; where its reply was lost, or two do so at once, take the one that is there.

        That is what `find` returns. One that is being deleted is waited for, and made anew. Raises RunExistsError where
        the name is another's.
        """
        for left in reversed(range(_TRIES)):
            try:
                made = self._apply(api.RAY_JOBS, document, manager)
            except RunExistsError:
                # KubeRay writes the whole object anew as soon as it sees it, and owns what comes out otherwise
                if (found := self.take_up(find(), manager)) is not None:
                    return found
                if not left:
                    raise
                continue
            if not made["metadata"].get("deletionTimestamp"):
                return made
            self.clear(made["metadata"]["name"], made)
        raise _launched_anew(document["metadata"]["name"])

    def withdraw(self, document: Object, manager: str) -> bool:
        """Delete the RayJob that a launch which failed has applied; False where such a one may be there all the same.

        That of another launch stays, and that which another has applied or taken up too: it may have been told that it
        runs.
        """
        name = document["metadata"]["name"]
        with contextlib.suppress(ApiError):
            for _ in range(_TRIES):
                job = self.server.find(api.RAY_JOBS, self.namespace, name)
                if job is None or not _annotations(document).items() <= _annotations(job).items():
                    return True
                if _launchers(job) != {manager}:
                    return False
                with contextlib.suppress(RunExistsError):  # KubeRay, or another launch, has written to it since
                    self._delete_job(name, job["metadata"]["uid"], job["metadata"]["resourceVersion"])
                    return True
        return False

    def take_up(self, job: Object | None, manager: str) -> Object | None:
        """Leave a trace on a job that this launch has found, so that the launch which made it does not delete it.

        Returns the job; None where there is none, or none any more, for which it waits where it is being deleted.
        Raises RunExistsError where another has its name.
        """
        if job is None:
            return None
        name = job["metadata"]["name"]
        try:
            found = self.server.annotate(api.RAY_JOBS, self.namespace, name, {_TAKEN_UP: manager}, manager)
        except ApiError as error:
            if error.status != 404:
                raise
            return None
        if found["metadata"]["uid"] != job["metadata"]["uid"]:
            raise _launched_anew(name)
        if found["metadata"].get("deletionTimestamp"):  # of a launch that failed, or by somebody who stops the run
            self.clear(name, found)
            return None
        return found

    def audit(self, *, on_limit: OnLimit | None = None) -> Sequence[Resource]:
        """List all of raylift's objects: in all namespaces where this person may look, else in this one."""
        ours = ",".join(f"{key}={value}" for key, value in MANAGED_BY.items())
        found: list[Resource] = []
        here: list[str] = []
        for kind in (api.RAY_JOBS, api.RAY_CLUSTERS, api.PODS):
            objects = self._list_everywhere(kind, ours)
            if objects is None:
                here.append(kind.plural)
                objects = self._list(kind, ours)
            found += [_resource(kind, each) for each in objects]
        if here and on_limit is not None:
            on_limit(f"looked in the namespace {self.namespace} alone: elsewhere you may not list {', '.join(here)}")
        return found

    def _refuse_another(self, run_id: str, launch: str | None) -> None:
        """Raise RunExistsError where the job of another launch has come: what has its name and label is that one's."""
        if launch is None:
            return
        job = self.server.find(api.RAY_JOBS, self.namespace, object_name(run_id))
        if job is not None and job["metadata"]["uid"] != launch:
            raise _launched_anew(run_id)

    def _delete_job(self, run_id: str, uid: str | None, version: str | None = None) -> None:
        try:
            self.server.delete(api.RAY_JOBS, self.namespace, object_name(run_id), uid=uid, version=version)
        except ApiError as error:
            if uid is None or error.status != 409:
                raise
            raise _launched_anew(run_id) from error

    def _apply(self, kind: Kind, document: Object, manager: str) -> Object:
        try:
            return self.server.apply(kind, document, manager)
        except ApiError as error:
            if error.status != 409:
                raise
            raise RunExistsError(
                f"the name {document['metadata']['name']} is taken in the namespace {self.namespace}: {error.details}. "
                "Choose another --id"
            ) from error

    def _launched(self, request: LaunchRequest) -> Object | None:
        """Return the job of an earlier launch of this run, if it has one that stays. Raises RunExistsError."""
        job = self.server.find(api.RAY_JOBS, self.namespace, object_name(request.run_id))
        if job is None:
            return None
        if (uri := _uri(job)) != request.run_uri:
            whose = f"of the run {uri}" if uri else "that raylift did not make"
            raise RunExistsError(
                f"in the namespace {self.namespace} there is a RayJob {request.run_id} {whose}. Choose another --id"
            )
        if not job["metadata"].get("deletionTimestamp"):
            return job
        self.clear(request.run_id, job)
        return None

    def _withdraw(self, request: LaunchRequest, document: Object, manager: str, failure: BaseException) -> None:
        if not self.withdraw(document, manager):
            uri, said = shlex.quote(request.run_uri), str(failure) or type(failure).__name__
            raise MaybeLaunchedError(
                f"{said}. Its RayJob {request.run_id} may be in the namespace {self.namespace} all the same, and "
                f"start. Complete the launch: raylift resume {uri}; or take all of it away: raylift stop --now {uri}, "
                f"then raylift rm {uri}"
            ) from failure

    def _status(self, job: Object) -> RunStatus:
        labels = job["metadata"].get("labels", {})
        run_id = labels.get(RUN_LABEL, job["metadata"]["name"])
        pods = self.server.select(api.PODS, self.namespace, f"{RUN_LABEL}={run_id}")
        found = [_resource(api.RAY_JOBS, job), *(_resource(api.PODS, each) for each in pods)]
        cluster = job["spec"].get("clusterSelector", {}).get(RAY_CLUSTER)
        if cluster is not None:  # that others use too
            pods = [*pods, *self.server.select(api.PODS, self.namespace, f"{RAY_CLUSTER}={cluster}")]
        names = filter(None, [job["metadata"]["name"], cluster or job.get("status", {}).get("rayClusterName")])
        told = events.told(self.server, self.namespace, names)
        state, reason = reasons.where_it_stands(job, pods, told, self._workload(job))
        given_up = job.get("status", {}).get("reason") == reasons.TOOK_TOO_LONG
        if cluster is not None and (given_up or not state.is_final) and not self._is_there(cluster):
            # KubeRay looks for it until the job's deadline
            name, uri = labels.get(ON_CLUSTER, cluster), _uri(job)
            on = shlex.quote(uri) if uri is not None else "RUN"
            again = f"raylift up {name} --on …, then go on with the run: raylift resume {on}"
            state, reason = State.FAILED, f"the cluster {name} is gone. Start it again: {again}"
        return RunStatus(state=state, reason=reason, resources=found, run_uri=_uri(job), launch=job["metadata"]["uid"])

    def _is_there(self, cluster: str) -> bool:
        found = self.server.find(api.RAY_CLUSTERS, self.namespace, cluster)
        return found is not None and not found["metadata"].get("deletionTimestamp")

    def _workload(self, job: Object) -> Object | None:
        """Return what Kueue says of a run, the newest; None where it says nothing, or this person may not look."""
        if reasons.QUEUE not in job["metadata"].get("labels", {}):
            return None
        with contextlib.suppress(ApiError):
            found = self._list(api.WORKLOADS, f"kueue.x-k8s.io/job-uid={job['metadata']['uid']}")
            return max(found, key=lambda each: str(each["metadata"]["creationTimestamp"]), default=None)
        return None

    def _goes_on(self, run_id: str) -> bool:
        job = self.server.find(api.RAY_JOBS, self.namespace, object_name(run_id))
        return job is not None and not reasons.where_it_stands(job, [], [], None)[0].is_final

    def _existing(self, run_id: str) -> list[Resource]:
        """Return all of a run that exists and may be read: of its own label, and of KubeRay's for what that made."""
        name = object_name(run_id)
        of_run, of_job = f"{RUN_LABEL}={run_id}", f"{_OF_JOB}={name}"
        selected = (
            (api.RAY_JOBS, of_run),
            (api.RAY_CLUSTERS, of_run),
            (api.PODS, of_run),
            (api.JOBS, of_job),
            (api.SERVICES, of_job),
        )
        found = [_resource(kind, each) for kind, labels in selected for each in self._list(kind, labels)]
        of_clusters = [(api.SERVICES, each) for each in self._list(api.SERVICES, RAY_CLUSTER)]
        beside = [right.kind for right in rights.PROVING]
        of_clusters += [(kind, each) for kind in beside for each in self._list_where_one_may(kind, RAY_CLUSTER)]
        return found + [_resource(kind, each) for kind, each in of_clusters if _is_of(each, name)]

    def _wait_until_gone(self, run_id: str, launch: str | None = None, on_wait: OnWait | None = None) -> list[Resource]:
        deadline = time.monotonic() + self.cluster.termination_grace_period_seconds + _BEYOND_GRACE
        while (left := self._existing(run_id)) and time.monotonic() < deadline:
            self._refuse_another(run_id, launch)
            if on_wait is not None:
                on_wait(left)
            time.sleep(_POLL)
        return left

    def _list(self, kind: Kind, labels: str) -> list[Object]:
        return self.server.select(kind, self.namespace, labels)

    def _list_where_one_may(self, kind: Kind, labels: str) -> list[Object]:
        if kind not in self._unseen:
            try:
                return self._list(kind, labels)
            except ApiError as error:
                if error.status != 403:
                    raise
                self._unseen.add(kind)
        return []

    def _list_everywhere(self, kind: Kind, labels: str) -> list[Object] | None:
        """Return the objects of all namespaces; None where this person may not list them."""
        try:
            return self.server.select(kind, None, labels)
        except ApiError as error:
            if error.status != 403:
                raise
            return None


def _launched_anew(run_id: str) -> RunExistsError:
    return RunExistsError(f"the RayJob {object_name(run_id)} is another one by now: somebody else has launched it")


def _uri(job: Object) -> str | None:
    uri: str | None = _annotations(job).get(URI_ANNOTATION)
    return uri


def _annotations(found: Object) -> Object:
    annotations: Object = found["metadata"].get("annotations", {})
    return annotations


def _manager(run_uri: str) -> str:
    """Return who applies the Secret of a run: another run's launch then cannot change it, and is told so."""
    return f"raylift-{hashlib.sha256(run_uri.encode()).hexdigest()[:12]}"


def new_manager() -> str:
    """Return who applies the RayJob of one launch: the object then tells which launches have."""
    return f"{_LAUNCHER}{uuid.uuid4().hex[:12]}"


def _launchers(job: Object) -> set[str]:
    managers = (each["manager"] for each in job["metadata"].get("managedFields", []))
    return {each for each in managers if each.startswith(_LAUNCHER)}


def owned(document: Object, owner: Object) -> Object:
    """Return a document that Kubernetes deletes with its owner, also where nobody tears the run down."""
    reference = {key: owner[key] for key in ("apiVersion", "kind")}
    reference |= {key: owner["metadata"][key] for key in ("name", "uid")}
    return {**document, "metadata": {**document["metadata"], "ownerReferences": [reference]}}


def _is_of(found: Object, name: str) -> bool:
    """Whether an object is that of a cluster which KubeRay made for a RayJob: that has five more characters."""
    cluster, dash, rest = str(found["metadata"]["labels"][RAY_CLUSTER]).rpartition("-")
    return cluster == name and bool(dash) and len(rest) == 5


def _resource(kind: Kind, found: Object) -> Resource:
    metadata = found["metadata"]
    detail = metadata["namespace"]
    if metadata.get("deletionTimestamp"):
        held = f", held by {', '.join(metadata['finalizers'])}" if metadata.get("finalizers") else ""
        detail += f", being deleted{held}"
    elif phase := found.get("status", {}).get("phase") or found.get("status", {}).get("jobDeploymentStatus"):
        detail += f", {phase}"
    return Resource(
        kind=_SINGULAR[kind],
        name=metadata["name"],
        run_id=metadata.get("labels", {}).get(RUN_LABEL),
        detail=detail,
    )
