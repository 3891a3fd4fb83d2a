"""Who may do what: bearer tokens, and roles as they are stored."""

from __future__ import annotations

from dataclasses import dataclass

from tests.stand_ins.kubernetes.kinds import BUILT_IN, Object
from tests.stand_ins.kubernetes.store import Store

_ROLES, _BINDINGS = (next(kind for kind in BUILT_IN if kind.name == name) for name in ("Role", "RoleBinding"))


@dataclass(frozen=True)
class User:
    """Whoever a token belongs to."""

    name: str
    is_admin: bool = False

    @classmethod
    def service_account(cls, namespace: str, name: str) -> User:
        return cls(f"system:serviceaccount:{namespace}:{name}")


@dataclass(frozen=True)
class Action:
    """Something that a user asks for."""

    verb: str
    group: str
    resource: str  # with its subresource: pods/log
    namespace: str | None  # None: all of them, or what is in none
    name: str = ""

    def denied(self, user: User) -> str:
        """Return what an API server says to a user who may not."""
        where = f' in the namespace "{self.namespace}"' if self.namespace else " at the cluster scope"
        group = f'in API group "{self.group}"'
        return f'User "{user.name}" cannot {self.verb} resource "{self.resource}" {group}{where}'


def may(store: Store, user: User, action: Action) -> bool:
    """Whether a Role that is bound to the user allows an action. There are no roles of the whole cluster but admin."""
    if user.is_admin:
        return True
    return action.namespace is not None and any(_allows(rule, action) for rule in rules(store, user, action.namespace))


def rules(store: Store, user: User, namespace: str) -> list[Object]:
    """Return what the Roles that are bound to a user in a namespace allow."""
    if user.is_admin:
        return [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]
    bindings = store.select(_BINDINGS, namespace, lambda _: True)
    names = {each["roleRef"]["name"] for each in bindings if any(_is(user, one) for one in each["subjects"])}
    roles = store.select(_ROLES, namespace, lambda role: role["metadata"]["name"] in names)
    return [rule for role in roles for rule in role["rules"]]


def _is(user: User, subject: Object) -> bool:
    if subject["kind"] == "ServiceAccount":
        return user == User.service_account(subject["namespace"], subject["name"])
    return bool(subject["kind"] == "User" and subject["name"] == user.name)


def _allows(rule: Object, action: Action) -> bool:
    return (
        _in(action.verb, rule["verbs"])
        and _in(action.group, rule["apiGroups"])
        and _in(action.resource, rule["resources"])
        and (not rule.get("resourceNames") or action.name in rule["resourceNames"])
    )


def _in(word: str, words: list[str]) -> bool:
    return word in words or "*" in words
