"""That what raylift and its README tell people to type works on the stand-in, and so do kubectl's other looks."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.cluster.kubernetes.golden import RUN_ID, documents
from tests.harness import ROOT
from tests.k8s.manifests import K8S
from tests.stand_ins.kubernetes.access import User
from tests.stand_ins.kubernetes.kueue import Kueue
from tests.stand_ins.kubernetes.server import ApiServer, api_server
from tests.stand_ins.kubernetes.store import now

NAMED = re.compile(r"kubectl ((?:annotate|config|create|delete|describe|get) [a-z-]+|apply -k|logs)")
# what is typed, and a line of what comes
TOLD = {
    "apply -k {k8s}/base": "role.rbac.authorization.k8s.io/raylift-launcher created",
    "create secret generic gcs --namespace raylift --from-file {k8s}/base/quota.yaml": "secret/gcs created",
    "create secret generic raylift-storage --namespace raylift --from-literal A=1": "secret/raylift-storage created",
    "annotate serviceaccount raylift-run --namespace raylift a.com/b=c:d/e": "serviceaccount/raylift-run annotated",
    "get endpointslices kubernetes -n default": "kubernetes",
    "get service kube-dns -n kube-system": "kube-dns",
    "get namespace": "raylift",
    "config get-contexts": "admin",
    "config current-context": "admin",
    "config view": "current-context: admin",
    "describe resourcequota": "Name:       raylift",
    "describe workload rayjob-{run}": "Message:  too few",
    "logs -n raylift -f --max-log-requests 100 -c raylift -l raylift.dev/run={run},ray.io/node-type": "line 20",
    "create token raylift-run": "",
    "delete rayjob --namespace raylift {run}": 'rayjob.ray.io "{run}" deleted',
}
LOOKS = {
    "logs {run}-head": "line 1",
    "logs -l raylift.dev/run={run} --tail 3": "line 18",
    "get pods -w --request-timeout 2s": "{run}-head",
    "get pods -l raylift.dev/run={run} --field-selector status.phase=Succeeded": "{run}-head",
    "get rayjobs,pods,secrets": "rayjob.ray.io/{run}",
    "describe rayjob {run}": "refused by a quota",
    "describe pod {run}-head": "Status:       Succeeded",
    "events": "refused by a quota",
    "events --for rayjob/{run}": "refused by a quota",
    "get events": "refused",
    "auth can-i create rayjobs.ray.io": "yes",
    "auth can-i get pods/log": "yes",
    "auth can-i --list": "*.*",
    "wait rayjob/{run} --for jsonpath={{.spec.backoffLimit}}=3": "condition met",
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    """Return a server with a run in a queue, of which an event tells, and a pod of it that has printed and ended."""
    with api_server(tmp_path) as server:
        server.create("Namespace", {"metadata": {"name": "raylift"}})
        server.create("ServiceAccount", {"metadata": {"name": "raylift-run"}}, "raylift")
        server.create("ResourceQuota", {"metadata": {"name": "raylift"}, "spec": {}}, "raylift")
        dns = {"clusterIP": "10.96.0.10", "type": "ClusterIP", "ports": [{"port": 53, "protocol": "UDP"}]}
        server.create("Service", {"metadata": {"name": "kube-dns"}, "spec": dns}, "kube-system")
        (document, *_) = documents()["processors"]
        job = server.create("RayJob", document, "raylift")
        Kueue(server, "raylift").wait(RUN_ID, "too few")
        containers = {"initContainers": [{"name": "raylift"}], "containers": [{"name": "ray"}]}
        labels = {"raylift.dev/run": RUN_ID, "ray.io/node-type": "head"}
        pod = {"metadata": {"name": f"{RUN_ID}-head", "labels": labels}, "spec": containers}
        made = server.create("Pod", {**pod, "status": {"phase": "Succeeded"}}, "raylift")
        for container in ("raylift", "ray"):
            server.log(made, b"".join(b"line %d\n" % number for number in range(1, 21)), container)
        about = {key: job[key] for key in ("apiVersion", "kind")}
        about |= {key: job["metadata"][key] for key in ("name", "namespace", "uid")}
        event = {"type": "Warning", "reason": "Failed", "message": "refused by a quota", "lastTimestamp": now()}
        server.create("Event", {"metadata": {"name": "refused"}, "involvedObject": about, **event}, "raylift")
        yield server


def kubectl(server: ApiServer, typed: str) -> str:
    """Return what kubectl says on its screen; it ends well."""
    config, cache = server.kubeconfig("admin", "admin-token", "raylift"), server.folder / "cache"
    done = subprocess.run(
        [needs.kubectl(), "--kubeconfig", config, "--cache-dir", cache, *shlex.split(typed)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("typed", [*TOLD, *LOOKS])
def test_kubectl_finds_what_it_asks_for(server: ApiServer, typed: str) -> None:
    line = {**TOLD, **LOOKS}[typed].format(run=RUN_ID)
    printed = kubectl(server, typed.format(run=RUN_ID, k8s=K8S))
    assert line in printed, printed


def test_a_token_that_kubectl_creates_is_its_account_s(server: ApiServer) -> None:
    kubectl(server, f"apply -k {K8S}/base")
    token = kubectl(server, "create token raylift-launcher --duration 10m").strip()
    assert server.tokens[token] == User.service_account("raylift", "raylift-launcher")
    server.tokens["admin-token"] = server.tokens[token]
    assert "rayjobs.ray.io" in kubectl(server, "auth can-i --list")
    assert kubectl(server, "auth can-i create rayjobs.ray.io") == "yes\n"
    with pytest.raises(AssertionError, match="cannot create resource"):
        kubectl(server, "create token raylift-run")


def test_a_log_of_several_pods_is_that_of_their_last_lines(server: ApiServer) -> None:
    printed = kubectl(server, f"logs -l raylift.dev/run={RUN_ID}")
    assert printed.splitlines() == [f"line {number}" for number in range(11, 21)]


def test_what_a_secret_is_made_of_comes_as_it_was_typed(server: ApiServer) -> None:
    kubectl(server, "create secret generic typed --from-literal A=1 --from-literal B=ü --type example.com/kind")
    found = server.get("Secret", "raylift", "typed")
    assert found is not None
    assert (found["data"], found["type"]) == ({"A": "MQ==", "B": "w7w="}, "example.com/kind")


def test_all_that_people_are_told_to_type_is_tried() -> None:
    texts = [
        ROOT / "README.md",
        *K8S.rglob("*.yaml"),
        *(ROOT / "cluster").rglob("*.py"),
        *(ROOT / "launcher").rglob("*.py"),
    ]
    named = {match for file in texts for match in NAMED.findall(file.read_text())}
    assert {"describe workload", "logs", "delete rayjob", "create secret"} <= named
    assert [each for each in named if not any(typed.startswith(each) for typed in TOLD)] == []
