"""The runs whose manifests are kept, to be read and compared.

python -m tests.cluster.kubernetes.golden    # writes them anew; look over what changed before it is committed
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.config import KubernetesCluster
from cluster.kubernetes.documents import to_yaml
from cluster.kubernetes.manifest import render
from cluster.provider import LaunchRequest

FOLDER = Path(__file__).with_name("golden")
RUN_ID = "digits-261125025111-3c1e"
CASES: Mapping[str, dict[str, Any]] = {
    "processors": {"workers": 2},
    "elastic-queue": {"workers": {"min": 1, "max": 4}, "queue": "raylift", "priority_class": "research"},
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
    "spot-alone": {"nodes": 4, "accelerators": "A100:1", "spot": True, "service_account": "trainer"},
}
ENV = {"LOG_LEVEL": "info", "GREETING": 'say "hello"\n'}


def request(name: str, **more: Any) -> LaunchRequest:
    """Return the launch of one of the cases, or of a plain run with keys of your own in its cluster block."""
    block = {"provider": "kubernetes", "image": "registry.example/raylift:0.1.0", **CASES.get(name, {}), **more}
    return LaunchRequest(
        run_id=RUN_ID,
        run_uri=f"s3://bucket/runs/{RUN_ID}",
        cluster=KubernetesCluster.model_validate(block),
        max_failures=3,
        deadline=12 * 3600 if name == "spot-with-fallback" else None,
        env=ENV if name in ("processors", "spot-with-fallback") else {},
    )


if __name__ == "__main__":
    for name in CASES:
        (FOLDER / f"{name}.yaml").write_text(to_yaml(render(request(name))))
