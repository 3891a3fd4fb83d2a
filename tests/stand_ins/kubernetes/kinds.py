"""The kinds of objects that the stand-in knows, and what it asks of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import kubernetes_validate

from tests.stand_ins.kubernetes import schemas, semantics

Object = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A resource of the API."""

    group: str
    version: str
    plural: str
    name: str
    namespaced: bool = True
    schema: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)  # of a custom resource
    has_status: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


_RBAC, _NETWORK = "rbac.authorization.k8s.io", "networking.k8s.io"
BUILT_IN = (
    Kind("", "v1", "namespaces", "Namespace", namespaced=False),
    Kind("", "v1", "pods", "Pod"),
    Kind("", "v1", "services", "Service"),
    Kind("", "v1", "secrets", "Secret", has_status=False),
    Kind("", "v1", "configmaps", "ConfigMap", has_status=False),
    Kind("", "v1", "events", "Event", has_status=False),
    Kind("", "v1", "serviceaccounts", "ServiceAccount", has_status=False),
    Kind("", "v1", "resourcequotas", "ResourceQuota"),
    Kind("", "v1", "nodes", "Node", namespaced=False),
    Kind("", "v1", "persistentvolumes", "PersistentVolume", namespaced=False),
    Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
    Kind("apps", "v1", "daemonsets", "DaemonSet"),
    Kind("batch", "v1", "jobs", "Job"),
    Kind(_RBAC, "v1", "roles", "Role", has_status=False),
    Kind(_RBAC, "v1", "rolebindings", "RoleBinding", has_status=False),
    Kind(_NETWORK, "v1", "networkpolicies", "NetworkPolicy", has_status=False),
    Kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", has_status=False),
    Kind("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", namespaced=False, has_status=False),
)


def custom(definition: Mapping[str, Any], version: str = "v1") -> Kind:
    """Return the kind of a CustomResourceDefinition."""
    spec = definition["spec"]
    schema = schemas.schema_of(definition, version)
    return Kind(spec["group"], version, spec["names"]["plural"], spec["names"]["kind"], schema=schema)


def unknown_fields(kind: Kind, value: Object) -> list[str]:
    """Return the paths of fields that the kind does not have."""
    if kind.schema is not None:
        return schemas.unknown_fields(kind.schema, value)
    try:
        kubernetes_validate.validate(value, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        named = re.findall(r"'([^']+)'", error.message) if "Additional properties" in error.message else []
        path = ".".join(str(each) for each in error.path)
        return [f"{path}.{name}".lstrip(".") for name in named]
    return []


def mistakes(kind: Kind, value: Object) -> list[str]:
    """Return what is wrong with an object, in the words of an API server."""
    if kind.schema is not None:
        return semantics.of_metadata(value["metadata"]) + schemas.mistakes(kind.schema, value)
    return semantics.of_metadata(value["metadata"]) + (_against_schema(value) or semantics.mistakes(kind.name, value))


def refused(kind: Kind, value: Object) -> list[str]:
    """Return all that is wrong with an object as it is stored, fields that its kind does not have among it."""
    whole = {"apiVersion": kind.api_version, "kind": kind.name, **value}
    return [*(f"{path}: unknown field" for path in unknown_fields(kind, whole)), *mistakes(kind, whole)]


def _against_schema(value: Object) -> list[str]:
    """Return where an object of one of Kubernetes' own kinds is not what its schema says, the first place alone."""
    try:
        kubernetes_validate.validate(value, kubernetes_validate.latest_version(), strict=False)
    except kubernetes_validate.ValidationError as error:
        path = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in error.path).lstrip(".")
        if error.validator == "required":
            missing = next(each for each in error.validator_value if each not in error.instance)
            return [f"{path}.{missing}: Required value".lstrip(".")]
        return [f"{path}: Invalid value: {error.message}"]
    return []
