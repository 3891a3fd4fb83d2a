"""A cluster with the base of k8s/ in it, and somebody who may do there what its Role allows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.kubernetes import api, printed, provider
from cluster.kubernetes.provider import KubernetesProvider
from tests.cluster.kubernetes.golden import request
from tests.k8s.manifests import K8S, Manifest, render
from tests.stand_ins.kubernetes.access import User
from tests.stand_ins.kubernetes.server import ApiServer, Fault, api_server

LAUNCHER = "launcher-token"


@pytest.fixture(scope="session")
def base() -> list[Manifest]:
    return render(K8S / "base")


@pytest.fixture
def server(tmp_path: Path, base: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    folder = tmp_path / "kubernetes"
    folder.mkdir()
    with api_server(folder) as server:
        for document in base:
            server.create(document["kind"], document, document["metadata"].get("namespace", ""))
        server.tokens[LAUNCHER] = User.service_account("raylift", "raylift-launcher")
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig("launcher", LAUNCHER)))
        monkeypatch.setattr(api, "_LONGEST", 0.02)
        monkeypatch.setattr(api, "_PAUSE", 0.0)
        monkeypatch.setattr(printed, "_POLL", 0.02)
        monkeypatch.setattr(provider, "_POLL", 0.02)
        monkeypatch.setattr(provider, "_BEYOND_GRACE", -29.0)
        yield server


@pytest.fixture
def kubernetes(server: ApiServer) -> KubernetesProvider:  # noqa: ARG001
    """Return the provider of a plain run, in the name of the launcher's account."""
    cluster = request("plain", termination_grace_period_seconds=30).cluster
    return KubernetesProvider(cluster)  # type: ignore[arg-type]


@pytest.fixture(
    params=[Fault("", status=429), Fault("", status=500), Fault("", late=4.0), Fault("", after=True), Fault("", cut=8)],
    ids=["429", "500", "late", "lost", "cut"],
)
def fault(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Fault:
    """Return what a call may meet instead of its reply; nobody waits for one that is late."""
    found: Fault = request.param
    if found.late:
        monkeypatch.setattr(api, "_TIMEOUT", (5.0, 3.0))
    return found
