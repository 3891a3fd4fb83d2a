"""Why a run waits or has failed, read off its objects and said in words. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cluster.kubernetes.pods import ROLE_LABEL, RUN_LABEL, URI_ANNOTATION, secret_name
from cluster.provider import State

Object = Mapping[str, Any]

FETCHING = "raylift"  # the container that fetches raylift into a pod whose image has none
QUEUE = "kueue.x-k8s.io/queue-name"
_STATES = {
    "": State.PENDING,
    "Suspending": State.RECOVERING,
    "Suspended": State.PENDING,
    "Initializing": State.PROVISIONING,
    "Waiting": State.PROVISIONING,
    "Running": State.RUNNING,
    "Retrying": State.RECOVERING,
    "Complete": State.SUCCEEDED,
    "Failed": State.FAILED,
    "ValidationFailed": State.FAILED,
}
_GATE = re.compile(r"spec\.networkPolicy requires the (\w+) feature gate")  # validation.go
_NEVER_READY = "PreRunningDeadlineExceeded"
TOOK_TOO_LONG = "DeadlineExceeded"
_FAILURES = {
    TOOK_TOO_LONG: "it took longer than its budget allows, and did not end by itself",
    _NEVER_READY: "its pods did not start within cluster.pre_running_deadline_seconds",
    "SubmissionFailed": "the driver was lost, or could not be submitted",
    "AppFailed": "the driver died",
    "ValidationFailed": "KubeRay does not take it",
    "JobDeploymentStatusTransitionGracePeriodExceeded": "the pod that submits has ended, and the driver had not",
    "JobStatusCheckTimeoutExceeded": "KubeRay could not ask the head's Ray about the driver for too long",
}
_NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
# What KubeRay says of a pod that has ended, when it deletes that (raycluster_controller.go)
_KILLED = re.compile(r"Deleted (head|worker) Pod (?:\S+/)?(\S+); .*Reason:OOMKilled\b")
_NEVER_BEGAN = re.compile(
    r"Deleted (head|worker) Pod (?:\S+/)?(\S+); Pod status: Failed; .*Ray container terminated status: (?:<nil>|nil)$"
)
_UNSTARTED = ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")  # reasons of a kubelet's events
_UNMADE = ("FailedToCreateHeadPod", "FailedToCreateWorkerPod")  # reasons of KubeRay's
_TIMED_OUT = "Unable to attach or mount volumes"  # follows the event that says why
_NO_SECRET = re.compile(r'secret "(\S+)" not found')  # to mount, or to take variables from
_LOST = {"Evicted": "was evicted", "Preempted": "had to make room for another"}
_NOT_MADE = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


def where_it_stands(
    job: Object, pods: Sequence[Object], events: Sequence[Object], workload: Object | None
) -> tuple[State, str]:
    """Return the state of a run and why: from its RayJob, its pods, events about it, and its Workload of Kueue."""
    status = job.get("status", {})
    deployment = status.get("jobDeploymentStatus", "")
    state = _STATES.get(deployment, State.RUNNING)
    if job["metadata"].get("deletionTimestamp"):
        return state, f"it is being deleted{_holders(job)}"
    if state is State.SUCCEEDED:
        return state, ""
    if state is State.FAILED:
        return state, _failure(job, pods, events)
    if deployment == "Retrying":
        return state, f"starting again: {_failure(job, pods, events)}"
    if deployment == "Running" and not _is_submitted(job, pods):
        state = State.PROVISIONING  # KubeRay says so as soon as it has asked for a pod that submits
    pods = [pod for pod in pods if not _is_a_failed_submitter(pod)]
    if state is State.RUNNING:
        return state, trouble(pods) or _unstarted(pods, events) or _unmade(job, pods, events) or _lost(job, events)
    if deployment == "Suspending":
        return state, f"its pods are taken away{_because_of(workload)}"
    if said := _in_queue(job, workload):
        return state, said
    if said := trouble(pods) or _unstarted(pods, events):
        return state, f"{said}{_way_out(job, said)}"
    known = _warning(events) or _lost(job, events) or _unfetched(job, pods, events)
    return state, known or _waiting(deployment, pods)


def trouble(pods: Iterable[Object]) -> str:
    """Return what is wrong with the first pod with which something is; an empty text where nothing is known to be."""
    return next((said for pod in pods if (said := _pod(pod))), "")


def held(pods: Sequence[Object], events: Sequence[Object]) -> str:
    """Return why the first pod is held whose image or settings are wrong; an empty text where none is known to be."""
    found = ((pod, status) for pod in pods for status in _containers(pod))
    mounts = [each for each in events if each.get("reason") == "FailedMount"]
    return next((said for pod, status in found if (said := _held(pod, status))), "") or _unstarted(pods, mounts)


def _failure(job: Object, pods: Sequence[Object], events: Sequence[Object]) -> str:
    status = job.get("status", {})
    said = _FAILURES.get(status.get("reason", ""), status.get("reason", "") or "it failed")
    failed = [pod for pod in pods if _is_a_failed_submitter(pod)]
    others = [pod for pod in pods if pod not in failed]
    why = trouble(others) or _unstarted(others, events) or _lost(job, events) or _warning(events)
    if status.get("reason") == _NEVER_READY:
        why = why or _unfetched(job, pods, events) or _never_started(job, events)
    why = why or trouble(failed) or status.get("message", "")
    if (gate := _GATE.search(why)) is not None:
        why += (
            f". Turn it on in KubeRay's operator (--feature-gates={gate[1]}=true), or leave out cluster.network_policy"
        )
    return f"{said}: {why}" if why else said


def _is_submitted(job: Object, pods: Sequence[Object]) -> bool:
    """Whether there may be a driver: KubeRay has heard of it, or a pod has begun to submit it."""
    submitters = [pod for pod in pods if ROLE_LABEL not in pod["metadata"].get("labels", {})]
    begun = any(pod.get("status", {}).get("phase", "Pending") != "Pending" for pod in submitters)
    return begun or bool(job.get("status", {}).get("jobStatus"))


def _is_a_failed_submitter(pod: Object) -> bool:
    """Whether it is a pod that submitted, and failed, as each does whose head is lost: it stays when another comes."""
    return ROLE_LABEL not in pod["metadata"].get("labels", {}) and pod.get("status", {}).get("phase") == "Failed"


def _holders(job: Object) -> str:
    held = job["metadata"].get("finalizers", [])
    return f", and waits for {', '.join(held)}" if held else ""


def _in_queue(job: Object, workload: Object | None) -> str:
    queue = job["metadata"].get("labels", {}).get(QUEUE)
    if not job.get("spec", {}).get("suspend"):
        return ""
    if queue is None:
        return "it is suspended"
    if workload is None:
        return f"it waits in the queue {queue}"
    if not workload.get("spec", {}).get("active", True):
        name = workload["metadata"]["name"]
        return f"the queue {queue} has given it up{_because_of(workload)}. Look: kubectl describe workload {name}"
    if _condition(workload, "QuotaReserved", "True") is not None:
        checks = workload["status"].get("admissionChecks", [])
        open_ = [f"{each['name']} {each.get('message', '')}".strip() for each in checks if each["state"] != "Ready"]
        return f"the queue {queue} has room for it, and waits for its checks{': ' if open_ else ''}{', '.join(open_)}"
    held = _condition(workload, "QuotaReserved", "False")
    return f"it waits in the queue {queue}{_because_of(workload)}{': ' + held['message'] if held is not None else ''}"


def _because_of(workload: Object | None) -> str:
    """Return why Kueue took a run's pods away, in parentheses; an empty text where it did not."""
    evicted = _condition(workload, "Evicted", "True") if workload is not None else None
    return f" ({evicted['message']})" if evicted is not None else ""


def _condition(workload: Object, kind: str, status: str) -> Object | None:
    conditions: Sequence[Object] = workload.get("status", {}).get("conditions", [])
    return next((each for each in conditions if (each["type"], each["status"]) == (kind, status)), None)


def _waiting(deployment: str, pods: Sequence[Object]) -> str:
    if not deployment:
        return "KubeRay has not taken it up yet"
    ready = sum(map(_is_ready, pods))
    return f"{ready} of {len(pods)} pods are ready" if pods else "its pods are being made"


def _warning(events: Sequence[Object]) -> str:
    """Return the newest warning about the run's own objects, such as a quota that lets no pod be made."""
    warnings = [each for each in events if each.get("type") == "Warning" and not _pod_of(each)]
    newest = max(warnings, key=_time, default=None)
    return str(newest["message"]) if newest is not None else ""


def _unstarted(pods: Sequence[Object], events: Sequence[Object]) -> str:
    """Return what events say of a pod that has not started, where its status does not: such as of a Secret to mount."""
    for pod in pods:
        name, status = pod["metadata"]["name"], pod.get("status", {})
        if status.get("phase", "Pending") != "Pending" or _has_begun(pod):
            continue
        is_placed = pod["spec"].get("nodeName") or _has_condition(pod, "PodScheduled")
        known = _UNSTARTED if is_placed else ("FailedScheduling",)
        found = [each for each in events if _is_about(each, pod) and each.get("reason") in known]
        if (newest := _newest(found)) is not None:
            said = newest["message"]
            return f"the pod {name} cannot start: {said}" if is_placed else _unschedulable(pod, said)
    return ""


def _unmade(job: Object, pods: Sequence[Object], events: Sequence[Object]) -> str:
    """Return why a pod that was lost is not made again, such as for a quota; an empty text where all are there."""
    cluster = job["spec"].get("rayClusterSpec")
    if cluster is None:
        return ""
    there = [pod["metadata"].get("labels", {}).get(ROLE_LABEL) for pod in pods]
    least = sum(group.get("minReplicas", 0) for group in cluster.get("workerGroupSpecs", []))
    if "head" in there and there.count("worker") >= least:
        return ""
    return _warning([each for each in events if each.get("reason") in _UNMADE])


def _has_begun(pod: Object) -> bool:
    """Whether a pod's volumes and its network are there: what events said of them before is over."""
    states = [status.get("state", {}) for status in _containers(pod)]
    is_any_made = any("running" in state or "terminated" in state for state in states)
    return is_any_made or _has_condition(pod, "PodReadyToStartContainers")  # from Kubernetes 1.29 on


def _way_out(job: Object, said: str) -> str:
    """Return what to type where a pod does not start, whose run holds its other pods, and their machines, meanwhile."""
    uri = job["metadata"].get("annotations", {}).get(URI_ANNOTATION)
    if (secret := _NO_SECRET.search(said)) is not None:
        if secret[1] == secret_name(job["metadata"]["name"]):
            return f". It comes with the launch, which is not whole: raylift resume {shlex.quote(uri)}" if uri else ""
        if secret[1] == job.get("status", {}).get("rayClusterName"):
            return ""  # KubeRay makes its token's itself
        namespace = job["metadata"]["namespace"]
        return f". Make it, and the pod starts: kubectl create secret generic {secret[1]} --namespace {namespace} …"
    return f". To wait no longer: raylift stop --now {shlex.quote(uri)}" if uri else ""


def _never_started(job: Object, events: Sequence[Object]) -> str:
    """Return what was said last of a pod that did not start, when KubeRay has deleted it."""
    found = [each for each in events if _is_of_its_own(job, _pod_of(each)) and each.get("reason") in _UNSTARTED]
    newest = _newest(found)
    return f"the pod {_pod_of(newest)} could not start: {newest['message']}" if newest is not None else ""


def _newest(events: Sequence[Object]) -> Object | None:
    """Return the newest of a pod's events that says more than that its volumes took too long."""
    return max(events, key=lambda each: (not each["message"].startswith(_TIMED_OUT), _time(each)), default=None)


def _is_of_its_own(job: Object, pod: str) -> bool:
    """Whether a pod with this name is, or was, of the cluster that KubeRay has made for a job now."""
    cluster = job.get("status", {}).get("rayClusterName")
    return bool(cluster) and "rayClusterSpec" in job["spec"] and pod.startswith(f"{cluster}-")


def _lost(job: Object, events: Sequence[Object]) -> str:
    """Return which pod was lost last, and why: KubeRay deletes it at once, and an event is all that stays of it."""
    if "rayClusterSpec" not in job["spec"]:  # a cluster that it shares is not its own
        return ""
    found = [(_time(event), said) for event in events if (said := _evicted(job, event) or _killed(job, event))]
    return max(found)[1] if found else ""


def _evicted(job: Object, event: Object) -> str:
    name, reason = _pod_of(event), event.get("reason", "")
    if not _is_of_its_own(job, name) or reason not in _LOST:
        return ""
    return f"the pod {name} {_LOST[reason]}: {event['message']}"


def _killed(job: Object, event: Object) -> str:
    """Return which pod was killed for memory, where KubeRay's event of its deletion says so."""
    if (match := _KILLED.search(event.get("message", ""))) is None:
        return ""
    cluster = job["spec"]["rayClusterSpec"]
    group = cluster["headGroupSpec"] if match[1] == "head" else cluster["workerGroupSpecs"][0]
    return _out_of_memory(match[2], group["template"]["spec"]["containers"][0])


def _is_about(event: Object, pod: Object) -> bool:
    """Whether an event is about a very pod: another may have had its name."""
    about = event.get("involvedObject", {})
    uid = pod["metadata"].get("uid")
    return _pod_of(event) == pod["metadata"]["name"] and bool(about.get("uid", uid) == uid)


def _pod_of(event: Object) -> str:
    """Return the name of the pod that an event is about; an empty text where it is about something else."""
    about = event.get("involvedObject", {})
    return str(about["name"]) if about.get("kind") == "Pod" else ""


def _unfetched(job: Object, pods: Sequence[Object], events: Sequence[Object]) -> str:
    """Return which pod failed last before its Ray began: KubeRay deletes it at once, and with it what it printed.

    An empty text where none did, or one of its kind has fetched since.
    """
    found = [(event, match) for event in events if (match := _NEVER_BEGAN.match(event.get("message", ""))) is not None]
    group = job["spec"].get("rayClusterSpec", {}).get("headGroupSpec", {})
    first = group.get("template", {}).get("spec", {}).get("initContainers", [])
    if not found or FETCHING not in [each["name"] for each in first]:
        return ""
    _, match = max(found, key=lambda each: _time(each[0]))
    if any(_has_fetched(pod) for pod in pods if pod["metadata"].get("labels", {}).get(ROLE_LABEL) == match[1]):
        return ""
    said = f"the pod {match[2]} ended before it had fetched raylift"
    if job.get("status", {}).get("jobDeploymentStatus") == "Failed":
        return said
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    theirs = f"{RUN_LABEL}={name},{ROLE_LABEL}"
    read = f"kubectl logs --namespace {namespace} -f --max-log-requests 100 -c {FETCHING} -l {theirs}"
    return f"{said}. What the next one prints says why: {read}"


def _has_fetched(pod: Object) -> bool:
    fetching = [each for each in pod.get("status", {}).get("initContainerStatuses", []) if each["name"] == FETCHING]
    return any(each.get("state", {}).get("terminated", {}).get("exitCode") == 0 for each in fetching)


def _time(event: Object) -> str:
    """Return when it happened last: the newer of Kubernetes' two ways to tell events counts repetitions in a series."""
    last = (event.get("series") or {}).get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return str(last or event["metadata"].get("creationTimestamp") or "")


def _pod(pod: Object) -> str:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    if status.get("reason") == "Evicted":
        return f"the pod {name} was evicted: {status.get('message', '')}"
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return _unschedulable(pod, condition.get("message", ""))
        if condition["type"] == "PodScheduled" and condition.get("reason") == "SchedulingGated":
            gates = ", ".join(each["name"] for each in pod["spec"].get("schedulingGates", []))
            return f"the pod {name} is held back{f' by {gates}' if gates else ''}, as a queue does"
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return f"the pod {name} had to leave its node: {condition.get('message') or condition.get('reason', '')}"
    for container in status.get("initContainerStatuses", []):
        ended = container.get("state", {}).get("terminated", {})
        if container["name"] == FETCHING and ended.get("exitCode", 0):
            return f"the pod {name} could not fetch raylift{_because(ended)}"
    return next((said for container in _containers(pod) if (said := _container(pod, container))), "")


def _containers(pod: Object) -> list[Object]:
    """Return the statuses of a pod's containers, in the order in which these start."""
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]


def _held(pod: Object, status: Object) -> str:
    """Return why a container is not made; an empty text where that is not known to be so."""
    name = pod["metadata"]["name"]
    waiting = status.get("state", {}).get("waiting", {})
    message = f": {waiting['message']}" if waiting.get("message") else ""
    if waiting.get("reason") in _NO_IMAGE:
        return f"the image {status.get('image', '')} of pod {name} cannot be pulled ({waiting['reason']}){message}"
    if waiting.get("reason") in _NOT_MADE:
        return f"the pod {name} cannot start ({waiting['reason']}){message}"
    return ""


def _container(pod: Object, status: Object) -> str:
    if said := _held(pod, status):
        return said
    name = pod["metadata"]["name"]
    for when in ("state", "lastState"):
        ended = status.get(when, {}).get("terminated", {})
        if ended.get("reason") == "OOMKilled":
            there = (*pod["spec"].get("initContainers", []), *pod["spec"]["containers"])
            return _out_of_memory(name, next(each for each in there if each["name"] == status["name"]))
    ended = status.get("state", {}).get("terminated", {})
    if ended.get("exitCode", 0) != 0 and pod.get("status", {}).get("phase") == "Failed":
        return f"the pod {name} ended with exit code {ended['exitCode']}{_because(ended)}"
    return ""


def _because(ended: Object) -> str:
    return f": {' '.join(ended['message'].split())[-200:]}" if ended.get("message") else ""


def _out_of_memory(pod: str, container: Object) -> str:
    limit = container.get("resources", {}).get("limits", {}).get("memory", "that of its node")
    return f"the pod {pod} was killed for lack of memory: its limit is {limit}"


def _unschedulable(pod: Object, message: str) -> str:
    """Say what the scheduler says: "0/5 nodes are available: 3 Insufficient nvidia.com/gpu, 2 node(s) had …"."""
    asked = pod["spec"]["containers"][0].get("resources", {}).get("requests", {})
    wanted = ", ".join(f"{amount} {resource}" for resource, amount in asked.items())
    match = re.match(r"0/(\d+) nodes are available: (.*?)(?:\. |\.?$)", message, re.DOTALL)
    if match is None:
        return f"no node takes the pod {pod['metadata']['name']}, which asks for {wanted}: {message}"
    causes = re.sub(r"(\d+) Insufficient (\S+?)(?=,|$)", r"\1 with too little \2", match[2])
    causes = causes.replace("node(s) ", "")
    return f"no node takes the pod {pod['metadata']['name']}, which asks for {wanted}; of {match[1]} nodes: {causes}"


def _is_ready(pod: Object) -> bool:
    return _has_condition(pod, "Ready")


def _has_condition(pod: Object, kind: str) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(each["type"] == kind and each["status"] == "True" for each in conditions)
