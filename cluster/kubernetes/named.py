"""From a cluster with a name to what is applied for it. Pure.

It is the RayCluster of a RayJob whose driver is trainers.keeper: that ends once no run has been there for a while, and
with it KubeRay takes the cluster away. A RayCluster by itself has no such time-out in KubeRay 1.7: its autoscaler gives
back idle workers, and never the head. The keeper is submitted through HTTP, so that no pod has to wait for it, and a
head that comes anew gets it anew. It is not started again where it fails: then the cluster ends too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster import code
from cluster.config import CLUSTER_NAME, CLUSTER_NAME_LENGTH, KubernetesCluster
from cluster.errors import UsageError
from cluster.kubernetes.identity import require_identity
from cluster.kubernetes.manifest import (
    merge,
    of_its_pod,
    queue_label,
    ray_cluster,
    ray_job,
    secret_of,
    slices,
)
from cluster.kubernetes.pods import Manifest, secret_name

KEEPER = "raylift-keeper"  # its id as a job of Ray
CLUSTER_LABEL = "raylift.dev/cluster"  # of a cluster with a name: that
SETTINGS = "raylift.dev/settings"  # annotations: a digest of what it was made with,
IDLE = "raylift.dev/idle-seconds"
CODE = "raylift.dev/code"
SECRETS = "raylift.dev/secrets"  # names, with commas between them


@dataclass(frozen=True, kw_only=True)
class ClusterRequest:
    """All that is needed to make a cluster with a name."""

    name: str
    cluster: KubernetesCluster
    idle: int  # seconds without a run, after which it ends
    deadline: int | None = None  # seconds that it may take at most, whatever runs there
    bundle: str = ""  # URI of raylift's own code, where the image has none
    code: str = ""  # of raylift, which its pods must have; see cluster.code
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


def render_cluster(request: ClusterRequest) -> list[Manifest]:
    """Return what is applied for a cluster, in this order.

    Raises UsageError where it cannot have such a name, or where its head could not go to storage.
    """
    cluster, name = request.cluster, _name(request.name)
    secrets = [secret_name(name)] if request.secrets else []
    env = [
        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        *([{"name": code.DIGEST, "value": request.code}] if request.code else []),
        *of_its_pod(cluster),
    ]
    job = ray_job(
        name,
        cluster,
        labels={CLUSTER_LABEL: name, **queue_label(cluster)},
        annotations={
            IDLE: str(request.idle),
            CODE: request.code,
            SECRETS: ",".join(sorted(request.secrets)),
            **slices(cluster),
        },
        spec={
            "entrypoint": f"python -P -m trainers.keeper {request.idle}",
            "jobId": KEEPER,
            "submissionMode": "HTTPMode",
            "backoffLimit": 0,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 0,
            "preRunningDeadlineSeconds": cluster.pre_running_deadline_seconds,
            **({"activeDeadlineSeconds": request.deadline} if request.deadline is not None else {}),
            "rayClusterSpec": ray_cluster(name, cluster, env, secrets, request.bundle),
        },
    )
    job = merge(job, cluster.overrides)
    require_identity(job, secret_name(name), request.secrets)
    job["metadata"]["annotations"][SETTINGS] = _digest(job)
    return [job, *([secret_of(name, cluster, request.secrets)] if secrets else [])]


def _name(name: str) -> str:
    if not re.fullmatch(CLUSTER_NAME, name):
        raise UsageError(
            f"{name}: the name of a cluster is of lower-case letters, digits and dashes, begins with a letter, "
            f"does not end with a dash, and has at most {CLUSTER_NAME_LENGTH} characters"
        )
    return name


def _digest(job: Manifest) -> str:
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]
