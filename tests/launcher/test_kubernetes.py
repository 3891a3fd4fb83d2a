"""The commands for a run on Kubernetes, as far as they ask nobody."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.harness import raylift_here
from tests.test_structure import modules_of

BLOCK = "cluster: {provider: kubernetes, image: 'registry.example/raylift:cpu', workers: 2}\n"
STORAGE = "s3://bucket/runs"


@pytest.fixture
def job_file(job: Callable[..., Path], home: Path) -> Path:
    (home / "k8s.yaml").write_text(BLOCK)
    return job("cluster: {workers: 4}\n")


def test_a_plan_tells_what_would_be_in_the_cluster(job_file: Path) -> None:
    done = raylift_here("plan", job_file, "--on", "k8s.yaml", "--storage", STORAGE, "--env", "A=b", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["provider"] == "kubernetes"
    found = {each["kind"]: (each["name"], each["detail"]) for each in told["resources"]}
    assert found["RayJob"] == (told["run_id"], "in raylift")
    assert found["Secret"] == (f"raylift.{told['run_id']}", "in raylift")
    assert found["workers"] == ("2 pods", "each 1 CPU, 4Gi memory, 10Gi disk")


def test_a_plan_in_yaml_is_what_would_be_applied_and_nothing_else(job_file: Path) -> None:
    options = ("--on", "k8s.yaml", "--storage", STORAGE, "--set", "budget.max_hours=2", "--set", "train.max_failures=7")
    done = raylift_here("plan", job_file, *options, "--yaml")
    assert done.returncode == 0, done.stderr
    (manifest,) = yaml.safe_load_all(done.stdout)
    assert (manifest["kind"], manifest["spec"]["backoffLimit"]) == ("RayJob", 7)
    assert manifest["spec"]["activeDeadlineSeconds"] == 7200 + 3600 + 120
    assert manifest["metadata"]["annotations"]["raylift.dev/run-uri"].startswith(f"{STORAGE}/job-")


def test_a_plan_of_a_run_with_an_id_is_that_of_the_same_run_each_time(job_file: Path) -> None:
    options = ("--on", "k8s.yaml", "--storage", STORAGE, "--id", "mine")
    first, second = (raylift_here("plan", job_file, *options, "--yaml") for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    (manifest,) = yaml.safe_load_all(first.stdout)
    assert manifest["metadata"]["name"] == "mine"
    assert manifest["metadata"]["annotations"]["raylift.dev/run-uri"] == f"{STORAGE}/mine"


@pytest.mark.parametrize(
    ("budget", "hours"), [("max_usd: 20", 5), ("max_usd: 20, max_hours: 2", 2), ("max_usd: 20, max_hours: 9", 5)]
)
def test_a_budget_of_money_is_one_of_hours_too(job_file: Path, budget: str, hours: int) -> None:
    cluster = "{provider: kubernetes, image: x, usd_per_hour: 4}"
    settings = ["--set", f"cluster={cluster}", "--set", f"budget={{{budget}}}", "--storage", STORAGE]
    done = raylift_here("plan", job_file, *settings, "--yaml")
    assert done.returncode == 0, done.stderr
    (manifest,) = yaml.safe_load_all(done.stdout)
    assert manifest["spec"]["activeDeadlineSeconds"] == hours * 3600 + 3600 + 120


def test_a_plan_for_programs_has_the_price_and_the_manifest(job_file: Path) -> None:
    options = ("--on", "k8s.yaml", "--storage", STORAGE, "--id", "mine")
    told = json.loads(raylift_here("plan", job_file, *options, "--json").stdout)
    assert told["usd_per_hour"] is None
    assert told["manifest"] == raylift_here("plan", job_file, *options, "--yaml").stdout
    priced = raylift_here("plan", job_file, *options, "--set", "cluster.usd_per_hour=98", "--json")
    assert json.loads(priced.stdout)["usd_per_hour"] == 98
    here = json.loads(raylift_here("plan", job_file, "--json").stdout)
    assert (here["usd_per_hour"], here["manifest"]) == (0, None)


def test_a_plan_in_yaml_of_a_run_on_this_machine_is_refused(job_file: Path) -> None:
    done = raylift_here("plan", job_file, "--yaml")
    assert done.returncode == 2
    assert "provider local applies no manifest; kubernetes does" in done.stderr


def test_a_rehearsal_runs_on_this_machine_and_says_how(job_file: Path) -> None:
    cluster = ("--set", f"cluster={BLOCK.removeprefix('cluster: ').strip()}", "--storage", STORAGE)
    done = raylift_here("rehearse", job_file, *cluster)
    assert re.search(r"^note: a rehearsal runs on this machine, so as with --set 'cluster=\{", done.stderr)
    assert done.returncode == 3, "which then asks for the keys of its bucket"
    assert "AWS_ACCESS_KEY_ID" in done.stderr


def test_a_plan_on_kubernetes_needs_no_client_of_it(job_file: Path, home: Path) -> None:
    options = ("--on", str(home / "k8s.yaml"), "--storage", STORAGE)
    modules = modules_of("-m", "launcher.cli.main", "plan", str(home / job_file), *options)
    assert "cluster.kubernetes.manifest" in modules
    assert modules.isdisjoint({"kubernetes", "torch", "ray", "boto3"})
