"""The provider against a stand-in of the API server: launching, looking, ending, and what may go wrong."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster.config import KubernetesCluster
from cluster.errors import (
    InfrastructureError,
    MaybeLaunchedError,
    MissingExtraError,
    RunExistsError,
    RunNotFoundError,
)
from cluster.kubernetes import api, printed, provider, rights
from cluster.kubernetes.api import Api, ApiError
from cluster.kubernetes.documents import to_yaml
from cluster.kubernetes.manifest import render
from cluster.kubernetes.provider import KubernetesProvider
from cluster.kubernetes.reasons import FETCHING
from cluster.provider import LaunchRequest, State
from cluster.runs import Run
from launcher import remote
from launcher.remote import Watcher
from tests.cluster.kubernetes.dying import deaths
from tests.cluster.kubernetes.golden import RUN_ID, request, without_image
from tests.cluster.kubernetes.kuberay import submit, take_up
from tests.harness import open_run, wait_for
from tests.stand_ins.kubernetes import certificates
from tests.stand_ins.kubernetes.access import User
from tests.stand_ins.kubernetes.kueue import Kueue
from tests.stand_ins.kubernetes.server import ApiServer, Fault

Object = dict[str, Any]
PATCH = "PATCH /apis/ray.io"
lost = pytest.mark.parametrize("reply", [Fault("", after=True), Fault("", cut=8)], ids=["lost", "cut"])


@pytest.fixture
def run() -> LaunchRequest:
    """Return a run with an environment."""
    return dataclasses.replace(request("processors"), max_failures=2)


def job_of(server: ApiServer) -> Object:
    (found,) = server.all("RayJob")
    return found


def without(value: Any, *keys: str) -> Any:
    return {key: each for key, each in value.items() if key not in keys}


def holds(there: Any, planned: Any) -> bool:
    """Whether an object has all that was planned; defaults may have come to it."""
    if isinstance(planned, dict):
        return all(key in there and holds(there[key], each) for key, each in planned.items())
    if isinstance(planned, list):
        return len(there) == len(planned) and all(map(holds, there, planned))
    return bool(there == planned)


def take_away(server: ApiServer, right: rights.Right) -> None:
    resource = right.kind.plural + (f"/{right.subresource}" if right.subresource else "")

    def change(role: Object) -> None:
        role["rules"] = [
            {"apiGroups": rule["apiGroups"], "resources": [each], "verbs": verbs}
            for rule in role["rules"]
            for each in rule["resources"]
            if (verbs := [verb for verb in rule["verbs"] if (each, verb) != (resource, right.verb)])
        ]

    server.change("Role", "raylift", "raylift-launcher", change)


# Launching


def test_what_is_in_the_cluster_after_a_launch_is_what_the_plan_showed(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    shown = kubernetes.render(run).manifest
    kubernetes.launch(run)
    job, secret = job_of(server), server.all("Secret")[0]
    planned_job, planned_secret = render(run)
    assert to_yaml([planned_job, planned_secret]) == shown
    assert holds(job, planned_job)
    assert job["metadata"]["labels"] == planned_job["metadata"]["labels"]
    assert base64.b64decode(secret["data"]["LOG_LEVEL"]) == b"info"


def test_the_secret_goes_with_the_job_also_where_nobody_tears_it_down(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    kubernetes.launch(run)
    server.delete("RayJob", "raylift", RUN_ID)
    assert server.all("Secret") == []


def test_a_run_launched_again_is_the_same_job(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    kubernetes.launch(run)
    before = job_of(server)["metadata"]
    kubernetes.launch(run)
    after = job_of(server)["metadata"]
    assert (after["uid"], after["generation"]) == (before["uid"], before["generation"])


def test_two_laptops_that_launch_the_same_run_make_one_job(server: ApiServer, run: LaunchRequest) -> None:
    assert isinstance(run.cluster, KubernetesCluster)
    laptops = [KubernetesProvider(run.cluster) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda laptop: laptop.launch(run), laptops))
    assert job_of(server)["metadata"]["generation"] == 1


def test_a_size_that_changes_in_a_queue_that_takes_none_is_refused_in_words(
    server: ApiServer, kubernetes: KubernetesProvider
) -> None:
    Kueue(server, "raylift", gates=())
    with pytest.raises(ApiError, match=r"takes its feature gate ElasticJobsViaWorkloadSlices.* Else give one number"):
        kubernetes.launch(request("elastic-queue"))
    assert server.all("RayJob") == []
    kubernetes.launch(request("elastic-queue", workers=2))
    assert job_of(server)["spec"]["suspend"] is True


def test_what_kuberay_and_kueue_change_is_left_alone_by_a_second_launch(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    kubernetes.launch(run)
    take_up(server, RUN_ID, finalizer=True)
    server.change("RayJob", "raylift", RUN_ID, lambda value: value["spec"].update(suspend=True))
    with pytest.raises(ApiError, match='conflict with "controller"'):  # so what is there is not applied again
        kubernetes.server.apply(api.RAY_JOBS, render(run)[0], "raylift-of-this-run")
    kubernetes.launch(run)
    assert job_of(server)["spec"]["suspend"] is True
    assert job_of(server)["metadata"]["finalizers"] == ["ray.io/rayjob-finalizer"]
    assert job_of(server)["status"]["jobDeploymentStatus"] == "Initializing"


def test_a_launch_whose_reply_is_lost_takes_the_job_that_kuberay_has_taken_up_meanwhile(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: Callable[..., Any] = Api._call
    first = iter([True])

    def losing(self: Api, method: str, path: str, *arguments: Any, **more: Any) -> Any:
        answer = alive(self, method, path, *arguments, **more)
        if f"{method} {path}".startswith(PATCH) and next(first, False):
            take_up(server, RUN_ID, finalizer=True)
            return alive(self, method, path, *arguments, **more)  # as a lost reply has it called again
        return answer

    monkeypatch.setattr(Api, "_call", losing)
    kubernetes.launch(run)
    (secret,) = server.all("Secret")
    assert secret["metadata"]["ownerReferences"][0]["uid"] == job_of(server)["metadata"]["uid"]
    assert job_of(server)["status"]["jobDeploymentStatus"] == "Initializing"


def test_another_runs_name_is_not_taken(server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest) -> None:
    kubernetes.launch(run)
    before = job_of(server)
    other = dataclasses.replace(run, run_uri="gs://elsewhere/runs/digits")
    with pytest.raises(
        RunExistsError, match=rf"a RayJob {RUN_ID} of the run s3://bucket/runs/{RUN_ID}\. Choose another"
    ):
        kubernetes.launch(other)
    assert job_of(server) == before


def test_another_runs_name_is_not_taken_either_when_it_came_a_moment_ago(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubernetes.launch(run)
    before = job_of(server)
    monkeypatch.setattr(KubernetesProvider, "_launched", lambda *_: None)  # as it was when it was asked
    other = dataclasses.replace(run, run_uri="gs://elsewhere/runs/digits", env={})
    with pytest.raises(RunExistsError, match="is taken in the namespace raylift: Apply failed with"):
        kubernetes.launch(other)
    assert job_of(server)["spec"] == before["spec"]


def test_a_job_that_raylift_did_not_make_is_left_alone(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    server.create("RayJob", {"metadata": {"name": RUN_ID}, "spec": {"entrypoint": "sleep 1"}}, "raylift")
    with pytest.raises(RunExistsError, match="that raylift did not make"):
        kubernetes.launch(run)
    assert job_of(server)["spec"]["entrypoint"] == "sleep 1"


def test_a_launch_waits_until_an_earlier_job_of_the_run_is_gone(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    kubernetes.launch(run)
    take_up(server, RUN_ID, finalizer=True)
    first = job_of(server)["metadata"]["uid"]
    kubernetes.stop(RUN_ID)

    def let_go() -> None:
        server.change("RayJob", "raylift", RUN_ID, lambda value: value["metadata"].update(finalizers=[]))

    threading.Timer(0.3, let_go).start()
    kubernetes.launch(run)
    assert job_of(server)["metadata"]["uid"] != first


# What may go wrong in a launch


@pytest.mark.parametrize("status", [429, 500, 503, 504])
def test_a_server_that_is_busy_is_asked_again(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, status: int
) -> None:
    server.faults += [Fault(PATCH, status=status, count=3, headers={"Retry-After": "1"}), Fault("GET", status=status)]
    kubernetes.launch(run)
    assert len(server.all("RayJob")) == len(server.all("Secret")) == 1


def test_a_server_that_takes_too_long_is_asked_again(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_TIMEOUT", (5.0, 1.0))
    server.faults.append(Fault(PATCH, late=3.0))
    kubernetes.launch(run)
    assert job_of(server)["metadata"]["generation"] == 1
    assert len([call for call in server.calls if call.startswith(PATCH)]) == 2


def test_a_server_that_stays_busy_is_an_error_and_nothing_is_left(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    server.faults.append(Fault("PATCH /api/v1/namespaces/raylift/secrets", status=500, count=99))
    with pytest.raises(InfrastructureError, match="answered 500 to PATCH /api/v1/namespaces/raylift/secrets"):
        kubernetes.launch(run)
    assert server.all("RayJob") == server.all("Secret") == []


@pytest.mark.parametrize("call", [PATCH, "PATCH /api/v1"])
def test_a_launch_whose_reply_is_lost_and_whose_server_then_goes_says_that_its_job_may_be_there(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    alive: Callable[..., Any] = Api._call
    gone: list[str] = []

    def going(self: Api, method: str, path: str, *arguments: Any, **more: Any) -> Any:
        if not gone:
            answer = alive(self, method, path, *arguments, **more)
            if not f"{method} {path}".startswith(call):
                return answer
        gone.append(path)
        raise ApiError("it does not answer", status=0, reason="Unreachable", details="")

    with monkeypatch.context() as patch:
        patch.setattr(Api, "_call", going)
        with pytest.raises(MaybeLaunchedError, match=r"it does not answer\. Its RayJob") as raised:
            kubernetes.launch(run)
    assert f"raylift resume {run.run_uri}" in str(raised.value)
    assert f"raylift stop --now {run.run_uri}, then raylift rm {run.run_uri}" in str(raised.value)
    assert job_of(server)["metadata"]["generation"] == 1
    kubernetes.launch(run)
    assert len(server.all("RayJob")) == len(server.all("Secret")) == 1


def found_none_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the next launch find no job when it first asks, as of two laptops neither does."""
    launched, asked = KubernetesProvider._launched, [False]

    def finding(self: KubernetesProvider, request: LaunchRequest) -> Object | None:
        asked.append(True)
        return launched(self, request) if asked[-2] else None

    monkeypatch.setattr(KubernetesProvider, "_launched", finding)


def test_of_two_laptops_that_launch_a_run_at_once_the_first_does_not_take_it_from_the_second_where_it_fails(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(kind: api.Kind, document: Object, manager: str) -> Object:
        if kind is not api.SECRETS:
            return KubernetesProvider._apply(kubernetes, kind, document, manager)
        take_up(server, RUN_ID, finalizer=True)  # it has other words for it from here on: a second apply is a conflict
        found_none_at_first(monkeypatch)
        KubernetesProvider(kubernetes.cluster).launch(run)
        raise KeyboardInterrupt

    monkeypatch.setattr(kubernetes, "_apply", failing)
    with pytest.raises(MaybeLaunchedError, match="KeyboardInterrupt"):
        kubernetes.launch(run)
    assert len(server.all("RayJob")) == len(server.all("Secret")) == 1
    assert not job_of(server)["metadata"].get("deletionTimestamp")


@pytest.mark.parametrize("found", [True, False], ids=["that it finds", "that it does not find"])
def test_a_job_that_is_being_deleted_as_it_is_launched_again_is_waited_for_and_made_anew(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, monkeypatch: pytest.MonkeyPatch, found: bool
) -> None:
    monkeypatch.setattr(provider, "_BEYOND_GRACE", 60.0)
    kubernetes.launch(run)
    take_up(server, RUN_ID, finalizer=True)
    before = job_of(server)
    server.delete("RayJob", "raylift", RUN_ID)
    if found:
        answers = iter([before])
        monkeypatch.setattr(kubernetes, "_launched", lambda _: next(answers))
    else:
        found_none_at_first(monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(kubernetes.launch, run)
        time.sleep(2)
        assert not second.done()
        server.change("RayJob", "raylift", RUN_ID, lambda job: job["metadata"].update(finalizers=[]))
        second.result(60)
    after = job_of(server)["metadata"]
    assert after["uid"] != before["metadata"]["uid"]
    assert not after.get("deletionTimestamp")
    assert len(server.all("Secret")) == 1


@pytest.mark.parametrize("taken_up", [False, True])
def test_of_two_laptops_that_launch_a_run_at_once_the_one_that_fails_leaves_the_job_to_the_other(
    server: ApiServer,
    kubernetes: KubernetesProvider,
    run: LaunchRequest,
    monkeypatch: pytest.MonkeyPatch,
    taken_up: bool,
) -> None:
    kubernetes.launch(run)
    if taken_up:
        take_up(server, RUN_ID, finalizer=True)
    before = job_of(server)["metadata"]["uid"]
    found_none_at_first(monkeypatch)
    server.faults.append(Fault("PATCH /api/v1", status=403, message="not yours"))
    with pytest.raises(MaybeLaunchedError, match=rf"not yours.*\. Its RayJob {RUN_ID} may be in the namespace"):
        KubernetesProvider(kubernetes.cluster).launch(run)
    assert job_of(server)["metadata"]["uid"] == before
    assert len(server.all("Secret")) == 1


def test_a_launch_that_fails_after_another_laptop_has_applied_the_job_too_leaves_it_to_that(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = KubernetesProvider._apply

    def failing(self: KubernetesProvider, kind: api.Kind, document: Object, manager: str) -> Object:
        made = apply(self, kind, document, manager)
        if kind is api.SECRETS:
            raise KeyboardInterrupt
        same = {**document, "metadata": without(document["metadata"], "labels"), "spec": {}}
        self.server.apply(kind, same, "raylift-launch-of-the-other")
        return made

    monkeypatch.setattr(KubernetesProvider, "_apply", failing)
    with pytest.raises(MaybeLaunchedError, match="KeyboardInterrupt"):
        kubernetes.launch(run)
    assert len(server.all("RayJob")) == len(server.all("Secret")) == 1


@pytest.mark.parametrize("when", ["before it fails", "as it looks", "never"])
def test_a_launch_that_fails_leaves_its_job_to_another_that_has_found_it(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    other = KubernetesProvider(kubernetes.cluster)
    find = Api.find

    def failing(kind: api.Kind, document: Object, manager: str) -> Object:
        if kind is not api.SECRETS:
            return KubernetesProvider._apply(kubernetes, kind, document, manager)
        if when == "before it fails":
            other.launch(run)
        raise KeyboardInterrupt

    def looking(kind: api.Kind, namespace: str, name: str) -> Object | None:
        found = find(kubernetes.server, kind, namespace, name)
        if when == "as it looks" and found is not None and not server.all("Secret"):
            other.launch(run)
        return found

    monkeypatch.setattr(kubernetes, "_apply", failing)
    monkeypatch.setattr(kubernetes.server, "find", looking)
    with pytest.raises(BaseException, match=r"raylift resume|^$") as raised:
        kubernetes.launch(run)
    assert raised.type is (KeyboardInterrupt if when == "never" else MaybeLaunchedError)
    assert len(server.all("RayJob")) == len(server.all("Secret")) == (0 if when == "never" else 1)


def test_a_job_that_is_found_and_is_another_or_none_a_moment_later_is_not_taken_for_its_own(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    kubernetes.launch(run)
    found = kubernetes.server.find(api.RAY_JOBS, "raylift", RUN_ID)
    server.delete("RayJob", "raylift", RUN_ID)
    assert kubernetes.take_up(found, "raylift-launch-second") is None
    kubernetes.launch(run)
    with pytest.raises(RunExistsError, match="another one by now"):
        kubernetes.take_up(found, "raylift-launch-second")


def test_a_launch_that_fails_takes_its_job_back_whatever_kuberay_writes_to_it_meanwhile(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, writes = Api.find, iter(range(2))

    def looking(kind: api.Kind, namespace: str, name: str) -> Object | None:
        found = find(kubernetes.server, kind, namespace, name)
        if found is not None and (number := next(writes, None)) is not None:
            server.change("RayJob", "raylift", RUN_ID, lambda job: job["metadata"]["labels"].update(write=str(number)))
        return found

    monkeypatch.setattr(kubernetes.server, "find", looking)
    server.faults.append(Fault("PATCH /api/v1", status=403, message="not yours"))
    with pytest.raises(ApiError, match="not yours"):
        kubernetes.launch(run)
    assert server.all("RayJob") == []


@lost
def test_a_lost_reply_is_not_a_second_job(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, reply: Fault
) -> None:
    server.faults += [dataclasses.replace(reply, call=call) for call in (PATCH, "PATCH /api/v1")]
    kubernetes.launch(run)
    assert job_of(server)["metadata"]["generation"] == 1
    assert len(server.all("Secret")) == 1
    assert len([call for call in server.calls if call.startswith(PATCH)]) == 2


@pytest.mark.parametrize("call", ["POST /apis/authorization", "GET /apis/ray.io", PATCH, "PATCH /api/v1"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_laptop_that_dies_at_any_step_of_a_launch_leaves_what_the_next_launch_completes(
    server: ApiServer,
    kubernetes: KubernetesProvider,
    run: LaunchRequest,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    after: bool,
) -> None:
    class Death(BaseException):
        """The process is gone: nothing of it is undone."""

    def dying(self: Api, method: str, path: str, *arguments: Any, **more: Any) -> Any:
        if not f"{method} {path}".startswith(call):
            return alive(self, method, path, *arguments, **more)
        if after:
            with contextlib.suppress(ApiError):
                alive(self, method, path, *arguments, **more)
        raise Death

    alive: Callable[..., Any] = Api._call
    with monkeypatch.context() as patch:
        patch.setattr(Api, "_call", dying)
        patch.setattr(KubernetesProvider, "_withdraw", lambda *_: None)
        with pytest.raises(Death):
            kubernetes.launch(run)
    kubernetes.launch(run)
    assert job_of(server)["metadata"]["generation"] == 1
    (secret,) = server.all("Secret")
    assert secret["metadata"]["ownerReferences"][0]["uid"] == job_of(server)["metadata"]["uid"]


@pytest.mark.parametrize("busy", [0, 1, 4])
def test_a_token_that_has_run_out_is_renewed_also_where_the_server_was_busy_first(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, busy: int
) -> None:
    server.faults.append(Fault("", status=429, count=busy))
    assert kubernetes.server.host == server.url
    server.tokens["renewed"] = server.tokens.pop("launcher-token")
    server.kubeconfig("launcher", "renewed")
    kubernetes.launch(run)
    assert len(server.all("RayJob")) == 1


def test_a_token_that_nobody_renews_is_said_to_have_run_out(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    server.tokens.pop("launcher-token")
    with pytest.raises(InfrastructureError, match="does not know who you are, or your login has run out"):
        kubernetes.launch(run)


def test_a_plugin_that_fails_to_log_in_is_named_until_it_does(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, tmp_path: Path
) -> None:
    plugin, login, version = tmp_path / "get-token", tmp_path / "login", "client.authentication.k8s.io/v1"
    plugin.write_text(f"#!/bin/sh\ncat {login}\n")
    plugin.chmod(0o755)
    config = json.loads((path := server.kubeconfig("launcher", "")).read_text())
    user = {"exec": {"apiVersion": version, "command": str(plugin), "interactiveMode": "Never"}}
    path.write_text(json.dumps({**config, "users": [{"name": "launcher", "user": user}]}))

    def log_in(token: str) -> None:
        login.write_text(json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": {"token": token}}))

    said = f"context launcher: {plugin} does not log you in: .*Log in again"
    with pytest.raises(InfrastructureError, match=said):
        kubernetes.launch(run)
    assert server.calls == []
    log_in("launcher-token")
    kubernetes.launch(run)
    login.unlink()
    server.tokens["renewed"] = server.tokens.pop("launcher-token")
    for _ in range(2):
        with pytest.raises(InfrastructureError, match=said):
            kubernetes.describe(RUN_ID)
    log_in("renewed")
    assert kubernetes.describe(RUN_ID).state is State.PENDING


def test_a_launch_makes_few_calls(server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest) -> None:
    kubernetes.launch(run)
    assert [call.partition("?")[0] for call in server.calls] == [
        "POST /apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
        f"GET /apis/ray.io/v1/namespaces/raylift/rayjobs/{RUN_ID}",
        f"PATCH /apis/ray.io/v1/namespaces/raylift/rayjobs/{RUN_ID}",
        f"PATCH /api/v1/namespaces/raylift/secrets/raylift.{RUN_ID}",
    ]


def test_rights_that_cannot_be_listed_are_asked_for(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    server.tells_rules = False
    kubernetes.launch(run)
    asked = [call for call in server.calls if call.endswith("/selfsubjectaccessreviews")]
    assert len(asked) == len(rights.NEEDED)


@pytest.mark.parametrize(
    ("rule", "given"),
    [
        ({"verbs": ["get", "list"], "apiGroups": ["", "apps"], "resources": ["pods", "pods/log"]}, True),
        ({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}, True),
        ({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}, False),  # it is the log that is wanted
        ({"verbs": ["get"], "apiGroups": [""], "resources": ["pods/log"], "resourceNames": ["one"]}, False),
        ({"verbs": ["list"], "apiGroups": [""], "resources": ["pods/log"]}, False),
        ({"verbs": ["get"], "apiGroups": ["metrics.k8s.io"], "resources": ["pods/log"]}, False),
        ({"verbs": ["get"]}, False),
    ],
)
def test_a_rule_gives_what_it_names(rule: dict[str, list[str]], given: bool) -> None:
    assert rights.Right("get", api.PODS, "log").is_given_by(rule) is given


@pytest.mark.parametrize("right", rights.NEEDED, ids=str)
@pytest.mark.parametrize("listed", [True, False])
def test_a_right_that_is_missing_is_named_before_anything_is_made(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, right: rights.Right, listed: bool
) -> None:
    server.tells_rules = listed
    take_away(server, right)
    with pytest.raises(InfrastructureError, match=f"you may not: {right}. Nothing was created") as raised:
        kubernetes.launch(run)
    assert raised.value.exit_code == 3
    assert server.all("RayJob") == server.all("Secret") == []


def as_admin(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig("admin", "admin-token")))


def test_a_namespace_that_is_not_there_is_named(
    server: ApiServer, run: LaunchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_admin(server, monkeypatch)
    assert isinstance(run.cluster, KubernetesCluster)
    cluster = run.cluster.model_copy(update={"namespace": "nowhere"})
    with pytest.raises(InfrastructureError, match=r'namespaces "nowhere" not found: cluster\.namespace names it'):
        KubernetesProvider(cluster).launch(dataclasses.replace(run, cluster=cluster))


def test_a_cluster_without_kuberay_is_said_to_be_one(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    server.kinds = [kind for kind in server.kinds if kind.group != "ray.io"]
    with pytest.raises(InfrastructureError, match=r"knows no .*: is KubeRay installed"):
        kubernetes.launch(run)


def test_a_kuberay_that_lacks_a_field_is_said_to_be_too_old(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    (jobs,) = (kind for kind in server.kinds if kind.name == "RayJob")
    schema: Any = jobs.schema
    spec = schema["properties"]["spec"]["properties"]
    old = {**schema["properties"]["spec"], "properties": without(spec, "preRunningDeadlineSeconds")}
    older = dataclasses.replace(jobs, schema={**schema, "properties": {**schema["properties"], "spec": old}})
    server.kinds = [older if kind is jobs else kind for kind in server.kinds]
    said = r"it is too old, or .* has a mistake: .*\.spec\.preRunningDeadlineSeconds: field not declared in schema"
    with pytest.raises(InfrastructureError, match=said):
        kubernetes.launch(run)
    assert len([call for call in server.calls if call.startswith(PATCH)]) == 1, "it would be refused again"


def test_a_webhook_that_refuses_is_quoted(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    said = 'admission webhook "policy.example" denied the request: images come from registry.corp alone'
    server.admit = lambda kind, _value: said if kind.name == "RayJob" else ""
    with pytest.raises(InfrastructureError, match=r"the cluster's own rules refuse it: .*registry.corp alone"):
        kubernetes.launch(run)


@pytest.mark.parametrize(
    ("status", "details", "said"),
    [
        (500, 'failed calling webhook "mrayjob.kb.io": connection refused', "a webhook of it does not answer: "),
        (
            403,
            "rayjobs.ray.io is forbidden: status unknown for quota: raylift",
            "worked out yet, as it or its kinds are new: ",
        ),
        (403, "unable to create new content in namespace raylift because it is being terminated", "is being deleted: "),
    ],
)
def test_what_else_keeps_a_job_from_being_made_is_told_apart_from_rights(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, status: int, details: str, said: str
) -> None:
    server.faults.append(Fault(PATCH, status=status, count=99, message=details))
    with pytest.raises(InfrastructureError, match=f"{said}{details}"):
        kubernetes.launch(run)


def test_a_quota_of_jobs_that_is_used_up_is_said_so(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    def limit(quota: Object) -> None:
        quota["spec"]["hard"]["count/rayjobs.ray.io"] = "1"

    server.change("ResourceQuota", "raylift", "raylift", limit)
    kubernetes.launch(dataclasses.replace(run, run_id="other", run_uri="s3://bucket/runs/other"))
    with pytest.raises(InfrastructureError, match=r"the quota of the namespace is used up: .*used: .*=1,.*raylift rm"):
        kubernetes.launch(run)
    kubernetes.launch(dataclasses.replace(run, run_id="other", run_uri="s3://bucket/runs/other"))


def test_a_server_that_is_not_there_is_named(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    url = server.url
    assert kubernetes.server.host == url
    server.stop()
    with pytest.raises(InfrastructureError, match=f"{url} does not answer: .*kubectl config current-context"):
        kubernetes.launch(run)


def test_a_server_whose_certificate_another_authority_has_signed_is_not_answering(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, tmp_path: Path
) -> None:
    server.authority = certificates.make(tmp_path)
    server.kubeconfig("launcher", "launcher-token")
    with pytest.raises(InfrastructureError, match=f"{server.url} does not answer: SSLError .*CERTIFICATE_VERIFY"):
        kubernetes.launch(run)
    assert server.calls == []


def test_a_context_that_is_not_there_is_named(server: ApiServer, run: LaunchRequest) -> None:
    assert isinstance(run.cluster, KubernetesCluster)
    provider = KubernetesProvider(run.cluster.model_copy(update={"context": "prod"}))
    with pytest.raises(InfrastructureError, match=r"context prod: .*kubectl config get-contexts"):
        provider.launch(run)
    assert server.calls == []


def test_a_client_that_is_not_installed_is_named(run: LaunchRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    assert isinstance(run.cluster, KubernetesCluster)
    with pytest.raises(MissingExtraError, match=r"pip install 'raylift\[kubernetes\]'"):
        KubernetesProvider(run.cluster).describe(RUN_ID)


@pytest.mark.parametrize("content", [b"a: [1,", b"\xff\xfe", b"- 1", b"a kubeconfig"])
def test_a_file_that_is_no_kubeconfig_is_named(
    run: LaunchRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    (tmp_path / "config").write_bytes(content)
    assert isinstance(run.cluster, KubernetesCluster)
    with pytest.raises(InfrastructureError, match=r"config does not read as a kubeconfig: .* written anew"):
        KubernetesProvider(run.cluster).describe(RUN_ID)


def test_a_user_that_the_kubeconfig_does_not_have_is_named(server: ApiServer, kubernetes: KubernetesProvider) -> None:
    config = json.loads((path := server.kubeconfig("launcher", "")).read_text())
    path.write_text(json.dumps({**config, "users": []}))
    with pytest.raises(
        InfrastructureError, match="context launcher logs in as launcher, and the kubeconfig has no such user"
    ):
        kubernetes.describe(RUN_ID)


def test_no_kubeconfig_at_all_is_said_so(run: LaunchRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert isinstance(run.cluster, KubernetesCluster)
    with pytest.raises(InfrastructureError, match="KUBECONFIG names the file"):
        KubernetesProvider(run.cluster).describe(RUN_ID)


# Looking


def test_a_run_that_is_not_there_is_not_found(kubernetes: KubernetesProvider) -> None:
    with pytest.raises(RunNotFoundError, match=f"nothing of run {RUN_ID} is in the namespace raylift"):
        kubernetes.describe(RUN_ID)


def test_a_run_that_kuberay_has_not_seen_is_pending(kubernetes: KubernetesProvider, run: LaunchRequest) -> None:
    kubernetes.launch(run)
    status = kubernetes.describe(RUN_ID)
    assert (status.state, status.reason) == (State.PENDING, "KubeRay has not taken it up yet")


def test_a_run_whose_pods_start_says_how_many_are_ready(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    kubernetes.launch(run)
    take_up(server, RUN_ID)
    server.set_status("Pod", "raylift", f"{RUN_ID}-x7k2p-head", conditions=[{"type": "Ready", "status": "True"}])
    status = kubernetes.describe(RUN_ID)
    assert (status.state, status.reason) == (State.PROVISIONING, "1 of 2 pods are ready")
    assert [each.kind for each in status.resources] == ["RayJob", "Pod", "Pod"]


def test_a_quota_that_lets_no_pod_be_made_is_read_off_the_events(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    kubernetes.launch(run)
    take_up(server, RUN_ID)
    message = "Failed to create head Pod: pods is forbidden: exceeded quota: raylift, requested: requests.cpu=9"
    event = {"type": "Warning", "message": message, "involvedObject": {"name": f"{RUN_ID}-x7k2p"}}
    server.create("Event", {"metadata": {"name": "e"}, **event, "lastTimestamp": "2026-11-26T00:00:00Z"}, "raylift")
    assert kubernetes.describe(RUN_ID).reason == message


def test_changes_are_told_as_they_come_until_the_job_is_gone(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    kubernetes.launch(run)

    seen: list[State] = []
    after = {State.PENDING: "Initializing", State.PROVISIONING: "Running", State.RUNNING: "Complete"}
    for status in kubernetes.changes(RUN_ID):
        if status.state in seen:
            continue
        seen.append(status.state)
        if status.state in after:
            server.set_status("RayJob", "raylift", RUN_ID, jobDeploymentStatus=after[status.state], jobStatus="RUNNING")
        else:
            server.delete("RayJob", "raylift", RUN_ID)
        if status.state is State.PROVISIONING:
            server.store.forget()  # 410: what came meanwhile is not known any more
    assert seen == [State.PENDING, State.PROVISIONING, State.RUNNING, State.SUCCEEDED]


def test_a_watch_goes_on_where_its_connection_was_lost_and_misses_nothing(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_WATCH", 1)  # seconds: it ends again and again
    kubernetes.launch(run)
    seen: list[str] = []
    watched = kubernetes.server.watch(api.RAY_JOBS, "raylift", "")
    for number in range(6):
        change, job = next(watched)
        seen.append(f"{change} {job.get('status', {}).get('jobId', '')}")
        if number == 2:
            time.sleep(1.5)
        server.set_status("RayJob", "raylift", RUN_ID, jobId=str(number))
    assert seen == ["ADDED ", *(f"MODIFIED {number}" for number in range(5))]
    lists = [call for call in server.calls if call.startswith("GET /apis/ray.io") and "watch" not in call]
    assert len(lists) == 2  # one of the launch, and one of the watch


def test_a_token_that_runs_out_while_a_run_is_followed_is_renewed(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_WATCH", 1)  # seconds: then it is asked again who one is
    kubernetes.launch(run)
    changes = kubernetes.changes(RUN_ID)
    assert next(changes).state is State.PENDING
    server.tokens["renewed"] = server.tokens.pop("launcher-token")
    server.kubeconfig("launcher", "renewed")
    server.set_status("RayJob", "raylift", RUN_ID, jobDeploymentStatus="Initializing")
    assert next(changes).state is State.PROVISIONING


@pytest.fixture
def watched(kubernetes: KubernetesProvider, run: LaunchRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a run that is launched, and have it looked at often."""
    monkeypatch.setattr(remote, "_RETRY", 0.02)
    monkeypatch.setattr(remote, "_LOOK", 0.0)
    found = open_run(str(tmp_path), RUN_ID)
    kubernetes.launch(dataclasses.replace(run, run_uri=found.uri))
    return found


@pytest.mark.parametrize(
    "fault",
    [Fault("", status=429), Fault("", status=500), Fault("", late=0.2), Fault("", after=True), Fault("", cut=8)],
    ids=["429", "500", "late", "lost", "cut"],
)
def test_a_run_is_watched_on_after_a_server_has_not_answered_for_long(
    server: ApiServer, kubernetes: KubernetesProvider, watched: Run, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(api, "_TIMEOUT", (5.0, 0.1) if fault.late else api._TIMEOUT)
    server.faults.append(dataclasses.replace(fault, call="GET /apis/ray.io", count=15))
    watcher = Watcher(watched, kubernetes)
    is_answered = not (fault.late or fault.after or fault.cut)
    said = f"answered {fault.status}" if is_answered else "does not answer"
    wait_for(lambda: said in watcher.news(), said, timeout=30)
    assert watcher.is_alive()
    monkeypatch.setattr(api, "_TIMEOUT", (5.0, 30.0))
    failed = {"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded"}
    server.set_status("RayJob", "raylift", RUN_ID, **failed)
    wait_for(lambda: not watcher.is_alive(), "the end", timeout=60)
    assert "its pods did not start" in watcher.news()


def test_a_run_is_watched_on_after_a_mistake_that_nobody_foresaw(
    server: ApiServer, kubernetes: KubernetesProvider, watched: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("spec")

    with monkeypatch.context() as patch:
        patch.setattr(KubernetesProvider, "describe", fail)
        watcher = Watcher(watched, kubernetes)
        wait_for(lambda: "KeyError('spec')" in watcher.news(), "the mistake", timeout=30)
    assert watcher.is_alive()
    server.delete("RayJob", "raylift", RUN_ID)
    wait_for(lambda: not watcher.is_alive(), "the end", timeout=30)


def test_what_keeps_a_run_from_starting_is_told_after_a_look_that_failed(
    server: ApiServer, kubernetes: KubernetesProvider, watched: Run
) -> None:
    watcher = Watcher(watched, kubernetes)
    wait_for(lambda: "KubeRay has not taken it up yet" in watcher.news(), "a first look", timeout=30)
    server.faults.append(Fault("GET /api/v1/namespaces/raylift/pods", status=500, count=6))
    wait_for(lambda: "answered 500" in watcher.news(), "a look that fails", timeout=30)
    warning = {"type": "Warning", "message": "exceeded quota: raylift", "involvedObject": {"name": RUN_ID}}
    server.create("Event", {"metadata": {"name": f"{RUN_ID}.1"}, **warning}, "raylift")
    wait_for(lambda: "exceeded quota: raylift" in watcher.news(), "the reason", timeout=30)
    server.delete("RayJob", "raylift", RUN_ID)
    wait_for(lambda: not watcher.is_alive(), "the end", timeout=30)


def test_an_object_that_went_while_nobody_looked_is_told_to_be_gone(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    kubernetes.launch(run)
    watched = kubernetes.server.watch(api.RAY_JOBS, "raylift", "")
    assert next(watched)[0] == "ADDED"
    with server.store.lock:
        server.delete("RayJob", "raylift", RUN_ID)
        server.store.forget()
    assert next(watched)[0] == "DELETED"


def test_a_watch_that_fails_on_the_way_begins_anew(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubernetes.launch(run)
    whole = Api.lines
    said = b'{"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "etcdserver: no leader"}}\n'
    first = iter([said])

    def lines(self: Api, path: str, **query: Any) -> Any:
        yield from first
        yield from whole(self, path, **query)

    monkeypatch.setattr(Api, "lines", lines)
    watched = kubernetes.server.watch(api.RAY_JOBS, "raylift", "")
    assert next(watched)[0] == "ADDED"
    server.set_status("RayJob", "raylift", RUN_ID, jobId="later")
    assert next(watched)[1]["status"]["jobId"] == "later"


# Logs


def test_logs_start_at_an_offset_and_follow_over_a_lost_connection_and_the_next_submitter(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubernetes.launch(run)
    take_up(server, RUN_ID)
    server.set_status("RayJob", "raylift", RUN_ID, jobDeploymentStatus="Running", jobStatus="RUNNING")
    first = submit(server, RUN_ID)
    server.log(first, b"one two ")
    whole = Api.lines
    cuts, unheard = iter(range(2)), threading.Event()

    def lines(self: Api, path: str, **query: Any) -> Any:
        for chunk in whole(self, path, **query):
            yield chunk
            cut = next(cuts, None) if path.endswith("/log") else None
            if cut == 1:  # what is said, and the end of the pod, nobody hears
                server.log(first, b"three ")
                server.set_status("Pod", "raylift", first["metadata"]["name"], phase="Failed")
                unheard.set()
            if cut is not None:
                return  # the connection ends

    monkeypatch.setattr(Api, "lines", lines)

    def go_on() -> None:
        unheard.wait(30)
        server.log(submit(server, RUN_ID, "second"), b"four")
        server.set_status("RayJob", "raylift", RUN_ID, jobDeploymentStatus="Complete")
        server.set_status("Pod", "raylift", f"{RUN_ID}-second", phase="Succeeded")

    thread = threading.Thread(target=go_on)
    thread.start()
    assert b"".join(kubernetes.logs(RUN_ID, follow=True, offset=4)) == b"two three four"
    thread.join()


def test_followed_logs_wait_for_an_api_server_that_is_away(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(printed, "_AWAY", 0.0)
    kubernetes.launch(run)
    take_up(server, RUN_ID)
    server.log(pod := submit(server, RUN_ID), b"one ")
    server.set_status("Pod", "raylift", pod["metadata"]["name"], phase="Succeeded")
    server.set_status("RayJob", "raylift", RUN_ID, jobDeploymentStatus="Running", jobStatus="RUNNING")
    followed = kubernetes.logs(RUN_ID, follow=True)
    assert next(followed) == b"one "
    server.faults.append(Fault("GET", status=403, count=3))
    server.log(submit(server, RUN_ID, "second"), b"two\n")
    assert next(followed) == b"two\n"


def test_a_log_that_cannot_be_read_holds_up_no_other(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a pod whose node is lost, while the pod is there."""
    monkeypatch.setattr(api, "_TRIES", 1)
    monkeypatch.setattr(printed, "_POLL", 0.01)
    kubernetes.launch(run)
    take_up(server, RUN_ID)
    server.set_status("RayJob", "raylift", RUN_ID, jobDeploymentStatus="Running", jobStatus="RUNNING")
    lost, other = submit(server, RUN_ID), submit(server, RUN_ID, "second")
    server.log(other, b"said")
    server.set_status("Pod", "raylift", other["metadata"]["name"], phase="Succeeded")
    log = f"GET /api/v1/namespaces/raylift/pods/{lost['metadata']['name']}/log"
    server.faults.append(Fault(log, status=500, count=10**6))
    unread = kubernetes.logs(RUN_ID, follow=False)
    assert next(unread) == b"said"
    with pytest.raises(ApiError):
        next(unread)
    followed = kubernetes.logs(RUN_ID, follow=True)
    assert next(followed) == b"said"
    server.set_status("RayJob", "raylift", RUN_ID, jobDeploymentStatus="Complete")
    assert list(followed) == []


def test_a_pod_that_has_the_name_of_another_says_what_it_says_itself(
    server: ApiServer, kubernetes: KubernetesProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(printed, "_POLL", 0.01)
    kubernetes.launch(without_image())
    made = take_up(server, RUN_ID)
    server.set_status("RayJob", "raylift", RUN_ID, jobDeploymentStatus="Initializing")
    head = made["head"]["metadata"]["name"]

    def fetches(said: bytes, how: str) -> None:
        pod = server.get("Pod", "raylift", head)
        assert pod is not None
        server.log(pod, said, FETCHING)
        state = {"name": FETCHING, "image": "x", "state": {how: {"exitCode": 1}}, "ready": False}
        server.set_status("Pod", "raylift", head, phase="Pending", initContainerStatuses=[state])

    fetches(b"old 1\n", "running")
    whole = Api.lines
    replaced = iter([True])

    def lines(self: Api, path: str, **query: Any) -> Any:
        for chunk in whole(self, path, **query):
            yield chunk
            if path.endswith("/log") and next(replaced, False):
                old = server.get("Pod", "raylift", head)
                assert old is not None
                server.delete("Pod", "raylift", head)
                server.logs.clear()
                fresh = {key: value for key, value in old["metadata"].items() if key in ("name", "labels")}
                server.create("Pod", {"metadata": fresh, "spec": old["spec"]}, "raylift")
                fetches(b"new 1\nnew 2\n", "terminated")
                server.set_status("RayJob", "raylift", RUN_ID, jobDeploymentStatus="Failed")
                return

    monkeypatch.setattr(Api, "lines", lines)
    assert b"".join(kubernetes.logs(RUN_ID, follow=True)) == b"old 1\nnew 1\nnew 2\n"


def test_logs_that_are_not_followed_end_with_what_there_is(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    kubernetes.launch(run)
    assert list(kubernetes.logs(RUN_ID, follow=False)) == []
    take_up(server, RUN_ID)
    server.log(submit(server, RUN_ID), b"so far")
    assert b"".join(kubernetes.logs(RUN_ID, follow=False)) == b"so far"


def test_logs_have_what_a_worker_printed_that_fetched_in_vain(
    server: ApiServer, kubernetes: KubernetesProvider
) -> None:
    kubernetes.launch(without_image())
    made = take_up(server, RUN_ID)
    worker = made["worker"]["metadata"]["name"]
    for pod, said in ((made["head"], b"fetched\n"), (made["worker"], b"no such host\n")):
        server.log(pod, said, FETCHING)
        ended = {"name": FETCHING, "image": "x", "state": {"terminated": {"exitCode": 0}}, "ready": True}
        server.set_status("Pod", "raylift", pod["metadata"]["name"], phase="Pending", initContainerStatuses=[ended])
    assert b"".join(kubernetes.logs(RUN_ID, follow=False)) == b"fetched\n"
    failed = {"name": FETCHING, "image": "x", "state": {"terminated": {"exitCode": 1}}, "ready": False}
    server.set_status("Pod", "raylift", worker, phase="Failed", initContainerStatuses=[failed])
    assert b"".join(kubernetes.logs(RUN_ID, follow=False)) == f"fetched\npod {worker}:\nno such host\n".encode()


def test_logs_are_whole_where_a_server_does_not_answer_at_once(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, fault: Fault
) -> None:
    kubernetes.launch(run)
    take_up(server, RUN_ID)
    pod = submit(server, RUN_ID)
    server.log(pod, b"one two three four")
    log = f"GET /api/v1/namespaces/raylift/pods/{pod['metadata']['name']}/log"
    server.faults += [dataclasses.replace(fault, call=call) for call in (log, "GET")]
    assert b"".join(kubernetes.logs(RUN_ID, follow=False)) == b"one two three four"
    assert all(not each.count for each in server.faults)


# Ending


def test_a_teardown_removes_all_of_a_run_and_nothing_of_another(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    other = dataclasses.replace(run, run_id="other", run_uri="s3://bucket/runs/other")
    for each in (run, other):
        kubernetes.launch(each)
        take_up(server, each.run_id)
    kinds = ("RayJob", "RayCluster", "Pod", "Service", "Job", "Secret")
    before = {kind: len(server.all(kind)) for kind in kinds}
    receipt = kubernetes.teardown(RUN_ID)
    assert receipt.leftovers == []
    assert {kind: len(server.all(kind)) * 2 for kind in kinds} == before
    removed = sorted(each.kind for each in receipt.removed if each.kind != "Secret")  # which may have gone with the job
    assert removed == ["Job", "Pod", "Pod", "RayCluster", "RayJob", "Service", "Service"]


def test_a_teardown_leaves_a_launch_that_comes_in_its_midst_whole(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubernetes.launch(run)
    seen, select = job_of(server)["metadata"]["uid"], Api.select

    def selecting(kind: api.Kind, namespace: str | None, *labels: str, **fields: str) -> list[Object]:
        if not server.all("RayJob"):  # it was deleted a moment ago
            KubernetesProvider(kubernetes.cluster).launch(run)
            take_up(server, RUN_ID)
        return select(kubernetes.server, kind, namespace, *labels, **fields)

    monkeypatch.setattr(kubernetes.server, "select", selecting)
    with pytest.raises(RunExistsError, match="another one by now"):
        kubernetes.teardown(RUN_ID, launch=seen)
    for kind in ("RayJob", "RayCluster", "Secret"):
        assert [bool(each["metadata"].get("deletionTimestamp")) for each in server.all(kind)] == [False]


def test_a_secret_of_somebody_else_with_the_name_of_a_run_is_left_alone(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    server.create("Secret", {"metadata": {"name": RUN_ID}, "data": {"KEY": "aHVudGVyMg=="}}, "raylift")
    kubernetes.launch(run)
    assert kubernetes.teardown(RUN_ID).leftovers == []
    (left,) = server.all("Secret")
    assert (left["metadata"]["name"], left["data"]) == (RUN_ID, {"KEY": "aHVudGVyMg=="})


def test_a_teardown_of_nothing_removes_nothing_and_may_be_repeated(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    kubernetes.launch(run)
    assert len(kubernetes.teardown(RUN_ID).removed) >= 1
    receipt = kubernetes.teardown(RUN_ID)
    assert (list(receipt.removed), list(receipt.leftovers)) == ([], [])
    assert server.all("RayJob") == []


def test_what_a_finalizer_holds_is_left_over_by_name(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    kubernetes.launch(run)
    take_up(server, RUN_ID, finalizer=True)
    receipt = kubernetes.teardown(RUN_ID)
    (job,) = (each for each in receipt.leftovers if each.kind == "RayJob")
    assert job.name == RUN_ID
    assert job.detail == "raylift, being deleted, held by ray.io/rayjob-finalizer"


def test_a_teardown_waits_for_pods_that_take_their_time(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    kubernetes.launch(run)
    take_up(server, RUN_ID)
    pod = f"{RUN_ID}-x7k2p-head"
    server.change("Pod", "raylift", pod, lambda value: value["metadata"].update(finalizers=["saving"]))

    def let_go() -> None:
        server.change("Pod", "raylift", pod, lambda value: value["metadata"].update(finalizers=[]))

    threading.Timer(0.4, let_go).start()
    assert kubernetes.teardown(RUN_ID).leftovers == []


def hold(server: ApiServer, kind: str, cluster: Object, **more: Any) -> str:
    """Make an object that goes with a cluster, but for a finalizer; return its name."""
    name = cluster["metadata"]["name"]
    owner = {key: cluster[key] for key in ("apiVersion", "kind")}
    owner |= {key: cluster["metadata"][key] for key in ("name", "uid")}
    metadata = {"name": name, "labels": {"ray.io/cluster": name}, "ownerReferences": [owner], "finalizers": ["x.y/z"]}
    server.create(kind, {"metadata": metadata, **more}, "raylift")
    return str(name)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("ServiceAccount", {}),
        ("Role", {"rules": []}),
        ("RoleBinding", {"roleRef": {}, "subjects": []}),
        ("NetworkPolicy", {"spec": {"podSelector": {}}}),
        ("ConfigMap", {"data": {}}),
    ],
)
def test_a_teardown_waits_for_what_kuberay_made_beside_the_pods_and_names_it(
    server: ApiServer,
    kubernetes: KubernetesProvider,
    run: LaunchRequest,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    more: Object,
) -> None:
    as_admin(server, monkeypatch)
    kubernetes.launch(run)
    name = hold(server, kind, take_up(server, RUN_ID)["cluster"], **more)
    (left,) = kubernetes.teardown(RUN_ID).leftovers
    assert (left.kind, left.name, left.detail) == (kind, name, "raylift, being deleted, held by x.y/z")
    server.change(kind, "raylift", name, lambda value: value["metadata"].update(finalizers=[]))
    assert kubernetes.teardown(RUN_ID).leftovers == []


def test_a_teardown_deletes_the_token_of_a_cluster_and_names_it_where_it_stays(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    kubernetes.launch(run)
    name = hold(server, "Secret", take_up(server, RUN_ID)["cluster"], data={})
    (left,) = kubernetes.teardown(RUN_ID).leftovers
    assert (left.kind, left.name, left.detail) == ("Secret", name, "is still being deleted")


def test_a_teardown_by_somebody_who_may_not_look_at_accounts_and_roles_removes_all_that_it_sees(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    beside = {"serviceaccounts", "configmaps", "roles", "rolebindings", "networkpolicies"}

    def without_them(role: Object) -> None:
        role["rules"] = [rule for rule in role["rules"] if not beside & set(rule["resources"])]

    server.change("Role", "raylift", "raylift-launcher", without_them)
    kubernetes.launch(run)
    take_up(server, RUN_ID)
    receipt = kubernetes.teardown(RUN_ID)
    assert receipt.leftovers == []
    assert [each.partition(".")[0] for each in receipt.unseen] == sorted(beside)
    assert server.all("RayJob") == server.all("RayCluster") == server.all("Pod") == []


def test_a_server_that_is_busy_during_a_teardown_is_asked_again(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, fault: Fault
) -> None:
    kubernetes.launch(run)
    take_up(server, RUN_ID)
    server.faults += [Fault("DELETE", status=429, headers={"Retry-After": "1"})]
    server.faults += [dataclasses.replace(fault, call="DELETE", count=2), dataclasses.replace(fault, call="GET")]
    server.faults += [Fault("GET /api/v1/namespaces/raylift/pods", status=503, count=2)]
    assert kubernetes.teardown(RUN_ID).leftovers == []
    assert all(not fault.count for fault in server.faults)
    assert server.all("RayJob") == server.all("Pod") == server.all("Secret") == []


def test_a_laptop_that_dies_at_any_step_of_a_teardown_leaves_what_the_next_teardown_removes(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin() -> None:
        kubernetes.launch(run)
        take_up(server, RUN_ID)
        # the garbage collector may be slow
        server.change("Secret", "raylift", f"raylift.{RUN_ID}", lambda value: value["metadata"].pop("ownerReferences"))

    begin()
    died = []
    for changes in deaths(monkeypatch, lambda: kubernetes.teardown(RUN_ID)):
        assert kubernetes.teardown(RUN_ID).leftovers == []
        assert server.all("RayJob") == server.all("RayCluster") == server.all("Pod") == server.all("Secret") == []
        died.append(changes)
        begin()
    assert died == [0, 1, 2, 3], "the job, the Secret, that of the token; the proof is the last call"


def test_stopping_twice_is_stopping_once(server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest) -> None:
    kubernetes.launch(run)
    kubernetes.stop(RUN_ID)
    kubernetes.stop(RUN_ID)
    assert server.all("RayJob") == []


# The audit


def test_an_audit_lists_what_is_ours_in_the_namespace(
    server: ApiServer, kubernetes: KubernetesProvider, run: LaunchRequest
) -> None:
    kubernetes.launch(run)
    take_up(server, RUN_ID)
    server.create("RayJob", {"metadata": {"name": "somebody-elses"}, "spec": {}}, "raylift")
    found = kubernetes.audit()
    assert [(each.kind, each.run_id) for each in found] == [
        (kind, RUN_ID) for kind in ("RayJob", "RayCluster", "Pod", "Pod")
    ]


def test_an_audit_by_somebody_who_may_look_everywhere_looks_everywhere(
    server: ApiServer, kubernetes: KubernetesProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.create("Namespace", {"metadata": {"name": "ml"}})
    labels = {"app.kubernetes.io/managed-by": "raylift", "raylift.dev/run": "forgotten"}
    server.create("RayJob", {"metadata": {"name": "forgotten", "labels": labels}, "spec": {}}, "ml")
    told: list[str] = []
    assert kubernetes.audit(on_limit=told.append) == []
    assert told == ["looked in the namespace raylift alone: elsewhere you may not list rayjobs, rayclusters, pods"]
    as_admin(server, monkeypatch)
    (found,) = KubernetesProvider(kubernetes.cluster).audit(on_limit=told.append)
    assert (found.run_id, found.detail, len(told)) == ("forgotten", "ml", 1)


def test_many_objects_come_in_pages(server: ApiServer, kubernetes: KubernetesProvider) -> None:
    labels = {"app.kubernetes.io/managed-by": "raylift"}
    for number in range(1201):
        server.create("Pod", {"metadata": {"name": f"pod-{number}", "labels": labels}}, "raylift")
    assert len({each.name for each in kubernetes.audit()}) == 1201
    assert len([call for call in server.calls if "continue=" in call]) == 2


def test_pages_that_have_become_too_old_come_all_at_once(
    server: ApiServer, kubernetes: KubernetesProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        server.create("Pod", {"metadata": {"name": f"pod-{number}"}}, "raylift")
    monkeypatch.setattr(api, "_PAGE", 2)
    read: Callable[..., Object] = Api.get

    def slowly(self: Api, path: str, **query: Any) -> Object:
        if "continue" in query:
            server.store.forget()
        return read(self, path, **query)

    monkeypatch.setattr(Api, "get", slowly)
    assert len(kubernetes.server.select(api.PODS, "raylift")) == 5


def test_an_error_of_the_server_keeps_its_own_words(server: ApiServer, kubernetes: KubernetesProvider) -> None:
    server.tokens["nobody"] = User("nobody")
    with pytest.raises(ApiError) as raised:
        kubernetes.server.get("/api/v1/namespaces/raylift/secrets")
    assert (raised.value.status, raised.value.reason) == (403, "Forbidden")
    assert "cannot list resource" in str(raised.value)
