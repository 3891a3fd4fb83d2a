"""Ray's own autoscaler for KubeRay, as the second container of a head's pod runs it.

    SERVICE_ACCOUNT=FOLDER python -P -m tests.stand_ins.kubernetes.autoscaler CLUSTER NAMESPACE GCS_ADDRESS

The folder has the token of the pod's service account, which in a pod is at a place that all pods here would share.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ray.autoscaler._private.kuberay import node_provider
from ray.autoscaler._private.kuberay.run_autoscaler import run_kuberay_autoscaler


def main() -> None:
    folder = Path(os.environ["SERVICE_ACCOUNT"])
    node_provider.IN_CLUSTER_TOKEN_PATH = str(folder / "token")
    node_provider.IN_CLUSTER_CA_CERT_PATH = str(folder / "ca.crt")
    cluster, namespace, gcs = sys.argv[1:]
    run_kuberay_autoscaler(cluster, namespace, gcs)


if __name__ == "__main__":
    main()
