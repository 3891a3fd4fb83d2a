"""What an API server says of itself: versions, groups, kinds, and the little of OpenAPI that kubectl looks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.stand_ins.kubernetes.kinds import Kind, Object

VERSION = {"major": "1", "minor": "34", "gitVersion": "v1.34.1", "platform": "linux/amd64"}
_VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
_SHORT = {"namespaces": ["ns"], "pods": ["po"], "services": ["svc"], "serviceaccounts": ["sa"]}
_REVIEWS = [
    Kind("authorization.k8s.io", "v1", f"{name.lower()}s", name, namespaced=False)
    for name in ("SelfSubjectAccessReview", "SelfSubjectRulesReview")
]


def answer(path: str, kinds: Sequence[Kind]) -> Object | None:
    """Return what is said at a path; None where this is none of discovery's."""
    groups = _groups([*kinds, *_REVIEWS])
    if path == "/version":
        return dict(VERSION)
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(*each) for each in groups if each[0]]}
    if path == "/openapi/v3":
        paths = {_root(*each)[1:]: {"serverRelativeURL": f"/openapi/v3{_root(*each)}"} for each in groups}
        return {"paths": paths}
    for group, version in groups:
        if path == _root(group, version):
            return _resources(group, version, [*kinds, *_REVIEWS])
        if path == f"/openapi/v3{_root(group, version)}":
            return _openapi(group, version, kinds)
        if path == f"/apis/{group}" and group:
            return _group(group, version)
    return None


def _groups(kinds: Sequence[Kind]) -> list[tuple[str, str]]:
    return sorted({(kind.group, kind.version) for kind in kinds})


def _root(group: str, version: str) -> str:
    return f"/apis/{group}/{version}" if group else f"/api/{version}"


def _group(group: str, version: str) -> Object:
    preferred = {"groupVersion": f"{group}/{version}", "version": version}
    return {"name": group, "versions": [preferred], "preferredVersion": preferred}


def _resources(group: str, version: str, kinds: Sequence[Kind]) -> Object:
    listed: list[Object] = []
    for kind in kinds:
        if (kind.group, kind.version) != (group, version):
            continue
        entry = {
            "name": kind.plural,
            "singularName": kind.name.lower(),
            "kind": kind.name,
            "namespaced": kind.namespaced,
            "shortNames": _SHORT.get(kind.plural, []),
        }
        listed.append({**entry, "verbs": ["create"] if kind in _REVIEWS else _VERBS})
        if kind.has_status and kind not in _REVIEWS:
            listed.append(
                {**entry, "name": f"{kind.plural}/status", "singularName": "", "verbs": ["get", "patch", "update"]}
            )
        if kind.plural == "pods":
            listed.append({**entry, "name": "pods/log", "singularName": "", "verbs": ["get"]})
        if kind.plural == "serviceaccounts":
            request = {"group": "authentication.k8s.io", "version": "v1", "kind": "TokenRequest"}
            listed.append(
                {**entry, **request, "name": "serviceaccounts/token", "singularName": "", "verbs": ["create"]}
            )
    name = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": listed}


def _openapi(group: str, version: str, kinds: Sequence[Kind]) -> Object:
    """Say that a patch takes dryRun and fieldValidation, of which kubectl asks, and what fields custom kinds have."""
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in ("dryRun", "fieldValidation")]
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    for kind in kinds:
        if (kind.group, kind.version) == (group, version):
            marked = {"group": kind.group, "version": kind.version, "kind": kind.name}
            patch = {"parameters": parameters, "responses": {}, "x-kubernetes-group-version-kind": marked}
            inside = "/namespaces/{namespace}" if kind.namespaced else ""
            paths[f"{_root(group, version)}{inside}/{kind.plural}/{{name}}"] = {"patch": patch}
            if kind.schema is not None:
                name = ".".join([*reversed(group.split(".")), version, kind.name])
                schemas[name] = {**kind.schema, "x-kubernetes-group-version-kind": [marked]}
    return {
        "openapi": "3.0.0",
        "info": {"title": "stand-in", "version": "v1"},
        "paths": paths,
        "components": {"schemas": schemas},
    }
