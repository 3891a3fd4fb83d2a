"""The stand-in itself: that kubectl takes it for an API server, and that it refuses what one would refuse."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import needs
from tests.cluster.kubernetes.golden import FOLDER, RUN_ID
from tests.k8s.manifests import K8S, render
from tests.stand_ins.kubernetes.access import User
from tests.stand_ins.kubernetes.server import ApiServer, Fault, api_server

Object = dict[str, Any]
Call = Callable[..., tuple[int, Any]]
JOBS = "/apis/ray.io/v1/namespaces/raylift/rayjobs"
SECRETS = "/api/v1/namespaces/raylift/secrets"
APPLY = "application/apply-patch+yaml"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as server:
        server.create("Namespace", {"metadata": {"name": "raylift"}})
        yield server


@pytest.fixture
def call(server: ApiServer) -> Call:
    """Make a call, as the administrator unless another token is given; return its status and its answer."""
    context = ssl.create_default_context(cafile=str(server.authority))

    def make(
        method: str, path: str, body: Any = None, *, content: str = "", token: str = "admin-token"
    ) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": content or "application/json"}
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(server.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, context=context, timeout=30) as reply:
                return reply.status, [json.loads(line) for line in reply.read().splitlines()]
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    return make


def job() -> Object:
    document: Object = next(iter(yaml.safe_load_all((FOLDER / "processors.yaml").read_text())))
    return document


def secret(**data: str) -> Object:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "env"}, "data": data}


def apply(call: Call, document: Object, manager: str, *, path: str = "", force: bool = False) -> tuple[int, Any]:
    path = path or f"{SECRETS}/{document['metadata']['name']}"
    return call("PATCH", f"{path}?fieldManager={manager}{'&force=true' if force else ''}", document, content=APPLY)


# kubectl


def kubectl(server: ApiServer, *arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    config = server.kubeconfig("admin", "admin-token")
    return subprocess.run(
        [needs.kubectl(), "--kubeconfig", config, "--cache-dir", server.folder / "cache", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_dry_run_in_a_namespace_that_is_not_there_fails_as_it_does_in_kubernetes(server: ApiServer) -> None:
    done = kubectl(server, "apply", "--dry-run=server", "-f", FOLDER / "eight-gpus-a-node.yaml")
    assert 'namespaces "ml" not found' in done.stderr


def test_kubectl_applies_reads_and_deletes(server: ApiServer) -> None:
    first = kubectl(server, "apply", "--server-side", "-f", FOLDER / "processors.yaml")
    assert first.returncode == 0, first.stderr
    version = server.all("RayJob")[0]["metadata"]["resourceVersion"]
    assert kubectl(server, "apply", "--server-side", "-f", FOLDER / "processors.yaml").returncode == 0
    assert server.all("RayJob")[0]["metadata"]["resourceVersion"] == version
    found = kubectl(server, "get", "rayjob", RUN_ID, "-n", "raylift", "-o", "jsonpath={.spec.backoffLimit}")
    assert found.stdout == "3"
    assert kubectl(server, "delete", "rayjob", RUN_ID, "-n", "raylift").returncode == 0
    assert server.all("RayJob") == []


def test_kubectl_is_told_of_a_field_that_the_crd_does_not_have(server: ApiServer, tmp_path: Path) -> None:
    document = job()
    document["spec"]["backofLimit"] = 3
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(document))
    done = kubectl(server, "apply", "--dry-run=server", "-f", tmp_path / "job.yaml")
    assert 'strict decoding error: unknown field "spec.backofLimit"' in done.stderr


# Who may do what


def test_nobody_is_let_in_without_a_token_that_is_known(call: Call) -> None:
    assert call("GET", JOBS, token="wrong")[0] == 401


def test_a_role_allows_what_it_names_in_its_namespace_alone(server: ApiServer, call: Call) -> None:
    for document in render(K8S / "base"):
        if document["kind"] in ("Role", "RoleBinding"):
            server.create(document["kind"], document, "raylift")
    server.tokens["launcher"] = User.service_account("raylift", "raylift-launcher")
    assert call("GET", JOBS, token="launcher")[0] == 200
    for path in (SECRETS, "/apis/ray.io/v1/rayjobs", JOBS.replace("raylift", "default")):
        code, answer = call("GET", path, token="launcher")
        assert (code, answer["reason"]) == (403, "Forbidden")
        assert 'User "system:serviceaccount:raylift:raylift-launcher" cannot list resource' in answer["message"]
    asked = {"verb": "patch", "group": "ray.io", "resource": "rayjobs", "namespace": "raylift"}
    for verb, allowed in (("patch", True), ("deletecollection", False)):
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
        review |= {"spec": {"resourceAttributes": {**asked, "verb": verb}}}  # type: ignore[dict-item]
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        assert call("POST", path, review, token="launcher")[1][0]["status"] == {"allowed": allowed}


def test_a_server_side_apply_of_what_is_not_there_needs_the_right_to_create(server: ApiServer, call: Call) -> None:
    rule = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["patch"]}
    server.create("Role", {"metadata": {"name": "patcher"}, "rules": [rule]}, "raylift")
    binding = {"metadata": {"name": "patcher"}, "roleRef": {"name": "patcher"}}
    server.create("RoleBinding", {**binding, "subjects": [{"kind": "User", "name": "ann"}]}, "raylift")
    server.tokens["ann"] = User("ann")
    path = f"{SECRETS}/env?fieldManager=m"
    assert call("PATCH", path, secret(), content=APPLY, token="ann")[0] == 403
    server.create("Secret", {"metadata": {"name": "env"}}, "raylift")
    assert call("PATCH", path, secret(), content=APPLY, token="ann")[0] == 200


# What is refused


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/apis/apps/v1/deployments", 404),
        ("GET", "/nothing", 404),
        ("DELETE", JOBS, 405),
        ("GET", f"{JOBS}/x/scale", 404),
        ("GET", f"{JOBS}?shardSelector=x", 501),
        ("GET", f"{JOBS}?labelSelector=a+in+(b)", 501),
        ("GET", f"{JOBS}?fieldSelector=spec.x=1", 400),
        ("GET", f"{JOBS}/missing", 404),
    ],
)
def test_what_it_does_not_know_is_refused(call: Call, method: str, path: str, code: int) -> None:
    assert call(method, path)[0] == code


def test_a_rayjob_that_the_crd_does_not_take_is_refused(call: Call) -> None:
    document = job()
    document["spec"]["backoffLimit"] = "three"
    code, answer = call("POST", JOBS, document)
    assert code == 422
    assert 'spec.backoffLimit: Invalid value: "string": must be of type integer' in answer["message"]


def test_what_a_controller_writes_is_held_to_the_crd_too(server: ApiServer, call: Call) -> None:
    call("POST", JOBS, job())
    with pytest.raises(ValueError, match=rf"RayJob {RUN_ID}: status\.jobState: unknown field"):
        server.set_status("RayJob", "raylift", RUN_ID, jobState="RUNNING")
    with pytest.raises(ValueError, match=r'status\.failed: Invalid value: "string": must be of type integer'):
        server.set_status("RayJob", "raylift", RUN_ID, failed="once")
    with pytest.raises(ValueError, match=r"spec\.headGroupSpec: Required value"):
        server.create("RayCluster", {"metadata": {"name": "dev"}, "spec": {}}, "raylift")


def test_an_apply_of_a_field_that_the_crd_does_not_have_is_answered_as_a_failure_of_the_server(call: Call) -> None:
    document = job()
    document["spec"]["backofLimit"] = 3
    code, answer = apply(call, document, "one", path=f"{JOBS}/{RUN_ID}")
    assert code == 500
    assert answer["message"].endswith("Kind=RayJob): .spec.backofLimit: field not declared in schema")


def test_a_field_with_a_rule_that_it_cannot_work_out_is_refused(call: Call) -> None:
    document = job()
    document["spec"]["deletionStrategy"] = {}
    assert "does not work out rules in CEL" in call("POST", JOBS, document)[1]["message"]


def test_a_label_that_is_none_is_refused(call: Call) -> None:
    document = job()
    document["metadata"]["labels"]["raylift.dev/run"] = "ends-"
    assert call("POST", JOBS, document)[0] == 422


def test_what_only_its_meaning_shows_to_be_wrong_is_refused(call: Call) -> None:
    code, answer = call("POST", SECRETS, secret(**{"A B": ""}))
    assert (code, answer["message"][:58]) == (422, 'Secret "env" is invalid: data[A B]: Invalid value: "A B": ')


def test_the_type_of_a_secret_stays(call: Call) -> None:
    call("POST", SECRETS, secret(A="MQ=="))
    other = {**secret(A="MQ=="), "type": "example.com/kind"}
    for code, answer in (
        call("PUT", f"{SECRETS}/env", other),
        call("PATCH", f"{SECRETS}/env", {"type": other["type"]}, content="application/merge-patch+json"),
        apply(call, other, "one"),
    ):
        said = 'Secret "env" is invalid: type: Invalid value: "example.com/kind": field is immutable'
        assert (code, answer["message"]) == (422, said)


def test_the_same_name_cannot_be_created_twice(call: Call) -> None:
    assert call("POST", JOBS, job())[0] == 201
    code, answer = call("POST", JOBS, job())
    assert (code, answer["message"]) == (409, f'rayjobs.ray.io "{RUN_ID}" already exists')


def test_what_is_listed_of_kubernetes_own_kinds_does_not_say_what_it_is(server: ApiServer, call: Call) -> None:
    server.create("Secret", {"metadata": {"name": "env"}}, "raylift")
    call("POST", JOBS, job())
    for path, says in ((SECRETS, False), (JOBS, True)):
        ((item,),) = [answer["items"] for answer in call("GET", path)[1]]
        assert ("kind" in item, "apiVersion" in item) == (says, says)


def test_an_update_of_an_old_version_is_a_conflict(server: ApiServer, call: Call) -> None:
    (made,) = call("POST", JOBS, job())[1]
    server.change("RayJob", "raylift", RUN_ID, lambda value: value["spec"].update(backoffLimit=5))
    assert call("PUT", f"{JOBS}/{RUN_ID}", made)[0] == 409


def test_a_status_changes_through_its_own_subresource_alone(call: Call) -> None:
    (made,) = call("POST", JOBS, {**job(), "status": {"jobStatus": "RUNNING"}})[1]
    assert "jobStatus" not in made.get("status", {})
    changed = {**made, "status": {"jobStatus": "RUNNING"}, "spec": {**made["spec"], "backoffLimit": 9}}
    (after,) = call("PUT", f"{JOBS}/{RUN_ID}/status", changed)[1]
    assert (after["status"]["jobStatus"], after["spec"]["backoffLimit"]) == ("RUNNING", 3)


# Server-side apply


def test_an_apply_by_the_same_manager_changes_and_takes_away_its_fields(call: Call) -> None:
    assert apply(call, secret(A="MQ==", B="Mg=="), "one")[0] == 201
    code, (after,) = apply(call, secret(A="Mw=="), "one")
    assert (code, after["data"]) == (200, {"A": "Mw=="})


def test_an_apply_that_changes_nothing_makes_no_new_version(call: Call) -> None:
    (first,) = apply(call, job(), "one", path=f"{JOBS}/{RUN_ID}")[1]
    (again,) = apply(call, job(), "one", path=f"{JOBS}/{RUN_ID}")[1]
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_a_field_of_another_manager_is_a_conflict_unless_it_has_the_same_value_or_is_forced(call: Call) -> None:
    apply(call, secret(A="MQ=="), "one")
    code, answer = apply(call, secret(A="Mg=="), "two")
    assert (code, answer["reason"]) == (409, "Conflict")
    assert answer["message"] == 'Apply failed with 1 conflict: conflict with "one": .data.A'
    assert apply(call, secret(A="MQ==", B="Mw=="), "two")[0] == 200
    (forced,) = apply(call, secret(A="Mg=="), "two", force=True)[1]
    assert forced["data"] == {"A": "Mg=="}
    managers = {each["manager"]: each["fieldsV1"] for each in forced["metadata"]["managedFields"]}
    assert managers["two"] == {"f:data": {"f:A": {}}}


def test_a_field_that_another_manager_shares_is_not_taken_away(call: Call) -> None:
    apply(call, secret(A="MQ=="), "one")
    apply(call, secret(A="MQ=="), "two")
    (after,) = apply(call, secret(), "two")[1]
    assert after["data"] == {"A": "MQ=="}


def test_owners_are_a_map_by_their_uid(server: ApiServer, call: Call) -> None:
    uids = [call("POST", JOBS, {**job(), "metadata": {"name": name}})[1][0]["metadata"]["uid"] for name in ("a", "b")]
    for manager, uid in zip(("one", "two"), uids, strict=True):
        owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": "x", "uid": uid}
        document = {**secret(), "metadata": {"name": "env", "ownerReferences": [owner]}}
        assert apply(call, document, manager)[0] in (200, 201)
    found = server.get("Secret", "raylift", "env")
    assert found is not None
    assert [each["uid"] for each in found["metadata"]["ownerReferences"]] == uids


# Deletion


def test_what_an_object_owns_goes_with_it_and_a_finalizer_holds_it(server: ApiServer, call: Call) -> None:
    (made,) = call("POST", JOBS, job())[1]
    owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": RUN_ID, "uid": made["metadata"]["uid"]}
    server.create("Secret", {"metadata": {"name": "env", "ownerReferences": [owner]}}, "raylift")
    server.change("RayJob", "raylift", RUN_ID, lambda value: value["metadata"].update(finalizers=["held"]))
    call("DELETE", f"{JOBS}/{RUN_ID}")
    held = server.get("RayJob", "raylift", RUN_ID)
    assert held is not None
    assert held["metadata"]["deletionTimestamp"]
    assert server.get("Secret", "raylift", "env") is not None
    server.change("RayJob", "raylift", RUN_ID, lambda value: value["metadata"].update(finalizers=[]))
    assert server.get("RayJob", "raylift", RUN_ID) is None
    assert server.get("Secret", "raylift", "env") is None


# Watches


def test_a_watch_tells_what_became_of_objects_after_a_version(server: ApiServer, call: Call) -> None:
    (listed,) = call("GET", JOBS)[1]
    version = listed["metadata"]["resourceVersion"]
    call("POST", JOBS, job())
    server.set_status("RayJob", "raylift", RUN_ID, jobStatus="RUNNING")
    server.delete("RayJob", "raylift", RUN_ID)
    changes = call("GET", f"{JOBS}?watch=true&resourceVersion={version}&timeoutSeconds=1")[1]
    assert [each["type"] for each in changes] == ["ADDED", "MODIFIED", "DELETED"]
    after = changes[1]["object"]["metadata"]["resourceVersion"]
    again = call("GET", f"{JOBS}?watch=true&resourceVersion={after}&timeoutSeconds=1")[1]
    assert [each["type"] for each in again] == ["DELETED"]


def test_a_watch_from_a_version_that_is_forgotten_is_told_so(server: ApiServer, call: Call) -> None:
    (listed,) = call("GET", JOBS)[1]
    call("POST", JOBS, job())
    server.store.forget()
    (told,) = call(
        "GET", f"{JOBS}?watch=true&resourceVersion={listed['metadata']['resourceVersion']}&timeoutSeconds=1"
    )[1]
    assert (told["type"], told["object"]["code"]) == ("ERROR", 410)


def test_a_watch_shows_what_its_labels_select(call: Call) -> None:
    call("POST", JOBS, job())
    path = f"{JOBS}?watch=true&timeoutSeconds=1&labelSelector=raylift.dev/run="
    assert call("GET", f"{path}other")[1] == []
    assert [each["type"] for each in call("GET", f"{path}{RUN_ID}")[1]] == ["ADDED"]


# Logs


def test_a_log_is_followed_until_its_pod_is_over(server: ApiServer, call: Call) -> None:
    pod = server.create("Pod", {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}}, "raylift")
    server.log(pod, b'"one"\n')

    def end() -> None:
        server.log(pod, b'"two"\n')
        server.set_status("Pod", "raylift", "p", phase="Succeeded")

    threading.Timer(0.3, end).start()
    assert call("GET", "/api/v1/namespaces/raylift/pods/p/log?follow=true")[1] == ["one", "two"]
    assert call("GET", "/api/v1/namespaces/raylift/pods/p/log?container=other")[0] == 400


# Faults


def test_a_fault_meets_as_many_calls_as_it_says(server: ApiServer, call: Call) -> None:
    server.faults.append(Fault("GET /apis/ray.io", status=503, count=2))
    assert [call("GET", JOBS)[0] for _ in range(3)] == [503, 503, 200]


def test_a_lost_answer_is_of_a_call_that_was_done(server: ApiServer, call: Call) -> None:
    server.faults.append(Fault("POST", after=True))
    with pytest.raises(OSError, match="closed connection"):
        call("POST", JOBS, job())
    assert server.get("RayJob", "raylift", RUN_ID) is not None


def test_an_answer_that_is_cut_is_of_a_call_that_was_done(server: ApiServer, call: Call) -> None:
    server.faults += [Fault("POST", cut=8), Fault("GET", cut=8)]
    with pytest.raises(http.client.IncompleteRead) as raised:
        call("POST", JOBS, job())
    assert len(raised.value.partial) == 8
    assert server.get("RayJob", "raylift", RUN_ID) is not None
    with pytest.raises(http.client.IncompleteRead):  # of what is streamed, too
        call("GET", f"{JOBS}?watch=true&timeoutSeconds=1")
