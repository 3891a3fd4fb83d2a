"""raylift check --on: what it asks of a cluster, and what it says of the answers."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes.utils.quantity import parse_quantity

from cluster.config import KubernetesCluster
from cluster.errors import InfrastructureError
from cluster.kubernetes import probe as probing
from cluster.kubernetes.api import Api
from cluster.kubernetes.fits import obstacles
from cluster.kubernetes.manifest import render
from launcher import cluster_checks
from launcher.checks import Finding
from launcher.cluster_checks import check_cluster
from tests.cluster.kubernetes.golden import request
from tests.harness import raylift
from tests.k8s.manifests import K8S, render_with
from tests.k8s.manifests import render as render_folder
from tests.stand_ins.kubernetes import discovery
from tests.stand_ins.kubernetes.kinds import Kind
from tests.stand_ins.kubernetes.schemas import kuberay_crds, mistakes, schema_of, unknown_fields
from tests.stand_ins.kubernetes.server import ApiServer, Fault
from tests.stand_ins.kubernetes.validation import mistake_in

QUEUE = "kueue.x-k8s.io/queue-name"
OTHER_ACCOUNT = {"template": {"spec": {"serviceAccountName": "other"}}}
Check = Callable[..., dict[str, tuple[bool | None, str]]]


@pytest.fixture
def check(server: ApiServer, tmp_path: Path) -> Check:  # noqa: ARG001
    def look(**keys: Any) -> dict[str, tuple[bool | None, str]]:
        cluster = request("plain", **keys).cluster
        assert isinstance(cluster, KubernetesCluster)
        findings = check_cluster(cluster, str(tmp_path / "runs"))
        return {each.name: (each.ok, each.detail) for each in findings}

    return look


def as_admin(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig("admin", "admin-token")))


def node(name: str = "n", *, labels: Any = None, taints: Any = None, **allocatable: str) -> dict[str, Any]:
    size = {"cpu": "8", "memory": "32Gi", "ephemeral-storage": "100Gi", **allocatable}
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"taints": taints or []},
        "status": {"allocatable": size},
    }


def affinity(term: dict[str, Any]) -> dict[str, Any]:
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}


def worker(case: str, **keys: Any) -> dict[str, Any]:
    spec = render(request(case, **keys))[0]["spec"]["rayClusterSpec"]
    template: dict[str, Any] = spec["workerGroupSpecs"][0]["template"]
    return template


def test_a_cluster_that_has_all_is_found_to_have_it(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_checks, "check_storage_at", lambda _storage: Finding("storage", True, ""))
    monkeypatch.setattr(cluster_checks, "probe", lambda *_: None)
    cluster = request("plain").cluster
    assert isinstance(cluster, KubernetesCluster)
    found = {each.name: each for each in check_cluster(cluster, "s3://bucket/runs")}
    names = ["api", "kuberay", "rights", "manifest", "quota", "nodes", "storage", "storage there"]
    assert list(found) == names
    assert [name for name in names if found[name].ok is False] == []
    assert found["api"].detail == f"Kubernetes v1.34.1 at {server.url}"
    assert found["quota"].detail == "there is room for this run and its 3 pods"
    assert found["nodes"].detail.startswith("you may not list nodes")
    assert server.all("RayJob") == []


def test_a_cluster_is_looked_at_where_its_server_does_not_answer_at_once(
    server: ApiServer, check: Check, fault: Fault
) -> None:
    server.faults = [dataclasses.replace(fault, call=call) for call in ("GET /version", "GET /api", "POST", "PATCH")]
    assert [name for name, (ok, _) in check().items() if ok is False] == ["storage"], "a folder is none for pods"
    assert all(not each.count for each in server.faults)


@pytest.mark.usefixtures("server")
def test_a_check_without_a_bucket_says_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "k8s.yaml").write_text("{provider: kubernetes, image: x}\n")
    done = raylift("check", "--on", tmp_path / "k8s.yaml", "--storage", "./runs")
    assert done.returncode == 3
    (said,) = (line for line in done.stdout.splitlines() if line.startswith("NO   storage"))
    assert "is on this machine, where no pod sees it: --storage s3://bucket/prefix or gs://bucket/prefix" in said


def test_the_command_checks_what_on_names(server: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "k8s.yaml").write_text("{provider: kubernetes, image: x, accelerators: 'H100:8', nodes: 2}\n")
    done = raylift("check", "--on", tmp_path / "k8s.yaml", "--storage", tmp_path / "runs", "--json")
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert done.returncode == 3
    assert not found["quota"]["ok"]
    assert "requests.nvidia.com/gpu: 8 + 8 of 8, 0 used" in found["quota"]["detail"]
    assert server.all("RayJob") == []


def test_a_quota_has_to_have_room_for_one_node_of_a_range_that_begins_with_none(
    server: ApiServer, check: Check
) -> None:
    def limit(quota: dict[str, Any]) -> None:
        quota["spec"]["hard"] = {"requests.nvidia.com/gpu": "0"}

    server.change("ResourceQuota", "raylift", "raylift", limit)
    ok, said = check(accelerators="L4", nodes={"min": 0, "max": 8}, storage_secret="raylift-storage")["quota"]
    assert not ok
    assert "requests.nvidia.com/gpu: 1 of 0, 0 used" in said


def test_a_mistake_in_the_block_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "k8s.yaml").write_text("provider: kubernetes\nimage: x\nqueu: gpu\n")
    done = raylift("check", "--on", tmp_path / "k8s.yaml")
    assert done.returncode == 2
    assert f"{tmp_path}/k8s.yaml:3:1: cluster.queu: unknown key; did you mean queue?" in done.stderr


def test_a_server_that_does_not_know_one_is_the_only_thing_said_but_storage(server: ApiServer, check: Check) -> None:
    server.tokens.clear()
    found = check()
    assert list(found) == ["api", "storage"]
    assert "your login has run out" in found["api"][1]


def with_fields(kind: Kind, change: Callable[[dict[str, Any]], None]) -> Kind:
    """Return a kind whose schema is another."""
    schema: Any = copy.deepcopy(kind.schema)
    change(schema["properties"]["spec"]["properties"])
    return dataclasses.replace(kind, schema=schema)


def test_the_version_of_kuberay_is_told_by_what_its_jobs_may_say(server: ApiServer, check: Check) -> None:
    assert check()["kuberay"] == (True, "ray.io/v1 with RayJob and RayCluster, of KubeRay 1.7 or newer")

    def older(spec: dict[str, Any]) -> None:
        del spec["rayClusterSpec"]["properties"]["networkPolicy"]

    server.kinds = [with_fields(kind, older) if kind.name == "RayJob" else kind for kind in server.kinds]
    ok, said = check()["kuberay"]
    assert not ok
    assert said.startswith("ray.io/v1 is of a KubeRay before 1.7: rayClusterSpec has no networkPolicy.")
    ok, said = check(network_policy=True)["manifest"]
    assert not ok
    assert "the KubeRay that is installed does not take it: it is too old, or " in said
    assert ".spec.rayClusterSpec.networkPolicy: field not declared in schema" in said


def test_a_server_that_tells_no_fields_is_believed(server: ApiServer, check: Check) -> None:
    server.faults.append(Fault("GET /openapi/v3", status=404, count=9))
    assert check()["kuberay"] == (True, "ray.io/v1 with RayJob and RayCluster, of which version is not told")


def test_the_manifest_that_is_tried_has_the_container_that_fetches_raylift(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_checks, "check_storage_at", lambda _storage: Finding("storage", True, ""))
    monkeypatch.setattr(cluster_checks, "probe", lambda *_: None)
    tried: list[Any] = []

    def note(kind: Kind, value: Any) -> str:
        tried.append(value) if kind.name == "RayJob" else None
        return ""

    server.admit = note
    cluster = request("plain", image=None, storage_secret="s3", workers={"min": 1, "max": 2}).cluster
    assert isinstance(cluster, KubernetesCluster)
    assert not any(each.ok is False for each in check_cluster(cluster, "s3://bucket/runs/"))
    (job,) = tried
    for template in (
        job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"],
        job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"],
    ):
        (first,) = template["spec"]["initContainers"]
        assert first["args"][0] == "s3://bucket/runs/raylift-check/code/raylift.zip"


@pytest.mark.parametrize(
    ("hard", "used", "short"),
    [
        ({"limits.cpu": "2"}, {}, "limits.cpu: 500m + 1 + 500m + 1 of 2, 0 used"),
        ({"limits.memory": "64Gi"}, {"limits.memory": "63Gi"}, "limits.memory: 1Gi + 4Gi + 512Mi + 4Gi of 64Gi"),
        ({"cpu": "2"}, {}, "cpu: 500m + 1 + 500m + 1 of 2"),
        ({"requests.cpu": "2"}, {}, "requests.cpu: 500m + 1 + 500m + 1 of 2"),
        ({"requests.cpu": "3"}, {}, ""),
        ({"count/pods": "2"}, {}, "count/pods: 1 + 1 + 1 of 2"),
        ({"count/rayclusters.ray.io": "1"}, {"count/rayclusters.ray.io": "1"}, "rayclusters.ray.io: 1 of 1, 1 used"),
        ({"count/rayjobs.ray.io": "32"}, {"count/rayjobs.ray.io": "32"}, "Runs that are over count until raylift rm"),
        ({"services": "1"}, {}, "services: 1 + 1 of 1"),
        ({"count/jobs.batch": "5", "count/secrets": "5"}, {}, ""),
    ],
)
def test_a_quota_is_compared_with_all_that_it_may_count_of_a_run_and_its_autoscaler(
    server: ApiServer, check: Check, hard: dict[str, str], used: dict[str, str], short: str
) -> None:
    def limit(quota: Any) -> None:
        quota.update(spec={"hard": hard}, status={"used": used})

    server.change("ResourceQuota", "raylift", "raylift", limit)
    ok, said = check(storage_secret="s3", workers={"min": 1, "max": 4})["quota"]
    assert ok is not bool(short)
    assert short in said


def test_a_cluster_without_kuberay_is_told_from_one_with_it(server: ApiServer, check: Check) -> None:
    server.kinds = [kind for kind in server.kinds if kind.group != "ray.io"]
    found = check()
    assert not found["kuberay"][0]
    assert "is KubeRay installed" in found["kuberay"][1]


def test_rights_that_are_missing_are_named(server: ApiServer, check: Check) -> None:
    server.change("Role", "raylift", "raylift-launcher", lambda role: role.update(rules=role["rules"][1:]))
    ok, said = check()["rights"]
    assert not ok
    assert "you may not: create rayjobs.ray.io, patch rayjobs.ray.io" in said


def test_rights_without_which_a_teardown_proves_less_are_named_and_refuse_no_run(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_configmaps(role: dict[str, Any]) -> None:
        for rule in role["rules"]:
            rule["resources"] = [each for each in rule["resources"] if each != "configmaps"]

    server.change("Role", "raylift", "raylift-launcher", without_configmaps)
    monkeypatch.setattr(cluster_checks, "check_storage_at", lambda _storage: Finding("storage", True, ""))
    monkeypatch.setattr(cluster_checks, "probe", lambda *_: None)
    cluster = request("plain").cluster
    assert isinstance(cluster, KubernetesCluster)
    found = {each.name: each for each in check_cluster(cluster, "s3://bucket/runs")}
    assert found["rights"].ok is None
    assert "you may not: list configmaps. See k8s/base/role.yaml" in found["rights"].detail
    assert "storage there" in found


def test_the_right_to_see_why_a_run_waits_in_its_queue_is_asked_for_where_it_has_one(
    server: ApiServer, check: Check
) -> None:
    assert check()["rights"][0]
    ok, said = check(queue="gpu")["rights"]
    assert ok is None
    assert "you may not: list workloads.kueue.x-k8s.io. See k8s/components/kueue/role.yaml" in said
    rule = {"apiGroups": ["kueue.x-k8s.io"], "resources": ["workloads"], "verbs": ["list"]}
    server.change("Role", "raylift", "raylift-launcher", lambda role: role["rules"].append(rule))
    assert check(queue="gpu")["rights"][0]


def test_a_webhook_that_would_refuse_is_quoted(server: ApiServer, check: Check) -> None:
    server.admit = lambda kind, _value: 'admission webhook "x" denied the request: no' if kind.name == "RayJob" else ""
    assert check()["manifest"] == (
        False,
        'the cluster\'s own rules refuse it: admission webhook "x" denied the request: no. '
        "What is applied: raylift plan JOB --on … --yaml",
    )


def test_nodes_are_compared_with_what_the_workers_need_by_their_types(
    server: ApiServer, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_admin(server, monkeypatch)
    kind, product = "node.kubernetes.io/instance-type", "nvidia.com/gpu.product"
    server.create("Node", node("small", labels={kind: "e2-small"}, cpu="500m"))
    for name in ("a", "b"):
        labels = {kind: "g2-standard-8", product: "NVIDIA-L4"}
        server.create("Node", node(name, labels=labels, **{"nvidia.com/gpu": "1"}))
    ok, said = check(accelerators="L4:1", nodes=2)["nodes"]
    assert ok
    assert said == (
        "2 workers with 3 cpu, 12Gi memory, 10Gi ephemeral-storage, 1 nvidia.com/gpu: 2 of 3 nodes could take one, "
        "were they empty, and together 2; 2 could take the head; 2 × g2-standard-8 (NVIDIA-L4); "
        "1 × e2-small, which has other labels, too little cpu, too little nvidia.com/gpu"
    )
    ok, said = check(accelerators="L4:1", nodes=3)["nodes"]
    assert not ok
    assert "3 workers with" in said
    assert said.endswith(". Only where the cluster adds nodes by itself will this run start")
    assert not check(accelerators="H100:8")["nodes"][0]
    _, said = check(accelerators="H100:8", node_selector={"pool": "ml"})["nodes"]
    assert f"A worker's node has to have a label of pool, {product}, cloud.google.com/gke-accelerator, karp" in said
    assert check(workers=4)["nodes"][0], "several are on one node"


@pytest.mark.parametrize(
    ("version", "is_new"), [("v1.25.0-gke.1", True), ("v1.24.17+k3s1", False), ("v1.9.0", False), ("v2.0.0", True)]
)
def test_a_kubernetes_that_is_too_old_is_told(
    server: ApiServer, check: Check, monkeypatch: pytest.MonkeyPatch, version: str, is_new: bool
) -> None:
    monkeypatch.setitem(discovery.VERSION, "gitVersion", version)
    too_old = "" if is_new else ": what runs are made of takes 1.25 or newer"
    assert check()["api"] == (is_new, f"Kubernetes {version} at {server.url}{too_old}")


def test_what_could_not_be_looked_at_is_neither_ok_nor_a_failure(check: Check) -> None:
    ok, said = check(workers=2)["nodes"]
    assert ok is None
    assert said.startswith("you may not list nodes: whether they could take 2 workers with 1 cpu, 4Gi memory")


@pytest.mark.parametrize(
    ("keys", "fits"),
    [
        ({"labels": {"nvidia.com/gpu.product": "NVIDIA-L4"}}, True),
        ({"labels": {"cloud.google.com/gke-accelerator": "nvidia-l4"}}, True),
        ({"labels": {"nvidia.com/gpu.product": "NVIDIA-H100-NVL"}}, False),
        ({}, False),
        ({"labels": {"nvidia.com/gpu.product": "NVIDIA-L4"}, "memory": "8Gi"}, False),
        ({"labels": {"nvidia.com/gpu.product": "NVIDIA-L4"}, "nvidia.com/gpu": "0"}, False),
    ],
)
def test_a_node_fits_by_its_labels_and_its_size(keys: dict[str, Any], fits: bool) -> None:
    gpu = [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]
    there = node(taints=gpu, **{"nvidia.com/gpu": "1", **keys})
    assert bool(obstacles(there, worker("plain", accelerators="L4:1"), parse_quantity)) is not fits


@pytest.mark.parametrize(("case", "fits"), [("spot-alone", True), ("eight-gpus-a-node", False)])
def test_a_spot_machine_takes_what_asks_for_one(case: str, fits: bool) -> None:
    taints = [{"key": "cloud.google.com/gke-spot", "value": "true", "effect": "NoSchedule"}]
    kind = {"spot-alone": "nvidia-tesla-a100", "eight-gpus-a-node": "nvidia-h100-80gb"}[case]
    labels = {"cloud.google.com/gke-spot": "true", "cloud.google.com/gke-accelerator": kind}
    large = {"nvidia.com/gpu": "8", "cpu": "200", "memory": "2Ti", "ephemeral-storage": "1Ti"}
    assert bool(obstacles(node(labels=labels, taints=taints, **large), worker(case), parse_quantity)) is not fits


@pytest.mark.parametrize(
    ("expression", "fits"),
    [
        ({"key": "zone", "operator": "In", "values": ["a", "b"]}, True),
        ({"key": "zone", "operator": "NotIn", "values": ["a"]}, False),
        ({"key": "other", "operator": "NotIn", "values": ["a"]}, True),
        ({"key": "zone", "operator": "Exists"}, True),
        ({"key": "other", "operator": "Exists"}, False),
        ({"key": "zone", "operator": "DoesNotExist"}, False),
        ({"key": "other", "operator": "DoesNotExist"}, True),
        ({"key": "cores", "operator": "Gt", "values": ["8"]}, True),
        ({"key": "cores", "operator": "Gt", "values": ["16"]}, False),
        ({"key": "cores", "operator": "Lt", "values": ["17"]}, True),
        ({"key": "cores", "operator": "Lt", "values": ["16"]}, False),
        ({"key": "zone", "operator": "Gt", "values": ["1"]}, False),
        ({"key": "other", "operator": "Lt", "values": ["1"]}, False),
    ],
)
def test_a_node_fits_by_each_operator_of_an_affinity(expression: dict[str, Any], fits: bool) -> None:
    there = node(labels={"zone": "a", "cores": "16"})
    template = worker("plain", pod_template={"spec": {"affinity": affinity({"matchExpressions": [expression]})}})
    assert bool(obstacles(there, template, parse_quantity)) is not fits


@pytest.mark.parametrize(
    ("term", "fits"),
    [
        ({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}, True),
        ({"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n"]}]}, False),
        ({}, False),
    ],
)
def test_a_node_fits_by_its_name_and_not_by_a_term_that_says_nothing(term: dict[str, Any], fits: bool) -> None:
    template = worker("plain", pod_template={"spec": {"affinity": affinity(term)}})
    assert bool(obstacles(node(), template, parse_quantity)) is not fits


@pytest.mark.parametrize(
    ("sidecar", "fits"),
    [
        ({}, True),
        ({"resources": {}}, True),
        ({"resources": {"limits": {"cpu": 2}}}, True),
        ({"resources": {"limits": {"cpu": 9}}}, False),
        ({"resources": {"limits": {"cpu": 9}, "requests": {"cpu": "100m"}}}, True),
    ],
)
def test_a_container_beside_rays_counts_with_what_it_asks_for(sidecar: dict[str, Any], fits: bool) -> None:
    containers = [{"name": "logs", "image": "x", **sidecar}]
    template = worker("plain", pod_template={"spec": {"containers": containers}})
    assert bool(obstacles(node(), template, parse_quantity)) is not fits


def test_a_node_that_is_cordoned_or_tainted_takes_nothing() -> None:
    cordoned = node()
    cordoned["spec"]["unschedulable"] = True
    tainted = node(taints=[{"key": "dedicated", "value": "db", "effect": "NoExecute"}])
    preferred = node(taints=[{"key": "dedicated", "value": "db", "effect": "PreferNoSchedule"}])
    found = [obstacles(each, worker("plain"), parse_quantity) for each in (cordoned, tainted, preferred)]
    assert found == [["a cordon"], ["a taint"], []]


def test_a_check_whose_pod_does_not_start_says_why_and_leaves_nothing(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "_POLL", 0.02)
    monkeypatch.setattr(probing, "_PATIENCE", 0.5)
    cluster = request("spot-with-fallback").cluster
    assert isinstance(cluster, KubernetesCluster)
    server_of = Api(None)
    with pytest.raises(InfrastructureError, match="not known after 0 s: KubeRay has not taken it up yet"):
        probing.probe(server_of, cluster, "s3://bucket/runs")
    assert server.all("RayJob") == []


def test_a_check_does_not_wait_long_for_an_image_that_is_not_there(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "_POLL", 0.02)
    monkeypatch.setattr(probing, "_HELD", 0.1)
    monkeypatch.setattr(probing, "_PATIENCE", 20.0)
    monkeypatch.setattr(probing, "_is_there", lambda *_: False)  # nobody deletes the pod here
    cluster = request("spot-with-fallback").cluster
    assert isinstance(cluster, KubernetesCluster)
    waiting = {"reason": "ErrImagePull", "message": "not found"}

    def make_its_pod(kind: Kind, job: dict[str, Any]) -> str:
        if kind.name == "RayJob":
            name, labels = job["metadata"]["name"], {"raylift.dev/run": job["metadata"]["name"]}
            head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
            server.create("Pod", {"metadata": {"name": f"{name}-head", "labels": labels}, "spec": head}, "raylift")
            state = {"name": "ray", "image": "x", "state": {"waiting": waiting}}
            server.set_status("Pod", "raylift", f"{name}-head", phase="Pending", containerStatuses=[state])
        return ""

    server.admit = make_its_pod
    with pytest.raises(InfrastructureError, match=r"^the image x of pod .* cannot be pulled \(ErrImagePull\): not fo"):
        probing.probe(Api(None), cluster, "s3://bucket/runs")
    assert server.all("RayJob") == []


def test_a_check_does_not_wait_long_for_a_secret_that_is_to_be_mounted(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "_POLL", 0.02)
    monkeypatch.setattr(probing, "_HELD", 0.1)
    monkeypatch.setattr(probing, "_PATIENCE", 20.0)
    monkeypatch.setattr(probing, "_is_there", lambda *_: False)  # nobody deletes the pod here
    cluster = request("plain").cluster
    assert isinstance(cluster, KubernetesCluster)

    def make_its_pod(kind: Kind, job: dict[str, Any]) -> str:
        if kind.name == "RayJob":
            name, labels = f"{job['metadata']['name']}-head", {"raylift.dev/run": job["metadata"]["name"]}
            head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
            server.create(
                "Pod", {"metadata": {"name": name, "labels": labels}, "spec": head | {"nodeName": "n"}}, "raylift"
            )
            said = 'MountVolume.SetUp failed for volume "gcs" : secret "gcs" not found'
            event = {"type": "Warning", "reason": "FailedMount", "message": said}
            about = {"kind": "Pod", "name": name}
            server.create("Event", {"metadata": {"name": name}, **event, "involvedObject": about}, "raylift")
        return ""

    server.admit = make_its_pod
    with pytest.raises(InfrastructureError, match=r'^the pod \S+ cannot start: .* secret "gcs" not found'):
        probing.probe(Api(None), cluster, "s3://bucket/runs")


def test_what_a_check_that_was_killed_has_left_goes_by_itself_or_with_the_next_one(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Death(BaseException):
        """The process is gone: nothing of it is undone."""

    def die(*_: Any) -> None:
        raise Death

    cluster = request("spot-with-fallback").cluster
    assert isinstance(cluster, KubernetesCluster)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(probing, "_wait_for_its_end", die)
            patch.setattr(Api, "delete", die)
            with pytest.raises(Death):
                probing.probe(Api(None), cluster, "s3://bucket/runs")
    over, goes_on = (job["metadata"]["name"] for job in server.all("RayJob"))
    for job in server.all("RayJob"):
        assert job["spec"]["activeDeadlineSeconds"] < 600
        assert (job["spec"]["shutdownAfterJobFinishes"], job["spec"]["ttlSecondsAfterFinished"]) == (True, 0)
    server.set_status("RayJob", "raylift", over, jobDeploymentStatus="Failed", reason="DeadlineExceeded")
    monkeypatch.setattr(probing, "_POLL", 0.02)
    monkeypatch.setattr(probing, "_wait_for_its_end", lambda *_: None)
    probing.probe(Api(None), cluster, "s3://bucket/runs")
    assert [job["metadata"]["name"] for job in server.all("RayJob")] == [goes_on]


def test_the_job_of_a_check_is_one_that_kuberay_and_the_namespace_take() -> None:
    cluster = request("spot-with-fallback").cluster
    assert isinstance(cluster, KubernetesCluster)
    document = probing.render_probe(cluster, "gs://bucket/runs", "raylift-check-0123ab")
    (definition,) = (each for each in kuberay_crds() if each["spec"]["names"]["kind"] == "RayJob")
    schema = schema_of(definition, "v1")
    assert unknown_fields(schema, document) == []
    assert mistakes(schema, document) == []
    assert mistake_in(document) == ""
    spec = document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (first,), (ray,) = spec["initContainers"], spec["containers"]
    assert first["securityContext"] == ray["securityContext"]
    assert first["envFrom"] == [{"secretRef": {"name": "raylift-storage"}}]
    assert first["args"][0] == "gs://bucket/runs/.raylift/raylift-check-0123ab"
    assert "nvidia.com/gpu" not in first["resources"]["requests"]


def test_a_check_asks_for_no_probes_of_what_writes_to_storage() -> None:
    probe = {"httpGet": {"path": "/", "port": 8265}}
    ray = {"name": "ray", "readinessProbe": probe, "livenessProbe": probe, "startupProbe": probe, "ports": []}
    run = request("plain", pod_template={"spec": {"containers": [ray]}})
    assert isinstance(run.cluster, KubernetesCluster)
    document = probing.render_probe(run.cluster, "s3://bucket/runs", "raylift-check-0123ab")
    spec = document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    for each in (*spec["initContainers"], *spec["containers"]):
        assert {key for key in each if key.endswith("Probe")} == set()


@pytest.mark.parametrize(
    ("keys", "account"),
    [
        ({}, "raylift-run"),
        ({"workers": {"min": 1, "max": 4}, "head_service_account": "raylift-head"}, "raylift-head"),
        ({"workers": {"min": 1, "max": 4}, "storage_secret": "s3"}, None),
        ({"pod_template": {"spec": {"serviceAccountName": "theirs"}}}, "theirs"),
        ({"overrides": {"spec": {"rayClusterSpec": {"headGroupSpec": OTHER_ACCOUNT}}}}, "other"),
    ],
)
def test_a_check_writes_under_the_account_of_a_head(keys: dict[str, Any], account: str | None) -> None:
    run = request("plain", **keys)
    assert isinstance(run.cluster, KubernetesCluster)
    head, probe = (
        job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        for job in (render(run)[0], probing.render_probe(run.cluster, "s3://bucket/runs", "raylift-check-0123ab"))
    )
    assert head.get("serviceAccountName") == probe.get("serviceAccountName") == account
    assert probe["automountServiceAccountToken"] is False


@pytest.mark.parametrize(
    ("component", "phase", "found"),
    [
        (True, "Bound", (True, "the PersistentVolumeClaim raylift-packages is Bound")),
        (True, "Pending", (None, "is Pending, and has no volume yet: node-folders.yaml")),
        (True, "Lost", (False, "has lost its volume: make it anew")),
        (True, "", (False, "no PersistentVolumeClaim raylift-packages: k8s/components/package-cache makes")),
        (False, "", (None, "you may not look for the PersistentVolumeClaim raylift-packages")),
    ],
)
def test_a_check_looks_whether_there_is_a_volume_for_packages(
    server: ApiServer, tmp_path: Path, check: Check, component: bool, phase: str, found: tuple[bool | None, str]
) -> None:
    if component:
        for document in render_with(tmp_path, "resources: [base]\ncomponents: [components/package-cache]\n"):
            if document["metadata"]["name"] == "raylift-package-cache":
                server.create(document["kind"], document, "raylift")
            elif document["kind"] == "PersistentVolumeClaim" and phase:
                server.delete("ResourceQuota", "raylift", "raylift")
                server.create("PersistentVolumeClaim", {**document, "status": {"phase": phase}}, "raylift")
    ok, said = check(image=None, package_cache="raylift-packages")["package cache"]
    assert (ok, found[1] in said) == (found[0], True), said


@pytest.mark.parametrize("keys", [{"queue": "gpu"}, {"overrides": {"metadata": {"labels": {QUEUE: "gpu"}}}}])
def test_a_check_waits_in_the_queue_of_a_run_and_says_so(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    monkeypatch.setattr(probing, "_POLL", 0.02)
    monkeypatch.setattr(probing, "_PATIENCE", 0.2)
    cluster = request("plain", **keys).cluster
    assert isinstance(cluster, KubernetesCluster)

    def hold(kind: Kind, job: dict[str, Any]) -> str:
        if kind.name == "RayJob" and job["metadata"]["labels"].get(QUEUE) == "gpu":
            job["spec"]["suspend"] = True
        return ""

    server.admit = hold
    with pytest.raises(InfrastructureError, match="not known after 0 s: it waits in the queue gpu"):
        probing.probe(Api(None), cluster, "s3://bucket/runs")
    assert server.all("RayJob") == []


# An autoscaler's way to the API server


def endpoints(server: ApiServer, address: str, port: int) -> None:
    labels = {"kubernetes.io/service-name": "kubernetes"}
    there = {"endpoints": [{"addresses": [address]}], "ports": [{"port": port}], "addressType": "IPv4"}
    server.create("EndpointSlice", {"metadata": {"name": "kubernetes", "labels": labels}, **there}, "default")


def test_an_autoscaler_that_is_kept_from_the_api_server_is_found(
    server: ApiServer, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_admin(server, monkeypatch)
    endpoints(server, "172.18.0.2", 6443)
    ok, said = check(storage_secret="s3", workers={"min": 1, "max": 4})["autoscaler"]
    assert not ok
    assert said.startswith("no network policy lets the head out to the API server, 172.18.0.2:6443, so no worker")
    assert said.endswith("k8s/components/autoscaler opens the way")
    for document in render_folder(K8S / "overlays" / "kind"):
        if document["metadata"]["name"] == "autoscaler":
            server.create("NetworkPolicy", document, "raylift")
    assert check(storage_secret="s3", workers={"min": 1, "max": 4})["autoscaler"] == (
        True,
        "network policies let the head out to the API server, 172.18.0.2:6443",
    )


def test_whoever_may_not_look_is_told_what_an_autoscaler_needs(check: Check) -> None:
    ok, said = check(storage_secret="s3", workers={"min": 1, "max": 4})["autoscaler"]
    assert ok is None
    assert said == (
        "you may not read whether network policies keep it from the API server; k8s/components/autoscaler opens the way"
    )


def test_without_a_range_there_is_no_autoscaler_to_look_at(check: Check) -> None:
    assert "autoscaler" not in check()


def test_where_there_are_no_network_policies_nothing_keeps_an_autoscaler(
    server: ApiServer, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_admin(server, monkeypatch)
    for policy in server.all("NetworkPolicy"):
        server.delete("NetworkPolicy", "raylift", policy["metadata"]["name"])
    ok, said = check(storage_secret="s3", workers={"min": 1, "max": 4})["autoscaler"]
    assert (ok, said) == (True, "no network policy is in the namespace raylift")
