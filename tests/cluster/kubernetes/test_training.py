"""From the command line to a trained model through Kubernetes' API: pods are processes here, with a real Ray."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.kubernetes.versions import IMAGE as RAYS_OWN
from cluster.runs import Run
from cluster.segments import IN_STORAGE
from cluster.trials import trial_run
from tests.harness import ROOT, fresh_id, open_run, raylift, wait_for
from tests.needs import long
from tests.real.seaweedfs import SeaweedFS
from tests.stand_ins.kubernetes.bare import bare_image
from tests.stand_ins.kubernetes.kubelet import processes
from tests.stand_ins.kubernetes.kuberay import Operator, operator
from tests.stand_ins.kubernetes.server import ApiServer

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

IMAGE = "registry.example/raylift:cpu"
BLOCK = f"""
provider: kubernetes
image: '{IMAGE}'
workers: 2
storage_secret: raylift-storage
ttl_seconds_after_finished: 0
"""
SWEEP = f"""
task: diabetes:Diabetes
workdir: '{ROOT / "examples"}'
params: {{width: 64, dropout: 0.2}}
train: {{epochs: 3, batch_size: 32}}
tune: {{trials: 3, search: random, scheduler: none, space: {{params.dropout: {{uniform: [0, 0.5]}}}}}}
"""
PATIENT = 400.0  # seconds; a start of Ray, its nodes and the ranks takes half a minute on an idle machine
OF_A_RUN = ("RayJob", "RayCluster", "Pod", "Service", "Job", "Secret")


@pytest.fixture
def kuberay(server: ApiServer, s3_env: SeaweedFS, tmp_path: Path) -> Iterator[Operator]:
    """Return the operator and the Secret of the bucket.

    There are an image that is this checkout and its environment, and Ray's own, which has no raylift.
    """
    data = {name: base64.b64encode(value.encode()).decode() for name, value in s3_env.env.items()}
    server.create("Secret", {"metadata": {"name": "raylift-storage"}, "data": data}, "raylift")
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    # Ray's start on a busy machine takes longer than it waits for by itself
    patient = {"RAY_raylet_start_wait_time_s": "300"}
    own = {"PATH": path, "PYTHONPATH": str(ROOT), **patient}
    with operator(server, {IMAGE: own, RAYS_OWN: {**bare_image(tmp_path / "image"), **patient}}) as running:
        yield running


@pytest.fixture
def run(s3_env: SeaweedFS) -> Run:
    """Return a run that is still to be made."""
    return open_run(s3_env.fresh_uri(), fresh_id("digits"))


@pytest.fixture
def on(tmp_path: Path, run: Run) -> list[str]:
    """Return what sends a job to the cluster, as that run."""
    (tmp_path / "k8s.yaml").write_text(BLOCK)
    (tmp_path / "bare.yaml").write_text(BLOCK.replace(f"image: '{IMAGE}'\n", ""))
    return ["--on", str(tmp_path / "k8s.yaml"), "--storage", run.storage.uri, "--id", run.id]


def pods_of(server: ApiServer, role: str) -> list[dict[str, Any]]:
    pods = server.all("Pod")
    return [each for each in pods if each["metadata"]["labels"].get("ray.io/node-type") == role]


def left_in(server: ApiServer) -> list[str]:
    names = [each["metadata"]["name"] for kind in OF_A_RUN for each in server.all(kind)]
    return [name for name in names if name != "raylift-storage"]


@pytest.mark.usefixtures("kuberay")
def test_a_sweep_of_a_task_of_ones_own_goes_on_on_a_cluster_with_a_name_while_the_laptop_sleeps(
    server: ApiServer, run: Run, on: list[str], tmp_path: Path
) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    made = raylift("up", "dev", "--on", on[1], "--idle", "0.4")
    assert made.returncode == 0, made.stdout + made.stderr
    launched = raylift("run", tmp_path / "sweep.yaml", *on, "--cluster", "dev", "--detach")
    assert launched.returncode == 0, launched.stdout + launched.stderr
    wait_for(lambda: state_of(server, run.id) in ("Complete", "Failed"), "the end of the RayJob", timeout=PATIENT)
    job = server.get("RayJob", "raylift", run.id)
    assert job is not None
    told = json.loads(raylift("status", run.uri, "--json").stdout)
    assert job["status"]["jobDeploymentStatus"] == "Complete", (job["status"], told)
    assert told["state"] == "SUCCEEDED", told
    assert [trial["state"] for trial in told["sweep"]["trials"]] == ["SUCCEEDED"] * 3
    assert raylift("export", run.uri, tmp_path / "model").returncode == 0
    assert (tmp_path / "model" / "code" / "diabetes.py").is_file()
    assert raylift("rm", run.uri, "--yes").returncode == 0
    wait_for(lambda: state_of(server, "dev") == "Complete", "the end of the idle cluster", timeout=120)
    wait_for(lambda: not pods_of(server, "head") + pods_of(server, "worker"), "the end of its pods", timeout=60)
    assert raylift("down", "dev", "--on", on[1]).returncode == 0
    assert left_in(server) == []


@pytest.mark.usefixtures("kuberay")
@long
def test_a_sweep_is_a_job_of_its_own_that_finds_its_best_trial_and_leaves_nothing_in_the_cluster(
    server: ApiServer, run: Run, on: list[str], tmp_path: Path
) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    followed = raylift("run", tmp_path / "sweep.yaml", *on, timeout=PATIENT)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert left_in(server) == []
    assert processes() == []
    told = json.loads(raylift("status", run.uri, "--json").stdout)
    assert told["state"] == "SUCCEEDED", told
    assert [trial["state"] for trial in told["sweep"]["trials"]] == ["SUCCEEDED"] * 3
    stored = {name: trial_run(run, name).rows("metrics") for name in ("00000", "00001", "00002")}
    values = {name: [row["eval_loss"] for row in rows if row["kind"] == "eval"][-1] for name, rows in stored.items()}
    assert told["sweep"]["best"] == min(values, key=lambda name: values[name])
    assert raylift("export", run.uri, tmp_path / "model").returncode == 0
    assert (tmp_path / "model" / "code" / "diabetes.py").is_file()


@pytest.mark.usefixtures("kuberay")
@long
def test_a_run_that_is_stopped_in_the_midst_of_training_saves_its_step_and_its_job_is_complete(
    server: ApiServer, run: Run, on: list[str]
) -> None:
    job = ROOT / "examples" / "digits.yaml"
    launched = raylift(
        "run", job, *on, "--set", "train.epochs=5000", "--set", "checkpoint.every=4000 epochs", "--detach"
    )
    assert launched.returncode == 0, launched.stdout + launched.stderr
    wait_for(lambda: run.attempts() and run.rows_of(1, "metrics"), "a step", timeout=PATIENT)
    stopped = raylift("stop", run.uri)
    assert "is asked to save and stop" in stopped.stdout, stopped.stdout + stopped.stderr
    wait_for(lambda: state_of(server, run.id) in ("Complete", "Failed"), "the end of the RayJob", timeout=PATIENT)
    assert state_of(server, run.id) == "Complete"
    told = json.loads(raylift("status", run.uri, "--json").stdout)
    last = max(row["step"] for row in run.rows_of(1, "metrics"))
    assert (told["state"], told["reason"]) == ("STOPPED", f"stopped by raylift stop; saved at step {last}")
    assert told["checkpoints"] == [last]
    assert any(IN_STORAGE.encode() in printed for printed in server.logs.values())
    assert raylift("rm", run.uri, "--yes").returncode == 0
    assert left_in(server) == []


def state_of(server: ApiServer, name: str) -> str:
    job = server.get("RayJob", "raylift", name)
    return str((job or {}).get("status", {}).get("jobDeploymentStatus", ""))
