"""The runs whose manifests are kept, to be read and compared.

python -m tests.cluster.kubernetes.golden    # writes them anew; look over what changed before it is committed
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.config import KubernetesCluster
from cluster.kubernetes.documents import to_yaml
from cluster.kubernetes.manifest import render
from cluster.kubernetes.named import ClusterRequest, render_cluster
from cluster.provider import LaunchRequest

FOLDER = Path(__file__).with_name("golden")
RUN_ID = "digits-261125025111-3c1e"
CASES: Mapping[str, dict[str, Any]] = {
    "processors": {"workers": 2},
    "elastic-queue": {
        "workers": {"min": 1, "max": 4},
        "head_service_account": "raylift-head",
        "queue": "raylift",
        "priority_class": "research",
    },
    "eight-gpus-a-node": {
        "namespace": "ml",
        "nodes": 2,
        "accelerators": "H100:8",
        "resources": {"cpu": 96, "memory": "1Ti", "disk": "500Gi"},
        "head": {"cpu": 4, "memory": "32Gi"},
        "spot": False,
        "network_policy": True,
        "pre_running_deadline_seconds": 7200,
    },
    "spot-with-fallback": {
        "accelerators": "L4:1",
        "spot": {"fallback": "on-demand"},
        "storage_secret": "raylift-storage",
        "pull_secret": "registry",
        "pull_policy": "Always",
        "node_selector": {"topology.kubernetes.io/region": "us-east1"},
        "pod_template": {
            "metadata": {"annotations": {"example.com/team": "vision"}},
            "spec": {"containers": [{"name": "ray", "env": [{"name": "NCCL_DEBUG", "value": "INFO"}]}]},
        },
        "overrides": {"spec": {"ttlSecondsAfterFinished": 600, "preRunningDeadlineSeconds": None}},
    },
    "a-sweep-on-accelerators": {
        "nodes": {"min": 0, "max": 8},
        "accelerators": "L4:1",
        "queue": "gpu",
        "head_service_account": "raylift-head",
    },
    "spot-alone": {"nodes": 4, "accelerators": "A100:1", "spot": True, "service_account": "trainer"},
}
_PLAIN = {"provider": "kubernetes", "image": "registry.example/raylift:0.1.0"}
_SECRET = {"storage_secret": "raylift-storage"}
ENV = {"LOG_LEVEL": "info", "GREETING": 'say "hello"\n'}


def request(name: str, /, **more: Any) -> LaunchRequest:
    """Return the launch of one of the cases, or of a plain run with keys of your own in its cluster block."""
    block = {**_PLAIN, **CASES.get(name, {}), **more}
    return LaunchRequest(
        run_id=RUN_ID,
        run_uri=f"s3://bucket/runs/{RUN_ID}",
        cluster=KubernetesCluster.model_validate(block),
        max_failures=3,
        deadline=12 * 3600 if name == "spot-with-fallback" else None,
        env=ENV if name in ("processors", "spot-with-fallback") else {},
    )


def without_image() -> LaunchRequest:
    """Return a run whose pods have Ray's own image, and fetch raylift."""
    run = request("plain", image=None, storage_secret="raylift-storage", workers=2)
    digest = "4ae7c3b6f5d1c0a2e8b9d7f6a5c4b3e2d1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b6"
    return dataclasses.replace(run, bundle=f"{run.run_uri}/code/{digest}.zip")


def named_cluster() -> ClusterRequest:
    """Return a cluster with a name, and a secret in it."""
    cluster = KubernetesCluster.model_validate({**_PLAIN, "workers": {"min": 1, "max": 4}, **_SECRET})
    return ClusterRequest(name="dev", cluster=cluster, idle=1800, deadline=8 * 3600, secrets={"HF_TOKEN": "hf_0123"})


def on_named_cluster() -> LaunchRequest:
    """Return a run on it."""
    cluster = KubernetesCluster.model_validate({**_PLAIN, "workers": 2, "name": "dev"})
    return dataclasses.replace(request("plain"), cluster=cluster, ray_cluster="dev-x7k2p", env={"LOG_LEVEL": "info"})


def documents() -> dict[str, list[Any]]:
    """Return all that is kept."""
    of_runs = {**{name: render(request(name)) for name in CASES}, "no-image": render(without_image())}
    return {
        **of_runs,
        "named-cluster": render_cluster(named_cluster()),
        "on-a-named-cluster": render(on_named_cluster()),
    }


if __name__ == "__main__":
    for name, each in documents().items():
        (FOLDER / f"{name}.yaml").write_text(to_yaml(each))
