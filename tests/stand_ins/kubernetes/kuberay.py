"""An operator for RayJobs, after KubeRay's: it makes of one what KubeRay makes, and moves its status as KubeRay does.

It knows nothing of raylift: what runs is what the API holds. Written after KubeRay's controllers
(https://github.com/ray-project/kuberay, ray-operator/controllers/ray), for K8sJobMode and HTTPMode, as they were when a
RayJob had jobStatusCheckFailureStartTime, as in 1.7; how long a head may be silent is a setting of KubeRay. Pods run
on this machine and share its network (kubelet.py), so ports that a RayJob fixes are left out, and the head's are
chosen here. Beside a head that is to have an autoscaler runs Ray's own (autoscaler.py). Pods of Ray start one after
the other, and without Ray's monitors: what starts at once on one small machine hinders each other.
"""

from __future__ import annotations

import base64
import calendar
import contextlib
import json
import secrets
import shlex
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.stand_ins.kubernetes.admission import beyond_count, refusal
from tests.stand_ins.kubernetes.kinds import Object
from tests.stand_ins.kubernetes.kubelet import FINALIZER, Kubelet
from tests.stand_ins.kubernetes.server import ApiServer
from tests.stand_ins.kubernetes.store import now
from tests.stand_ins.kubernetes.validation import SELECTED, mistake_in, mistake_in_cluster

_JOB_FINALIZER = "ray.io/rayjob-finalizer"
_TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")
_AT_ONCE = ("DeadlineExceeded", "JobStatusCheckTimeoutExceeded")  # failures after which no other try comes
_POLL = 0.1  # seconds
_PATIENCE = 5.0  # seconds for the dashboard to answer


class _RefusedError(Exception):
    """The API server took an object as little as it would one from outside."""


class Operator:
    """Looks after every RayJob of a server, in a thread, while it stands; `gates` are the features that are on."""

    def __init__(self, server: ApiServer, images: Mapping[str, Mapping[str, str]], gates: Collection[str] = ()) -> None:
        self.server = server
        self.gates = gates
        self.kubelet = Kubelet(server, images, self._is_ready)
        self.ports: dict[str, tuple[int, int]] = {}  # of a RayCluster: Ray's own, and the dashboard's
        self.unheard = 300.0  # seconds without an answer of a head's Ray, after which its job has failed
        self.unended = 30.0  # seconds that Ray's job may take to end once the pod that submitted it has ended
        self._submitted: dict[str, float] = {}  # when that had ended, by job id
        self.errors: list[str] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="operator", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._closed.set()
        self._thread.join(30)
        self.kubelet.stop()

    def _run(self) -> None:
        while not self._closed.wait(_POLL):
            try:
                self.kubelet.sync()
                for job in self.server.all("RayJob"):
                    self._reconcile(job)
                for submitter in self.server.all("Job"):
                    self._keep_trying(submitter)
                for cluster in self.server.all("RayCluster"):
                    self._keep_head(cluster)
            except Exception as error:
                self.errors.append(repr(error))

    # RayJobs

    def _reconcile(self, job: Object) -> None:
        status = job.get("status", {})
        if job["metadata"].get("deletionTimestamp"):
            self._stop_job(status)
            self._change(job, lambda value: value["metadata"].update(finalizers=[]))
            return
        step = {
            "": self._begin,
            "Initializing": self._initialize,
            "Running": self._watch,
            "Suspending": self._clear,
            "Suspended": self._begin,
            "Retrying": self._clear,
            "Complete": self._expire,
            "Failed": self._expire,
            "ValidationFailed": self._leave,
        }[status.get("jobDeploymentStatus", "")]
        step(job, status)

    def _leave(self, job: Object, status: Object) -> None:
        """Do nothing more about it."""

    def _begin(self, job: Object, status: Object) -> None:
        if said := mistake_in(job, self.gates):
            self._set(job, jobDeploymentStatus="ValidationFailed", reason="ValidationFailed", message=said)
            return
        name = job["metadata"]["name"]
        self._change(job, lambda value: value["metadata"].update(finalizers=[_JOB_FINALIZER]))
        if job["spec"].get("suspend"):
            self._set(job, jobDeploymentStatus="Suspended")
            return
        self._set(
            job,
            jobId=job["spec"].get("jobId") or f"{name}-{_suffix()}",
            rayClusterName=job["spec"].get("clusterSelector", {}).get(SELECTED) or f"{name}-{_suffix()}",
            jobStatus="",
            startTime=now(),
            failed=status.get("failed", 0),
            jobDeploymentStatus="Initializing",
        )

    def _is_to_be_suspended(self, job: Object) -> bool:
        if job["spec"].get("suspend"):
            self._set(job, jobDeploymentStatus="Suspending")
        return bool(job["spec"].get("suspend"))

    def _initialize(self, job: Object, status: Object) -> None:
        if self._is_to_be_suspended(job) or self._is_past_deadline(job, status):
            return
        cluster = self._cluster(job, status)
        if cluster is None or not self._is_up(job, cluster):
            return
        _, dashboard = self.ports[status["rayClusterName"]]
        self._set(job, dashboardURL=f"127.0.0.1:{dashboard}")
        self._submit({**job, "status": {**status, "dashboardURL": f"127.0.0.1:{dashboard}"}}, cluster)
        self._set(job, jobDeploymentStatus="Running")

    def _watch(self, job: Object, status: Object) -> None:
        if self._is_to_be_suspended(job) or self._is_past_deadline(job, status):
            return
        if (cluster := self._cluster(job, status)) is None:
            return  # one that was selected has gone: KubeRay looks for it until the deadline
        self._is_up(job, cluster)
        submitter = self._submitter_of(job)
        if submitter == "Failed":
            failed = status.get("jobStatus") == "FAILED"
            reason = "AppFailed" if failed else "SubmissionFailed"
            self._fail(job, status, reason, status.get("message", "") if failed else "the submitter failed")
            return
        if submitter == "Complete" and not _is_over_http(job):
            since = self._submitted.setdefault(status["jobId"], time.monotonic())
            if time.monotonic() - since > self.unended:
                self._set(job, jobStatus="FAILED")
                said = f"The RayJob submitter finished but the ray job did not end within {self.unended:.0f}s"
                self._fail(job, status, "JobDeploymentStatusTransitionGracePeriodExceeded", said)
                return
        info = self._job_info(status)
        if info is None:
            self._note_silence(job, status)
            return
        if not info:
            if _is_over_http(job):
                self._post(job, status)
            elif submitter == "Complete":
                said = "Submitter completed but Ray job not found in RayCluster."
                self._fail(job, status, "AppFailed", said)
            return
        if "jobStatusCheckFailureStartTime" in status:
            self._change(job, lambda value: value["status"].pop("jobStatusCheckFailureStartTime"))
        if info["status"] in _TERMINAL and submitter == "Complete":
            if info["status"] == "FAILED":
                self._set(job, jobStatus="FAILED")
                self._fail(job, status, "AppFailed", info.get("message", ""))
            else:
                done = {"jobStatus": info["status"], "jobDeploymentStatus": "Complete", "endTime": now()}
                self._set(job, **done, succeeded=1)
            return
        if info["status"] != status.get("jobStatus"):
            self._set(job, jobStatus=info["status"], message=info.get("message") or "")

    def _note_silence(self, job: Object, status: Object) -> None:
        """Note since when a head's Ray has not answered, and give its job up after a while."""
        since = status.get("jobStatusCheckFailureStartTime")
        if since is None:
            self._set(job, jobStatusCheckFailureStartTime=now())
        elif time.time() - seconds(since) > self.unheard:
            said = f"Job status checks have been failing since {since}"
            self._fail(job, status, "JobStatusCheckTimeoutExceeded", said)

    def _fail(self, job: Object, status: Object, reason: str, message: str) -> None:
        failed = status.get("failed", 0) + 1
        again = failed <= job["spec"].get("backoffLimit", 0) and reason not in _AT_ONCE
        end = {} if again else {"endTime": now()}
        deployment = "Retrying" if again else "Failed"
        self._set(job, failed=failed, reason=reason, message=message, jobDeploymentStatus=deployment, **end)

    def _clear(self, job: Object, status: Object) -> None:
        """Delete what a try has left; once the objects are gone, though pods may still be ending, say what comes."""
        namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
        left = False
        for kind, each in (("RayCluster", status["rayClusterName"]), ("Job", name)):
            found = self.server.get(kind, namespace, each)
            if found is not None:
                self.server.delete(kind, namespace, each)
                left = True
        if left:
            return
        cleared = dict.fromkeys(("jobId", "jobStatus", "rayClusterName", "dashboardURL", "reason", "message"), "")
        then = "Suspended" if status["jobDeploymentStatus"] == "Suspending" else ""
        self._change(job, lambda value: value["status"].pop("jobStatusCheckFailureStartTime", None))
        self._set(job, **cleared, jobDeploymentStatus=then)

    def _expire(self, job: Object, status: Object) -> None:
        spec = job["spec"]
        over = time.time() - seconds(status["endTime"]) > spec.get("ttlSecondsAfterFinished", 0)
        cluster = self.server.get("RayCluster", job["metadata"]["namespace"], status["rayClusterName"])
        own = "clusterSelector" not in spec
        if own and spec.get("shutdownAfterJobFinishes") and over and cluster is not None:
            self.server.delete("RayCluster", job["metadata"]["namespace"], status["rayClusterName"])

    def _is_past_deadline(self, job: Object, status: Object) -> bool:
        spent = time.time() - seconds(status["startTime"])
        starting = status["jobDeploymentStatus"] == "Initializing"
        for key, reason, applies in (
            ("activeDeadlineSeconds", "DeadlineExceeded", True),
            ("preRunningDeadlineSeconds", "PreRunningDeadlineExceeded", starting),
        ):
            limit = job["spec"].get(key)
            if applies and limit is not None and spent > limit:
                self._fail(job, status, reason, f"The RayJob has passed the {key}")
                return True
        return False

    # RayClusters

    def _cluster(self, job: Object, status: Object) -> Object | None:
        """Return the job's RayCluster, with its token and services; make it, unless one is selected."""
        namespace, name = job["metadata"]["namespace"], status["rayClusterName"]
        if (found := self.server.get("RayCluster", namespace, name)) is not None:
            return found
        if "clusterSelector" in job["spec"]:
            return None
        origin = {"ray.io/originated-from-cr-name": job["metadata"]["name"], "ray.io/originated-from-crd": "RayJob"}
        labels = {**job["metadata"].get("labels", {}), **origin}
        spec = json.loads(json.dumps(job["spec"]["rayClusterSpec"]))
        for group in spec["workerGroupSpecs"]:
            group.setdefault("scaleStrategy", {})  # Go writes what is empty too
        try:
            cluster = self._make("RayCluster", name, labels, job, spec=spec)
        except _RefusedError as error:
            said = f"Failed to create RayCluster {namespace}/{name}: {error}"
            self._tell(job, "Warning", "FailedToCreateRayCluster", said, "refused")
            return None
        if spec.get("enableInTreeAutoscaling"):
            self._make_account(cluster)
        self.ports[name] = (_free_port(), _free_port())
        if job["spec"]["rayClusterSpec"].get("authOptions", {}).get("mode") == "token":
            token = base64.b64encode(secrets.token_hex(32).encode()).decode()
            self._make("Secret", name, {"ray.io/cluster": name}, cluster, data={"auth_token": token})
        self._make("Service", f"{name}-head-svc", {"ray.io/cluster": name}, cluster, spec={})
        self._make("Service", f"{job['metadata']['name']}-head-svc", origin, job, spec={})
        return cluster

    def _keep_pods(self, job: Object, cluster: Object) -> bool:
        """Make pods where there are too few, delete those that have ended or are to go; return whether all are ready.

        A pod that is being deleted counts until it is gone, and an autoscaler alone says which are too many.
        """
        if cluster["metadata"].get("deletionTimestamp"):
            return False
        name, spec, there = cluster["metadata"]["name"], cluster["spec"], self._pods(job)
        wanted = [("head", "headgroup", spec["headGroupSpec"], 1)]
        for group in spec.get("workerGroupSpecs", []):
            replicas = min(max(group["replicas"], group["minReplicas"]), group["maxReplicas"])
            wanted.append(("worker", group["groupName"], group, replicas))
        ready = True
        for role, group_name, group, count in wanted:
            pods = [each for each in there if each["metadata"]["labels"]["ray.io/group"] == group_name]
            doomed = group.get("scaleStrategy", {}).get("workersToDelete") or []
            for pod in [each for each in pods if not each["metadata"].get("deletionTimestamp")]:
                if pod["metadata"]["name"] in doomed:
                    self.server.delete("Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])
                elif pod.get("status", {}).get("phase") in ("Failed", "Succeeded"):
                    self._delete_ended(cluster, role, pod)
            ready = ready and all(map(self._shows_ready, pods))
            if ready and len(pods) < count:
                kind = "head" if role == "head" else f"{group_name}-worker-{_suffix()}"
                self._make_pod(cluster, f"{name}-{kind}", role, group_name, group)
                ready = False
        return ready

    def _delete_ended(self, cluster: Object, role: str, pod: Object) -> None:
        namespace, name, status = pod["metadata"]["namespace"], pod["metadata"]["name"], pod["status"]
        state, ended = "nil", status["containerStatuses"][0]["state"].get("terminated")
        if ended is not None:
            said = f"Reason:{ended.get('reason', 'Error')},Message:{ended.get('message', '')}"
            state = f"&ContainerStateTerminated{{ExitCode:{ended['exitCode']},Signal:0,{said},}}"
        told = (
            f"Deleted {role} Pod {namespace}/{name}; Pod status: {status['phase']}; Pod restart policy: Never; "
            f"Ray container terminated status: {state}"
        )
        self._tell(cluster, "Normal", f"Deleted{role.title()}Pod", told, _suffix())
        self.server.delete("Pod", namespace, name)

    def _make_account(self, cluster: Object) -> None:
        """Give the autoscaler an account with the rights that KubeRay gives it."""
        name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
        self._make("ServiceAccount", name, {"ray.io/cluster": name}, cluster)
        rules = [
            {"apiGroups": [""], "resources": ["pods", "pods/resize"], "verbs": ["get", "list", "watch", "patch"]},
            {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "patch"]},
        ]
        self._make("Role", name, {"ray.io/cluster": name}, cluster, rules=rules)
        subjects = [{"kind": "ServiceAccount", "name": name, "namespace": namespace}]
        role = {"kind": "Role", "name": name, "apiGroup": "rbac.authorization.k8s.io"}
        self._make("RoleBinding", name, {"ray.io/cluster": name}, cluster, subjects=subjects, roleRef=role)

    def _make_pod(self, cluster: Object, name: str, role: str, group_name: str, group: Object) -> None:
        template, owner = json.loads(json.dumps(group["template"])), cluster["metadata"]["name"]
        port, dashboard = self.ports[owner]
        container = template["spec"]["containers"][0]
        limits = container["resources"]["limits"]
        told = {key: value for key, value in group.get("rayStartParams", {}).items() if not key.endswith("-port")}
        told.setdefault("num-cpus", limits["cpu"])
        if gpus := limits.get("nvidia.com/gpu"):
            told.setdefault("num-gpus", gpus)
        told |= {"block": "true", "node-ip-address": "$POD_IP", "object-store-memory": str(100 * 2**20)}
        told |= {"min-worker-port": "0", "max-worker-port": "0", "dashboard-agent-listen-port": str(_free_port())}
        told |= {"temp-dir": "$TMPDIR/ray", "include-log-monitor": "false"}
        if role == "head":
            served = {"port": str(port), "dashboard-host": "127.0.0.1", "dashboard-port": str(dashboard)}
            # jobs on the head find there the port that Ray has in a pod of its own
            container.setdefault("env", []).append({"name": "RAY_DASHBOARD_ADDRESS", "value": f"127.0.0.1:{dashboard}"})
            told |= {**served, "ray-client-server-port": str(_free_port()), "no-monitor": "true"}
        else:
            token = _token(cluster["spec"], owner)
            first = template["spec"].setdefault("initContainers", [])
            first.append(_wait_for_head(container, f"http://127.0.0.1:{dashboard}", token))
            told["address"] = f"127.0.0.1:{port}"
        options = " ".join(f"--{key}" if value == "true" else f"--{key}={value}" for key, value in told.items())
        start = f"ulimit -n 65536; exec ray start {'--head ' if role == 'head' else ''}{options}"
        container["command"] = ["/bin/bash", "-c"]
        container["args"] = [start]
        container.setdefault("env", []).extend(
            [
                {"name": "RAY_CLUSTER_NAME", "value": owner},
                {"name": "RAY_NODE_TYPE_NAME", "value": group_name},
                {"name": "RAY_CLOUD_INSTANCE_ID", "value": name},
                {"name": "RAY_ADDRESS", "value": f"127.0.0.1:{port}"},
                *_token(cluster["spec"], owner),
            ]
        )
        if role == "head" and cluster["spec"].get("enableInTreeAutoscaling"):
            container["env"].append({"name": "RAY_enable_autoscaler_v2", "value": "1"})
            template["spec"].setdefault("serviceAccountName", owner)
            template["spec"]["containers"].append(self._autoscaler(cluster, container, f"127.0.0.1:{port}"))
        labels = {"ray.io/cluster": owner, "ray.io/node-type": role, "ray.io/group": group_name}
        labels |= template.get("metadata", {}).get("labels", {})
        pending = {"phase": "Pending"}
        try:
            self._make("Pod", name, labels, cluster, [FINALIZER], spec=template["spec"], status=pending)
        except _RefusedError as error:
            of = "" if role == "head" else " for the cluster"
            said = f"Failed to create {role} Pod{of} {cluster['metadata']['namespace']}/{owner}, {error}"
            self._tell(cluster, "Warning", f"FailedToCreate{role.title()}Pod", said, "refused")

    def _autoscaler(self, cluster: Object, container: Object, gcs: str) -> Object:
        options, metadata = cluster["spec"].get("autoscalerOptions", {}), cluster["metadata"]
        program = ["python", "-P", "-m", "tests.stand_ins.kubernetes.autoscaler"]
        return {
            "name": "autoscaler",
            "image": container["image"],
            "workingDir": container["workingDir"],
            "command": [*program, metadata["name"], metadata["namespace"], gcs],
            "env": [*_token(cluster["spec"], metadata["name"]), {"name": "AUTOSCALER_UPDATE_INTERVAL_S", "value": "1"}],
            **{key: options[key] for key in ("imagePullPolicy", "resources", "securityContext") if key in options},
        }

    def _keep_head(self, cluster: Object) -> None:
        """Make the head's pod of a cluster that belongs to no job; there are none with workers here."""
        metadata = cluster["metadata"]
        if metadata.get("ownerReferences") or metadata.get("deletionTimestamp") or metadata["name"] in self.ports:
            return
        if said := mistake_in_cluster(cluster, self.gates):
            self._tell(
                cluster, "Warning", "InvalidRayClusterSpec", f"The RayCluster spec is invalid: {said}", "refused"
            )
            return
        self.ports[metadata["name"]] = (_free_port(), _free_port())
        token = base64.b64encode(secrets.token_hex(32).encode()).decode()
        self._make("Secret", metadata["name"], {SELECTED: metadata["name"]}, cluster, data={"auth_token": token})
        self._make_pod(cluster, f"{metadata['name']}-head", "head", "headgroup", cluster["spec"]["headGroupSpec"])

    def _is_up(self, job: Object, cluster: Object) -> bool:
        """Whether all pods of a job's cluster are ready; those that are its own are kept so."""
        if "clusterSelector" not in job["spec"]:
            return self._keep_pods(job, cluster)
        return bool(pods := self._pods(job)) and all(map(self._shows_ready, pods))

    def _is_ready(self, pod: Object) -> bool:
        """Whether a pod of Ray serves; a submitter serves nothing."""
        labels = pod["metadata"]["labels"]
        if labels.get("ray.io/node-type") != "head":
            return b"Ray runtime started" in self.server.logs.get(pod["metadata"]["uid"], b"")
        _, dashboard = self.ports[labels["ray.io/cluster"]]
        return _get(f"http://127.0.0.1:{dashboard}/api/gcs_healthz", "") is not None

    def _shows_ready(self, pod: Object) -> bool:
        conditions = pod.get("status", {}).get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def _pods(self, job: Object) -> list[Object]:
        cluster = job["status"]["rayClusterName"]
        pods = self.server.all("Pod", job["metadata"]["namespace"])
        return [each for each in pods if each["metadata"].get("labels", {}).get("ray.io/cluster") == cluster]

    # Submitting

    def _submit(self, job: Object, cluster: Object) -> None:
        """Make the Job whose pod submits."""
        name = job["metadata"]["name"]
        if _is_over_http(job) or self.server.get("Job", job["metadata"]["namespace"], name) is not None:
            return
        origin = {"ray.io/originated-from-cr-name": name, "ray.io/originated-from-crd": "RayJob"}
        tries = job["spec"].get("submitterConfig", {}).get("backoffLimit", 2)
        spec = {"backoffLimit": tries, "template": _submitter_template(job, cluster)}
        self._make("Job", name, origin, job, spec=spec)

    def _post(self, job: Object, status: Object) -> None:
        """Submit the job as KubeRay's own request does."""
        asked = {"entrypoint": job["spec"]["entrypoint"], "submission_id": status["jobId"]}
        body = json.dumps(asked).encode()
        _get(f"http://{status['dashboardURL']}/api/jobs/", self._token_of(status), method="POST", body=body)

    def _submitter_of(self, job: Object) -> str:
        """Return what became of the Job that submits."""
        if _is_over_http(job):
            return "Complete"
        found = self.server.get("Job", job["metadata"]["namespace"], job["metadata"]["name"])
        conditions = found.get("status", {}).get("conditions", []) if found is not None else []
        return next((each["type"] for each in conditions), "Active")

    def _keep_trying(self, submitter: Object) -> None:
        """Start a Job's pod, and again as often as it may fail, as Kubernetes does, whatever became of the RayJob."""
        if submitter["metadata"].get("deletionTimestamp") or submitter.get("status", {}).get("conditions"):
            return
        namespace, uid = submitter["metadata"]["namespace"], submitter["metadata"]["uid"]
        pods = [
            each
            for each in self.server.all("Pod", namespace)
            if uid in [one["uid"] for one in each["metadata"].get("ownerReferences", [])]
        ]
        phases = [each.get("status", {}).get("phase") for each in pods]
        if "Succeeded" in phases:
            self._conclude(submitter, "Complete")
        elif all(phase == "Failed" for phase in phases):
            if len(pods) > submitter["spec"]["backoffLimit"]:
                self._conclude(submitter, "Failed")
            else:
                self._try_again(submitter, len(pods))

    def _conclude(self, submitter: Object, how: str) -> None:
        namespace, name = submitter["metadata"]["namespace"], submitter["metadata"]["name"]
        status = {"conditions": [{"type": how, "status": "True"}]}
        self.server.change("Job", namespace, name, lambda value: value.update(status=status), "job-controller")

    def _try_again(self, submitter: Object, number: int) -> None:
        template, name = submitter["spec"]["template"], submitter["metadata"]["name"]
        labels = {"batch.kubernetes.io/job-name": name, **template["metadata"]["labels"]}
        pod = f"{name}-{number}{_suffix()[:4]}"
        try:
            self._make("Pod", pod, labels, submitter, spec=template["spec"], finalizers=[FINALIZER])
        except _RefusedError as error:
            self._tell(submitter, "Warning", "FailedCreate", f"Error creating: {error}", "refused")

    def _job_info(self, status: Object) -> Object | None:
        """Return what the head's Ray says of the job: nothing where it knows none; None where it does not answer."""
        url = f"http://{status['dashboardURL']}/api/jobs/{status['jobId']}"
        try:
            found: Object = json.loads(_asked(url, self._token_of(status)))
        except urllib.error.HTTPError as error:
            return {} if error.code == 404 else None
        except OSError:
            return None
        return found

    def _stop_job(self, status: Object) -> None:
        if status.get("dashboardURL") and status.get("jobStatus") not in _TERMINAL:
            url = f"http://{status['dashboardURL']}/api/jobs/{status['jobId']}/stop"
            _get(url, self._token_of(status), method="POST")

    def _token_of(self, status: Object) -> str:
        for secret in self.server.all("Secret"):
            if secret["metadata"]["name"] == status["rayClusterName"]:
                return base64.b64decode(secret["data"]["auth_token"]).decode()
        return ""

    # Objects

    def _make(
        self, kind: str, name: str, labels: Object, owner: Object, finalizers: list[str] | None = None, **more: Any
    ) -> Object:
        reference = {key: owner[key] for key in ("apiVersion", "kind")}
        reference |= {key: owner["metadata"][key] for key in ("name", "uid")}
        metadata: Object = {"name": name, "labels": dict(labels), "ownerReferences": [reference]}
        if finalizers:
            metadata["finalizers"] = finalizers
        namespace = owner["metadata"]["namespace"]
        pod = {"metadata": {**metadata, "namespace": namespace}, **more}
        if kind == "Pod" and (said := refusal(self.server, pod)):
            raise _RefusedError(said)
        if said := beyond_count(self.server, self.server.kind(kind), namespace, name):
            raise _RefusedError(said)
        return self.server.create(kind, {"metadata": metadata, **more}, namespace)

    def _tell(self, owner: Object, kind: str, reason: str, message: str, suffix: str) -> None:
        """Make an event about an object; one that says the same again takes the place of the first."""
        namespace, name = owner["metadata"]["namespace"], owner["metadata"]["name"]
        about = {key: owner[key] for key in ("apiVersion", "kind")}
        about |= {key: owner["metadata"][key] for key in ("name", "namespace", "uid")}
        event = {"type": kind, "reason": reason, "message": message, "lastTimestamp": now(), "involvedObject": about}
        self.server.create("Event", {"metadata": {"name": f"{name}.{suffix}"}, **event}, namespace)

    def _set(self, job: Object, **status: Any) -> None:
        self._change(job, lambda value: value.setdefault("status", {}).update(status))

    def _change(self, job: Object, change: Any) -> None:
        with contextlib.suppress(AssertionError):  # it has gone meanwhile
            self.server.change("RayJob", job["metadata"]["namespace"], job["metadata"]["name"], change, "ray-operator")


@contextmanager
def operator(
    server: ApiServer, images: Mapping[str, Mapping[str, str]], gates: Collection[str] = ()
) -> Iterator[Operator]:
    """Have RayJobs run; `images` are the variables of each image, PATH among them."""
    running = Operator(server, images, gates)
    try:
        yield running
    finally:
        running.stop()
    assert running.errors == []


def _is_over_http(job: Object) -> bool:
    """Whether the operator submits the job itself, and no pod does."""
    return bool(job["spec"].get("submissionMode") == "HTTPMode")


def _wait_for_head(container: Object, address: str, token: list[Object]) -> Object:
    """Return what KubeRay runs in a worker's pod before Ray: as Ray's container, with resources of its own.

    It waits for half a minute here, and not for ever: all else waits for it.
    """
    few = {"cpu": "200m", "memory": "256Mi"}
    same = ("image", "imagePullPolicy", "securityContext", "volumeMounts")
    return {
        "name": "wait-gcs-ready",
        **{key: json.loads(json.dumps(container[key])) for key in same if key in container},
        "command": ["/bin/bash", "-c"],
        "args": [f"for _ in {{1..60}}; do {_healthy(address)} && exit; sleep 0.5; done; exit 1"],
        "env": [*container.get("env", []), *token],
        "resources": {"requests": few, "limits": dict(few)},
    }


def _submitter_template(job: Object, cluster: Object) -> Object:
    """Return the template of a RayJob's submitter, with what KubeRay has it do."""
    status = job["status"]
    template: Object = json.loads(json.dumps(job["spec"]["submitterPodTemplate"]))
    container = template["spec"]["containers"][0]
    address, submission = f"http://{status['dashboardURL']}", status["jobId"]
    entrypoint = job["spec"]["entrypoint"]  # stands in KubeRay's line as it was given
    container["command"] = ["/bin/bash", "-ce"]
    container["args"] = [
        f"until {_healthy(address)}; do sleep 0.5; done; "
        f"if ! ray job status --address {address} {submission} >/dev/null 2>&1; then "
        f"ray job submit --address {address} --no-wait --submission-id {submission} -- {entrypoint}; fi; "
        f"ray job logs --address {address} --follow {submission}"
    ]
    env = [{"name": "PYTHONUNBUFFERED", "value": "1"}]
    env += [{"name": "RAY_DASHBOARD_ADDRESS", "value": status["dashboardURL"]}]
    env += [{"name": "RAY_JOB_SUBMISSION_ID", "value": submission}]
    env += _token(cluster["spec"], status["rayClusterName"])
    container.setdefault("env", []).extend(env)
    return template


def _healthy(address: str) -> str:
    """Return a command that ends well where a head serves; `ray health-check` would take seconds to begin."""
    asks = f"import urllib.request as u; u.urlopen('{address}/api/gcs_healthz', timeout=5)"
    return f"python -c {shlex.quote(asks)} >/dev/null 2>&1"


def _token(spec: Object, cluster: str) -> list[Object]:
    if spec.get("authOptions", {}).get("mode") != "token":
        return []
    source = {"secretKeyRef": {"name": cluster, "key": "auth_token"}}
    return [{"name": "RAY_AUTH_MODE", "value": "token"}, {"name": "RAY_AUTH_TOKEN", "valueFrom": source}]


def _get(url: str, token: str, method: str = "GET", body: bytes | None = None) -> bytes | None:
    try:
        return _asked(url, token, method, body)
    except OSError:
        return None


def _asked(url: str, token: str, method: str = "GET", body: bytes | None = None) -> bytes:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    headers |= {"Content-Type": "application/json"} if body is not None else {}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=_PATIENCE) as it:
        answer: bytes = it.read()
        return answer


def _suffix() -> str:
    return "".join(secrets.choice("bcdfghjklmnpqrstvwxz2456789") for _ in range(5))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def seconds(text: str) -> float:
    """Return when something was, from how the API says it."""
    return float(calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")))
