"""What is said of a run that waits or has failed, read off objects as Kubernetes and KubeRay write them."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.kubernetes.reasons import held, trouble, where_it_stands
from cluster.provider import State

Object = dict[str, Any]


def job(deployment: str = "Initializing", *, labels: Any = None, suspend: bool = False, **status: Any) -> Object:
    metadata = {"name": "digits", "namespace": "raylift", "labels": labels or {}}
    heard = {"jobStatus": "RUNNING"} if deployment == "Running" else {}
    whole = {"jobDeploymentStatus": deployment, **heard, **status}
    return {"metadata": metadata, "spec": {"suspend": suspend}, "status": whole}


def pod(name: str = "digits-head", **status: Any) -> Object:
    asked = {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "8"}
    container = {"name": "ray", "resources": {"requests": asked, "limits": asked}}
    return {"metadata": {"name": name}, "spec": {"containers": [container]}, "status": status}


def unschedulable(message: str) -> Object:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod(phase="Pending", conditions=[condition])


def gated(*gates: str) -> Object:
    held = pod(phase="Pending", conditions=[{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}])
    held["spec"]["schedulingGates"] = [{"name": each} for each in gates]
    return held


def container(**state: Any) -> Object:
    return pod(phase="Pending", containerStatuses=[{"name": "ray", "image": "corp/raylift:1", "state": state}])


def warning(message: str, at: str = "2026-11-26T00:00:00Z") -> Object:
    return {"metadata": {}, "type": "Warning", "message": message, "lastTimestamp": at}


@pytest.mark.parametrize(
    ("deployment", "state"),
    [
        ("", State.PENDING),
        ("Suspending", State.RECOVERING),
        ("Suspended", State.PENDING),
        ("Initializing", State.PROVISIONING),
        ("Waiting", State.PROVISIONING),
        ("Running", State.RUNNING),
        ("Retrying", State.RECOVERING),
        ("Complete", State.SUCCEEDED),
        ("Failed", State.FAILED),
        ("ValidationFailed", State.FAILED),
    ],
)
def test_each_status_of_kuberay_is_a_state_of_a_run(deployment: str, state: State) -> None:
    assert where_it_stands(job(deployment), [], [], None)[0] is state


@pytest.mark.parametrize(
    "rest",
    [
        ".",
        ". preemption: 0/5 nodes are available: 5 Preemption is not helpful for scheduling.",
        ". no new claims to deallocate, preemption: 0/5 nodes are available: 5 No preemption victims found.",
    ],
)
def test_a_pod_that_no_node_takes_says_what_it_asks_for_and_what_each_node_lacks(rest: str) -> None:
    message = "0/5 nodes are available: 1 node(s) had untolerated taint {gpu: true}, 4 Insufficient nvidia.com/gpu"
    message += rest
    assert trouble([unschedulable(message)]) == (
        "no node takes the pod digits-head, which asks for 4 cpu, 16Gi memory, 8 nvidia.com/gpu; "
        "of 5 nodes: 1 had untolerated taint {gpu: true}, 4 with too little nvidia.com/gpu"
    )


def test_a_pod_that_a_queue_holds_back_says_so() -> None:
    assert trouble([gated("kueue.x-k8s.io/elastic-job")]) == (
        "the pod digits-head is held back by kueue.x-k8s.io/elastic-job, as a queue does"
    )


def test_a_pod_that_could_not_fetch_raylift_says_why() -> None:
    ended = {"name": "raylift", "state": {"terminated": {"exitCode": 1, "message": "403\n  Forbidden\n"}}}
    said = trouble([pod(phase="Failed", initContainerStatuses=[ended])])
    assert said == "the pod digits-head could not fetch raylift: 403 Forbidden"
    done = {"name": "raylift", "state": {"terminated": {"exitCode": 0}}}
    assert trouble([pod(phase="Running", initContainerStatuses=[done])]) == ""


def test_a_pod_that_could_not_fetch_raylift_is_remembered_when_kuberay_has_deleted_it() -> None:
    message = "Deleted head Pod raylift/digits-x7k2p-head; Pod status: Failed; Pod restart policy: Never; "
    event = {"metadata": {}, "type": "Normal", "message": f"{message}Ray container terminated status: nil"}
    whole = job()
    assert "fetched" not in where_it_stands(whole, [], [event], None)[1]
    template = {"spec": {"initContainers": [{"name": "raylift"}]}}
    whole["spec"]["rayClusterSpec"] = {"headGroupSpec": {"template": template}}
    state, said = where_it_stands(whole, [pod(phase="Pending")], [event], None)
    assert (state, said) == (
        State.PROVISIONING,
        "the pod digits-x7k2p-head ended before it had fetched raylift. What the next one prints says why: "
        "kubectl logs --namespace raylift -f --max-log-requests 100 -c raylift "
        "-l raylift.dev/run=digits,ray.io/node-type",
    )
    done = {"name": "raylift", "state": {"terminated": {"exitCode": 0}}}
    fetched = pod(phase="Pending", initContainerStatuses=[done])
    fetched["metadata"]["labels"] = {"ray.io/node-type": "head"}
    assert where_it_stands(whole, [fetched], [event], None)[1] == "0 of 1 pods are ready"
    whole["status"] = {"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded"}
    assert where_it_stands(whole, [], [event], None)[1].endswith(
        "digits-x7k2p-head ended before it had fetched raylift"
    )
    whole["status"] = {"jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": "exit code 1"}
    assert where_it_stands(whole, [], [event], None)[1] == "the driver died: exit code 1"


def test_a_run_that_goes_on_says_which_of_its_pods_does_not() -> None:
    message = "0/5 nodes are available: 5 Insufficient cpu."
    state, reason = where_it_stands(job("Running"), [pod(phase="Running"), unschedulable(message)], [], None)
    assert (state, reason.endswith("of 5 nodes: 5 with too little cpu")) == (State.RUNNING, True)


NO_QUOTA = 'Error creating: pods "digits-0abcd" is forbidden: exceeded quota: raylift'


def test_a_run_that_cannot_be_submitted_does_not_run_and_says_why() -> None:
    ready = [{"type": "Ready", "status": "True"}]
    head = pod(phase="Running", conditions=ready)
    head["metadata"]["labels"] = {"ray.io/node-type": "head"}
    going = job("Running", jobStatus="")
    assert where_it_stands(going, [head], [warning(NO_QUOTA)], None) == (State.PROVISIONING, NO_QUOTA)
    assert where_it_stands(going, [head], [], None) == (State.PROVISIONING, "1 of 1 pods are ready")
    state, said = where_it_stands(going, [head, container(waiting={"reason": "ErrImagePull"})], [], None)
    assert (state, "cannot be pulled" in said) == (State.PROVISIONING, True)
    submitter = pod("digits-0abcd", phase="Running", conditions=ready)
    assert where_it_stands(going, [head, submitter], [warning(NO_QUOTA)], None) == (State.RUNNING, "")


def test_a_run_whose_lost_pod_is_not_made_again_says_why() -> None:
    def of(role: str) -> Object:
        found = pod(f"digits-{role}", phase="Running")
        found["metadata"]["labels"] = {"ray.io/node-type": role}
        return found

    going = job("Running")
    going["spec"]["rayClusterSpec"] = {"workerGroupSpecs": [{"minReplicas": 2}]}
    refused = {**warning(NO_QUOTA), "reason": "FailedToCreateWorkerPod"}
    head, worker = of("head"), of("worker")
    assert where_it_stands(going, [head, worker], [refused], None) == (State.RUNNING, NO_QUOTA)
    assert where_it_stands(going, [head, worker, worker], [refused], None) == (State.RUNNING, "")
    assert where_it_stands(going, [worker, worker], [refused], None) == (State.RUNNING, NO_QUOTA)


def test_a_scheduler_that_says_something_else_is_quoted() -> None:
    assert trouble([unschedulable("pod has unbound immediate PersistentVolumeClaims")]).endswith(
        "which asks for 4 cpu, 16Gi memory, 8 nvidia.com/gpu: pod has unbound immediate PersistentVolumeClaims"
    )


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"])
def test_an_image_that_is_not_there_is_named(reason: str) -> None:
    said = trouble([container(waiting={"reason": reason, "message": "not found"})])
    assert said == f"the image corp/raylift:1 of pod digits-head cannot be pulled ({reason}): not found"


def test_a_secret_that_is_missing_is_named() -> None:
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "storage" not found'}
    assert trouble([container(waiting=waiting)]).endswith('(CreateContainerConfigError): secret "storage" not found')


@pytest.mark.parametrize(
    ("role", "limit", "place"),
    [
        ("worker", "12Gi", "raylift/"),
        ("head", "4Gi", "raylift/"),
        ("worker", "12Gi", ""),
    ],  # older KubeRays name no place
)
def test_a_pod_that_was_killed_for_memory_is_remembered_when_kuberay_has_deleted_it(
    role: str, limit: str, place: str
) -> None:
    def group(memory: str) -> Object:
        container = {"name": "ray", "resources": {"limits": {"memory": memory}}}
        return {"template": {"spec": {"containers": [container]}}}

    def deleted(name: str, reason: str, at: str) -> Object:
        ended = f"&ContainerStateTerminated{{ExitCode:137,Signal:0,Reason:{reason},Message:,StartedAt:2026-11-26,}}"
        message = f"Deleted {role} Pod {place}{name}; Pod status: Failed; Pod restart policy: Never; "
        message += f"Ray container terminated status: {ended}"
        return {"metadata": {}, "type": "Normal", "message": message, "lastTimestamp": at}

    whole = job("Running")
    whole["spec"]["rayClusterSpec"] = {"headGroupSpec": group("4Gi"), "workerGroupSpecs": [group("12Gi")]}
    events = [
        deleted("digits-x7k2p-3", "Error", "2026-11-26T00:03:00Z"),
        deleted("digits-x7k2p-2", "OOMKilled", "2026-11-26T00:02:00Z"),
        deleted("digits-x7k2p-1", "OOMKilled", "2026-11-26T00:01:00Z"),
    ]
    said = f"the pod digits-x7k2p-2 was killed for lack of memory: its limit is {limit}"
    assert where_it_stands(whole, [], events, None) == (State.RUNNING, said)
    whole["status"] = {"jobDeploymentStatus": "Failed", "reason": "SubmissionFailed"}
    assert where_it_stands(whole, [], events, None)[1].endswith(said)
    assert where_it_stands(whole, [], events[:1], None)[1] == "the driver was lost, or could not be submitted"


LOST = pod(
    "digits-0abcd", phase="Failed", containerStatuses=[{"name": "ray", "state": {"terminated": {"exitCode": 1}}}]
)


def test_a_submitter_that_failed_with_its_head_is_not_why_a_run_goes_on_or_waits() -> None:
    assert where_it_stands(job("Running"), [LOST, pod(phase="Running")], [], None) == (State.RUNNING, "")
    waiting = where_it_stands(job("Initializing"), [LOST, pod(phase="Pending")], [], None)
    assert waiting == (State.PROVISIONING, "0 of 1 pods are ready")
    pending = {
        **LOST,
        "status": {
            "phase": "Pending",
            "containerStatuses": container(waiting={"reason": "ErrImagePull"})["status"]["containerStatuses"],
        },
    }
    assert "cannot be pulled" in where_it_stands(job("Running"), [LOST, pending], [], None)[1]


def test_a_submitter_is_the_last_that_is_named_of_a_run_that_failed() -> None:
    lost = job("Failed", reason="SubmissionFailed", message="the backoff limit is reached")
    assert where_it_stands(lost, [LOST], [], None)[1].endswith("the pod digits-0abcd ended with exit code 1")
    assert where_it_stands(lost, [LOST], [warning("exceeded quota")], None)[1].endswith(": exceeded quota")
    killed = {"name": "ray", "state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}
    head = pod(phase="Failed", containerStatuses=[killed])
    head["metadata"]["labels"] = {"ray.io/node-type": "head"}
    for each in (lost, job("Retrying", reason="SubmissionFailed")):
        assert "digits-head was killed for lack of memory" in where_it_stands(each, [LOST, head], [], None)[1]


@pytest.mark.parametrize("when", ["state", "lastState"])
def test_a_pod_that_needed_more_memory_says_its_limit(when: str) -> None:
    status = {"name": "ray", when: {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}
    said = trouble([pod(phase="Running", containerStatuses=[status])])
    assert said == "the pod digits-head was killed for lack of memory: its limit is 16Gi"


def test_a_pod_that_was_evicted_says_why() -> None:
    evicted = pod(phase="Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage.")
    assert trouble([evicted]).endswith("was evicted: The node was low on resource: ephemeral-storage.")


def test_a_pod_that_had_to_leave_its_node_says_so() -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    assert trouble([pod(conditions=[condition])]) == "the pod digits-head had to leave its node: PreemptionByScheduler"


def test_a_pod_that_ended_badly_says_with_what() -> None:
    status = {"name": "ray", "state": {"terminated": {"exitCode": 2, "message": "no such option\n"}}}
    said = trouble([pod(phase="Failed", containerStatuses=[status])])
    assert said == "the pod digits-head ended with exit code 2: no such option"


def test_a_pod_in_good_health_is_no_trouble() -> None:
    running = {"name": "ray", "state": {"running": {}}, "lastState": {}}
    ready = {"type": "Ready", "status": "True"}
    assert trouble([pod(phase="Running", containerStatuses=[running], conditions=[ready]), pod("x")]) == ""


def of_pod(name: str, reason: str, message: str, at: str = "2026-11-26T00:00:00Z") -> Object:
    about = {"kind": "Pod", "name": name}
    return {**warning(message, at), "reason": reason, "involvedObject": about}


def own(deployment: str, **status: Any) -> Object:
    """Return a job with a cluster of its own, digits-x7k2p."""
    whole = job(deployment, rayClusterName="digits-x7k2p", **status)
    group = {"template": {"spec": {"containers": [{"name": "ray", "resources": {"limits": {"memory": "4Gi"}}}]}}}
    whole["spec"]["rayClusterSpec"] = {"headGroupSpec": group, "workerGroupSpecs": [group]}
    return whole


PLACED = {"type": "PodScheduled", "status": "True"}
NO_SECRET = 'MountVolume.SetUp failed for volume "gcs" : secret "gcs" not found'


@pytest.mark.parametrize("deployment", ["Initializing", "Running"])
def test_a_pod_that_waits_for_a_secret_to_mount_says_which(deployment: str) -> None:
    waiting = pod("digits-x7k2p-head", phase="Pending", conditions=[PLACED])
    events = [
        of_pod("digits-x7k2p-head", "FailedMount", NO_SECRET),
        of_pod(
            "digits-x7k2p-head", "FailedMount", "Unable to attach or mount volumes: timed out", "2026-11-26T00:02:00Z"
        ),
        of_pod("digits-2-abcde-head", "FailedMount", "of another run", "2026-11-26T00:03:00Z"),
        of_pod("digits-x7k2p-head", "Unhealthy", "Readiness probe failed", "2026-11-26T00:04:00Z"),
    ]
    said = where_it_stands(own(deployment), [waiting], events, None)[1]
    assert said.startswith(f"the pod digits-x7k2p-head cannot start: {NO_SECRET}")
    started = pod("digits-x7k2p-head", phase="Running", conditions=[PLACED])
    assert "cannot start" not in where_it_stands(own(deployment), [started], events, None)[1]


@pytest.mark.parametrize("deployment", ["Initializing", "Running"])
def test_a_pod_that_keeps_others_waiting_says_how_to_wait_no_longer(deployment: str) -> None:
    waits = own(deployment)
    waits["metadata"]["annotations"] = {"raylift.dev/run-uri": "s3://bucket/my runs/digits"}
    for each in (
        container(waiting={"reason": "ErrImagePull"}),
        unschedulable("0/5 nodes are available: 5 Insufficient cpu."),
    ):
        said = where_it_stands(waits, [each], [], None)[1]
        assert said.endswith(". To wait no longer: raylift stop --now 's3://bucket/my runs/digits'") is (
            deployment == "Initializing"
        )


@pytest.mark.parametrize("reason", ["mount", "variables"])
def test_a_secret_that_pods_wait_for_comes_with_the_command_that_makes_it(reason: str) -> None:
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "gcs" not found'}
    pods = [container(waiting=waiting) if reason == "variables" else pod(phase="Pending", conditions=[PLACED])]
    said = where_it_stands(own("Initializing"), pods, [of_pod("digits-head", "FailedMount", NO_SECRET)], None)[1]
    assert said.endswith(
        'secret "gcs" not found. Make it, and the pod starts: kubectl create secret generic gcs --namespace raylift …'
    )


@pytest.mark.parametrize("how", ["a container runs", "its network is there", "of one that had its name"])
def test_a_mount_that_failed_once_is_no_cause_any_more_where_the_pod_has_begun(how: str) -> None:
    event = of_pod("digits-head", "FailedMount", NO_SECRET)
    begun = pod(phase="Pending", conditions=[PLACED])
    if how == "a container runs":
        begun["status"]["initContainerStatuses"] = [{"name": "raylift", "state": {"running": {}}}]
    elif how == "its network is there":
        begun["status"]["conditions"] = [PLACED, {"type": "PodReadyToStartContainers", "status": "True"}]
    else:
        begun["metadata"]["uid"], event["involvedObject"]["uid"] = "new", "old"
    assert where_it_stands(own("Initializing"), [begun], [event], None)[1] == "0 of 1 pods are ready"
    assert held([begun], [event]) == ""


def test_the_secret_of_a_launch_that_was_cut_off_comes_with_a_resume_and_that_of_rays_token_by_itself() -> None:
    waits = own("Initializing")
    waits["metadata"]["annotations"] = {"raylift.dev/run-uri": "s3://bucket/digits"}
    said = {}
    for name in ("raylift.digits", "digits-x7k2p"):
        waiting = {"reason": "CreateContainerConfigError", "message": f'secret "{name}" not found'}
        said[name] = where_it_stands(waits, [container(waiting=waiting)], [], None)[1]
    assert said["raylift.digits"].endswith(
        "It comes with the launch, which is not whole: raylift resume s3://bucket/digits"
    )
    assert said["digits-x7k2p"].endswith('secret "digits-x7k2p" not found')


def test_what_a_scheduler_says_in_an_event_alone_is_said_until_the_pod_has_a_node() -> None:
    events = [of_pod("digits-head", "FailedScheduling", "0/5 nodes are available: 5 Insufficient cpu.")]
    assert where_it_stands(own("Initializing"), [pod(phase="Pending")], events, None)[1].endswith(
        "of 5 nodes: 5 with too little cpu"
    )
    placed = pod(phase="Pending", conditions=[PLACED])
    assert where_it_stands(own("Initializing"), [placed], events, None)[1] == "0 of 1 pods are ready"


def test_pods_that_never_started_are_remembered_when_they_are_gone() -> None:
    events = [of_pod("digits-x7k2p-head", "FailedMount", NO_SECRET)]
    said = where_it_stands(own("Failed", reason="PreRunningDeadlineExceeded"), [], events, None)[1]
    assert f"deadline_seconds: the pod digits-x7k2p-head could not start: {NO_SECRET}" in said
    assert where_it_stands(own("Failed", reason="AppFailed"), [], events, None)[1] == "the driver died"


@pytest.mark.parametrize(
    ("reason", "message", "said"),
    [
        ("Evicted", "The node was low on resource: memory.", "was evicted: The node was low on resource: memory."),
        (
            "Preempted",
            "Preempted by pod 0f3e on node n",
            "had to make room for another: Preempted by pod 0f3e on node n",
        ),
    ],
)
@pytest.mark.parametrize("deployment", ["Initializing", "Running"])
def test_a_pod_that_was_evicted_or_preempted_is_remembered_when_kuberay_has_deleted_it(
    deployment: str, reason: str, message: str, said: str
) -> None:
    ready = pod("digits-x7k2p-head", phase="Running", conditions=[{"type": "Ready", "status": "True"}])
    deleted = (
        "Deleted worker Pod raylift/digits-x7k2p-cpu-worker-1; Pod status: Failed; Ray container terminated status: "
    )
    killed = {**warning(f"{deleted}&ContainerStateTerminated{{ExitCode:137,Reason:OOMKilled,}}"), "type": "Normal"}
    events = [killed, of_pod("digits-x7k2p-cpu-worker-2", reason, message, "2026-11-26T00:01:00Z")]
    assert where_it_stands(own(deployment), [ready], events, None)[1].startswith(
        f"the pod digits-x7k2p-cpu-worker-2 {said}"
    )
    earlier = [killed, of_pod("digits-x7k2p-cpu-worker-2", reason, message, "2026-11-25T00:00:00Z")]
    assert "killed for lack of memory" in where_it_stands(own(deployment), [ready], earlier, None)[1]
    others = [of_pod("digits-2-abcde-head", reason, message)]
    assert others[0]["message"] not in where_it_stands(own(deployment), [ready], others, None)[1]
    on_another = job(deployment, rayClusterName="digits-x7k2p")
    assert message not in where_it_stands(on_another, [ready], events, None)[1]


def condition(kind: str, status: str, message: str = "") -> Object:
    return {"type": kind, "status": status, "reason": "Kueues", "message": message}


HELD = condition("QuotaReserved", "False", "insufficient unused quota for nvidia.com/gpu")
EVICTED = condition("Evicted", "True", "Preempted to accommodate a workload due to prioritization")


@pytest.mark.parametrize(
    ("conditions", "more", "said"),
    [
        ([], {}, "it waits in the queue gpu"),
        ([HELD], {}, "it waits in the queue gpu: insufficient unused quota for nvidia.com/gpu"),
        (
            [HELD, EVICTED],
            {},
            "it waits in the queue gpu (Preempted to accommodate a workload due to prioritization): "
            "insufficient unused quota for nvidia.com/gpu",
        ),
        (
            [condition("QuotaReserved", "True"), condition("Evicted", "False", "it was")],
            {"admissionChecks": [{"name": "capacity", "state": "Pending", "message": "ETA 10 min"}]},
            "the queue gpu has room for it, and waits for its checks: capacity ETA 10 min",
        ),
        ([condition("QuotaReserved", "True")], {}, "the queue gpu has room for it, and waits for its checks"),
    ],
)
def test_a_run_in_a_queue_says_which_and_what_the_queue_waits_for(
    conditions: list[Object], more: Object, said: str
) -> None:
    queued = job("Suspended", labels={"kueue.x-k8s.io/queue-name": "gpu"}, suspend=True)
    workload = {"metadata": {"name": "w"}, "spec": {"active": True}, "status": {"conditions": conditions, **more}}
    assert where_it_stands(queued, [], [], workload) == (State.PENDING, said)
    assert where_it_stands(queued, [], [], None)[1] == "it waits in the queue gpu"


def test_a_run_that_its_queue_has_given_up_says_so_and_where_to_look() -> None:
    queued = job("Suspended", labels={"kueue.x-k8s.io/queue-name": "gpu"}, suspend=True)
    given_up = condition("Evicted", "True", "The workload is deactivated")
    workload = {"metadata": {"name": "w"}, "spec": {"active": False}, "status": {"conditions": [given_up]}}
    said = "the queue gpu has given it up (The workload is deactivated). Look: kubectl describe workload w"
    assert where_it_stands(queued, [], [], workload)[1] == said


def test_a_run_whose_pods_a_queue_takes_away_says_why() -> None:
    going = job("Suspending", labels={"kueue.x-k8s.io/queue-name": "gpu"}, suspend=True)
    workload = {"status": {"conditions": [EVICTED]}}
    said = "its pods are taken away (Preempted to accommodate a workload due to prioritization)"
    assert where_it_stands(going, [], [], workload) == (State.RECOVERING, said)
    assert where_it_stands(going, [], [], None) == (State.RECOVERING, "its pods are taken away")


def test_the_newest_warning_counts() -> None:
    events = [warning("old"), warning("exceeded quota", "2026-11-26T01:00:00Z"), {**warning("fine"), "type": "Normal"}]
    assert where_it_stands(job(), [], events, None)[1] == "exceeded quota"
    newer = {"lastTimestamp": None, "eventTime": "2026-11-26T00:00:00.123456Z"}  # as events.k8s.io writes one
    repeated = {**warning("again"), **newer, "series": {"count": 2, "lastObservedTime": "2026-11-26T02:00:00.000000Z"}}
    assert where_it_stands(job(), [], [*events, repeated], None)[1] == "again"
    assert where_it_stands(job(), [], [*events, {**repeated, "series": None}], None)[1] == "exceeded quota"


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("DeadlineExceeded", "it took longer than its budget allows, and did not end by itself"),
        ("PreRunningDeadlineExceeded", "its pods did not start within cluster.pre_running_deadline_seconds"),
        ("SubmissionFailed", "the driver was lost, or could not be submitted"),
        (
            "JobDeploymentStatusTransitionGracePeriodExceeded",
            "the pod that submits has ended, and the driver had not",
        ),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_a_run_that_kuberay_gave_up_says_why(reason: str, said: str) -> None:
    assert where_it_stands(job("Failed", reason=reason), [], [], None) == (State.FAILED, said)


def test_a_run_whose_pods_never_started_says_what_they_waited_for() -> None:
    message = "0/1 nodes are available: 1 Insufficient cpu."
    state, reason = where_it_stands(
        job("Failed", reason="PreRunningDeadlineExceeded"), [unschedulable(message)], [], None
    )
    assert state is State.FAILED
    assert reason.startswith(
        "its pods did not start within cluster.pre_running_deadline_seconds: no node takes the pod"
    )
    assert reason.endswith("of 1 nodes: 1 with too little cpu")


def test_a_run_that_starts_again_says_after_what() -> None:
    state, reason = where_it_stands(job("Retrying", reason="SubmissionFailed", message="head gone"), [], [], None)
    assert (state, reason) == (
        State.RECOVERING,
        "starting again: the driver was lost, or could not be submitted: head gone",
    )


def test_a_run_that_is_being_deleted_says_who_holds_it() -> None:
    going = job("Running")
    going["metadata"] |= {"deletionTimestamp": "2026-11-26T00:00:00Z", "finalizers": ["ray.io/rayjob-finalizer"]}
    assert where_it_stands(going, [], [], None)[1] == "it is being deleted, and waits for ray.io/rayjob-finalizer"
