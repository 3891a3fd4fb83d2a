"""Manifests: what is kept in golden/, and what every one of them holds to."""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML

from cluster.config import _KINDS, KubernetesCluster, LocalCluster, Nodes, Workers
from cluster.errors import UsageError
from cluster.kubernetes import fetch, pods
from cluster.kubernetes.documents import to_yaml
from cluster.kubernetes.manifest import NAME_LENGTH, driver_cluster, merge, object_name, render
from cluster.kubernetes.named import ClusterRequest, render_cluster
from cluster.kubernetes.planned import plan
from cluster.kubernetes.versions import CLIENTS, RAY_VERSION, TORCH
from cluster.runs import RUN_ID, new_run_id
from tests.cluster.kubernetes.golden import CASES, ENV, FOLDER, documents, on_named_cluster, request, without_image
from tests.cluster.kubernetes.golden import RUN_ID as RUN
from tests.harness import ROOT
from tests.stand_ins.kubernetes.schemas import kuberay_crds, mistakes, schema_of, unknown_fields

Manifest = dict[str, Any]
every_case = pytest.mark.parametrize("case", CASES)


def job(case: str, **more: Any) -> Manifest:
    return render(request(case, **more))[0]


def block(case: str, **more: Any) -> KubernetesCluster:
    cluster = request(case, **more).cluster
    assert isinstance(cluster, KubernetesCluster)
    return cluster


def ray_cluster(case: str, **more: Any) -> Manifest:
    found: Manifest = job(case, **more)["spec"]["rayClusterSpec"]
    return found


def templates(manifest: Manifest) -> dict[str, Manifest]:
    spec = manifest["spec"]
    head, (workers,) = spec["rayClusterSpec"]["headGroupSpec"], spec["rayClusterSpec"]["workerGroupSpecs"]
    return {"head": head["template"], "worker": workers["template"], "submitter": spec["submitterPodTemplate"]}


def containers(manifest: Manifest) -> Iterator[Manifest]:
    for template in templates(manifest).values():
        yield from template["spec"]["containers"]


def node_terms(template: Manifest) -> list[dict[str, tuple[str, list[str]]]]:
    node = template["spec"].get("affinity", {}).get("nodeAffinity", {})
    terms = node.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    return [{each["key"]: (each["operator"], each["values"]) for each in term["matchExpressions"]} for term in terms]


# What is kept


@every_case
def test_a_manifest_is_as_it_was_looked_over(case: str) -> None:
    assert to_yaml(render(request(case))) == (FOLDER / f"{case}.yaml").read_text()


def test_no_golden_manifest_is_left_from_a_case_that_is_gone() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(documents())


@every_case
def test_a_rayjob_holds_to_the_schema_of_kuberay(case: str) -> None:
    (definition,) = (each for each in kuberay_crds() if each["spec"]["names"]["kind"] == "RayJob")
    schema = schema_of(definition, "v1")
    assert unknown_fields(schema, job(case)) == []
    assert mistakes(schema, job(case)) == []


def test_a_field_that_kuberay_does_not_know_and_a_value_that_it_does_not_take_are_noticed() -> None:
    (definition,) = (each for each in kuberay_crds() if each["spec"]["names"]["kind"] == "RayJob")
    schema = schema_of(definition, "v1")
    wrong = job("processors", overrides={"spec": {"entrypoints": "x", "rayClusterSpec": {"authOptions": {"mode": 1}}}})
    assert unknown_fields(schema, wrong) == ["spec.entrypoints"]
    assert mistakes(schema, wrong) == [
        'spec.rayClusterSpec.authOptions.mode: Invalid value: "integer": must be of type string: "integer"'
    ]


@every_case
def test_every_template_is_a_pod_that_kubernetes_takes(case: str) -> None:
    for name, template in templates(job(case)).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **template["metadata"]}}
        kubernetes_validate.validate(
            {**pod, "spec": template["spec"]}, kubernetes_validate.latest_version(), strict=True
        )


def test_the_secret_is_one_that_kubernetes_takes_and_has_the_environment() -> None:
    _, secret = render(request("processors"))
    kubernetes_validate.validate(secret, kubernetes_validate.latest_version(), strict=True)
    assert {key: base64.b64decode(value).decode() for key, value in secret["data"].items()} == ENV


def test_secrets_are_in_the_secret_alone_and_a_plan_does_not_show_them() -> None:
    launch = dataclasses.replace(request("elastic-queue"), secrets={"TOKEN": "hunter2!", "OTHER": "verysecret"})
    assert "hunter2!" not in repr(launch)
    job, secret = render(launch)
    assert {key: base64.b64decode(value).decode() for key, value in secret["data"].items()} == launch.secrets
    assert "hunter2!" not in to_yaml([job])
    for template in (job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"], templates(job)["worker"]):
        (container,) = template["spec"]["containers"]
        assert {"name": "RAYLIFT_SECRETS", "value": "TOKEN,OTHER"} in container["env"]
        assert {"secretRef": {"name": f"raylift.{RUN}"}} in container["envFrom"]
    shown = plan(launch).manifest
    assert "hunter2!" not in shown
    assert base64.b64encode(b"hunter2!").decode() not in shown
    assert base64.b64encode(b"not shown: a secret").decode() in shown


def test_a_run_without_environment_has_no_secret() -> None:
    assert [each["kind"] for each in render(request("elastic-queue"))] == ["RayJob"]


# Every manifest


@every_case
def test_everything_of_a_run_is_found_by_its_label(case: str) -> None:
    documents = render(request(case))
    labelled = [*documents, *templates(documents[0]).values()]
    wanted = {"app.kubernetes.io/managed-by": "raylift", "raylift.dev/run": RUN}
    assert [each["metadata"]["labels"].items() >= wanted.items() for each in labelled] == [True] * len(labelled)


@every_case
def test_no_container_may_more_than_the_standard_restricted_allows(case: str) -> None:
    manifest = job(case)
    for template in templates(manifest).values():
        security = template["spec"]["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] == 1000
        assert not {"hostNetwork", "hostPID", "hostIPC"} & template["spec"].keys()
        assert {key for volume in template["spec"]["volumes"] for key in volume} == {"name", "emptyDir"}
    autoscaler = manifest["spec"]["rayClusterSpec"].get("autoscalerOptions")
    for container in [*containers(manifest), *([autoscaler] if autoscaler else [])]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["runAsNonRoot"] is True
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert all(container["securityContext"]["readOnlyRootFilesystem"] for container in containers(manifest))


@every_case
def test_no_pod_is_handed_a_token_of_kubernetes_but_the_head_with_an_autoscaler(case: str) -> None:
    for name, template in templates(job(case)).items():
        account = block(case).service_account
        if name == "head" and case in ("elastic-queue", "a-sweep-on-accelerators"):
            assert template["spec"]["automountServiceAccountToken"] is True
            assert template["spec"]["serviceAccountName"] == "raylift-head"
        else:
            assert template["spec"]["automountServiceAccountToken"] is False
            assert template["spec"]["serviceAccountName"] == account


@every_case
def test_a_container_may_use_what_it_asked_for_and_no_more(case: str) -> None:
    for container in containers(job(case)):
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["resources"]["limits"].keys() >= {"cpu", "memory", "ephemeral-storage"}


@every_case
def test_the_pods_go_once_the_driver_has_ended_and_a_lost_driver_is_started_again(case: str) -> None:
    spec = job(case)["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] == 3
    assert spec["submitterConfig"]["backoffLimit"] > 0


@every_case
def test_ray_asks_for_a_token_and_listens_where_the_network_policies_let_it(case: str) -> None:
    spec = ray_cluster(case)
    assert spec["authOptions"] == {"mode": "token"}
    policies = (ROOT / "k8s" / "base" / "network-policies.yaml").read_text()
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        told = {key: value for key, value in group["rayStartParams"].items() if key.endswith("-port")}
        assert [f"{key} {value}" in policies for key, value in told.items()] == [True] * 4


@every_case
def test_what_ray_start_is_told_are_options_that_it_has(case: str) -> None:
    ray_start = pytest.importorskip("ray.scripts.scripts").start
    options = {name.removeprefix("--") for option in ray_start.params for name in option.opts}
    spec = ray_cluster(case)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group["rayStartParams"].keys() <= options


def test_the_version_of_ray_is_that_of_the_image() -> None:
    for lock in ("cpu.lock", "cuda.lock"):
        assert f"\nray=={RAY_VERSION}\n" in (ROOT / "requirements" / lock).read_text()
        for client in CLIENTS.values():
            assert f"\n{client}\n" in (ROOT / "requirements" / lock).read_text()
    least, below = TORCH
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'"torch>={least[0]}.{least[1]},<{below[0]}"' in pyproject
    assert f'"boto3[crt]>={".".join(map(str, fetch._LEAST["boto3"]))}"' in pyproject


# An image without raylift


def test_pods_without_an_image_of_their_own_fetch_raylift_before_ray_starts() -> None:
    (job,) = render(without_image())
    spec = job["spec"]["rayClusterSpec"]
    for template in (spec["headGroupSpec"]["template"], spec["workerGroupSpecs"][0]["template"]):
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]},
            kubernetes_validate.latest_version(),
            strict=True,
        )
        (first,), (ray,) = template["spec"]["initContainers"], template["spec"]["containers"]
        assert first["image"] == ray["image"] == "rayproject/ray:2.60.0-py312"
        assert first["args"] == [without_image().bundle, "/tmp/raylift", CLIENTS["s3"], "--torch-backend=cpu"]
        assert first["envFrom"] == [{"secretRef": {"name": "raylift-storage"}}]
        assert first["securityContext"] == ray["securityContext"]
        assert "$(" not in first["command"][2], "Kubernetes would expand it"
        assert first["command"][3] == "fetch"
        (path,) = [each["value"] for each in ray["env"] if each["name"] == "PYTHONPATH"]
        assert all(part.startswith("/tmp/raylift/4ae7c3b6") for part in path.split(":"))


def test_with_gpus_it_is_rays_image_for_gpus_and_the_first_container_takes_none() -> None:
    run = without_image()
    assert isinstance(run.cluster, KubernetesCluster)
    gpus = run.cluster.model_copy(update={"workers": None, "accelerators": "L4:1"})
    (job,) = render(dataclasses.replace(run, cluster=gpus))
    worker = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    (first,) = worker["initContainers"]
    assert first["image"] == "rayproject/ray:2.60.0-py312-gpu"
    assert first["args"][3:] == []
    assert "nvidia.com/gpu" not in first["resources"]["limits"]
    assert "nvidia.com/gpu" in worker["containers"][0]["resources"]["limits"]


def test_with_a_package_cache_pods_keep_what_they_install_where_those_after_them_find_it() -> None:
    run = without_image()
    assert isinstance(run.cluster, KubernetesCluster)
    cluster = run.cluster.model_copy(update={"package_cache": "raylift-packages"})
    claim = {"name": "raylift", "persistentVolumeClaim": {"claimName": "raylift-packages"}}
    for template in list(templates(render(dataclasses.replace(run, cluster=cluster))[0]).values())[:2]:
        assert [each for each in template["spec"]["volumes"] if each["name"] == "raylift"] == [claim]
        assert template["spec"]["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


def test_a_pod_template_may_keep_what_pods_fetch_on_their_node() -> None:
    place = {"hostPath": {"path": "/var/lib/kubelet/raylift", "type": "DirectoryOrCreate"}}
    kept = {"name": "raylift", "emptyDir": None, **place}
    run = without_image()
    assert isinstance(run.cluster, KubernetesCluster)
    cluster = run.cluster.model_copy(update={"pod_template": {"spec": {"volumes": [kept]}}})
    (job,) = render(dataclasses.replace(run, cluster=cluster))
    volumes = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    assert {"name": "raylift", **place} in volumes


def test_what_a_pod_template_gives_ray_is_given_to_what_fetches_raylift_too() -> None:
    ray = {
        "name": "ray",
        "image": "mirror.example/ray:2.60.0",
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}, {"name": "HOME", "value": "/tmp/home"}],
        "envFrom": [{"configMapRef": {"name": "index"}}],
        "volumeMounts": [{"name": "certificates", "mountPath": "/etc/ssl/certs"}],
        "resources": {"limits": {"memory": "6Gi"}},
    }
    volume = {"name": "certificates", "configMap": {"name": "certificates"}}
    run = without_image()
    assert isinstance(run.cluster, KubernetesCluster)
    cluster = run.cluster.model_copy(update={"pod_template": {"spec": {"containers": [ray], "volumes": [volume]}}})
    for template in list(templates(render(dataclasses.replace(run, cluster=cluster))[0]).values())[:2]:
        (first,), (second,) = template["spec"]["initContainers"], template["spec"]["containers"]
        given = {each["name"]: each.get("value") for each in first["env"]}
        assert (given["HTTPS_PROXY"], given["HOME"]) == ("http://proxy:3128", "/tmp/home")
        assert first["image"] == second["image"] == "mirror.example/ray:2.60.0"
        credentials = {"secretRef": {"name": "raylift-storage"}}
        assert first["envFrom"] == second["envFrom"] == [credentials, {"configMapRef": {"name": "index"}}]
        assert first["resources"]["limits"]["memory"] == "6Gi"
        mounts = {each["name"]: each["mountPath"] for each in first["volumeMounts"]}
        assert mounts == {"scratch": "/tmp", "raylift": "/tmp/raylift", "certificates": "/etc/ssl/certs"}


def test_a_variable_that_a_pod_template_gives_another_kind_of_value_has_that_alone() -> None:
    env: list[dict[str, Any]] = [
        {"name": "RAYLIFT_NODE_IP", "value": "10.0.0.1"},
        {"name": "HOME", "valueFrom": {"configMapKeyRef": {"name": "homes", "key": "home"}}},
    ]
    (job, *_) = render(request("plain", pod_template={"spec": {"containers": [{"name": "ray", "env": env}]}}))
    for template in list(templates(job).values())[:2]:
        given = {each["name"]: each for each in template["spec"]["containers"][0]["env"]}
        assert [given[each["name"]] for each in env] == env


# What a cluster block changes


def test_no_rank_is_placed_on_the_head_and_one_on_each_pod_of_processors() -> None:
    spec = ray_cluster("processors")
    (workers,) = spec["workerGroupSpecs"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert workers["rayStartParams"]["num-cpus"] == "1"
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (2, 2, 2)
    assert driver_cluster(block("processors")) == LocalCluster(address="auto", workers=2)


@every_case
def test_neither_the_head_nor_what_submits_has_or_is_shown_a_gpu(case: str) -> None:
    manifest = job(case)
    assert ray_cluster(case)["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
    shown = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}
    found = {name: each["spec"]["containers"][0] for name, each in templates(manifest).items()}
    assert {name: shown in each["env"] for name, each in found.items()} == {
        "head": True,
        "worker": False,
        "submitter": True,
    }
    for name in ("head", "submitter"):
        assert "nvidia.com/gpu" not in found[name]["resources"]["limits"]


def test_a_range_of_workers_has_an_autoscaler_and_the_driver_is_told_of_it() -> None:
    spec = ray_cluster("elastic-queue")
    (workers,) = spec["workerGroupSpecs"]
    assert spec["enableInTreeAutoscaling"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (1, 4)
    told = driver_cluster(block("elastic-queue"))
    assert told.workers == Workers(min=1, max=4)


@pytest.mark.parametrize(
    ("nodes", "told", "ranks"),
    [
        ({"min": 1, "max": 2}, Nodes(min=1, max=2), Workers(min=8, max=16)),
        ({"min": 0, "max": 3}, Nodes(min=0, max=3), Workers(min=1, max=24)),
        (2, 2, Workers(min=16, max=16)),
        (None, 1, Workers(min=8, max=8)),
    ],
    ids=str,
)
def test_the_driver_is_told_how_many_nodes_with_accelerators_there_may_be(
    nodes: Any, told: int | Nodes, ranks: Workers
) -> None:
    keys = {"accelerators": "H100:8", "nodes": nodes, "storage_secret": "raylift-storage"}
    spec = ray_cluster("plain", **keys)
    (workers,) = spec["workerGroupSpecs"]
    least, most = (told.min, told.max) if isinstance(told, Nodes) else (told, told)
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (least, least, most)
    assert spec.get("enableInTreeAutoscaling", False) == (least != most)
    driver = driver_cluster(block("plain", **keys))
    assert driver == LocalCluster(address="auto", nodes=told, accelerators="GPU:8")
    assert driver.workers_on_accelerators == ranks
    assert block("plain", **keys).most_workers == ranks.max


RANGE: dict[str, Any] = {"workers": {"min": 1, "max": 4}}
OTHER_ACCOUNT = {"template": {"spec": {"serviceAccountName": "other"}}}
FROM_A_MAP = {"spec": {"containers": [{"name": "ray", "envFrom": [{"configMapRef": {"name": "credentials"}}]}]}}


def test_a_head_with_an_autoscaler_whose_credentials_are_in_a_secret_has_the_account_that_kuberay_makes() -> None:
    head = ray_cluster("plain", **RANGE, storage_secret="raylift-storage")["headGroupSpec"]["template"]["spec"]
    assert not {"serviceAccountName", "automountServiceAccountToken"} & head.keys()


def test_a_range_of_workers_whose_head_could_not_go_to_storage_is_refused() -> None:
    with pytest.raises(UsageError, match=r"with a range of workers or nodes, KubeRay .*storage_secret; or"):
        render(request("plain", **RANGE))
    with pytest.raises(UsageError, match="which no bucket knows"):
        render(dataclasses.replace(request("plain", **RANGE), env={"AWS_REGION": "eu-central-1"}))
    cluster = request("plain", **RANGE).cluster
    assert isinstance(cluster, KubernetesCluster)
    with pytest.raises(UsageError, match="which no bucket knows"):
        render_cluster(ClusterRequest(name="dev", cluster=cluster, idle=60, secrets={"HF_TOKEN": "hunter2!"}))


@pytest.mark.parametrize(
    ("keys", "secrets"),
    [
        ({"head_service_account": "raylift-head"}, {}),
        ({"pod_template": FROM_A_MAP}, {}),
        ({}, {"AWS_ACCESS_KEY_ID": "0123456789"}),
        ({"overrides": {"spec": {"rayClusterSpec": {"headGroupSpec": OTHER_ACCOUNT}}}}, {}),
        ({"workers": 4}, {}),
    ],
)
def test_a_head_that_gets_credentials_in_any_way_is_taken(keys: dict[str, Any], secrets: dict[str, str]) -> None:
    run = dataclasses.replace(request("plain", **{**RANGE, **keys}), secrets=secrets)
    assert render(run)[0]["kind"] == "RayJob"
    assert isinstance(run.cluster, KubernetesCluster)
    assert render_cluster(ClusterRequest(name="dev", cluster=run.cluster, idle=60, secrets=secrets))


def test_a_number_of_workers_has_no_autoscaler() -> None:
    assert not {"enableInTreeAutoscaling", "autoscalerOptions"} & ray_cluster("processors").keys()


def test_there_is_a_rank_for_each_accelerator_of_each_node() -> None:
    assert driver_cluster(block("eight-gpus-a-node")).workers_on_accelerators == Workers(min=16, max=16)
    limits = templates(job("eight-gpus-a-node"))["worker"]["spec"]["containers"][0]["resources"]["limits"]
    assert (limits["nvidia.com/gpu"], limits["cpu"], limits["memory"]) == ("8", "96", "1Ti")
    assert "num-cpus" not in ray_cluster("eight-gpus-a-node")["workerGroupSpecs"][0]["rayStartParams"]


def test_the_head_has_no_accelerator() -> None:
    assert "nvidia.com/gpu" not in str(templates(job("eight-gpus-a-node"))["head"])


def test_a_kind_of_accelerator_is_asked_for_by_any_label_that_says_it() -> None:
    terms = node_terms(templates(job("plain", accelerators="L4:1"))["worker"])
    assert terms == [
        {"nvidia.com/gpu.product": ("In", ["NVIDIA-L4"])},
        {"cloud.google.com/gke-accelerator": ("In", ["nvidia-l4"])},
        {"karpenter.k8s.aws/instance-gpu-name": ("In", ["l4"])},
    ]


def test_any_kind_of_accelerator_asks_for_no_label_but_for_its_resource() -> None:
    worker = templates(job("plain", accelerators="gpu:2", accelerator_resource="amd.com/gpu"))["worker"]
    assert node_terms(worker) == []
    assert worker["spec"]["containers"][0]["resources"]["limits"]["amd.com/gpu"] == "2"
    assert worker["spec"]["tolerations"] == [{"key": "amd.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_each_kind_that_a_job_file_may_name_has_labels() -> None:
    assert set(_KINDS) - {"GPU"} == pods._PRODUCTS.keys()


def test_spot_alone_asks_for_a_spot_machine_with_the_accelerator_in_the_same_cloud() -> None:
    terms = node_terms(templates(job("spot-alone"))["worker"])
    assert len(terms) == 6
    assert all(len(term) == 2 for term in terms)
    assert {"cloud.google.com/gke-accelerator", "karpenter.sh/capacity-type"} not in [set(term) for term in terms]


def test_spot_with_a_fallback_prefers_spot_and_tolerates_its_taints() -> None:
    spec = templates(job("spot-with-fallback"))["worker"]["spec"]
    preferred = spec["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    labels = [each["preference"]["matchExpressions"][0]["key"] for each in preferred]
    assert labels == list(pods._SPOT)
    assert not any("spot" in key for term in node_terms({"spec": spec}) for key in term)
    assert {each["key"] for each in spec["tolerations"]} >= {
        "cloud.google.com/gke-spot",
        "kubernetes.azure.com/scalesetpriority",
    }


@pytest.mark.parametrize("spot", [True, False, {"fallback": "on-demand"}])
def test_the_head_is_on_no_spot_machine_once_spot_is_spoken_of(spot: Any) -> None:
    (term,) = node_terms(templates(job("processors", spot=spot))["head"])
    assert {operator for operator, _ in term.values()} == {"NotIn"}
    assert term.keys() == pods._SPOT.keys()


def test_without_a_word_of_spot_nothing_is_said_of_it() -> None:
    assert "spot" not in to_yaml(render(request("processors")))


def test_kuberay_ends_what_has_not_ended_by_itself_when_its_budget_was_used_up() -> None:
    start, save = 3600, 120  # seconds that pods may take to start, and for a last save
    assert job("spot-with-fallback")["spec"]["activeDeadlineSeconds"] == 12 * 3600 + start + save
    assert "activeDeadlineSeconds" not in job("processors")["spec"]


def test_pod_templates_reach_head_and_workers_and_lose_nothing_there() -> None:
    found = templates(job("spot-with-fallback"))
    for name in ("head", "worker"):
        (container,) = found[name]["spec"]["containers"]
        assert container["env"][-1] == {"name": "NCCL_DEBUG", "value": "INFO"}
        assert container["image"] == "registry.example/raylift:0.1.0"
        assert found[name]["metadata"]["annotations"] == {"example.com/team": "vision"}
    assert "annotations" not in found["submitter"]["metadata"]


def test_a_pod_template_adds_to_tolerations_and_to_what_variables_are_from() -> None:
    dedicated = {"key": "dedicated", "operator": "Exists"}
    index = {"configMapRef": {"name": "index"}}
    own = {"hostNetwork": True, "restartPolicy": "Always"}  # of Ray's pods alone
    template = {"spec": {"tolerations": [dedicated], "containers": [{"name": "ray", "envFrom": [index]}], **own}}
    (plain, *_), (manifest, *_) = (render(request("spot-with-fallback", pod_template=each)) for each in ({}, template))
    before, found = templates(plain), templates(manifest)
    taints = before["worker"]["spec"]["tolerations"]
    assert {each["key"] for each in taints} >= {"nvidia.com/gpu", "cloud.google.com/gke-spot"}
    assert found["worker"]["spec"]["tolerations"] == [*taints, dedicated]
    assert found["head"]["spec"]["tolerations"] == found["submitter"]["spec"]["tolerations"] == [dedicated]
    for name in ("head", "worker"):
        (was,), (container,) = before[name]["spec"]["containers"], found[name]["spec"]["containers"]
        assert len(was["envFrom"]) == 2  # the run's Secret, and the storage's
        assert container["envFrom"] == [*was["envFrom"], index]
    assert found["head"]["spec"]["hostNetwork"] is True
    assert found["submitter"]["spec"] == {**before["submitter"]["spec"], "tolerations": [dedicated]}


def test_overrides_come_last_and_null_takes_away() -> None:
    spec = job("spot-with-fallback")["spec"]
    assert spec["ttlSecondsAfterFinished"] == 600
    assert "preRunningDeadlineSeconds" not in spec


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        ({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}}, {"a": 1, "b": {"c": 2, "d": 3}}),
        ({"a": 1}, {"a": None, "b": None}, {}),
        ({"a": {"b": 1}}, {"a": 2}, {"a": 2}),
        (
            [{"name": "x", "v": 1}],
            [{"name": "x", "w": 2}, {"name": "y"}],
            [{"name": "x", "v": 1, "w": 2}, {"name": "y"}],
        ),
        ([{"key": "x"}], [{"key": "y"}], [{"key": "y"}]),
        (
            {"tolerations": [{"key": "x"}]},
            {"tolerations": [{"key": "x"}, {"key": "y"}]},
            {"tolerations": [{"key": "x"}, {"key": "y"}]},
        ),
        ({"tolerations": [{"key": "x"}]}, {"tolerations": None}, {}),
        ({"tolerations": [{"key": "x"}]}, {"tolerations": {"key": "y"}}, {"tolerations": {"key": "y"}}),  # a mistake
        ({}, {"envFrom": [{"x": 1}]}, {"envFrom": [{"x": 1}]}),
        ([], [{"name": "y"}], [{"name": "y"}]),
        (
            [{"name": "x", "mountPath": "/x"}],
            [{"name": "x", "mountPath": "/y"}, {"name": "x", "mountPath": "/z"}],
            [{"name": "x", "mountPath": each} for each in ("/x", "/y", "/z")],
        ),
        ([{"groupName": "x", "v": 1}], [{"groupName": "x", "w": 2}], [{"groupName": "x", "v": 1, "w": 2}]),
    ],
)
def test_what_is_laid_over_a_manifest_changes_what_it_names(base: Any, over: Any, merged: Any) -> None:
    assert merge(base, over) == merged


def test_what_kubernetes_would_expand_in_a_runs_uri_is_escaped() -> None:
    documents = render(dataclasses.replace(request("processors"), run_uri="s3://b/$(HOME)"))
    env = templates(documents[0])["head"]["spec"]["containers"][0]["env"]
    assert {"name": "RAYLIFT_RUN_URI", "value": "s3://b/$$(HOME)"} in env


# Names


@given(st.from_regex(r"[a-z]([a-z0-9-]*[a-z0-9])?", fullmatch=True).filter(lambda name: len(name) <= 22))
def test_an_id_that_raylift_makes_is_a_name_with_all_that_kuberay_adds(name: str) -> None:
    made = object_name(new_run_id(name))
    assert len(made) <= NAME_LENGTH
    for suffix in ("-abcde", "-abcde-head-svc", "-abcde-serve-svc"):
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", made + suffix)


@pytest.mark.parametrize("run_id", ["2nd", "ends-", "-", "x" * 48, "Upper", "a_b", "a.b", ""])
def test_an_id_that_is_no_name_is_refused_before_anything_is_made(run_id: str) -> None:
    with pytest.raises(UsageError, match="begins with a letter and does not end with a dash, and has at most 47"):
        object_name(run_id)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"overrides": {"metadata": {"namespace": "team"}}}, r"overrides\n.*cluster\.namespace says where it is"),
        ({"overrides": {"metadata": {"name": "mine"}}}, r"overrides\n.*--id says what a run is called"),
        ({"overrides": {"metadata": {"labels": {"raylift.dev/run": "x"}}}}, "labels: raylift.dev/run is what raylift"),
        ({"overrides": {"metadata": {"annotations": None}}}, "metadata.annotations is a block"),
        ({"overrides": {"metadata": None}}, "metadata is a block"),
        ({"overrides": {"kind": "RayService"}}, "kind stays as it is"),
        ({"overrides": {"spec": None}}, "spec is a block"),
        ({"overrides": {"spec": {"rayClusterSpec": None}}}, "rayClusterSpec is a block"),
        ({"overrides": {"spec": {"rayClusterSpec": {"headGroupSpec": []}}}}, "headGroupSpec is a block"),
        ({"pod_template": {"spec": {"containers": None}}}, r"pod_template\n.*containers is a list"),
        (
            {"pod_template": {"metadata": {"labels": {"app.kubernetes.io/managed-by": "x"}}}},
            "managed-by is what raylift",
        ),
        (
            {"pod_template": {"spec": {"serviceAccountName": "mine"}}, "workers": {"min": 1, "max": 4}},
            "say service_account for the workers, and head_service_account for the head",
        ),
    ],
)
def test_what_a_run_is_found_by_and_what_its_pods_need_can_neither_be_changed_nor_taken_away(
    keys: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValidationError, match=why):
        request("plain", **keys)


def test_every_id_that_a_run_may_have_is_short_enough() -> None:
    assert RUN_ID.fullmatch("x" * NAME_LENGTH) is None


def test_a_run_on_a_cluster_with_a_name_heeds_what_overrides_say_of_its_job_and_not_of_the_cluster() -> None:
    run = on_named_cluster()
    assert isinstance(run.cluster, KubernetesCluster)
    security = {"spec": {"containers": [{"name": "ray-job-submitter", "securityContext": {"runAsUser": 1001}}]}}
    overrides = {
        "metadata": {"annotations": {"sidecar.istio.io/inject": "false"}},
        "spec": {
            "preRunningDeadlineSeconds": 99,
            "submitterPodTemplate": security,
            "rayClusterSpec": {"rayVersion": "1.0.0"},
            "backoffLimit": 3,
        },
    }
    (job,) = render(dataclasses.replace(run, cluster=run.cluster.model_copy(update={"overrides": overrides})))
    assert job["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false"
    assert (job["spec"]["preRunningDeadlineSeconds"], job["spec"]["backoffLimit"]) == (99, 0)
    assert "rayClusterSpec" not in job["spec"]
    (submitter,) = job["spec"]["submitterPodTemplate"]["spec"]["containers"]
    assert submitter["securityContext"]["runAsUser"] == 1001
    assert submitter["securityContext"]["allowPrivilegeEscalation"] is False


def test_an_environment_that_is_too_large_for_a_secret_is_refused() -> None:
    with pytest.raises(UsageError, match="together they have 1,100,000 bytes, and a Secret of Kubernetes 1,04"):
        render(dataclasses.replace(request("plain"), env={"LARGE": "x" * 1_100_000}))


# The cluster block


@pytest.mark.parametrize(
    ("keys", "mistake"),
    [
        ({"workers": 2, "nodes": 2}, "workers are ranks on processors"),
        ({"workers": 2, "accelerators": "L4:1"}, "workers are ranks on processors"),
        ({"nodes": 2}, "nodes are pods with accelerators, and there are none"),
        ({"nodes": {"min": 3, "max": 2}, "accelerators": "L4:1"}, "3 is more than max, which is 2"),
        ({"head_service_account": "raylift-run"}, "raylift-run is that of all pods, and KubeRay would let them change"),
        ({"accelerators": "RTX:1"}, "RTX:1 is of no kind that is known here: GPU, T4, V100"),
        ({"resources": {"memory": "4G"}}, "String should match pattern"),
        ({"image": ""}, "at least 1 character"),
        ({"namespace": "A"}, "String should match pattern"),
        ({"storage_secret": "a..b"}, "String should match pattern"),
        ({"image": "raylift :cuda"}, "String should match pattern"),
        ({"node_selector": {"pool": "a b"}}, "String should match pattern"),
        ({"node_selector": {"a b": "pool"}}, "String should match pattern"),
        ({"package_cache": "raylift-packages"}, "is for pods that install packages, and image: x has them"),
    ],
)
def test_a_block_that_cannot_be_is_refused(keys: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ValidationError, match=mistake):
        KubernetesCluster.model_validate({"provider": "kubernetes", "image": "x", **keys})


# YAML

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "yes",
        "Off",
        "y",
        "null",
        "~",
        "1e3",
        "0x1F",
        "012",
        "1_000",
        "12:30:45",
        "2026-01-01",
        ".5",
        "=",
        "<<",
        "a: b",
        "- a",
    ]
)
VALUES = st.recursive(
    TEXTS | st.integers() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_yaml_reads_the_same_by_the_rules_of_1_1_and_of_1_2(document: dict[str, Any]) -> None:
    text = to_yaml([document])
    assert yaml.safe_load(text) == document
    assert YAML(typ="safe").load(text) == document


@settings(deadline=None)
@given(st.lists(st.sampled_from(["species", "petal length", "\t", "\n", "\\d+", "a: b", "# c"]), max_size=60))
def test_a_long_text_with_tabs_stays_what_it_is(words: list[str]) -> None:
    document = {"value": "\t".join(words)}
    assert yaml.safe_load(to_yaml([document])) == YAML(typ="safe").load(to_yaml([document])) == document
