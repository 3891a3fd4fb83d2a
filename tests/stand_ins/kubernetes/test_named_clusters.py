"""The operator and clusters with a name: they end by themselves, and two runs on one are nothing to it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config import KubernetesCluster
from cluster.kubernetes import clusters as clusters_module
from cluster.kubernetes.clusters import NamedClusters
from cluster.kubernetes.named import ClusterRequest
from cluster.kubernetes.provider import KubernetesProvider
from cluster.provider import LaunchRequest, State
from tests.cluster.kubernetes.golden import request
from tests.harness import ROOT, open_run, wait_for
from tests.stand_ins.kubernetes.kuberay import Operator, operator
from tests.stand_ins.kubernetes.server import ApiServer, api_server

pytestmark = pytest.mark.slow

Object = dict[str, Any]
NAME = "dev"
IMAGE = "registry.example/raylift:0.1.0"
# In the place of trainers.submitted: notes what it is told, and ends as the file `go` of its run says.
DRIVER = """
import os, pathlib, sys, time
folder = pathlib.Path(__file__).parents[2]
run = os.environ["RAYLIFT_RUN_URI"].rpartition("/")[2]
count = len(list(folder.glob(f"{run}-start-*")))
(folder / f"{run}-start-{count}").write_text(f"{os.environ.get('LEVEL')} {os.environ.get('HF_TOKEN')}")
while not (folder / f"{run}-go").exists():
    time.sleep(0.05)
sys.exit(int((folder / f"{run}-go").read_text().split()[count]))
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    (tmp_path / "api").mkdir()
    monkeypatch.setattr(clusters_module, "_POLL", 0.02)
    with api_server(tmp_path / "api") as server:
        server.create("Namespace", {"metadata": {"name": "raylift"}})
        server.create("ServiceAccount", {"metadata": {"name": "raylift-run"}}, "raylift")
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig("admin", "admin-token")))
        yield server


@pytest.fixture
def kuberay(server: ApiServer, tmp_path: Path) -> Iterator[Operator]:
    """Return the operator, with one image, in which `ray` and the driver are small ones."""
    programs, shadow = tmp_path / "bin", tmp_path / "shadow" / "trainers"
    programs.mkdir()
    little = ROOT / "tests" / "stand_ins" / "kubernetes" / "little_ray.py"
    for name, line in (("ray", f"{sys.executable} -P {little}"), ("python", sys.executable)):
        (programs / name).write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        (programs / name).chmod(0o755)
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text(f"__path__.append({str(ROOT / 'trainers')!r})\n")
    (shadow / "submitted.py").write_text(DRIVER)
    image = {"PATH": f"{programs}:/usr/bin:/bin", "PYTHONPATH": f"{shadow.parent}:{ROOT}"}
    with operator(server, {IMAGE: image}) as running:
        yield running


@pytest.fixture
def cluster() -> KubernetesCluster:
    no_hook = {"spec": {"containers": [{"name": "ray", "lifecycle": None}]}}  # there is no storage to ask
    block = {"pod_template": no_hook, "termination_grace_period_seconds": 30}
    found = request("processors", image=IMAGE, **block).cluster
    assert isinstance(found, KubernetesCluster)
    return found


@pytest.fixture
def clusters(cluster: KubernetesCluster, kuberay: Operator) -> NamedClusters:  # noqa: ARG001
    return NamedClusters(cluster)


def asked(cluster: KubernetesCluster, idle: int) -> ClusterRequest:
    return ClusterRequest(name=NAME, cluster=cluster, idle=idle, secrets={"HF_TOKEN": "hunter2!"})


def launch(
    clusters: NamedClusters, cluster: KubernetesCluster, folder: Path, run_id: str, **spec: object
) -> KubernetesProvider:
    named = cluster.model_copy(update={"name": NAME, "overrides": {"spec": spec}})
    stored = open_run(folder, run_id)
    stored.create(f"env: {{LEVEL: $(of) {run_id}}}".encode())
    run = LaunchRequest(
        run_id=run_id,
        run_uri=stored.uri,
        cluster=named,
        max_failures=1,
        env={"LEVEL": f"$(of) {run_id}"},
        secrets={"HF_TOKEN": ""},
    )
    provider = KubernetesProvider(named)
    provider.launch(clusters.place(run))
    return provider


def state_of(server: ApiServer, name: str) -> str:
    job = server.get("RayJob", "raylift", name)
    return str((job or {}).get("status", {}).get("jobDeploymentStatus", ""))


def reaches(server: ApiServer, name: str, state: str) -> None:
    wait_for(lambda: state_of(server, name) == state, f"{name}: {state}", timeout=60)


def starts(folder: Path, run_id: str, count: int) -> None:
    wait_for(lambda: (folder / f"{run_id}-start-{count - 1}").exists(), f"start {count} of {run_id}", timeout=60)


def test_two_runs_share_a_cluster_that_outlives_them_and_ends_by_itself_once_it_is_idle(
    server: ApiServer, clusters: NamedClusters, cluster: KubernetesCluster, tmp_path: Path
) -> None:
    clusters.up(asked(cluster, idle=4))
    first = launch(clusters, cluster, tmp_path, "first")
    second = launch(clusters, cluster, tmp_path, "second")
    starts(tmp_path, "first", 1)
    starts(tmp_path, "second", 1)
    assert (tmp_path / "first-start-0").read_text() == "$(of) first hunter2!"
    (tmp_path / "first-go").write_text("1 0")  # its driver is lost once
    starts(tmp_path, "first", 2)
    reaches(server, "first", "Complete")
    assert first.teardown("first").leftovers == []
    time.sleep(6)  # longer than a cluster without a run would be kept
    assert second.describe("second").state is State.RUNNING
    assert clusters.runs_on(NAME) == ["second"]
    (tmp_path / "second-go").write_text("0")
    reaches(server, "second", "Complete")
    reaches(server, NAME, "Complete")
    wait_for(lambda: not server.all("RayCluster"), "the end of the cluster", timeout=60)
    wait_for(
        lambda: [each["metadata"]["labels"]["raylift.dev/run"] for each in server.all("Pod")] == ["second"], "pods"
    )
    assert second.teardown("second").leftovers == []
    assert clusters.down(NAME).leftovers == []
    for kind in ("RayJob", "Pod", "Service", "Job", "Secret"):
        assert server.all(kind) == []


def test_a_head_that_is_lost_comes_again_with_its_keeper_and_the_driver(
    server: ApiServer, kuberay: Operator, clusters: NamedClusters, cluster: KubernetesCluster, tmp_path: Path
) -> None:
    clusters.up(asked(cluster, idle=4))
    launch(clusters, cluster, tmp_path, "first")
    starts(tmp_path, "first", 1)
    head = next(each for each in server.all("Pod") if each["metadata"]["labels"].get("ray.io/node-type") == "head")
    kuberay.kubelet.kill(head)
    starts(tmp_path, "first", 2)
    (tmp_path / "first-go").write_text("0 0")
    reaches(server, "first", "Complete")
    reaches(server, NAME, "Complete")
    wait_for(lambda: not server.all("RayCluster"), "the end of the cluster", timeout=60)


def test_down_ends_a_run_in_the_middle_and_leaves_nothing(
    server: ApiServer, clusters: NamedClusters, cluster: KubernetesCluster, tmp_path: Path
) -> None:
    clusters.up(asked(cluster, idle=600))
    launch(clusters, cluster, tmp_path, "first")
    starts(tmp_path, "first", 1)
    assert clusters.down(NAME).leftovers == []
    for kind in ("RayJob", "RayCluster", "Pod", "Service", "Job", "Secret"):
        assert server.all(kind) == []


def test_a_run_whose_cluster_somebody_deletes_does_not_stand_as_running_for_ever(
    server: ApiServer, clusters: NamedClusters, cluster: KubernetesCluster, tmp_path: Path
) -> None:
    clusters.up(asked(cluster, idle=600))
    provider = launch(clusters, cluster, tmp_path, "first", activeDeadlineSeconds=20)
    starts(tmp_path, "first", 1)
    server.delete("RayJob", "raylift", NAME)
    wait_for(lambda: not server.all("RayCluster"), "the end of the cluster", timeout=60)
    assert provider.describe("first").state is State.FAILED  # long before KubeRay says so
    reaches(server, "first", "Failed")
    assert provider.describe("first").reason.startswith(f"the cluster {NAME} is gone")
    assert provider.teardown("first").leftovers == []
    wait_for(lambda: not server.all("Pod"), "the end of all pods")


@pytest.mark.usefixtures("kuberay")
def test_a_job_that_kuberay_does_not_take_is_failed_with_its_reason(server: ApiServer) -> None:
    spec = {"entrypoint": "true", "clusterSelector": {"ray.io/cluster": "dev-x7k2p"}, "backoffLimit": 3}
    server.create("RayJob", {"metadata": {"name": "wrong"}, "spec": spec}, "raylift")
    reaches(server, "wrong", "ValidationFailed")
