"""The Role of k8s/base against all that raylift asks of an API server."""

from __future__ import annotations

import contextlib
import threading

import pytest

from cluster.errors import InfrastructureError
from cluster.kubernetes import probe as probing
from cluster.kubernetes import rights
from cluster.kubernetes.provider import KubernetesProvider
from launcher.cluster_checks import check_cluster
from tests.cluster.kubernetes.golden import RUN_ID, on_named_cluster, request
from tests.cluster.kubernetes.kuberay import submit, take_up
from tests.harness import wait_for
from tests.k8s.manifests import Manifest, of_kind
from tests.stand_ins.kubernetes.server import ApiServer

READING_QUOTAS = ("list", "", "resourcequotas")  # by a check alone, which does without


def test_the_role_gives_what_raylift_does_and_no_more(
    server: ApiServer, kubernetes: KubernetesProvider, base: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "_POLL", 0.02)
    monkeypatch.setattr(probing, "_PATIENCE", 0.1)
    check_cluster(kubernetes.cluster, str(server.folder))
    with contextlib.suppress(InfrastructureError):  # there is no KubeRay that makes its pod
        probing.probe(kubernetes.server, kubernetes.cluster, "s3://bucket/runs")
    _live(server, kubernetes)

    role = of_kind(base, "Role")["raylift-launcher"]
    given = {
        (verb, group, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert server.actions == given
    asked_for = {
        (each.verb, each.kind.group, f"{each.kind.plural}/{each.subresource}".rstrip("/"))
        for each in (*rights.NEEDED, *rights.PROVING)
    }
    assert {*asked_for, READING_QUOTAS} == given


def _live(server: ApiServer, kubernetes: KubernetesProvider) -> None:
    """Have one run launched, looked at and followed to its end, taken away, and another on a cluster with a name."""
    kubernetes.launch(request("processors"))
    take_up(server, RUN_ID, finalizer=True)  # so that the teardown sees what the job has made
    pod = submit(server, RUN_ID)
    server.log(pod, b"said")
    server.set_status("Pod", "raylift", pod["metadata"]["name"], phase="Succeeded")
    server.set_status("RayJob", "raylift", RUN_ID, jobDeploymentStatus="Complete")
    assert b"".join(kubernetes.logs(RUN_ID, follow=True)) == b"said"
    changes = kubernetes.changes(RUN_ID)
    next(changes)

    def let_go() -> None:
        wait_for(lambda: not server.all("RayCluster"), "the end of the RayCluster")
        server.change("RayJob", "raylift", RUN_ID, lambda job: job["metadata"].update(finalizers=[]))

    threading.Thread(target=let_go).start()
    assert not kubernetes.teardown(RUN_ID).leftovers
    assert [each.state for each in changes][-1].is_final
    kubernetes.launch(on_named_cluster())
    kubernetes.describe(RUN_ID)
