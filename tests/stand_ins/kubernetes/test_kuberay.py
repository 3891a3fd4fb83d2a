"""The operator: what it makes of a RayJob, and what becomes of that when pods go. Ray is a small stand-in here."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.config import KubernetesCluster
from cluster.kubernetes.provider import KubernetesProvider
from cluster.provider import LaunchRequest, State
from tests.cluster.kubernetes.golden import RUN_ID, request
from tests.harness import ROOT, wait_for
from tests.stand_ins.kubernetes.kubelet import processes
from tests.stand_ins.kubernetes.kuberay import Operator, operator, seconds
from tests.stand_ins.kubernetes.kueue import Kueue
from tests.stand_ins.kubernetes.server import ApiServer, api_server

pytestmark = pytest.mark.slow

Object = dict[str, Any]
IMAGE = "registry.example/raylift:0.1.0"
PROGRAM = """
import os, pathlib, sys, time
folder = pathlib.Path(__file__).parent
count = len(list(folder.glob("start-*")))
(folder / f"start-{count}").write_text(f"{os.environ.get('LOG_LEVEL')} {os.environ['RAYLIFT_RUN_URI']}")
print("started", count, flush=True)
while not (folder / "go").exists():
    time.sleep(0.05)
sys.exit(int((folder / "go").read_text()))
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    (tmp_path / "api").mkdir()
    with api_server(tmp_path / "api") as server:
        server.create("Namespace", {"metadata": {"name": "raylift"}})
        server.create("ServiceAccount", {"metadata": {"name": "raylift-run"}}, "raylift")
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig("admin", "admin-token")))
        yield server


@pytest.fixture
def kuberay(server: ApiServer, tmp_path: Path) -> Iterator[Operator]:
    """Return the operator, with one image, in which `ray` is the small one."""
    programs = tmp_path / "bin"
    programs.mkdir()
    little = ROOT / "tests" / "stand_ins" / "kubernetes" / "little_ray.py"
    (programs / "ray").write_text(f'#!/bin/sh\nexec {sys.executable} -P {little} "$@"\n')
    (programs / "ray").chmod(0o755)
    (programs / "python").symlink_to(sys.executable)
    image = {"PATH": f"{programs}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    with operator(server, {IMAGE: image}) as running:
        yield running


@pytest.fixture
def run(tmp_path: Path) -> LaunchRequest:
    """Return a run whose driver waits for a file `go`, and ends with the exit code in it."""
    (tmp_path / "driver.py").write_text(PROGRAM)
    spec = {"entrypoint": f"python {tmp_path}/driver.py", "ttlSecondsAfterFinished": 0}
    no_hook = {"spec": {"containers": [{"name": "ray", "lifecycle": None}]}}  # there is no storage to ask
    block = {"overrides": {"spec": spec}, "pod_template": no_hook, "termination_grace_period_seconds": 30}
    return dataclasses.replace(request("processors", image=IMAGE, **block), max_failures=1)


def with_spec(run: LaunchRequest, **spec: Any) -> LaunchRequest:
    """Return the run with more said in the spec of its RayJob."""
    overrides = {"spec": {**run.cluster.overrides["spec"], **spec}}  # type: ignore[union-attr]
    return dataclasses.replace(run, cluster=run.cluster.model_copy(update={"overrides": overrides}))


@pytest.fixture
def provider(run: LaunchRequest) -> KubernetesProvider:
    return KubernetesProvider(run.cluster)  # type: ignore[arg-type]


def status(server: ApiServer) -> Object:
    job = server.get("RayJob", "raylift", RUN_ID)
    found: Object = job.get("status", {}) if job is not None else {}
    return found


def reaches(server: ApiServer, deployment: str) -> Object:
    wait_for(lambda: status(server).get("jobDeploymentStatus") == deployment, deployment, timeout=60)
    return status(server)


def starts(folder: Path, count: int) -> None:
    def have_written() -> bool:
        found = list(folder.glob("start-*"))
        return len(found) == count and all(each.stat().st_size for each in found)

    wait_for(have_written, f"start {count} of the driver", timeout=60)


def pod_of(server: ApiServer, role: str) -> Object:
    pods = server.all("Pod")
    return next(each for each in pods if each["metadata"]["labels"].get("ray.io/node-type") == role)


def names_of(server: ApiServer, role: str) -> set[str]:
    pods = server.all("Pod")
    return {each["metadata"]["name"] for each in pods if each["metadata"]["labels"].get("ray.io/node-type") == role}


def nodes_of(server: ApiServer, role: str) -> set[str]:
    """Return the nodes of the pods that have one."""
    pods = [each for each in server.all("Pod") if each["metadata"]["name"] in names_of(server, role)]
    return {each["spec"]["nodeName"] for each in pods if "nodeName" in each["spec"]}


@pytest.mark.usefixtures("kuberay")
def test_a_job_runs_with_what_the_api_holds_and_its_pods_go_when_it_has_ended(
    server: ApiServer, provider: KubernetesProvider, run: LaunchRequest, tmp_path: Path
) -> None:
    provider.launch(run)
    starts(tmp_path, 1)
    assert (tmp_path / "start-0").read_text() == f"info {run.run_uri}"
    assert provider.describe(RUN_ID).state is State.RUNNING
    (tmp_path / "go").write_text("0")
    assert reaches(server, "Complete")["jobStatus"] == "SUCCEEDED"
    assert b"started 0" in b"".join(provider.logs(RUN_ID, follow=False))
    wait_for(lambda: not [each for each in server.all("Pod") if "ray.io/cluster" in each["metadata"]["labels"]], "pods")
    assert server.all("RayCluster") == []
    assert provider.teardown(RUN_ID).leftovers == []
    assert server.all("Pod") == server.all("Secret") == server.all("Service") == []
    assert processes() == []


@pytest.mark.usefixtures("kuberay")
def test_workers_wait_for_their_head_in_a_restricted_namespace_with_quotas_too(
    server: ApiServer, provider: KubernetesProvider, run: LaunchRequest, tmp_path: Path
) -> None:
    enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
    server.change("Namespace", "", "raylift", lambda value: value["metadata"].update(labels=enforced))
    hard = {"limits.cpu": "9", "requests.memory": "99Gi", "requests.ephemeral-storage": "999Gi"}
    server.create("ResourceQuota", {"metadata": {"name": "most"}, "spec": {"hard": hard}}, "raylift")
    provider.launch(run)
    starts(tmp_path, 1)
    worker = pod_of(server, "worker")
    (first,), (waited,) = worker["spec"]["initContainers"], worker["status"]["initContainerStatuses"]
    assert first["name"] == waited["name"] == "wait-gcs-ready"
    assert waited["state"] == {"terminated": {"exitCode": 0}}
    assert "initContainers" not in pod_of(server, "head")["spec"]


@pytest.mark.usefixtures("kuberay")
def test_a_driver_that_fails_is_started_again_as_often_as_the_job_says(
    server: ApiServer, provider: KubernetesProvider, run: LaunchRequest, tmp_path: Path
) -> None:
    (tmp_path / "go").write_text("3")
    provider.launch(run)
    found = reaches(server, "Failed")
    assert (found["reason"], found["failed"]) == ("AppFailed", 2)
    starts(tmp_path, 2)
    state = provider.describe(RUN_ID)
    assert (state.state, state.reason.split(":")[0]) == (State.FAILED, "the driver died")


def test_a_head_that_is_lost_comes_again_and_the_driver_with_it(
    server: ApiServer, kuberay: Operator, provider: KubernetesProvider, run: LaunchRequest, tmp_path: Path
) -> None:
    provider.launch(run)
    starts(tmp_path, 1)
    kuberay.kubelet.kill(pod_of(server, "head"))
    starts(tmp_path, 2)
    (tmp_path / "go").write_text("0")
    reaches(server, "Complete")


@pytest.mark.usefixtures("kuberay")
def test_a_worker_that_is_deleted_is_followed_by_another(
    server: ApiServer, provider: KubernetesProvider, run: LaunchRequest, tmp_path: Path
) -> None:
    provider.launch(run)
    starts(tmp_path, 1)
    lost = pod_of(server, "worker")["metadata"]["name"]
    before = names_of(server, "worker")
    server.delete("Pod", "raylift", lost)
    wait_for(lambda: len(names_of(server, "worker") - {lost}) == len(before), "another worker", timeout=60)
    assert status(server)["jobDeploymentStatus"] == "Running"


def test_a_pod_whose_node_is_drained_is_told_so_has_its_time_and_is_followed_by_one_on_another_node(
    server: ApiServer, kuberay: Operator, provider: KubernetesProvider, run: LaunchRequest, tmp_path: Path
) -> None:
    hook = {"exec": {"command": ["sh", "-c", f"while [ ! -e {tmp_path}/left ]; do sleep 0.1; done"]}}
    template = {"spec": {"containers": [{"name": "ray", "lifecycle": {"preStop": hook}}]}}
    run = dataclasses.replace(run, cluster=run.cluster.model_copy(update={"pod_template": template}))
    provider.launch(run)
    starts(tmp_path, 1)
    drained = pod_of(server, "worker")
    name, node = drained["metadata"]["name"], drained["spec"]["nodeName"]
    assert len(nodes_of(server, "worker")) == 2
    kuberay.kubelet.drain(node)
    assert stands(provider) == (State.RUNNING, f"the pod {name} had to leave its node: Eviction API: evicting")
    (tmp_path / "left").touch()
    wait_for(lambda: server.get("Pod", "raylift", name) is None, "its end", timeout=60)
    wait_for(lambda: len(nodes_of(server, "worker")) == 2, "another worker", timeout=60)
    assert node not in nodes_of(server, "worker")
    assert stands(provider) == (State.RUNNING, "")


@pytest.mark.usefixtures("kuberay")
def test_workers_come_and_go_as_an_autoscaler_says(
    server: ApiServer, provider: KubernetesProvider, run: LaunchRequest, tmp_path: Path
) -> None:
    def scale(replicas: int, *doomed: str) -> None:
        def change(cluster: Object) -> None:
            (group,) = cluster["spec"]["workerGroupSpecs"]
            strategy = {"workersToDelete": list(doomed)}
            group |= {"replicas": replicas, "minReplicas": 1, "maxReplicas": 3, "scaleStrategy": strategy}

        server.change("RayCluster", "raylift", status(server)["rayClusterName"], change, "autoscaler")

    def has(count: int) -> bool:
        return len(names_of(server, "worker")) == count

    provider.launch(run)
    starts(tmp_path, 1)
    before = names_of(server, "worker")
    assert len(before) == 2
    scale(9)
    wait_for(lambda: has(3), "the last one that may be", timeout=60)
    scale(1, *before)
    wait_for(lambda: has(1), "the end of those that were there first", timeout=60)
    assert not names_of(server, "worker") & before


def in_queue(run: LaunchRequest) -> LaunchRequest:
    return dataclasses.replace(run, cluster=run.cluster.model_copy(update={"queue": "gpu"}))


def stands(provider: KubernetesProvider) -> tuple[State, str]:
    found = provider.describe(RUN_ID)
    return found.state, found.reason


@pytest.mark.usefixtures("kuberay")
def test_a_run_waits_in_its_queue_is_taken_off_its_machines_and_goes_on_when_its_turn_comes_again(
    server: ApiServer, provider: KubernetesProvider, run: LaunchRequest, tmp_path: Path
) -> None:
    queue = Kueue(server, "raylift")
    provider.launch(in_queue(run))
    found = reaches(server, "Suspended")
    assert "startTime" not in found, "no deadline counts what it waits in a queue"
    assert stands(provider) == (State.PENDING, "it waits in the queue gpu")
    queue.wait(RUN_ID, "insufficient unused quota for cpu")
    assert stands(provider) == (State.PENDING, "it waits in the queue gpu: insufficient unused quota for cpu")
    assert server.all("Pod") == server.all("RayCluster") == []
    queue.admit(RUN_ID)
    starts(tmp_path, 1)
    began = status(server)["startTime"]
    queue.evict(RUN_ID, "Preempted by somebody else")
    reaches(server, "Suspended")
    wait_for(lambda: server.all("Pod") == [], "the end of its pods", timeout=60)
    assert stands(provider) == (State.PENDING, "it waits in the queue gpu (Preempted by somebody else): Pending")
    queue.admit(RUN_ID)
    starts(tmp_path, 2)
    (tmp_path / "go").write_text("0")
    assert reaches(server, "Complete")["failed"] == 0, "it was not tried again, but went on"
    assert status(server)["startTime"] >= began
    assert provider.teardown(RUN_ID).leftovers == []
    assert server.all("Workload") == []


@pytest.mark.usefixtures("kuberay")
def test_a_run_is_taken_out_of_its_queue(server: ApiServer, provider: KubernetesProvider, run: LaunchRequest) -> None:
    Kueue(server, "raylift")
    provider.launch(in_queue(run))
    reaches(server, "Suspended")
    assert provider.teardown(RUN_ID).leftovers == []
    assert server.all("RayJob") == server.all("Secret") == []


def test_a_head_that_is_silent_for_too_long_ends_the_job_and_no_other_try_comes(
    server: ApiServer, kuberay: Operator, provider: KubernetesProvider, run: LaunchRequest, tmp_path: Path
) -> None:
    kuberay.unheard = 0.0
    provider.launch(run)
    starts(tmp_path, 1)
    kuberay.kubelet.full = True  # no new head finds a node
    kuberay.kubelet.kill(pod_of(server, "head"))
    assert reaches(server, "Failed")["reason"] == "JobStatusCheckTimeoutExceeded"
    state, reason = stands(provider)
    assert (state, reason.split(":")[0]) == (
        State.FAILED,
        "KubeRay could not ask the head's Ray about the driver for too long",
    )


def test_a_pod_that_submits_does_not_wait_for_ever_for_a_head_that_never_comes(
    server: ApiServer,
    kuberay: Operator,
    provider: KubernetesProvider,
    run: LaunchRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def waiting() -> list[str]:
        pods = [pod for pod in server.all("Pod") if "batch.kubernetes.io/job-name" in pod["metadata"]["labels"]]
        return [pod["metadata"]["name"] for pod in pods if pod.get("status", {}).get("phase") == "Running"]

    template = {"spec": {"activeDeadlineSeconds": 15}}
    provider.launch(with_spec(run, submitterConfig={"backoffLimit": 2}, submitterPodTemplate=template))
    starts(tmp_path, 1)
    first = waiting()
    monkeypatch.setattr(kuberay, "_keep_head", lambda _: None)
    kuberay.kubelet.kill(pod_of(server, "head"))
    wait_for(lambda: waiting() not in ([], first), "another try to submit")
    kuberay.unheard, kuberay.kubelet.pace = 0.0, 0.01
    assert reaches(server, "Failed")["reason"] == "JobStatusCheckTimeoutExceeded"
    wait_for(lambda: server.all("RayCluster") == [], "the end of its cluster")
    wait_for(lambda: not waiting(), "the end of the wait")
    is_over = lambda: {pod.get("status", {}).get("phase") for pod in server.all("Pod")} == {"Failed"}  # noqa: E731
    wait_for(is_over, "the end of one without a token")
    assert len(list(tmp_path.glob("start-*"))) == 1


def drivers() -> list[int]:
    found = []
    for pid in processes():
        with contextlib.suppress(psutil.Error):
            found += [pid] if "driver.py" in " ".join(psutil.Process(pid).cmdline()) else []
    return found


def test_a_driver_that_goes_on_without_its_submitter_is_started_anew_and_the_first_is_gone(
    server: ApiServer, kuberay: Operator, provider: KubernetesProvider, run: LaunchRequest, tmp_path: Path
) -> None:
    kuberay.unended = 4.0
    hangs_up = {"name": "ray-job-submitter", "env": [{"name": "LITTLE_RAY_HANGS_UP", "value": "1"}]}
    provider.launch(with_spec(run, submitterPodTemplate={"spec": {"containers": [hangs_up]}}))
    starts(tmp_path, 1)
    first = drivers()
    starts(tmp_path, 2)
    assert first
    wait_for(lambda: not {*first} & {*drivers()}, "the end of the first", timeout=20)
    found = reaches(server, "Failed")
    assert (found["reason"], found["failed"]) == ("JobDeploymentStatusTransitionGracePeriodExceeded", 2)
    state, reason = stands(provider)
    assert (state, reason.split(":")[0]) == (State.FAILED, "the pod that submits has ended, and the driver had not")


def test_a_pod_that_was_killed_for_memory_is_said_to_have_been_also_when_it_has_gone(
    server: ApiServer, kuberay: Operator, provider: KubernetesProvider, run: LaunchRequest, tmp_path: Path
) -> None:
    provider.launch(run)
    starts(tmp_path, 1)
    lost = pod_of(server, "worker")
    kuberay.kubelet.kill(lost, out_of_memory=True)
    name, limit = lost["metadata"]["name"], lost["spec"]["containers"][0]["resources"]["limits"]["memory"]
    wait_for(lambda: server.get("Pod", "raylift", name) is None, "its end", timeout=60)
    said = f"the pod {name} was killed for lack of memory: its limit is {limit}"
    assert (provider.describe(RUN_ID).state, provider.describe(RUN_ID).reason) == (State.RUNNING, said)


@pytest.mark.parametrize("out_of_memory", [True, False])
def test_a_run_whose_head_was_lost_says_why_and_nothing_of_the_submitter_that_failed_with_it(
    server: ApiServer,
    kuberay: Operator,
    provider: KubernetesProvider,
    run: LaunchRequest,
    tmp_path: Path,
    out_of_memory: bool,
) -> None:
    provider.launch(run)
    starts(tmp_path, 1)
    lost = pod_of(server, "head")
    kuberay.kubelet.kill(lost, out_of_memory=out_of_memory)
    starts(tmp_path, 2)
    pods = [each for each in server.all("Pod") if "ray.io/node-type" not in each["metadata"]["labels"]]
    assert "Failed" in [each["status"]["phase"] for each in pods]
    limit = lost["spec"]["containers"][0]["resources"]["limits"]["memory"]
    said = f"the pod {lost['metadata']['name']} was killed for lack of memory: its limit is {limit}"
    assert stands(provider) == (State.RUNNING, said if out_of_memory else "")


def test_a_pod_that_was_evicted_is_said_to_have_been_also_when_it_has_gone(
    server: ApiServer, kuberay: Operator, provider: KubernetesProvider, run: LaunchRequest, tmp_path: Path
) -> None:
    provider.launch(run)
    starts(tmp_path, 1)
    lost = pod_of(server, "worker")
    name = lost["metadata"]["name"]
    kuberay.kubelet.evict(lost, "The node was low on resource: ephemeral-storage.")
    wait_for(lambda: server.get("Pod", "raylift", name) is None, "its end", timeout=60)
    assert stands(provider)[0] is State.RUNNING
    assert stands(provider)[1].startswith(
        f"the pod {name} was evicted: The node was low on resource: ephemeral-storage."
    )


@pytest.mark.usefixtures("kuberay")
def test_a_secret_that_pods_are_to_mount_is_named_until_it_is_there(
    server: ApiServer, provider: KubernetesProvider, run: LaunchRequest, tmp_path: Path
) -> None:
    assert isinstance(run.cluster, KubernetesCluster)
    mounts = {
        "spec": {**run.cluster.pod_template["spec"], "volumes": [{"name": "key", "secret": {"secretName": "gcs"}}]}
    }
    provider.launch(dataclasses.replace(run, cluster=run.cluster.model_copy(update={"pod_template": mounts})))
    said = 'cannot start: MountVolume.SetUp failed for volume "key" : secret "gcs" not found'
    wait_for(lambda: said in stands(provider)[1], "the reason", timeout=60)
    assert stands(provider)[0] is State.PROVISIONING
    server.create("Secret", {"metadata": {"name": "gcs"}, "data": {}}, "raylift")
    starts(tmp_path, 1)
    wait_for(lambda: stands(provider) == (State.RUNNING, ""), "a run that goes on", timeout=60)


@pytest.mark.usefixtures("kuberay")
def test_a_run_whose_driver_cannot_be_submitted_waits_says_why_and_begins_once_it_can(
    server: ApiServer, provider: KubernetesProvider, run: LaunchRequest, tmp_path: Path
) -> None:
    room = {"metadata": {"name": "most"}, "spec": {"hard": {"pods": "3"}}}  # for the head and two workers
    server.create("ResourceQuota", room, "raylift")
    provider.launch(run)
    reaches(server, "Running")
    wait_for(lambda: "exceeded quota: most, requested: pods=1" in stands(provider)[1], "the reason", timeout=60)
    assert stands(provider)[0] is State.PROVISIONING
    server.delete("ResourceQuota", "raylift", "most")
    starts(tmp_path, 1)
    wait_for(lambda: stands(provider) == (State.RUNNING, ""), "a run that goes on", timeout=60)


@pytest.mark.usefixtures("kuberay")
def test_an_image_that_is_not_there_is_said_so(provider: KubernetesProvider, run: LaunchRequest) -> None:
    overrides = {"spec": {"rayClusterSpec": {"headGroupSpec": {"template": {"spec": {"containers": [OTHER_IMAGE]}}}}}}
    cluster = run.cluster.model_copy(update={"overrides": overrides})
    provider.launch(dataclasses.replace(run, cluster=cluster))
    wait_for(lambda: "cannot be pulled" in provider.describe(RUN_ID).reason, "the reason", timeout=30)
    assert "missing:1: not found" in provider.describe(RUN_ID).reason
    assert provider.teardown(RUN_ID).leftovers == []


OTHER_IMAGE = {"name": "ray", "image": "missing:1"}


def test_pods_that_find_no_node_end_the_run_at_its_deadline_with_the_reason(
    server: ApiServer, kuberay: Operator, provider: KubernetesProvider, run: LaunchRequest
) -> None:
    kuberay.kubelet.full = True
    provider.launch(with_spec(run, preRunningDeadlineSeconds=2))
    assert reaches(server, "Failed")["failed"] == 2, "it is tried again as often as after any other failure"
    reason = provider.describe(RUN_ID).reason
    assert reason.startswith(
        "its pods did not start within cluster.pre_running_deadline_seconds: no node takes the pod"
    )


@pytest.mark.usefixtures("kuberay")
def test_a_run_that_does_not_end_by_its_deadline_has_failed_and_is_not_tried_again(
    server: ApiServer, provider: KubernetesProvider, run: LaunchRequest
) -> None:
    provider.launch(with_spec(run, activeDeadlineSeconds=2))
    found = reaches(server, "Failed")
    assert (found["reason"], found["failed"]) == ("DeadlineExceeded", 1), "though a try is left"
    assert seconds(found["endTime"]) - seconds(found["startTime"]) >= 2
    wait_for(lambda: server.all("RayCluster") == [], "the end of its cluster", timeout=60)
    assert status(server)["jobDeploymentStatus"] == "Failed"
    said = "it took longer than its budget allows, and did not end by itself"
    assert (provider.describe(RUN_ID).state, provider.describe(RUN_ID).reason.split(":")[0]) == (State.FAILED, said)


@pytest.mark.usefixtures("kuberay")
def test_pods_can_be_looked_at_for_as_long_as_the_job_says_after_its_end(
    server: ApiServer, provider: KubernetesProvider, run: LaunchRequest, tmp_path: Path
) -> None:
    (tmp_path / "go").write_text("0")
    provider.launch(with_spec(run, ttlSecondsAfterFinished=8))
    ended = seconds(reaches(server, "Complete")["endTime"])
    assert len(names_of(server, "worker")) == 2
    assert {each["status"]["phase"] for each in (pod_of(server, "head"), pod_of(server, "worker"))} == {"Running"}
    wait_for(lambda: server.all("RayCluster") == [], "the end of its cluster", timeout=60)
    assert time.time() - ended > 8
    wait_for(lambda: names_of(server, "head") | names_of(server, "worker") == set(), "the end of its pods", timeout=60)


@pytest.mark.usefixtures("kuberay")
def test_a_teardown_in_the_middle_of_a_run_leaves_neither_object_nor_process(
    server: ApiServer, provider: KubernetesProvider, run: LaunchRequest, tmp_path: Path
) -> None:
    provider.launch(run)
    starts(tmp_path, 1)
    assert processes() != []
    began = time.monotonic()
    assert provider.teardown(RUN_ID).leftovers == []
    assert time.monotonic() - began < 30
    for kind in ("RayJob", "RayCluster", "Pod", "Service", "Job", "Secret"):
        assert server.all(kind) == []
    assert processes() == []
