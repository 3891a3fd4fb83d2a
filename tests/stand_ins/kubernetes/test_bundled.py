"""Pods whose image has no raylift: they run the one that the launcher has put into storage. Ray is a small stand-in."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cluster import code
from cluster.config import KubernetesCluster
from cluster.kubernetes.provider import KubernetesProvider
from cluster.kubernetes.versions import IMAGE
from cluster.provider import State
from cluster.runs import Run
from tests.cluster.kubernetes.conftest import LAUNCHER
from tests.harness import ROOT, fresh_id, open_run, raylift, raylift_here, wait_for
from tests.k8s.manifests import K8S, read, render, render_with
from tests.real.seaweedfs import SeaweedFS
from tests.stand_ins.kubernetes.access import User
from tests.stand_ins.kubernetes.bare import bare_image
from tests.stand_ins.kubernetes.kuberay import operator
from tests.stand_ins.kubernetes.server import ApiServer, Fault, api_server

pytestmark = pytest.mark.slow

BLOCK = """
provider: kubernetes
workers: 1
storage_secret: raylift-storage
termination_grace_period_seconds: 30
pod_template: {spec: {containers: [{name: ray, lifecycle: null}]}}
overrides: {spec: {entrypoint: 'python -P -m cluster.code'}}
"""


@pytest.fixture
def server(tmp_path: Path, s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """Return a cluster whose one image is Ray's own, as far as that has no raylift."""
    (tmp_path / "api").mkdir()
    image = bare_image(tmp_path / "image")
    little = ROOT / "tests" / "stand_ins" / "kubernetes" / "little_ray.py"
    (tmp_path / "image" / "bin" / "ray").write_text(f'#!/bin/sh\nexec {sys.executable} -P {little} "$@"\n')
    with api_server(tmp_path / "api") as server:
        for document in render(K8S / "base"):
            server.create(document["kind"], document, document["metadata"].get("namespace", ""))
        data = {name: base64.b64encode(value.encode()).decode() for name, value in s3_env.env.items()}
        server.create("Secret", {"metadata": {"name": "raylift-storage"}, "data": data}, "raylift")
        server.tokens[LAUNCHER] = User.service_account("raylift", "raylift-launcher")
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig("launcher", LAUNCHER)))
        with operator(server, {IMAGE: image}):
            yield server


def launched(storage: SeaweedFS, folder: Path) -> Run:
    """Launch the digits job on the cluster that `folder` describes."""
    run = open_run(storage.fresh_uri(), fresh_id("digits"))
    options = ["--on", str(folder / "k8s.yaml"), "--storage", run.storage.uri, "--id", run.id]
    done = raylift("run", ROOT / "examples" / "digits.yaml", *options, "--detach")
    assert done.returncode == 0, done.stdout + done.stderr
    return run


def has_ended(server: ApiServer, name: str) -> bool:
    job = server.get("RayJob", "raylift", name)
    assert job is not None
    return job.get("status", {}).get("jobDeploymentStatus") in ("Complete", "Failed")


def test_a_pod_without_raylift_runs_the_one_of_the_bundle(server: ApiServer, s3_env: SeaweedFS, tmp_path: Path) -> None:
    (tmp_path / "k8s.yaml").write_text(BLOCK)
    run = launched(s3_env, tmp_path)
    (bundle,) = [each.path for each in run.storage.list(f"{run.id}/code/")]
    wait_for(partial(has_ended, server, run.id), "the end of the job", timeout=120)
    (printed,) = [bytes(log) for log in server.logs.values() if code.digest().encode() in log]
    digest = Path(bundle).stem
    assert f"/raylift/{digest}/code/cluster/code.py" in printed.decode(), printed
    assert raylift("rm", run.uri, "--yes").returncode == 0
    assert list(run.storage.list(f"{run.id}/")) == []


def test_with_a_package_cache_a_node_installs_once_and_waits_until_it_has_the_folder(
    server: ApiServer, s3_env: SeaweedFS, tmp_path: Path
) -> None:
    server.delete("ResourceQuota", "raylift", "raylift")
    for document in render_with(tmp_path, "resources: [base]\ncomponents: [components/package-cache]\n"):
        if document["kind"] in ("ResourceQuota", "PersistentVolumeClaim"):
            server.create(document["kind"], document, "raylift")
    volume, *folders = read(K8S / "components" / "package-cache" / "node-folders.yaml")

    def launch() -> Run:
        (tmp_path / "k8s.yaml").write_text(f"{BLOCK}package_cache: raylift-packages\n")
        return launched(s3_env, tmp_path)

    def waits_for(run: Run, what: str) -> None:
        provider = KubernetesProvider(KubernetesCluster(provider="kubernetes"))
        wait_for(lambda: what in provider.describe(run.id).reason, what, timeout=60)

    def installs(run: Run) -> int:
        wait_for(partial(has_ended, server, run.id), "the end of the job", timeout=120)
        assert raylift("rm", run.uri, "--yes").returncode == 0
        return len((tmp_path / "image" / "uv.log").read_text().splitlines())

    run = launch()
    waits_for(run, "unbound immediate PersistentVolumeClaims")
    server.create("PersistentVolume", volume)
    waits_for(run, "/var/lib/kubelet/raylift/packages is not a directory")
    for document in folders:
        server.create(document["kind"], document, document["metadata"].get("namespace", ""))
    before = installs(run)
    assert before > 0
    assert installs(launch()) == before


def test_a_run_whose_pods_cannot_fetch_raylift_says_so_also_when_they_are_deleted(
    server: ApiServer, s3_env: SeaweedFS, tmp_path: Path
) -> None:
    wrong = {"AWS_SECRET_ACCESS_KEY": base64.b64encode(b"wrong").decode()}
    server.change("Secret", "raylift", "raylift-storage", lambda secret: secret["data"].update(wrong))
    (tmp_path / "k8s.yaml").write_text(BLOCK)
    run = open_run(s3_env.fresh_uri(), fresh_id("digits"))
    options = ["--on", str(tmp_path / "k8s.yaml"), "--storage", run.storage.uri, "--id", run.id]
    assert raylift_here("run", ROOT / "examples" / "digits.yaml", *options, "--detach").returncode == 0

    def deleted() -> list[str]:
        return [each["message"] for each in server.all("Event") if each["reason"] == "DeletedHeadPod"]

    wait_for(deleted, "a head that is deleted", timeout=60)
    status = KubernetesProvider(KubernetesCluster(provider="kubernetes")).describe(run.id)
    assert status.state is State.PROVISIONING
    assert re.search("SignatureDoesNotMatch|ended before it had fetched raylift", status.reason), status.reason
    assert all(each.endswith("Ray container terminated status: nil") for each in deleted())
    assert raylift_here("stop", "--now", run.uri).returncode == 0


def test_a_check_has_a_pod_write_to_storage_and_leaves_nothing(
    server: ApiServer, s3_env: SeaweedFS, tmp_path: Path
) -> None:
    (tmp_path / "k8s.yaml").write_text(BLOCK)
    storage = s3_env.fresh_uri()

    def there() -> tuple[bool, str]:
        done = raylift("check", "--on", tmp_path / "k8s.yaml", "--storage", storage, "--json")
        found = {each["name"]: each for each in json.loads(done.stdout)}
        return found["storage there"]["ok"], found["storage there"]["detail"]

    server.faults.append(Fault("GET /api/v1/namespaces/raylift/pods/", cut=4))  # what it printed
    assert there() == (True, f"a pod has written to {storage}, and is gone again")
    assert list(open_run(storage, "x").storage.list("")) == []
    wrong = {"AWS_SECRET_ACCESS_KEY": base64.b64encode(b"wrong").decode()}
    server.change("Secret", "raylift", "raylift-storage", lambda secret: secret["data"].update(wrong))
    ok, said = there()
    assert not ok
    assert "SignatureDoesNotMatch" in said
    assert server.all("RayJob") == server.all("RayCluster") == server.all("Pod") == []
