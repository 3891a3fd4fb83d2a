"""Clusters with a name: made, found, used by runs, refused with what to type, and taken away."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from cluster.config import KubernetesCluster
from cluster.errors import (
    InfrastructureError,
    MaybeLaunchedError,
    RayliftError,
    RunExistsError,
    RunNotFoundError,
    UsageError,
)
from cluster.kubernetes.clusters import NamedClusters
from cluster.kubernetes.documents import to_yaml
from cluster.kubernetes.manifest import render
from cluster.kubernetes.named import ClusterRequest, render_cluster
from cluster.kubernetes.planned import plan
from cluster.kubernetes.provider import KubernetesProvider
from cluster.provider import LaunchRequest, State
from cluster.ticket import Ticket
from launcher.cli.app import app
from tests.cluster.kubernetes.dying import deaths
from tests.cluster.kubernetes.golden import FOLDER, RUN_ID, named_cluster, on_named_cluster, request
from tests.cluster.kubernetes.golden import documents as kept
from tests.cluster.kubernetes.kuberay import take_up
from tests.harness import ROOT
from tests.stand_ins.kubernetes.schemas import kuberay_crds, mistakes, schema_of, unknown_fields
from tests.stand_ins.kubernetes.server import ApiServer, Fault

Object = dict[str, Any]
NAME = "dev"


def block(**more: Any) -> KubernetesCluster:
    cluster = request("processors", termination_grace_period_seconds=30, **more).cluster
    assert isinstance(cluster, KubernetesCluster)
    return cluster


def asked(**more: Any) -> ClusterRequest:
    return ClusterRequest(**{"name": NAME, "cluster": block(), "idle": 1800, "code": "c0de", **more})


def launch(**more: Any) -> LaunchRequest:
    cluster = block(name=NAME, **more)
    return dataclasses.replace(request("processors"), cluster=cluster, code="c0de", max_failures=2)


@pytest.fixture
def clusters(server: ApiServer) -> NamedClusters:  # noqa: ARG001
    return NamedClusters(block())


def job_of(server: ApiServer, name: str = NAME) -> Object:
    job = server.get("RayJob", "raylift", name)
    assert job is not None
    return job


def runs(server: ApiServer, clusters: NamedClusters, run: LaunchRequest) -> Object:
    """Launch a run on the cluster, and return its job."""
    placed = clusters.place(run)
    KubernetesProvider(block()).launch(placed)
    return job_of(server, run.run_id)


# Manifests


@pytest.mark.parametrize("name", ["named-cluster", "on-a-named-cluster", "no-image"])
def test_a_manifest_is_as_it_was_looked_over(name: str) -> None:
    documents = kept()[name]
    assert to_yaml(documents) == (FOLDER / f"{name}.yaml").read_text()
    (definition,) = (each for each in kuberay_crds() if each["spec"]["names"]["kind"] == "RayJob")
    schema = schema_of(definition, "v1")
    assert unknown_fields(schema, documents[0]) == []
    assert mistakes(schema, documents[0]) == []


def test_kuberay_is_left_nothing_with_which_it_would_end_a_cluster_of_others() -> None:
    (job,) = render(on_named_cluster())
    assert job["spec"]["backoffLimit"] == 0
    assert {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"}.isdisjoint(job["spec"])


def test_what_a_run_is_told_goes_through_a_shell_and_has_nothing_of_its_environment() -> None:
    odd = {"GREETING": "$(id) `id` \"'\\\n!", "AWS_REGION": "eu-west-1"}
    run = dataclasses.replace(on_named_cluster(), env=odd, secrets={"HF_TOKEN": "hunter2!"}, deadline=60)
    (job,) = render(run)
    *_, word = job["spec"]["entrypoint"].split(" ")
    assert all(each.isalnum() or each in "-_=" for each in word)
    ticket = Ticket.of(word)
    assert ticket.variables["RAYLIFT_RUN_URI"] == run.run_uri
    assert ticket.variables["RAYLIFT_SECRETS"] == "HF_TOKEN"
    assert ticket.variables["AWS_REGION"] == "eu-west-1"  # without which its job file might not be found
    assert (ticket.max_failures, ticket.deadline) == (3, 180)
    for hidden in ("GREETING", "hunter2!"):  # Ray writes this line into the log of a job, too
        assert hidden not in to_yaml([job])
        assert hidden not in str(ticket)


@pytest.mark.parametrize(("budget", "days"), [(86_400, 8), (None, 35)])
def test_kuberay_gives_up_a_run_whose_cluster_has_gone_and_none_that_still_trains(
    budget: int | None, days: int
) -> None:
    (job,) = render(dataclasses.replace(on_named_cluster(), deadline=budget))
    assert job["spec"]["activeDeadlineSeconds"] // 86_400 == days


def test_a_queue_decides_over_the_cluster_and_not_over_the_runs_on_it() -> None:
    cluster, _ = render_cluster(dataclasses.replace(named_cluster(), cluster=block(queue="gpu")))
    run = dataclasses.replace(on_named_cluster(), cluster=block(queue="gpu", name=NAME))
    label = "kueue.x-k8s.io/queue-name"
    assert cluster["metadata"]["labels"][label] == "gpu"
    assert label not in render(run)[0]["metadata"]["labels"]


def test_the_plan_of_a_run_on_a_cluster_shows_what_comes_to_it() -> None:
    shown = plan(on_named_cluster())
    assert [(each.kind, each.name) for each in shown.resources] == [("RayJob", RUN_ID), ("cluster", NAME)]
    assert shown.manifest == to_yaml(render(on_named_cluster()))


@pytest.mark.parametrize("name", ["Dev", "1st", "ends-", "x" * 41, "x\n", ""])
def test_a_name_that_no_run_could_give_is_refused_before_anything_is_asked(name: str) -> None:
    with pytest.raises(UsageError, match=r"the name of a cluster is of lower-case letters.* at most 40 characters"):
        render_cluster(asked(name=name))
    with pytest.raises(ValidationError, match="pattern"):
        KubernetesCluster(provider="kubernetes", name=name)


@pytest.mark.parametrize("name", ["x", "x" * 40])
def test_a_name_that_a_cluster_has_is_one_that_a_run_can_give(name: str) -> None:
    assert render_cluster(asked(name=name))[0]["metadata"]["name"] == name
    assert KubernetesCluster(provider="kubernetes", name=name).name == name


# Making one


def test_a_cluster_that_is_made_twice_is_made_once(server: ApiServer, clusters: NamedClusters) -> None:
    assert clusters.up(asked(secrets={"HF_TOKEN": "hunter2!"})) is True
    before = job_of(server)
    assert clusters.up(asked(secrets={"HF_TOKEN": "hunter2!"})) is False
    assert job_of(server)["spec"] == before["spec"]
    assert job_of(server)["metadata"]["uid"] == before["metadata"]["uid"]
    (secret,) = server.all("Secret")
    assert secret["metadata"]["ownerReferences"][0]["uid"] == before["metadata"]["uid"]


@pytest.mark.parametrize("ended", [False, True])
def test_a_laptop_that_dies_at_any_step_of_up_leaves_what_the_next_up_completes(
    server: ApiServer, clusters: NamedClusters, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    def begin() -> None:
        if ended:  # and is made anew
            clusters.up(asked())
            server.set_status("RayJob", "raylift", NAME, jobDeploymentStatus="Complete")

    begin()
    died = []
    for changes in deaths(monkeypatch, lambda: clusters.up(asked(secrets={"HF_TOKEN": "hunter2!"}))):
        clusters.up(asked(secrets={"HF_TOKEN": "hunter2!"}))
        (secret,) = server.all("Secret")
        assert secret["metadata"]["ownerReferences"][0]["uid"] == job_of(server)["metadata"]["uid"]
        assert clusters.down(NAME).leftovers == []
        died.append(changes)
        begin()
    assert died == list(range(3 if ended else 2)), "the job that has ended, the new one; the Secret is the last call"


def test_a_cluster_whose_secret_is_refused_is_taken_back(server: ApiServer, clusters: NamedClusters) -> None:
    server.faults.append(Fault("PATCH /api/v1", status=403, message="exceeded quota: raylift"))
    with pytest.raises(InfrastructureError, match="the quota of the namespace is used up"):
        clusters.up(asked(secrets={"HF_TOKEN": "hunter2!"}))
    assert server.all("RayJob") == []


def test_a_cluster_that_was_there_stays_where_its_secret_is_refused(server: ApiServer, clusters: NamedClusters) -> None:
    clusters.up(asked(secrets={"HF_TOKEN": "hunter2!"}))
    server.faults.append(Fault("PATCH /api/v1", status=403))
    with pytest.raises(InfrastructureError):
        clusters.up(asked(secrets={"HF_TOKEN": "hunter2!"}))
    assert len(server.all("RayJob")) == 1


def test_a_cluster_that_cannot_be_taken_back_is_said_to_be_there(server: ApiServer, clusters: NamedClusters) -> None:
    server.faults += [Fault("PATCH /api/v1", status=403), Fault("DELETE", status=403)]
    with pytest.raises(MaybeLaunchedError, match=r"dev may be there all the same\. .*raylift down dev --on"):
        clusters.up(asked(secrets={"HF_TOKEN": "hunter2!"}))
    assert clusters.down(NAME).leftovers == []


def test_of_two_laptops_that_make_a_cluster_at_once_the_one_that_fails_leaves_it_to_the_other(
    server: ApiServer, clusters: NamedClusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    clusters.up(asked(secrets={"HF_TOKEN": "hunter2!"}))
    monkeypatch.setattr(NamedClusters, "_job", lambda *_: None)  # as it was when the second one asked
    server.faults.append(Fault("PATCH /api/v1", status=403))
    with pytest.raises(MaybeLaunchedError):
        clusters.up(asked(secrets={"HF_TOKEN": "hunter2!"}))
    assert len(server.all("RayJob")) == len(server.all("Secret")) == 1


def test_two_laptops_that_make_a_cluster_of_other_settings_at_once_make_that_of_the_first(
    server: ApiServer, clusters: NamedClusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    clusters.up(asked())
    before = job_of(server)
    alive, first = clusters._job, iter([True])
    monkeypatch.setattr(clusters, "_job", lambda name: None if next(first, False) else alive(name))
    with pytest.raises(UsageError, match="made with other settings"):
        clusters.up(asked(idle=60))
    assert job_of(server) == before


def test_a_reply_that_is_lost_after_kuberay_took_the_cluster_up_is_no_second_cluster(
    server: ApiServer, clusters: NamedClusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    clusters.up(asked())
    take_up(server, NAME, finalizer=True)
    uid = job_of(server)["metadata"]["uid"]
    alive, first = clusters._job, iter([True])
    monkeypatch.setattr(clusters, "_job", lambda name: None if next(first, False) else alive(name))
    clusters.up(asked())
    assert job_of(server)["metadata"]["uid"] == uid


def test_other_settings_do_not_change_a_cluster_that_is_there(server: ApiServer, clusters: NamedClusters) -> None:
    clusters.up(asked())
    before = job_of(server)
    with pytest.raises(UsageError, match=r"made with other settings.*raylift down dev"):
        clusters.up(asked(idle=60))
    assert job_of(server) == before


@pytest.mark.parametrize("status", ["Complete", "Failed"])
def test_a_cluster_that_has_ended_is_made_anew(server: ApiServer, clusters: NamedClusters, status: str) -> None:
    clusters.up(asked())
    first = job_of(server)["metadata"]["uid"]
    server.set_status("RayJob", "raylift", NAME, jobDeploymentStatus=status)
    assert clusters.up(asked(idle=60)) is True
    assert job_of(server)["metadata"]["uid"] != first


def test_a_run_of_that_name_is_no_cluster(server: ApiServer, clusters: NamedClusters) -> None:
    server.create("RayJob", {"metadata": {"name": NAME}, "spec": {"entrypoint": "sleep 1"}}, "raylift")
    for refused in (lambda: clusters.up(asked()), lambda: clusters.place(launch()), lambda: clusters.down(NAME)):
        with pytest.raises(RunExistsError, match="that is no cluster with a name"):
            refused()
    assert len(server.all("RayJob")) == 1


def test_rights_that_are_missing_are_named_before_a_cluster_is_made(server: ApiServer, clusters: NamedClusters) -> None:
    server.change("Role", "raylift", "raylift-launcher", lambda role: role.update(rules=role["rules"][1:]))
    with pytest.raises(InfrastructureError, match=r"you may not: create rayjobs\.ray\.io"):
        clusters.up(asked())


# Runs on one


def test_two_runs_are_on_one_cluster_and_neither_takes_it_away(server: ApiServer, clusters: NamedClusters) -> None:
    clusters.up(asked())
    take_up(server, NAME)
    ray_cluster = job_of(server)["status"]["rayClusterName"]
    other = dataclasses.replace(launch(), run_id="second", run_uri="s3://bucket/runs/second")
    for run in (launch(), other):
        assert runs(server, clusters, run)["spec"]["clusterSelector"] == {"ray.io/cluster": ray_cluster}
    assert clusters.runs_on(NAME) == sorted([RUN_ID, "second"])
    receipt = KubernetesProvider(block()).teardown(RUN_ID)
    assert receipt.leftovers == []
    assert clusters.runs_on(NAME) == ["second"]
    assert server.get("RayCluster", "raylift", ray_cluster) is not None
    (found,) = clusters.all()
    assert (found.name, found.idle, found.runs) == (NAME, 1800, ["second"])


def test_a_cluster_that_is_not_there_is_named_with_those_that_are(clusters: NamedClusters) -> None:
    clusters.up(asked(name="prod"))
    with pytest.raises(UsageError, match=r"no cluster dev in the namespace raylift: there are prod\. .*raylift up dev"):
        clusters.place(launch())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code": "0ther"}, "has another raylift than this machine"),
        ({"secrets": {"HF_TOKEN": ""}}, "have no HF_TOKEN.*raylift up dev --on … --secret HF_TOKEN"),
        (
            {"cluster": block(name=NAME).model_copy(update={"workers": 3})},
            "2 workers at most, and the job asks for 3: ",
        ),
        (
            {"cluster": block(name=NAME).model_copy(update={"workers": None, "accelerators": "L4:1"})},
            "has workers of the kind cpu, and the job asks for l4",
        ),
    ],
)
def test_a_run_that_does_not_fit_is_refused_before_it_is_made(
    server: ApiServer, clusters: NamedClusters, change: Object, message: str
) -> None:
    clusters.up(asked())
    take_up(server, NAME)
    with pytest.raises(UsageError, match=message):
        clusters.place(dataclasses.replace(launch(), **change))
    assert clusters.place(launch()).ray_cluster


@pytest.mark.parametrize(
    ("asks", "fits"),
    [
        ({"accelerators": "H100:1"}, True),
        ({"accelerators": "H100:2", "nodes": 2}, True),
        ({"accelerators": "H100:4"}, True),  # on two nodes
        ({"accelerators": "H100:8"}, False),
        ({"accelerators": "H100:2", "nodes": 3}, False),
        ({"accelerators": "H100:1", "accelerator_resource": "example.com/gpu"}, False),
    ],
)
def test_a_run_is_on_a_cluster_that_has_all_its_accelerators(
    server: ApiServer, clusters: NamedClusters, asks: Object, fits: bool
) -> None:
    def on_gpus(**keys: Any) -> KubernetesCluster:
        return block(workers=None, **keys)

    clusters.up(asked(cluster=on_gpus(accelerators="H100:2", nodes=2)))
    take_up(server, NAME)
    run = dataclasses.replace(launch(), cluster=on_gpus(name=NAME, **asks))
    if fits:
        assert clusters.place(run).ray_cluster
        return
    with pytest.raises(UsageError, match=r"the cluster dev has 2 × \d \S+ at most, and the job asks for \d × \d"):
        clusters.place(run)


def test_a_run_is_not_sent_to_a_cluster_that_has_ended(server: ApiServer, clusters: NamedClusters) -> None:
    clusters.up(asked())
    server.set_status("RayJob", "raylift", NAME, jobDeploymentStatus="Complete")
    with pytest.raises(UsageError, match=r"the cluster dev has ended\. Start it again: raylift up dev"):
        clusters.place(launch())
    (found,) = clusters.all()
    assert (found.state, found.reason) == (State.SUCCEEDED, "ended: no run for 30 min")


def test_a_run_whose_cluster_is_gone_has_failed_and_says_so(server: ApiServer, clusters: NamedClusters) -> None:
    clusters.up(asked())
    take_up(server, NAME)
    job = runs(server, clusters, launch())
    server.set_status("RayJob", "raylift", RUN_ID, jobDeploymentStatus="Running", jobStatus="RUNNING")
    assert clusters.provider.describe(RUN_ID).state is State.RUNNING
    server.delete("RayCluster", "raylift", job["spec"]["clusterSelector"]["ray.io/cluster"])
    status = clusters.provider.describe(RUN_ID)
    assert status.state is State.FAILED
    assert status.reason.startswith("the cluster dev is gone. Start it again: raylift up dev --on …")
    assert status.reason.endswith(f"raylift resume {status.run_uri}")


# Taking one away


def test_down_ends_the_runs_too_and_leaves_nothing(server: ApiServer, clusters: NamedClusters) -> None:
    clusters.up(asked(secrets={"HF_TOKEN": "hunter2!"}))
    take_up(server, NAME)
    runs(server, clusters, launch())
    assert clusters.down(NAME).leftovers == []
    for kind in ("RayJob", "RayCluster", "Pod", "Service", "Job", "Secret"):
        assert server.all(kind) == []
    with pytest.raises(RunNotFoundError, match="there is no cluster dev"):
        clusters.down(NAME)


def test_a_laptop_that_dies_at_any_step_of_down_leaves_what_the_next_down_removes(
    server: ApiServer, clusters: NamedClusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin() -> None:
        clusters.up(asked(secrets={"HF_TOKEN": "hunter2!"}))
        take_up(server, NAME)
        runs(server, clusters, launch())

    begin()
    died = []
    for changes in deaths(monkeypatch, lambda: clusters.down(NAME)):
        with contextlib.suppress(RunNotFoundError):
            assert clusters.down(NAME).leftovers == []
        for kind in ("RayJob", "RayCluster", "Pod", "Service", "Job", "Secret"):
            assert server.all(kind) == []
        died.append(changes)
        begin()
    assert died == [0, 1, 2, 3, 4], "of the run its job and its Secret, of the cluster those and that of the token"


def test_down_ends_the_jobs_that_wait_for_a_cluster_which_somebody_has_deleted(
    server: ApiServer, clusters: NamedClusters
) -> None:
    clusters.up(asked())
    take_up(server, NAME)
    runs(server, clusters, launch())
    server.delete("RayJob", "raylift", NAME)
    assert clusters.down(NAME).leftovers == []
    assert server.all("RayJob") == []


def test_down_names_what_is_left_of_a_cluster_whose_own_job_has_gone(
    server: ApiServer, clusters: NamedClusters
) -> None:
    clusters.up(asked())
    made = take_up(server, NAME)
    name = made["cluster"]["metadata"]["name"]
    server.change("RayCluster", "raylift", name, lambda value: value["metadata"].update(finalizers=["held.example/by"]))
    server.delete("RayJob", "raylift", NAME)
    for _ in range(2):
        assert ("RayCluster", name) in [(each.kind, each.name) for each in clusters.down(NAME).leftovers]
    server.change("RayCluster", "raylift", name, lambda value: value["metadata"].update(finalizers=[]))
    with pytest.raises(RunNotFoundError, match="there is no cluster dev"):
        clusters.down(NAME)


def test_a_run_that_was_on_an_earlier_cluster_of_the_name_is_not_on_this_one(
    server: ApiServer, clusters: NamedClusters
) -> None:
    clusters.up(asked())
    take_up(server, NAME)
    run = runs(server, clusters, launch())["metadata"]["name"]
    assert clusters.runs_on(NAME) == [run]
    server.delete("RayJob", "raylift", NAME)
    assert clusters.runs_on(NAME) == []
    clusters.up(asked())
    server.set_status("RayJob", "raylift", NAME, rayClusterName=f"{NAME}-b9c8d", jobDeploymentStatus="Running")
    assert clusters.runs_on(NAME) == []
    assert clusters.down(NAME).leftovers == []
    assert server.all("RayJob") == []


def test_what_a_finalizer_holds_is_named(server: ApiServer, clusters: NamedClusters) -> None:
    clusters.up(asked())
    take_up(server, NAME, finalizer=True)
    (left,) = [each for each in clusters.down(NAME).leftovers if each.kind == "RayJob"]
    assert "being deleted, held by ray.io/rayjob-finalizer" in left.detail


# Commands


@pytest.fixture
def on(tmp_path: Path) -> list[str]:
    text = "{provider: kubernetes, image: 'registry.example/raylift:0.1.0', workers: 2}\n"
    (tmp_path / "k8s.yaml").write_text(text.replace("workers", "termination_grace_period_seconds: 30, workers"))
    return ["--on", str(tmp_path / "k8s.yaml")]


def call(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, words)
    said = str(done.exception) if isinstance(done.exception, RayliftError) else ""
    code = done.exception.exit_code if isinstance(done.exception, RayliftError) else done.exit_code
    return code, done.output + said


def test_a_cluster_is_made_listed_and_ended_by_command(server: ApiServer, on: list[str]) -> None:
    assert call("clusters", *on)[1].startswith("no clusters in the namespace raylift. Make one: raylift up NAME")
    code, said = call("up", NAME, *on, "--idle", "45")
    assert code == 0
    assert "cluster dev is being made; it ends after 45 min without a run" in said
    assert f"raylift run JOB.yaml {' '.join(on)} --cluster dev" in said
    assert "is there already" in call("up", NAME, *on, "--idle", "45")[1]
    take_up(server, NAME)
    server.set_status("RayJob", "raylift", NAME, jobDeploymentStatus="Running", jobStatus="RUNNING")
    assert call("clusters", *on)[1].splitlines()[1].split() == ["dev", "RUNNING", "45", "min"]
    code, said = call("down", NAME, *on)
    assert (code, said.strip().endswith("left over: 0")) == (0, True)
    code, said = call("down", NAME, *on)
    assert (code, said.startswith("nothing to end: there is no cluster dev")) == (0, True)


def test_a_cluster_is_made_and_ended_where_a_server_does_not_answer_at_once(
    server: ApiServer, on: list[str], monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hunter2!")
    calls = ("POST", "GET", "PATCH /apis", "PATCH /api/v1")
    server.faults = [dataclasses.replace(fault, call=call) for call in calls]
    code, said = call("up", NAME, *on, "--secret", "HF_TOKEN")
    assert (code, "cluster dev is being made" in said) == (0, True), said
    (secret,) = server.all("Secret")
    assert secret["metadata"]["ownerReferences"][0]["uid"] == job_of(server)["metadata"]["uid"]
    take_up(server, NAME)
    server.faults += [dataclasses.replace(fault, call=call) for call in ("GET", "DELETE")]
    code, said = call("down", NAME, *on)
    assert (code, said.strip().endswith("left over: 0")) == (0, True), said
    assert server.all("RayJob") == server.all("RayCluster") == server.all("Secret") == []
    assert all(not each.count for each in server.faults)


def test_a_cluster_with_runs_on_it_is_not_ended_without_a_word(
    server: ApiServer, clusters: NamedClusters, on: list[str]
) -> None:
    clusters.up(asked())
    take_up(server, NAME)
    runs(server, clusters, launch())
    code, said = call("down", NAME, *on)
    assert code == 2
    assert f"a run is on dev: {RUN_ID}. They end" in said
    assert server.get("RayJob", "raylift", NAME) is not None
    assert call("down", NAME, *on, "--yes")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["up", NAME], "--on is missing: name a file with provider: kubernetes"),
        (["clusters", "--on", "LOCAL"], "clusters with a name are on Kubernetes, and its provider is local"),
        (["up", NAME, "--on", "K8S", "--secret", "NOT_SET_HERE"], "NOT_SET_HERE is not set in this shell"),
        (
            ["up", NAME, "--on", "BARE", "--storage", "runs"],
            "pods fetch raylift from there, and see nothing of this mac",
        ),
        (["run", "JOB", "--cluster", NAME], "--cluster dev: clusters with a name are on Kubernetes: say which by --on"),
        (["run", "JOB", "--cluster", NAME, "--on", "K8S", "--storage", "s3://b/r"], "there is no cluster dev in the"),
    ],
)
def test_a_mistake_says_what_to_type(
    server: ApiServer, on: list[str], tmp_path: Path, words: list[str], said: str
) -> None:
    (tmp_path / "local.yaml").write_text("{provider: local}\n")
    (tmp_path / "bare.yaml").write_text("{provider: kubernetes}\n")
    places = {
        "K8S": on[1],
        "BARE": str(tmp_path / "bare.yaml"),
        "LOCAL": str(tmp_path / "local.yaml"),
        "JOB": str(ROOT / "examples" / "digits.yaml"),
    }
    code, told = call(*(places.get(word, word) for word in words))
    assert code == 2
    assert said in told
    assert server.all("RayJob") == []
