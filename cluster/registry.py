"""Provider name -> its class, imported only when chosen."""

from __future__ import annotations

from importlib import import_module

from cluster.config import ClusterConfig
from cluster.provider import Provider

_PROVIDERS = {"local": ("cluster.local", "LocalProvider")}


def open_provider(cluster: ClusterConfig) -> Provider:
    """Return the provider of a cluster block."""
    module, name = _PROVIDERS[cluster.provider]
    provider: Provider = getattr(import_module(module), name)()
    return provider
