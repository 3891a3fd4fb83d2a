"""Every manifest that raylift makes or ships, as kubectl has an API server look at it without keeping it.

That is the stand-in, or with RAYLIFT_TEST_KUBECONFIG=FILE the API server of that file's current context: it has to have
KubeRay, Kueue with its gate ElasticJobsViaWorkloadSlices, and the namespaces raylift, raylift-nodes and ml.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config import KubernetesCluster
from cluster.kubernetes.documents import to_yaml
from cluster.kubernetes.probe import render_probe
from tests.cluster.kubernetes import golden
from tests.k8s.manifests import K8S, Manifest, read, render, render_with
from tests.needs import kubectl
from tests.stand_ins.kubernetes.kueue import Kueue
from tests.stand_ins.kubernetes.server import api_server

REAL = os.environ.get("RAYLIFT_TEST_KUBECONFIG")
DOCUMENTS = golden.documents()
WHOLE = sorted({file.parent for file in K8S.rglob("kustomization.yaml") if file.parent.parent.name != "components"})
OF_THE_CLUSTER = [
    K8S / "components" / folder / file
    for folder, file in (("kueue", "cluster-queue.yaml"), ("package-cache", "node-folders.yaml"))
]
COMPONENTS = sorted(file.name for file in (K8S / "components").iterdir())
DryRun = Callable[[list[Any]], None]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the kubeconfig of an administrator; at the end, the stand-in has kept nothing."""
    if REAL is not None:
        yield Path(REAL)
        return
    with api_server(tmp_path_factory.mktemp("api")) as server:
        Kueue(server, "raylift")
        for namespace in ("raylift", "ml", "raylift-nodes"):
            server.create("Namespace", {"metadata": {"name": namespace}})
        yield server.kubeconfig("admin", "admin-token")
        own = ("Namespace", "EndpointSlice")  # those above, and where the stand-in itself is
        assert [each for kind in server.kinds if kind.name not in own for each in server.all(kind.name)] == []


@pytest.fixture(params=[[], ["--server-side", "--force-conflicts"]], ids=["client-side", "server-side"])
def dry_run(config: Path, tmp_path: Path, request: pytest.FixtureRequest) -> DryRun:
    """Have a server look at manifests, which it takes without a warning."""

    def look(manifests: list[Any]) -> None:
        options = [*request.param, "--dry-run=server", f"--cache-dir={tmp_path}"]
        done = subprocess.run(
            [kubectl(), "--kubeconfig", config, "apply", *options, "-f", "-"],
            input=to_yaml(manifests),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        # of the namespace, which was there before
        warnings = [line for line in done.stderr.splitlines() if "missing the kubectl.kubernetes.io/last-" not in line]
        assert (done.returncode, warnings) == (0, [])
        assert done.stdout.count(" (server dry run)\n") == len(manifests)

    return look


@pytest.mark.parametrize("case", DOCUMENTS)
def test_what_a_launch_applies(dry_run: DryRun, case: str) -> None:
    dry_run(DOCUMENTS[case])


@pytest.mark.parametrize("storage", ["s3://bucket/runs", "gs://bucket/runs"])
def test_what_a_check_applies(dry_run: DryRun, storage: str) -> None:
    cluster = golden.request("spot-with-fallback").cluster
    assert isinstance(cluster, KubernetesCluster)
    dry_run([render_probe(cluster, storage, "raylift-check-0123ab")])


@pytest.mark.parametrize("folder", WHOLE, ids=lambda folder: str(folder.relative_to(K8S)))
def test_what_an_administrator_applies(dry_run: DryRun, folder: Path) -> None:
    dry_run(render(folder))


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_base_with_a_component(dry_run: DryRun, tmp_path: Path, component: str) -> None:
    without: list[Manifest] = render(K8S / "base")
    overlay = render_with(tmp_path, f"resources: [base]\ncomponents: [components/{component}]\n")
    assert overlay != without
    dry_run(overlay)


@pytest.mark.parametrize("file", OF_THE_CLUSTER, ids=lambda file: file.stem)
def test_what_an_administrator_applies_of_the_whole_cluster(dry_run: DryRun, file: Path) -> None:
    dry_run(read(file))


def test_a_queue_of_kueue_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with api_server(tmp_path) as server:
        Kueue(server, "raylift")
        for changes, said in (
            ({"namespaceSelectors": {}}, "unknown field"),
            ({"resourceGroups": [{"coveredResources": ["cpu"]}]}, "flavors"),
            ({"resourceGroups": [group("cpu", "memory", of=["memory", "cpu"])]}, "in the same order"),
            ({"resourceGroups": [group("cpu", of=["cpu"], quota="-1")]}, "greater than or equal to 0"),
        ):
            queue = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ClusterQueue", "metadata": {"name": "q"}}
            done = subprocess.run(
                [kubectl(), "--kubeconfig", server.kubeconfig("admin", "admin-token"), "create", "-f", "-"],
                input=to_yaml([{**queue, "spec": changes}]),
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert (done.returncode, said in done.stderr) == (1, True), done.stderr


def group(*covered: str, of: list[str], quota: str = "1") -> dict[str, Any]:
    """Return a group of resources with one flavor of these."""
    quotas = [{"name": name, "nominalQuota": quota} for name in of]
    return {"coveredResources": list(covered), "flavors": [{"name": "flavor", "resources": quotas}]}
