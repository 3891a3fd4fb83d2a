"""What launching a run takes of a person's rights: no more than the Role of k8s/base gives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cluster.errors import InfrastructureError
from cluster.kubernetes import api
from cluster.kubernetes.api import Api, Kind


@dataclass(frozen=True)
class Right:
    """A verb on a kind of object in a namespace."""

    verb: str
    kind: Kind
    subresource: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.kind.name}{'/' + self.subresource if self.subresource else ''}"


NEEDED = (
    *(Right(verb, api.RAY_JOBS) for verb in ("create", "patch", "get", "list", "watch", "delete")),
    *(Right(verb, api.RAY_CLUSTERS) for verb in ("get", "list", "delete")),
    *(Right(verb, api.SECRETS) for verb in ("create", "patch", "delete")),
    *(Right(verb, api.PODS) for verb in ("get", "list", "watch")),
    Right("get", api.PODS, "log"),
    Right("list", api.EVENTS),
    Right("list", api.SERVICES),
    Right("list", api.JOBS),
)


def missing(server: Api, namespace: str) -> list[Right]:
    """Return which of these rights a person lacks; asks for all at once. Raises ApiError."""
    with ThreadPoolExecutor(8) as pool:
        allowed = list(pool.map(lambda each: server.may(each.verb, each.kind, namespace, each.subresource), NEEDED))
    return [right for right, has in zip(NEEDED, allowed, strict=True) if not has]


def require(server: Api, namespace: str) -> None:
    """Raise InfrastructureError, naming each right that is missing, before anything is made."""
    if lacking := missing(server, namespace):
        raise InfrastructureError(
            f"in the namespace {namespace} you may not: {', '.join(map(str, lacking))}. Nothing was created. "
            "k8s/base/role.yaml has a Role with what is needed; is the namespace the right one?"
        )
