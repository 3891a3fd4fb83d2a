"""Runs on Kubernetes that lose pods, and whose cluster grows: pods are processes here, with a real Ray."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from cluster.config import KubernetesCluster
from cluster.kubernetes.provider import KubernetesProvider
from cluster.runs import Run
from cluster.ticket import Ticket
from cluster.trials import trial_run
from launcher.remote import remote_of
from tests.cluster.kubernetes import test_training
from tests.cluster.kubernetes.test_training import BLOCK, PATIENT, pods_of
from tests.finished import train
from tests.harness import ROOT, Started, losses, raylift, start_raylift, wait_for
from tests.k8s.manifests import render_with
from tests.stand_ins.kubernetes.kubelet import processes
from tests.stand_ins.kubernetes.kuberay import Operator
from tests.stand_ins.kubernetes.kueue import Kueue
from tests.stand_ins.kubernetes.server import ApiServer

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]
kuberay, run, on = test_training.kuberay, test_training.run, test_training.on

DIGITS = ROOT / "examples" / "digits.yaml"
SWEEP = """
task: image-classification
data: {train: builtin:digits, eval: {split: 0.2}}
train: {epochs: 60, batch_size: 256}
tune: {trials: 2, search: random, scheduler: none, space: {train.optimizer.lr: {loguniform: [1e-4, 1e-2]}}}
"""
EPOCHS = 60  # long enough to be disturbed four times
MORE = ("--set", f"train.epochs={EPOCHS}", "--set", "checkpoint.every=20 steps")
OF_A_RUN = ("RayJob", "RayCluster", "Pod", "Service", "Job", "Secret", "ServiceAccount", "Role", "RoleBinding")


def has_saved(run: Run, attempt: int, process: Started) -> bool:
    """Whether an attempt has saved, while the command goes on that follows it."""
    assert process.poll() is None, process.communicate()[0]
    return attempt in run.attempts() and any(row["event"] == "checkpoint" for row in run.rows_of(attempt, "events"))


@pytest.fixture
def left(server: ApiServer, kuberay: Operator) -> Callable[[], list[str]]:  # noqa: ARG001
    """Return what says which objects are there that were not before the run."""

    def there() -> list[str]:
        return [f"{kind} {each['metadata']['name']}" for kind in OF_A_RUN for each in server.all(kind)]

    before = there()
    return lambda: [each for each in there() if each not in before]


def test_the_digits_example_goes_through_lost_pods_in_an_image_without_raylift_as_if_nothing_had_been(
    server: ApiServer, kuberay: Operator, run: Run, on: list[str], tmp_path: Path, left: Callable[[], list[str]]
) -> None:
    on[1] = str(tmp_path / "bare.yaml")
    with start_raylift("run", DIGITS, *on, *MORE) as process:
        wait_for(partial(has_saved, run, 1, process), "a save of attempt 1", timeout=PATIENT)
        drained = pods_of(server, "worker")[0]
        kuberay.kubelet.drain(drained["spec"]["nodeName"])
        leaving = KubernetesProvider(KubernetesCluster.model_validate(yaml.safe_load(BLOCK))).describe(run.id).reason
        wait_for(partial(has_saved, run, 2, process), "a save of attempt 2", timeout=PATIENT)
        (starved, _) = pods_of(server, "worker")
        kuberay.kubelet.kill(starved, out_of_memory=True)
        wait_for(partial(has_saved, run, 3, process), "a save of attempt 3", timeout=PATIENT)
        told = json.loads(raylift("status", run.uri, "--json").stdout)
        server.delete("Pod", "raylift", pods_of(server, "head")[0]["metadata"]["name"])
        wait_for(partial(has_saved, run, 4, process), "a save of attempt 4", timeout=PATIENT)
        kuberay.kubelet.kill(pods_of(server, "head")[0])
        output, _ = process.communicate(timeout=PATIENT)
    assert process.returncode == 0, output
    assert leaving == f"the pod {drained['metadata']['name']} had to leave its node: Eviction API: evicting"
    name, limit = starved["metadata"]["name"], starved["spec"]["containers"][0]["resources"]["limits"]["memory"]
    assert told["reason"] == f"the pod {name} was killed for lack of memory: its limit is {limit}"
    assert json.loads(raylift("status", run.uri, "--json").stdout)["metrics"]["eval_accuracy"] > 0.96
    assert len((tmp_path / "image" / "uv.log").read_text().splitlines()) >= 3, "each pod installs what it needs"
    assert "removed from the cluster" in output
    assert left() == []
    assert processes() == []
    bases = {claim.attempt: claim.base.step for claim in run.claims() if claim.base is not None}
    assert list(bases) == [2, 3, 4, 5]
    for deleted in (1, 3):
        saved, *_ = [row["step"] for row in run.rows_of(deleted, "events") if row["event"] == "preempted"]
        assert bases[deleted + 1] == saved, "who has a notice saves the newest step"
        assert max(row["step"] for row in run.rows_of(deleted, "metrics")) <= saved, "no step is done twice"
    assert list(bases.values()) == sorted(bases.values())
    assert raylift("verify", run.uri).returncode == 0
    job = DIGITS.read_text().replace("epochs: 15", f"epochs: {EPOCHS}")
    assert losses(run) == losses(train(tmp_path / "undisturbed", job, ranks=2, timeout=PATIENT))


def on_a_range(tmp_path: Path) -> None:
    (tmp_path / "k8s.yaml").write_text(BLOCK.replace("workers: 2", "workers: {min: 1, max: 2}"))


@pytest.mark.usefixtures("kuberay")
def test_a_run_goes_on_with_more_workers_once_the_autoscaler_has_brought_them(
    server: ApiServer, run: Run, on: list[str], tmp_path: Path, left: Callable[[], list[str]]
) -> None:
    on_a_range(tmp_path)
    launched = raylift("run", DIGITS, *on, "--set", "train.epochs=5000", "--detach")
    assert launched.returncode == 0, launched.stdout + launched.stderr

    def ranks() -> list[int]:
        return [row["world_size"] for row in run.all_rows("events") if row["event"] == "training"]

    wait_for(lambda: ranks() == [1, 2], "a second rank", timeout=PATIENT)
    assert raylift("stop", run.uri).returncode == 0
    wait_for(lambda: not is_running(server, run.id), "the end of the RayJob", timeout=PATIENT)
    assert json.loads(raylift("status", run.uri, "--json").stdout)["state"] == "STOPPED"
    assert raylift("rm", run.uri, "--yes").returncode == 0
    assert left() == []


@pytest.mark.usefixtures("kuberay")
def test_a_run_on_a_cluster_with_a_name_has_its_autoscaler_bring_the_workers_that_it_lacks(
    server: ApiServer, run: Run, on: list[str], tmp_path: Path, left: Callable[[], list[str]]
) -> None:
    on_a_range(tmp_path)
    made = raylift("up", "dev", "--on", on[1])
    assert made.returncode == 0, made.stdout + made.stderr
    wait_for(lambda: len(pods_of(server, "worker")) == 1, "the worker that it always has", timeout=PATIENT)
    (tmp_path / "k8s.yaml").write_text(BLOCK)
    longer = ("--set", "train.epochs=5000", "--env", "GREETING=hello")
    launched = raylift("run", DIGITS, *on, "--cluster", "dev", *longer, "--detach")
    assert launched.returncode == 0, launched.stdout + launched.stderr

    def events(name: str) -> list[dict[str, Any]]:
        return [row for row in run.all_rows("events") if row["event"] == name]

    wait_for(lambda: events("training"), "its ranks", timeout=PATIENT)
    assert [(row["workers"], row["least"]) for row in events("waiting")][:1] == [(1, 2)]
    assert [row["world_size"] for row in events("training")] == [2]
    assert len(pods_of(server, "worker")) == 2
    remote = remote_of(run)
    assert remote is not None
    command = re.compile(rb"trainers\.attended (\S+)")  # Ray prints the line that starts a job
    found = wait_for(lambda: command.search(b"".join(remote.logs(run.id, follow=False))), "that line", timeout=PATIENT)
    assert "GREETING" not in str(Ticket.of(found[1].decode()))
    assert raylift("stop", run.uri).returncode == 0
    wait_for(lambda: not is_running(server, run.id), "the end of its RayJob", timeout=PATIENT)
    assert raylift("rm", run.uri, "--yes").returncode == 0
    assert raylift("down", "dev", "--on", on[1]).returncode == 0
    assert left() == []


@pytest.mark.waiting
@pytest.mark.usefixtures("kuberay")
def test_a_run_whose_queue_takes_its_pods_back_saves_and_goes_on_when_its_turn_comes_again(
    server: ApiServer, run: Run, on: list[str], tmp_path: Path, left: Callable[[], list[str]]
) -> None:
    (tmp_path / "k8s.yaml").write_text(f"{BLOCK}queue: gpu\n")
    for document in render_with(tmp_path, "resources: [base]\ncomponents: [components/kueue]\n"):
        if document["metadata"]["name"] == "raylift-queues":  # else nobody but the queue knows why it waits
            server.create(document["kind"], document, "raylift")
    queue = Kueue(server, "raylift")
    with start_raylift("run", DIGITS, *on, *MORE) as process:
        wait_for(lambda: server.all("RayJob"), "the launch", timeout=PATIENT)
        queue.admit(run.id)
        wait_for(partial(has_saved, run, 1, process), "a save of attempt 1", timeout=PATIENT)
        queue.evict(run.id, "Preempted by somebody else")
        wait_for(
            lambda: not pods_of(server, "head") + pods_of(server, "worker"), "the end of the pods", timeout=PATIENT
        )
        told = json.loads(raylift("status", run.uri, "--json").stdout)
        queue.admit(run.id)
        output, _ = process.communicate(timeout=PATIENT)
    assert process.returncode == 0, output
    assert (told["state"], told["reason"]) == (
        "PENDING",
        "it waits in the queue gpu (Preempted by somebody else): Pending",
    )
    assert told["reason"] in output
    saved, *_ = [row["step"] for row in run.rows_of(1, "events") if row["event"] == "preempted"]
    assert [claim.base.step for claim in run.claims() if claim.base is not None] == [saved]
    assert max(row["step"] for row in run.rows_of(1, "metrics")) <= saved, "no step is done twice"
    assert [each for each in left() if "raylift-queues" not in each] == []
    assert processes() == []


def test_a_sweep_grows_and_loses_a_node_while_the_laptop_sleeps(
    server: ApiServer, kuberay: Operator, run: Run, on: list[str], tmp_path: Path, left: Callable[[], list[str]]
) -> None:
    on_a_range(tmp_path)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    launched = raylift("run", tmp_path / "sweep.yaml", *on, "--detach")
    assert launched.returncode == 0, launched.stdout + launched.stderr
    trial = trial_run(run, "00000")
    wait_for(lambda: trial.attempts() and trial.rows_of(1, "metrics"), "the first trial", timeout=PATIENT)
    wait_for(lambda: len(pods_of(server, "worker")) == 2, "a second worker", timeout=PATIENT)
    address = psutil.Process(trial.claims()[0].pid).environ()["RAYLIFT_NODE_IP"]
    (drained,) = [each for each in pods_of(server, "worker") if each["status"].get("podIP") == address]
    kuberay.kubelet.drain(drained["spec"]["nodeName"])
    wait_for(lambda: not is_running(server, run.id), "the end of the RayJob", timeout=PATIENT)
    (job,) = server.all("RayJob")
    told = json.loads(raylift("status", run.uri, "--json").stdout)
    assert job["status"]["jobDeploymentStatus"] == "Complete", (job["status"], told)
    assert told["state"] == "SUCCEEDED", told
    assert [trial["state"] for trial in told["sweep"]["trials"]] == ["SUCCEEDED"] * 2
    saved = [row["step"] for row in trial.rows_of(1, "events") if row["event"] == "preempted"]
    assert [claim.base.step for claim in trial.claims() if claim.base is not None] == saved
    assert len(saved) == 1
    assert raylift("export", run.uri, tmp_path / "model").returncode == 0
    wait_for(lambda: not pods_of(server, "head") + pods_of(server, "worker"), "the end of the pods", timeout=60)
    assert raylift("rm", run.uri, "--yes").returncode == 0
    assert left() == []


def is_running(server: ApiServer, name: str) -> bool:
    job = server.get("RayJob", "raylift", name)
    assert job is not None
    return job.get("status", {}).get("jobDeploymentStatus") not in ("Complete", "Failed")
