"""The provider of a cluster block, imported only when chosen."""

from __future__ import annotations

from cluster.config import ClusterConfig, KubernetesCluster
from cluster.provider import Provider


def open_provider(cluster: ClusterConfig) -> Provider:
    """Return the provider of a cluster block. Asks nothing of it yet."""
    if isinstance(cluster, KubernetesCluster):
        from cluster.kubernetes.provider import KubernetesProvider

        return KubernetesProvider(cluster)
    from cluster.local import LocalProvider

    return LocalProvider()
