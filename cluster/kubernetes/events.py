"""What Kubernetes and KubeRay have told of a run's objects; an API server forgets it, by default after an hour."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.kubernetes import api
from cluster.kubernetes.api import Api, Object

# Of a pod that is gone there is no other trace, and its name is not known: what is said of all pods is looked through.
_OF_PODS = ("type=Warning", "reason=Preempted")


def told(server: Api, namespace: str, names: Iterable[str]) -> list[Object]:
    """Return the events about objects of these names, and those by which a pod, of whatever run, is in trouble."""
    fields = [f"involvedObject.name={name}" for name in names]
    fields += [f"involvedObject.kind=Pod,{each}" for each in _OF_PODS]
    return [each for one in fields for each in server.select(api.EVENTS, namespace, fields=one)]
