"""What raylift takes of a person's rights: the Role of k8s/base gives that and no more."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cluster.errors import InfrastructureError
from cluster.kubernetes import api
from cluster.kubernetes.api import Api, Kind, Object


@dataclass(frozen=True)
class Right:
    """A verb on a kind of object in a namespace."""

    verb: str
    kind: Kind
    subresource: str = ""

    def is_given_by(self, rule: Object) -> bool:
        """Whether a rule of a Role, or of a review of one's own rights, allows it for all names."""
        resource = f"{self.kind.plural}/{self.subresource}" if self.subresource else self.kind.plural
        return not rule.get("resourceNames") and all(
            {word, "*"} & {*rule.get(key, [])}
            for key, word in (("verbs", self.verb), ("apiGroups", self.kind.group), ("resources", resource))
        )

    def __str__(self) -> str:
        return f"{self.verb} {self.kind.name}{'/' + self.subresource if self.subresource else ''}"


NEEDED = (  # by a launch, and by what follows and ends it; a check's pod is a RayJob too
    *(Right(verb, api.RAY_JOBS) for verb in ("create", "patch", "get", "list", "watch", "delete")),
    *(Right(verb, api.RAY_CLUSTERS) for verb in ("get", "list", "delete")),
    *(Right(verb, api.SECRETS) for verb in ("create", "patch", "delete")),
    *(Right(verb, api.PODS) for verb in ("get", "list")),
    Right("get", api.PODS, "log"),
    Right("list", api.EVENTS),
    Right("list", api.SERVICES),
    Right("list", api.JOBS),
)
# by a teardown, where one may: what KubeRay makes for an autoscaler, for cluster.network_policy, or keeps beside a
# cluster, is to be gone too
PROVING = tuple(Right("list", kind) for kind in (api.ACCOUNTS, api.ROLES, api.BINDINGS, api.POLICIES, api.CONFIG_MAPS))
QUEUEING = (Right("list", api.WORKLOADS),)  # by `status`, where one may: why a run waits in its queue


def missing(server: Api, namespace: str, wanted: Sequence[Right] = NEEDED) -> list[Right]:
    """Return which of some rights a person lacks. Raises ApiError.

    One call lists what a person may; what is not there is asked for, as not all that decide over rights can be listed.
    """
    rules = server.rules(namespace)
    doubtful = [right for right in wanted if not any(right.is_given_by(rule) for rule in rules)]
    with ThreadPoolExecutor(8) as pool:
        allowed = list(pool.map(lambda each: server.may(each.verb, each.kind, namespace, each.subresource), doubtful))
    return [right for right, has in zip(doubtful, allowed, strict=True) if not has]


def require(server: Api, namespace: str) -> None:
    """Raise InfrastructureError, naming each right that is missing, before anything is made."""
    if lacking := missing(server, namespace):
        raise InfrastructureError(
            f"in the namespace {namespace} you may not: {', '.join(map(str, lacking))}. Nothing was created. "
            "k8s/base/role.yaml has a Role with what is needed; is the namespace the right one?"
        )
