"""Objects with their versions, and what became of them, for those who watch."""

from __future__ import annotations

import copy
import datetime
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.stand_ins.kubernetes import fields, kinds
from tests.stand_ins.kubernetes.kinds import Kind, Object

Key = tuple[str, str, str]  # qualified kind, namespace, name


@dataclass
class Stored:
    """An object, and who owns its fields."""

    kind: Kind
    value: Object
    owners: fields.Owners = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """Something that became of an object."""

    version: int
    type: str
    kind: Kind
    value: Object


class Store:
    """All objects of a cluster. Its lock is held while one is read or changed; waiters are woken by every change."""

    def __init__(self) -> None:
        self.lock = threading.Condition(threading.RLock())
        self.version = 100
        self.oldest = 100  # what changed up to here is forgotten
        self._objects: dict[Key, Stored] = {}
        self._changes: list[Change] = []

    def get(self, kind: Kind, namespace: str, name: str) -> Stored | None:
        return self._objects.get((kind.qualified, namespace, name))

    def select(self, kind: Kind, namespace: str | None, matches: Callable[[Object], bool]) -> list[Object]:
        """Return copies of the objects of a kind, in one namespace or in all."""
        found = [
            stored
            for (kind_name, space, _), stored in sorted(self._objects.items())
            if kind_name == kind.qualified and namespace in (None, space)
        ]
        return [shown(each) for each in found if matches(each.value)]

    def put(self, kind: Kind, value: Object, owners: fields.Owners) -> Object:
        """Store an object as it is to be, and return it; what changes nothing makes no version.

        Raises ValueError where the CustomResourceDefinition of its kind does not let it through, whoever writes it.
        """
        if kind.schema is not None and (wrong := kinds.refused(kind, value)):
            raise ValueError(f"{kind.name} {value['metadata']['name']}: {', '.join(wrong)}")
        metadata = value["metadata"]
        key = (kind.qualified, metadata.get("namespace", ""), metadata["name"])
        old = self._objects.get(key)
        if old is None:
            metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": now(), "generation": 1}
        else:
            kept = ("uid", "creationTimestamp", "generation", "resourceVersion")
            metadata |= {name: old.value["metadata"][name] for name in kept}
            if "deletionTimestamp" in old.value["metadata"]:
                metadata["deletionTimestamp"] = old.value["metadata"]["deletionTimestamp"]
            if old.value == value and old.owners == owners:
                return shown(old)
            if old.value.get("spec") != value.get("spec"):
                metadata["generation"] += 1
        stored = Stored(kind, value, owners)
        self._objects[key] = stored
        self._note("ADDED" if old is None else "MODIFIED", stored)
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            self._remove(key)
        return shown(stored)

    def delete(self, kind: Kind, namespace: str, name: str) -> Object:
        """Delete an object, or mark it where finalizers hold it; what it owns goes after it."""
        key = (kind.qualified, namespace, name)
        stored = self._objects[key]
        metadata = stored.value["metadata"]
        if metadata.get("finalizers"):
            if "deletionTimestamp" not in metadata:
                metadata |= {"deletionTimestamp": now(), "deletionGracePeriodSeconds": 0}
                metadata["generation"] += 1
                self._note("MODIFIED", stored)
            return shown(stored)
        self._remove(key)
        return shown(stored)

    def changes(self, kind: Kind, namespace: str | None, after: int) -> list[Change]:
        return [
            each
            for each in self._changes
            if each.version > after
            and each.kind == kind
            and namespace in (None, each.value["metadata"].get("namespace", ""))
        ]

    def forget(self) -> None:
        """Forget what became of objects, as an API server does after some minutes."""
        with self.lock:
            self._changes.clear()
            self.version += 1
            self.oldest = self.version

    def owned_by(self, uid: str) -> Iterator[Key]:
        for key, stored in list(self._objects.items()):
            if any(each["uid"] == uid for each in stored.value["metadata"].get("ownerReferences", [])):
                yield key

    def _remove(self, key: Key) -> None:
        stored = self._objects.pop(key)
        self._note("DELETED", stored)
        for owned in self.owned_by(stored.value["metadata"]["uid"]):  # the garbage collector's part
            if owned in self._objects:
                self.delete(self._objects[owned].kind, owned[1], owned[2])

    def _note(self, change: str, stored: Stored) -> None:
        self.version += 1
        stored.value["metadata"]["resourceVersion"] = str(self.version)
        self._changes.append(Change(self.version, change, stored.kind, shown(stored)))
        self.lock.notify_all()


def shown(stored: Stored) -> Object:
    """Return an object as it is read."""
    value = copy.deepcopy(stored.value)
    value["metadata"]["managedFields"] = fields.managed_fields(stored.owners, stored.kind.api_version)
    return {"apiVersion": stored.kind.api_version, "kind": stored.kind.name, **value}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def as_list(kind: Kind, items: list[Any], version: int) -> Object:
    return {
        "apiVersion": kind.api_version,
        "kind": f"{kind.name}List",
        "metadata": {"resourceVersion": str(version)},
        "items": items,
    }
