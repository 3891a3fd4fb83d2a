"""What the stand-in's KubeRay takes, and what it refuses as the real one would."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config import KubernetesCluster
from cluster.errors import InfrastructureError
from cluster.kubernetes.probe import probe, render_probe
from cluster.kubernetes.provider import KubernetesProvider
from cluster.provider import State
from tests.cluster.kubernetes.golden import RUN_ID, documents, request
from tests.harness import wait_for
from tests.k8s.manifests import K8S, Manifest, render
from tests.stand_ins.kubernetes import kueue
from tests.stand_ins.kubernetes.admission import refusal
from tests.stand_ins.kubernetes.kinds import Kind, Object
from tests.stand_ins.kubernetes.kuberay import Operator, operator
from tests.stand_ins.kubernetes.server import ApiServer, api_server
from tests.stand_ins.kubernetes.validation import mistake_in, mistake_in_cluster

GATES = ("RayClusterNetworkPolicy",)
DOCUMENTS = documents()
NO_CLUSTER = {"hard": {"count/rayclusters.ray.io": "0"}}
RAY_JOB = Kind("ray.io", "v1", "rayjobs", "RayJob")


def job() -> Object:
    return copy.deepcopy(DOCUMENTS["elastic-queue"][0])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_kuberay_takes_every_job_that_raylift_makes(name: str) -> None:
    assert mistake_in(DOCUMENTS[name][0], GATES) == ""


def test_kuberay_takes_what_a_check_makes() -> None:
    cluster = request("plain").cluster
    assert isinstance(cluster, KubernetesCluster)
    made = render_probe(cluster, "s3://bucket/runs", "raylift-check-0123ab")
    assert (mistake_in if made["kind"] == "RayJob" else mistake_in_cluster)(made) == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 47, ""),
        ("x" * 48, "RayJob name should be no more than 47 characters"),
        ("2nd", "RayJob name should be a valid DNS1035 label"),
        ("a.b", "RayJob name should be a valid DNS1035 label"),
    ],
)
def test_a_name_is_of_47_characters_and_begins_with_a_letter(name: str, said: str) -> None:
    document = job()
    document["metadata"]["name"] = name
    assert mistake_in(document) == said


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"backoffLimit": -1}, "backoffLimit must be a positive integer"),
        ({"activeDeadlineSeconds": 0}, "activeDeadlineSeconds must be a positive integer"),
        ({"preRunningDeadlineSeconds": 0}, "preRunningDeadlineSeconds must be a positive integer"),
        ({"ttlSecondsAfterFinished": -1}, "TTLSecondsAfterFinished must be a non-negative integer"),
        ({"shutdownAfterJobFinishes": False}, "cannot have TTLSecondsAfterFinished"),
        ({"submissionMode": "InteractiveMode"}, "BackoffLimit is incompatible with InteractiveMode"),
        ({"submissionMode": "SidecarMode"}, "SidecarMode doesn't support SubmitterPodTemplate"),
    ],
)
def test_a_job_is_refused(spec: Object, said: str) -> None:
    document = job()
    document["spec"] |= spec
    assert said in mistake_in(document)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({}, "one of RayClusterSpec or ClusterSelector must be set"),
        ({"clusterSelector": {"other": "dev"}}, "cluster name in ClusterSelector should not be empty"),
        (
            {"clusterSelector": {"ray.io/cluster": "x"}, "suspend": True, "shutdownAfterJobFinishes": True},
            "the ClusterSelector mode doesn't support the suspend operation",
        ),
        (
            {"clusterSelector": {"ray.io/cluster": "x"}, "ttlSecondsAfterFinished": 5},
            "cannot have TTLSecondsAfterFinished",
        ),
        ({"clusterSelector": {"ray.io/cluster": "x"}, "submissionMode": "SidecarMode"}, "not supported in SidecarMode"),
        ({"clusterSelector": {"ray.io/cluster": "x"}, "backoffLimit": 0}, ""),
        ({"clusterSelector": {"ray.io/cluster": "x"}, "backoffLimit": 1}, "incompatible with ClusterSelector mode"),
    ],
)
def test_what_kuberay_takes_with_a_selector(spec: Object, said: str) -> None:
    found = mistake_in({"metadata": {"name": "x"}, "spec": spec})
    assert said in found
    assert bool(said) is bool(found)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("headGroupSpec template spec containers", [], "headGroupSpec should have at least one container"),
        ("headGroupSpec rayStartParams labels", "a=b", "rayStartParams['labels'] is not supported for Head group"),
        ("headGroupSpec resources", {"CPU": "1"}, "both rayStartParams and Resources for Head group"),
        ("headGroupSpec template spec restartPolicy", "Always", "restartPolicy for head Pod should be Never"),
        ("workerGroupSpecs 0 template spec restartPolicy", "Always", "restartPolicy for worker group cpu should be"),
        ("workerGroupSpecs 0 minReplicas", 9, "has minReplicas 9 greater than maxReplicas 4"),
        ("workerGroupSpecs 0 minReplicas", -1, "has negative minReplicas -1"),
        ("workerGroupSpecs 0 template spec containers", [], "workerGroupSpec should have at least one container"),
        ("autoscalerOptions idleTimeoutSeconds", -1, "autoscalerOptions.idleTimeoutSeconds must be non-negative"),
        ("rayVersion", "2.51.0", "minimum Ray version is 2.52.0, got 2.51.0"),
        ("authOptions enableK8sTokenAuth", True, "K8s token auth mode is currently not supported for RayJob"),
        ("networkPolicy", {"mode": "DenyAll"}, "requires the RayClusterNetworkPolicy feature gate"),
        ("tlsOptions", {}, "requires the RayClusterMTLS feature gate"),
    ],
)
def test_the_cluster_of_a_job_is_refused(path: str, value: Any, said: str) -> None:
    document = job()
    *way, last = (int(each) if each.isdigit() else each for each in path.split())
    place: Any = document["spec"]["rayClusterSpec"]
    for key in way:
        place = place[key]
    place[last] = value
    assert said in mistake_in(document)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_kueue_takes_every_job_in_a_queue_that_raylift_makes(name: str) -> None:
    assert kueue.refusal(RAY_JOB, DOCUMENTS[name][0]) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clusterSelector": {"ray.io/cluster": "x"}}, "should not use an existing cluster"),
        ({"shutdownAfterJobFinishes": False}, "should delete the cluster after finishing"),
        ({"rayClusterSpec": {"workerGroupSpecs": [{}] * 8}}, "must have at most 7 items"),
    ],
)
def test_kueue_refuses_a_job_that_it_cannot_look_after(change: Object, said: str) -> None:
    document = job()
    document["spec"] |= change
    assert said in kueue.refusal(RAY_JOB, document)
    del document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert kueue.refusal(RAY_JOB, document) == ""


def test_kueue_refuses_a_job_that_grows_unless_that_says_so_and_kueue_is_told_to_let_it() -> None:
    document = job()
    assert "only when the ElasticJobsViaWorkloadSlices" in kueue.refusal(RAY_JOB, document, gates=frozenset())
    assert kueue.refusal(RAY_JOB, document) == ""
    del document["metadata"]["annotations"]["kueue.x-k8s.io/elastic-job"]
    assert "only when the ElasticJobsViaWorkloadSlices" in kueue.refusal(RAY_JOB, document)


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if DOCUMENTS[name][0]["spec"].get("rayClusterSpec")])
def test_the_queue_of_the_components_covers_all_that_a_run_asks_for(name: str) -> None:
    asked = kueue.asked_for(DOCUMENTS[name][0])
    assert asked >= {"cpu", "memory", "ephemeral-storage"}
    assert asked <= kueue.covered()


def test_without_an_autoscaler_both_ends_of_a_range_are_said() -> None:
    document = copy.deepcopy(DOCUMENTS["processors"][0])
    del document["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"]
    assert "must set both minReplicas and maxReplicas when autoscaling is disabled" in mistake_in(document)


# Pods


@pytest.fixture(scope="module")
def base() -> list[Manifest]:
    return render(K8S / "base")


@pytest.fixture
def server(tmp_path: Path, base: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with api_server(tmp_path) as server:
        for document in base:
            server.create(document["kind"], document, document["metadata"].get("namespace", ""))
        server.create("ServiceAccount", {"metadata": {"name": "raylift-head"}}, "raylift")
        server.create("PriorityClass", {"metadata": {"name": "research"}, "value": 1})
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig("admin", "admin-token")))
        yield server


@pytest.fixture
def kuberay(server: ApiServer) -> Iterator[Operator]:
    """Return the operator, with no image: pods are made, and wait."""
    with operator(server, {}) as running:
        yield running


def launched(**keys: Any) -> KubernetesProvider:
    run = request("elastic-queue", queue=None, **keys)
    assert isinstance(run.cluster, KubernetesCluster)
    provider = KubernetesProvider(run.cluster)
    provider.launch(run)
    return provider


def waits_for(provider: KubernetesProvider, said: str) -> None:
    wait_for(lambda: said in provider.describe(RUN_ID).reason, said, timeout=20)


@pytest.mark.usefixtures("kuberay")
def test_pods_as_raylift_makes_them_are_taken_in_a_restricted_namespace(server: ApiServer) -> None:
    waits_for(launched(), "cannot be pulled")
    (head,) = server.all("Pod")
    assert [each["name"] for each in head["spec"]["containers"]] == ["ray", "autoscaler"]


@pytest.mark.usefixtures("kuberay")
def test_a_pod_with_a_folder_of_its_node_is_refused_in_a_restricted_namespace(server: ApiServer) -> None:
    volume = {"name": "cache", "hostPath": {"path": "/var/cache"}}
    provider = launched(pod_template={"spec": {"volumes": [volume]}})
    waits_for(
        provider, 'violates PodSecurity "restricted:latest": restricted volume types (volume "cache" uses hostPath'
    )
    assert server.all("Pod") == []


@pytest.mark.usefixtures("kuberay")
def test_a_pod_beyond_the_quota_is_refused(server: ApiServer) -> None:
    def limit(quota: Object) -> None:
        quota["spec"]["hard"]["requests.cpu"] = "1"  # the head asks for as much, and its autoscaler for more

    server.change("ResourceQuota", "raylift", "raylift", limit)
    waits_for(launched(), "exceeded quota: raylift, requested: requests.cpu=1.500, used: requests.cpu=0, limited")
    assert server.all("Pod") == []


@pytest.mark.usefixtures("kuberay")
def test_a_cluster_beyond_the_quota_is_refused(server: ApiServer) -> None:
    server.change("ResourceQuota", "raylift", "raylift", lambda quota: quota.update(spec=NO_CLUSTER))
    waits_for(launched(), "exceeded quota: raylift, requested: count/rayclusters.ray.io=1, used")
    assert server.all("RayCluster") == []


def test_a_gate_that_is_off_fails_a_run_with_the_words_of_kuberay(server: ApiServer) -> None:
    with operator(server, {}):
        provider = launched(network_policy=True)
        waits_for(provider, "spec.networkPolicy requires the RayClusterNetworkPolicy feature gate to be enabled")
        assert provider.describe(RUN_ID).state is State.FAILED
        assert "--feature-gates=RayClusterNetworkPolicy=true" in provider.describe(RUN_ID).reason
        with pytest.raises(InfrastructureError, match=r"does not take it: spec\.networkPolicy requires the Ray"):
            probe(provider.server, provider.cluster, "s3://bucket/runs")
    assert [each["metadata"]["name"] for each in server.all("RayJob")] == [RUN_ID]


def test_a_gate_that_is_on_does_not(server: ApiServer) -> None:
    with operator(server, {}, GATES):
        waits_for(launched(network_policy=True), "cannot be pulled")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"hostNetwork": True}, "host namespaces (hostNetwork=true)"),
        ({"containers": [{"name": "x", "image": "x"}]}, 'allowPrivilegeEscalation != false (container "x")'),
        ({"securityContext": {"runAsUser": 0}}, "runAsUser=0"),
        ({"containers": "none"}, "is invalid: spec.containers: Invalid value"),
        ({"serviceAccountName": "nobody"}, 'account raylift/nobody: serviceaccount "nobody" not found'),
        ({"priorityClassName": "none"}, "no PriorityClass with name none was found"),
    ],
)
def test_a_pod_is_held_to_its_schema_and_to_the_standard_of_its_namespace(
    server: ApiServer, change: Object, said: str
) -> None:
    template = DOCUMENTS["processors"][0]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    pod = {"metadata": {"name": "x", "namespace": "raylift"}, "spec": {**template["spec"], **change}}
    found = refusal(server, pod)
    assert said in found
    assert bool(said) is bool(found)


@pytest.mark.parametrize(
    ("hard", "said"),
    [
        ({"limits.cpu": "1"}, ""),
        ({"limits.cpu": "500m"}, "exceeded quota: raylift, requested: limits.cpu=1"),
        ({"memory": "1Gi"}, "exceeded quota: raylift, requested: memory="),
        ({"requests.nvidia.com/gpu": "0"}, ""),
        ({"pods": "0"}, "exceeded quota: raylift, requested: pods=1"),
        ({"count/rayjobs.ray.io": "0"}, ""),
    ],
)
def test_a_pod_is_held_to_quotas(server: ApiServer, hard: Object, said: str) -> None:
    server.change("ResourceQuota", "raylift", "raylift", lambda quota: quota.update(spec={"hard": hard}))
    template = DOCUMENTS["processors"][0]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    pod = {"metadata": {"name": "x", "namespace": "raylift"}, "spec": copy.deepcopy(template["spec"])}
    found = refusal(server, pod)
    assert said in found
    assert bool(said) is bool(found)
    if "limits.cpu" in hard:
        del pod["spec"]["containers"][0]["resources"]["limits"]["cpu"]
        assert "must specify limits.cpu for: ray" in refusal(server, pod)
