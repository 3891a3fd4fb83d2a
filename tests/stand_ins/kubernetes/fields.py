"""Who owns which field of an object: server-side apply.

https://kubernetes.io/docs/reference/using-api/server-side-apply. A field is a path of keys; a list is one field,
unless its schema says that it is a map by some keys of its items.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

Object = dict[str, Any]
Path = tuple[str, ...]  # keys, and of lists that are maps, "k:{…}" with the keys of an item
Owners = dict[tuple[str, str], set[Path]]  # (manager, operation) -> fields

_LIST_KEYS: Mapping[Path, tuple[str, ...]] = {("metadata", "ownerReferences"): ("uid",)}
_NOT_FIELDS = {"apiVersion", "kind", "status"}
_OF_THE_SERVER = {
    *("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"),
    *("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"),
}


class ConflictError(Exception):
    """Fields are owned by others, with other values."""

    def __init__(self, conflicts: list[tuple[str, Path]]) -> None:
        super().__init__(conflicts)
        self.conflicts = conflicts  # a manager and a field of theirs


def apply(live: Object | None, owners: Owners, applied: Object, manager: str, *, force: bool) -> Object:
    """Return the object after an apply, and change `owners` accordingly. Raises ConflictError."""
    wanted = leaves(applied)
    mine = (manager, "Apply")
    conflicts = [
        (other, path)
        for (other, operation), fields in owners.items()
        if (other, operation) != mine and live is not None
        for path, value in wanted.items()
        if value != {}  # an empty map is one that others may fill
        if any(_overlap(path, theirs) for theirs in fields) and _get(live, path) != value
    ]
    if conflicts and not force:
        raise ConflictError(conflicts)
    for other, path in conflicts:
        for key in [key for key in owners if key[0] == other and key != mine]:
            owners[key] = {theirs for theirs in owners[key] if not _overlap(path, theirs)}
    result = copy.deepcopy(live) if live is not None else {}
    others = set().union(*(fields for key, fields in owners.items() if key != mine))
    for path in owners.get(mine, set()) - wanted.keys() - others:
        _remove(result, path)
    for path, value in wanted.items():
        if value == {} and isinstance(_get(result, path), dict):
            continue
        _put(result, path, copy.deepcopy(value))
    owners[mine] = set(wanted)
    return result


def update(before: Object | None, owners: Owners, after: Object, manager: str) -> None:
    """Note that a manager has changed fields by a create, an update or a patch."""
    old, new = leaves(before or {}), leaves(after)
    changed = {path for path, value in new.items() if path not in old or old[path] != value}
    gone = old.keys() - new.keys()
    for key in owners:
        owners[key] -= changed | gone
    if changed:
        owners[manager, "Update"] = owners.get((manager, "Update"), set()) | changed


def leaves(value: Object) -> dict[Path, Any]:
    """Return the fields of an object with their values, but those that are the server's."""
    return dict(_leaves(value, ()))


def managed_fields(owners: Owners, api_version: str) -> list[Object]:
    """Return the owners as an object shows them."""
    return [
        {"manager": manager, "operation": operation, "apiVersion": api_version, "fieldsType": "FieldsV1"}
        | {"fieldsV1": _tree(fields)}
        for (manager, operation), fields in sorted(owners.items())
        if fields
    ]


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if path in _LIST_KEYS and isinstance(value, list):
        for each in value:
            key = "k:" + ",".join(str(each[name]) for name in _LIST_KEYS[path])
            yield (*path, key), each
    elif isinstance(value, dict) and (value or not path):
        for key, each in value.items():
            if (not path and key in ("apiVersion", "kind", "status")) or (
                path == ("metadata",) and key in _OF_THE_SERVER
            ):
                continue
            yield from _leaves(each, (*path, key))
    else:
        yield path, value


def _overlap(one: Path, other: Path) -> bool:
    return one[: len(other)] == other or other[: len(one)] == one


def _get(value: Any, path: Path) -> Any:
    for index, key in enumerate(path):
        if path[:index] in _LIST_KEYS:
            names = _LIST_KEYS[path[:index]]
            value = next((each for each in value if "k:" + ",".join(str(each[n]) for n in names) == key), None)
        else:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            return None
    return value


def _put(value: Object, path: Path, leaf: Any) -> None:
    for index, key in enumerate(path[:-1]):
        below = path[: index + 1]
        value = value.setdefault(key, [] if below in _LIST_KEYS else {})
    if path[:-1] in _LIST_KEYS:
        assert isinstance(value, list)
        names = _LIST_KEYS[path[:-1]]
        value[:] = [each for each in value if [each[n] for n in names] != [leaf[n] for n in names]] + [leaf]
    else:
        value[path[-1]] = leaf


def _remove(value: Object, path: Path) -> None:
    for index, key in enumerate(path[:-1]):
        if path[: index + 1] in _LIST_KEYS:
            names = _LIST_KEYS[path[: index + 1]]
            value[key] = [e for e in value[key] if "k:" + ",".join(str(e[n]) for n in names) != path[-1]]
            return
        value = value.get(key, {})
    value.pop(path[-1], None)


def _tree(fields: set[Path]) -> Object:
    tree: Object = {}
    for path in sorted(fields):
        below = tree
        for key in path:
            below = below.setdefault(key if key.startswith("k:") else f"f:{key}", {})
    return tree
