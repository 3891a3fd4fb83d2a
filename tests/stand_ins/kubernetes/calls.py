"""Calls about objects: what an API server does with them, and what it refuses."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from tests.stand_ins.kubernetes import access, admission, fields, kinds, schemas, semantics
from tests.stand_ins.kubernetes.access import Action, User
from tests.stand_ins.kubernetes.kinds import BUILT_IN, Kind, Object
from tests.stand_ins.kubernetes.store import Store, Stored, as_list

if TYPE_CHECKING:
    from tests.stand_ins.kubernetes.server import ApiServer

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    501: "NotImplemented",
    503: "ServiceUnavailable",
    504: "Timeout",
}
_SELECTABLE = {  # by what a kind's objects are selected beside their names and labels
    "Event": [
        *(f"involvedObject.{key}" for key in ("kind", "apiVersion", "namespace", "name", "uid")),
        "type",
        "reason",
    ],
    "Pod": ["spec.nodeName", "status.phase"],
}
_GRACE = 30.0  # seconds until a watch ends by itself, unless told


class RefusedError(Exception):
    """An answer that is no success."""

    def __init__(self, code: int, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": _REASONS[code],
            "details": details,
            "code": code,
        }


@dataclass
class Call:
    """One call about objects of a kind."""

    api: ApiServer
    method: str
    content: str  # the type of the body
    user: User
    kind: Kind
    namespace: str | None
    name: str
    sub: str
    query: dict[str, str]
    body: bytes
    warned: list[str] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return self.api.store

    def answer(self) -> tuple[int, Object | Iterator[bytes]]:
        method = self.method
        if self.sub not in ("", "status", "log") or (self.sub == "status" and not self.kind.has_status):
            raise RefusedError(404, "the server could not find the requested resource")
        if self.sub == "log" and (self.kind.plural != "pods" or method != "GET"):
            raise RefusedError(405, "the server does not allow this method on the requested resource")
        if method == "GET":
            return self._read()
        if method == "POST" and not self.name:
            return 201, self._create()
        if method == "PUT" and self.name:
            return 200, self._replace(self._parsed())
        if method == "PATCH" and self.name:
            return self._patch()
        if method == "DELETE" and self.name:
            return 200, self._delete()
        raise RefusedError(405, "the server does not allow this method on the requested resource")

    # Reads

    def _read(self) -> tuple[int, Object | Iterator[bytes]]:
        if self.sub == "log":
            self._allow("get")
            return 200, self._log(self._stored().value)
        if self.name:
            self._allow("get")
            self._stored()
            (found,) = self.store.select(
                self.kind, self.namespace or "", lambda each: each["metadata"]["name"] == self.name
            )
            return 200, found
        if self.query.get("watch") in ("true", "1"):
            self._allow("watch")
            return 200, self._watch()
        self._allow("list")
        return 200, self._list()

    def _list(self) -> Object:
        matches = _selector(self.kind, self.query)
        found = self.store.select(self.kind, self.namespace, matches)
        version, _, start_text = self.query.get("continue", f"{self.store.version}.0").partition(".")
        start, limit = int(start_text), int(self.query.get("limit") or 0)
        if int(version) < self.store.oldest:
            raise RefusedError(410, "The provided continue parameter is too old to display a consistent list result.")
        page = found[start : start + limit] if limit else found[start:]
        if self.kind.schema is None:  # of its own kinds, Kubernetes says in lists what they are but once
            page = [{key: each[key] for key in each if key not in ("apiVersion", "kind")} for each in page]
        answer = as_list(self.kind, page, self.store.version)
        if start + len(page) < len(found):
            answer["metadata"]["continue"] = f"{version}.{start + len(page)}"
        return answer

    def _watch(self) -> Iterator[bytes]:
        if "sendInitialEvents" in self.query:
            raise RefusedError(501, "this stand-in streams no lists")
        after = int(self.query.get("resourceVersion") or 0)
        return self._changes(after, _selector(self.kind, self.query), float(self.query.get("timeoutSeconds") or _GRACE))

    def _changes(self, after: int, matches: Callable[[Object], bool], seconds: float) -> Iterator[bytes]:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            with self.store.lock:
                if 0 < after < self.store.oldest:
                    gone = RefusedError(410, f"too old resource version: {after} ({self.store.oldest})").status
                    yield json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n"
                    return
                if not (fresh := self.store.changes(self.kind, self.namespace, after)):
                    self.store.lock.wait(min(left, 1.0))
                    fresh = self.store.changes(self.kind, self.namespace, after)
                seen = self.store.version
            for change in fresh:
                after = change.version
                if matches(change.value):
                    yield json.dumps({"type": change.type, "object": change.value}).encode() + b"\n"
            if not fresh and self.query.get("allowWatchBookmarks") == "true" and after >= self.store.oldest:
                after = seen
                mark: Object = {"kind": self.kind.name, "apiVersion": self.kind.api_version}
                mark["metadata"] = {"resourceVersion": str(after)}
                yield json.dumps({"type": "BOOKMARK", "object": mark}).encode() + b"\n"

    def _log(self, pod: Object) -> Iterator[bytes]:
        names = [each["name"] for each in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", []))]
        if (container := self.query.get("container", names[0])) not in names:
            raise RefusedError(400, f"container {container} is not valid for pod {self.name}")
        tail = self.query.get("tailLines")
        before = _before_the_last(int(tail), self.api.printed(pod, container)) if tail is not None else 0
        return self._printed(pod, container, before, follow=self.query.get("follow") == "true")

    def _printed(self, pod: Object, container: str, sent: int, *, follow: bool) -> Iterator[bytes]:
        while True:
            with self.store.lock:
                data = self.api.printed(pod, container)[sent:]
                over = self._is_over(container)
                if follow and not over and not data:
                    self.store.lock.wait(1.0)
            sent += len(data)
            yield data
            if not follow or (over and not data):
                return

    def _is_over(self, container: str) -> bool:
        stored = self.store.get(self.kind, self.namespace or "", self.name)
        if stored is None or stored.value.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return True
        first = stored.value.get("status", {}).get("initContainerStatuses", [])
        return any("terminated" in each["state"] for each in first if each["name"] == container)

    # Writes

    def _create(self) -> Object:
        value = self._parsed()
        self.name = value.get("metadata", {}).get("name", "")
        self._allow("create")
        if not self.name:
            raise RefusedError(422, f"{self._of_kind()} is invalid: metadata.name: Required value")
        if self.store.get(self.kind, self.namespace or "", self.name) is not None:
            raise RefusedError(409, f'{self.kind.qualified} "{self.name}" already exists')
        owners: fields.Owners = {}
        fields.update(None, owners, value, self.query.get("fieldManager") or "unknown")
        return self._store(value, owners)

    def _replace(self, value: Object) -> Object:
        self._allow("update")
        stored = self._stored()
        version = value.get("metadata", {}).get("resourceVersion")
        if version not in (None, stored.value["metadata"]["resourceVersion"]):
            raise RefusedError(
                409,
                f'Operation cannot be fulfilled on {self.kind.qualified} "{self.name}": the object has been modified; '
                "please apply your changes to the latest version and try again",
            )
        owners = {key: set(paths) for key, paths in stored.owners.items()}
        fields.update(stored.value, owners, value, self.query.get("fieldManager") or "unknown")
        return self._store(value, owners)

    def _patch(self) -> tuple[int, Object]:
        self._allow("patch")
        if self.content == "application/apply-patch+yaml":
            return self._apply()
        stored = self._stored()
        if self.content == "application/merge-patch+json":
            return 200, self._replace_merged(_merge(stored.value, json.loads(self.body)))
        if self.content == "application/json-patch+json":
            return 200, self._replace_merged(_changed(stored.value, json.loads(self.body)))
        if self.content == "application/strategic-merge-patch+json" and self.kind.schema is None:
            patch = json.loads(self.body)
            if _has_lists(patch):
                raise RefusedError(501, "this stand-in takes no strategic merge patch of lists")
            return 200, self._replace_merged(_merge(stored.value, patch))
        raise RefusedError(415, f"the body of the request was in an unknown format - {self.content}")

    def _replace_merged(self, value: Object) -> Object:
        stored = self._stored()
        owners = {key: set(paths) for key, paths in stored.owners.items()}
        fields.update(stored.value, owners, value, self.query.get("fieldManager") or "unknown")
        return self._store(value, owners)

    def _apply(self) -> tuple[int, Object]:
        applied = yaml.load(self.body, yaml.CSafeLoader)
        manager = self.query.get("fieldManager")
        if not manager:
            raise RefusedError(
                422, "PatchOptions.meta.k8s.io is invalid: fieldManager: Required value: is required for apply patch"
            )
        if len(manager) > 128:
            raise RefusedError(
                422, "PatchOptions.meta.k8s.io is invalid: fieldManager: Too long: may not be more than 128 bytes"
            )
        self._same_place(applied)
        if applied.get("metadata", {}).get("managedFields"):
            raise RefusedError(400, "metadata.managedFields must be nil")
        self._of_its_kind(applied)
        stored = self.store.get(self.kind, self.namespace or "", self.name)
        if stored is None:
            self._allow("create")
        owners = {key: set(paths) for key, paths in stored.owners.items()} if stored is not None else {}
        live = stored.value if stored is not None else None
        try:
            value = fields.apply(live, owners, applied, manager, force=self.query.get("force") == "true")
        except fields.ConflictError as error:
            raise RefusedError(409, _in_words(error.conflicts)) from error
        value.setdefault("metadata", {})["name"] = self.name
        return (200 if stored is not None else 201), self._store(value, owners)

    def _of_its_kind(self, applied: Object) -> None:
        """Refuse fields that the kind does not have, whatever fieldValidation says, as an API server does: with 500."""
        whole = {**applied, "metadata": {**applied.get("metadata", {}), "name": self.name}}
        if unknown := kinds.unknown_fields(self.kind, whole):
            what = f"({self.namespace}/{self.name}; {self.kind.api_version}, Kind={self.kind.name})"
            said = f"failed to create typed patch object {what}: .{unknown[0]}: field not declared in schema"
            raise RefusedError(500, said)

    def _delete(self) -> Object:
        self._allow("delete")
        stored = self._stored()
        options = json.loads(self.body) if self.body else {}
        policy = (options if self.body else self.query).get("propagationPolicy", "Background")
        if policy != "Background":
            raise RefusedError(501, f"this stand-in deletes in the background alone, not {policy}")
        for key, said in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
            wanted, there = options.get("preconditions", {}).get(key), stored.value["metadata"][key]
            if wanted not in (None, there):
                of_it = f'Operation cannot be fulfilled on {self.kind.qualified} "{self.name}"'
                precondition = f"{said} in precondition: {wanted}, {said} in object meta: {there}"
                raise RefusedError(409, f"{of_it}: Precondition failed: {precondition}")
        if self._is_dry():
            return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        return self.store.delete(self.kind, self.namespace or "", self.name)

    def _store(self, value: Object, owners: fields.Owners) -> Object:
        """Store what is valid; with dryRun, only return it."""
        stored = self.store.get(self.kind, self.namespace or "", self.name)
        value = {key: each for key, each in value.items() if key not in ("apiVersion", "kind")}
        metadata = value["metadata"] = dict(value.get("metadata", {}))
        for server_set in ("managedFields", "uid", "resourceVersion", "creationTimestamp", "generation", "selfLink"):
            metadata.pop(server_set, None)
        if self.kind.namespaced:
            metadata["namespace"] = self.namespace
        if stored is None:
            self.api.on_create(self.kind, value)
        if self.kind.has_status and self.kind.schema is not None:
            value = self._keep_status(value, stored.value if stored is not None else {})
        whole = {"apiVersion": self.kind.api_version, "kind": self.kind.name, **value}
        if self.kind.schema is not None:
            whole = schemas.with_defaults(self.kind.schema, whole)
        self._validate(whole)
        value = {key: each for key, each in whole.items() if key not in ("apiVersion", "kind")}
        if self._is_dry():
            return {**whole, "metadata": {"uid": "dry-run", "resourceVersion": "", **value["metadata"]}}
        return self.store.put(self.kind, value, owners)

    def _keep_status(self, value: Object, live: Object) -> Object:
        """A status changes through its own subresource, and all else does not."""
        kept = live if self.sub == "status" else value
        status = value.get("status") if self.sub == "status" else live.get("status")
        kept = {key: each for key, each in kept.items() if key != "status"}
        return {**kept, "metadata": dict(kept["metadata"])} | ({"status": status} if status is not None else {})

    def _validate(self, value: Object) -> None:
        if self.namespace is not None and self.store.get(BUILT_IN[0], "", self.namespace) is None:
            raise RefusedError(404, f'namespaces "{self.namespace}" not found')
        validation = self.query.get("fieldValidation") or "Warn"
        unknown = [f'unknown field "{path}"' for path in kinds.unknown_fields(self.kind, value)]
        if unknown and validation == "Strict":
            what = f'{self.kind.name} in version "{self.kind.version}" cannot be handled as a {self.kind.name}'
            raise RefusedError(400, f"{what}: strict decoding error: {', '.join(unknown)}")
        if unknown:
            raise RefusedError(501, f"this stand-in prunes nothing: {', '.join(unknown)}")
        stored = self.store.get(self.kind, self.namespace or "", self.name)
        found = semantics.of_change(self.kind.name, stored.value, value) if stored is not None else []
        if found := [*found, *kinds.mistakes(self.kind, value)]:
            listed = found[0] if len(found) == 1 else f"[{', '.join(found)}]"
            raise RefusedError(422, f'{self._of_kind()} "{self.name}" is invalid: {listed}')
        if refusal := self.api.admit(self.kind, value):
            raise RefusedError(403, refusal)
        if stored is None and (refusal := admission.beyond_count(self.api, self.kind, self.namespace or "", self.name)):
            raise RefusedError(403, refusal)
        self.warned = self.api.warnings(self.kind, value)

    def _of_kind(self) -> str:
        return f"{self.kind.name}.{self.kind.group}" if self.kind.group else self.kind.name

    def _parsed(self) -> Object:
        value: Object = yaml.load(self.body, yaml.CSafeLoader)
        if (value.get("apiVersion"), value.get("kind")) != (self.kind.api_version, self.kind.name):
            raise RefusedError(
                400, f"{value.get('apiVersion')} {value.get('kind')} does not match the resource of the request"
            )
        self._same_place(value)
        return value

    def _same_place(self, value: Object) -> None:
        metadata = value.get("metadata", {})
        if metadata.get("namespace", self.namespace) != self.namespace:
            raise RefusedError(
                400, "the namespace of the provided object does not match the namespace sent on the request"
            )
        if self.name and metadata.get("name", self.name) != self.name:
            raise RefusedError(400, "the name of the object does not match the name on the URL")

    def _stored(self) -> Stored:
        stored = self.store.get(self.kind, self.namespace or "", self.name)
        if stored is None:
            raise RefusedError(
                404, f'{self.kind.qualified} "{self.name}" not found', name=self.name, kind=self.kind.plural
            )
        return stored

    def _allow(self, verb: str) -> None:
        resource = f"{self.kind.plural}/{self.sub}" if self.sub else self.kind.plural
        action = Action(verb, self.kind.group, resource, self.namespace, self.name)
        if not access.may(self.store, self.user, action):
            named = f' "{self.name}"' if self.name else ""
            raise RefusedError(403, f"{self.kind.qualified}{named} is forbidden: {action.denied(self.user)}")
        self.api.actions.add((verb, self.kind.group, resource))

    def _is_dry(self) -> bool:
        return self.query.get("dryRun") == "All"


def _selector(kind: Kind, query: dict[str, str]) -> Callable[[Object], bool]:
    labels = [_label(each) for each in filter(None, query.get("labelSelector", "").split(","))]
    wanted = [each.partition("=") for each in filter(None, query.get("fieldSelector", "").split(","))]
    for path, _, _ in wanted:
        if path not in ("metadata.name", "metadata.namespace", *_SELECTABLE.get(kind.name, ())):
            raise RefusedError(400, f"field label not supported: {path}")

    def matches(value: Object) -> bool:
        has = value["metadata"].get("labels", {})
        return all(label(has) for label in labels) and all(_at(value, path) == text for path, _, text in wanted)

    return matches


def _before_the_last(count: int, data: bytes) -> int:
    """Return how much of a log comes before its last lines."""
    lines = data.splitlines(keepends=True)
    return sum(map(len, lines[: max(0, len(lines) - count)]))


def _label(text: str) -> Callable[[Object], bool]:
    match = re.fullmatch(r"([A-Za-z0-9./_-]+)(?:(==|=|!=)([A-Za-z0-9._-]*))?", text)
    if match is None:
        raise RefusedError(501, f"this stand-in does not know the selector {text}")
    key, operator, value = match.groups()
    if operator is None:
        return lambda labels: key in labels
    return lambda labels: (labels.get(key) == value) is (operator != "!=")


def _at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value.get(key, {})
    return value


def _merge(value: Any, patch: Any) -> Any:
    """https://www.rfc-editor.org/rfc/rfc7386."""
    if not isinstance(patch, dict):
        return patch
    base = dict(value) if isinstance(value, dict) else {}
    for key, each in patch.items():
        if each is None:
            base.pop(key, None)
        else:
            base[key] = _merge(base.get(key), each)
    return base


def _changed(value: Object, operations: list[Object]) -> Object:
    """https://www.rfc-editor.org/rfc/rfc6902, as far as autoscalers use it: what is replaced has to be there."""
    changed: Object = json.loads(json.dumps(value))
    for operation in operations:
        if operation["op"] != "replace":
            raise RefusedError(501, f"this stand-in takes no JSON patch with {operation['op']}")
        *path, last = operation["path"].removeprefix("/").split("/")
        place: Any = changed
        for key in path:
            place = place[int(key)] if isinstance(place, list) else place[key]
        if last not in place:
            raise RefusedError(422, f"replace operation does not apply: doc is missing key: {operation['path']}")
        place[last] = operation["value"]
    return changed


def _has_lists(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, dict) and any(map(_has_lists, value.values())))


def _in_words(conflicts: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Say which fields of which managers an apply would change, as API servers do."""
    paths: dict[str, list[str]] = {}
    for manager, path in conflicts:
        paths.setdefault(manager, []).append(f".{'.'.join(path)}")
    if len(conflicts) == 1:
        ((manager, (path,)),) = paths.items()
        return f'Apply failed with 1 conflict: conflict with "{manager}": {path}'
    found = [f'conflicts with "{manager}":\n' + "\n".join(f"- {path}" for path in of) for manager, of in paths.items()]
    return f"Apply failed with {len(conflicts)} conflicts: " + "\n".join(found)
