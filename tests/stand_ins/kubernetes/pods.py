"""What an API server refuses of pods that their schema lets through, once defaults are filled in.

After ValidatePodSpec in https://github.com/kubernetes/kubernetes (pkg/apis/core/validation), as far as the project, or
a user's pod_template, may get it wrong.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from decimal import Decimal
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from tests.stand_ins.kubernetes import words
from tests.stand_ins.kubernetes.words import Object

_QUANTITY = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?", re.ASCII)
NO_QUANTITY = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"

RESTARTS = ("Always", "OnFailure", "Never")
_PULLS = ("Always", "IfNotPresent", "Never")
_LAST_WORDS = ("File", "FallbackToLogsOnError")
_PATHS = ("", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_WITHOUT = ("DoNotSchedule", "ScheduleAnyway")  # a way to spread
_HOOKS, _PROBES = ("postStart", "preStop"), ("livenessProbe", "readinessProbe", "startupProbe")
_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc", "sleep")
_REQUIRED, _PREFERRED = (f"{how}DuringSchedulingIgnoredDuringExecution" for how in ("required", "preferred"))

RESOURCES = ("cpu", "memory", "ephemeral-storage")
AMOUNTS = tuple(f"{of}.{name}" for of in ("limits", "requests") for name in sorted(RESOURCES))
COUNTED = (
    *("pods", "services", "services.nodeports", "services.loadbalancers", "secrets", "configmaps"),
    *("persistentvolumeclaims", "replicationcontrollers", "resourcequotas"),
)
_NAMED = {  # by which field a volume of a kind says what it is
    "configMap": "name",
    "hostPath": "path",
    "persistentVolumeClaim": "claimName",
    "secret": "secretName",
}
_SOURCES = ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef")
_FIELD = re.compile(
    r"metadata\.(name|namespace|uid|(annotations|labels)\['[^']+'\])|spec\.(nodeName|serviceAccountName)"
    r"|status\.(hostIP|podIP)s?"
)


def of_pod(pod: Object) -> Iterator[str]:
    """Yield what is wrong with a pod."""
    yield from _pod_spec(pod.get("spec", {}), "spec")
    for container, place in _containers(pod.get("spec", {}), "spec"):
        if container.get("image", "") != container.get("image", "").strip():
            yield words.invalid(f"{place}.image", container["image"], "must not have leading or trailing whitespace")


def of_template(template: Object, path: str) -> Iterator[str]:
    """Yield what is wrong with that of which an object makes pods."""
    yield from words.of_labels(template.get("metadata", {}).get("labels", {}), f"{path}.labels")
    yield from _pod_spec(template.get("spec", {}), f"{path}.spec")


def _pod_spec(spec: Object, path: str) -> Iterator[str]:
    yield from _volumes(spec, path)
    if not spec.get("containers"):
        yield words.required(f"{path}.containers")
    names: set[str] = set()
    for container, place in _containers(spec, path):
        if container["name"] in names:
            yield words.duplicate(f"{place}.name", container["name"])
        names.add(container["name"])
        yield from _container(container, place, {each["name"] for each in spec.get("volumes", [])})
    for container, place in words.each_of(spec, "containers", path):
        yield from _handlers(container, place)
    for container, place in words.each_of(spec, "initContainers", path):
        yield from _init_container(container, place)
    yield from words.among(RESTARTS, spec.get("restartPolicy") or "Always", f"{path}.restartPolicy")
    yield from words.of_labels(spec.get("nodeSelector", {}), f"{path}.nodeSelector")
    yield from _affinity(spec.get("affinity", {}), f"{path}.affinity")
    yield from _spread(spec, path)
    if not 1 <= spec.get("activeDeadlineSeconds", 1) < 2**31:
        said = f"must be between 1 and {2**31 - 1}, inclusive"
        yield words.invalid(f"{path}.activeDeadlineSeconds", spec["activeDeadlineSeconds"], said)
    for key in ("serviceAccountName", "priorityClassName"):
        if spec.get(key):
            yield from words.SUBDOMAIN.mistakes(spec[key], f"{path}.{key}")
    for toleration, place in words.each_of(spec, "tolerations", path):
        yield from _toleration(toleration, place)


def _containers(spec: Object, path: str) -> Iterator[tuple[Object, str]]:
    yield from words.each_of(spec, "containers", path)
    yield from words.each_of(spec, "initContainers", path)


def _volumes(spec: Object, path: str) -> Iterator[str]:
    """Yield what is wrong with the volumes; one without a source is an emptyDir, by default."""
    names: set[str] = set()
    for volume, place in words.each_of(spec, "volumes", path):
        name = volume["name"]
        yield from words.LABEL.mistakes(name, f"{place}.name") if name else [words.required(f"{place}.name")]
        if name in names:
            yield words.duplicate(f"{place}.name", name)
        names.add(name)
        yield from of_sources({key: each for key, each in volume.items() if key != "name"}, place)


def of_sources(sources: Object, path: str) -> Iterator[str]:
    """Yield what is wrong with what a volume is, which is one thing."""
    for number, (kind, source) in enumerate(sources.items()):
        if number:
            yield f"{path}.{kind}: Forbidden: may not specify more than 1 volume type"
        if kind in _NAMED and not source.get(_NAMED[kind]):
            yield words.required(f"{path}.{kind}.{_NAMED[kind]}")
    host = sources.get("hostPath", {})
    if ".." in host.get("path", "").split("/"):
        yield words.invalid(f"{path}.hostPath.path", host["path"], "must not contain '..'")
    yield from words.among(_PATHS, host.get("type", ""), f"{path}.hostPath.type")
    yield from of_quantity("storage", sources.get("emptyDir", {}).get("sizeLimit", 0), f"{path}.emptyDir.sizeLimit")


def _container(container: Object, path: str, volumes: set[str]) -> Iterator[str]:
    name = container["name"]
    yield from words.LABEL.mistakes(name, f"{path}.name") if name else [words.required(f"{path}.name")]
    if not container.get("image"):
        yield words.required(f"{path}.image")
    last_words = container.get("terminationMessagePolicy") or "File"
    yield from words.among(_LAST_WORDS, last_words, f"{path}.terminationMessagePolicy")
    for variable, place in words.each_of(container, "env", path):
        yield from _variable(variable, place)
    for source, place in words.each_of(container, "envFrom", path):
        yield from _one_of(source, ("configMapRef", "secretRef"), f"{path}.envFrom")
        for key in source.keys() & {"configMapRef", "secretRef"}:
            name, at = source[key].get("name"), f"{place}.{key}.name"
            yield from words.SUBDOMAIN.mistakes(name, at) if name else [words.required(at)]
    yield from _mounts(container, path, volumes)
    yield from words.among(_PULLS, container.get("imagePullPolicy") or "Always", f"{path}.imagePullPolicy")
    yield from _resources(container.get("resources", {}), f"{path}.resources")


def _init_container(container: Object, path: str) -> Iterator[str]:
    if "restartPolicy" not in container:
        said = "Forbidden: may not be set for init containers without restartPolicy=Always"
        yield from (f"{path}.{key}: {said}" for key in ("lifecycle", *_PROBES) if key in container)
    else:
        yield from words.among(("Always",), container["restartPolicy"], f"{path}.restartPolicy")
        yield from _handlers(container, path)


def _handlers(container: Object, path: str) -> Iterator[str]:
    hooks = container.get("lifecycle", {})
    handlers = {f"lifecycle.{key}": hooks[key] for key in _HOOKS if key in hooks}
    handlers |= {key: container[key] for key in _PROBES if key in container}
    for key, handler in handlers.items():
        yield from _handler(handler, f"{path}.{key}")


def _handler(handler: Object, path: str) -> Iterator[str]:
    said = [key for key in _HANDLERS if key in handler]
    if not said:
        yield words.required(path, "must specify a handler type")
    yield from (f"{path}.{key}: Forbidden: may not specify more than 1 handler type" for key in said[1:])
    if "exec" in handler and not handler["exec"].get("command"):
        yield words.required(f"{path}.exec.command")


def _mounts(container: Object, path: str, volumes: set[str]) -> Iterator[str]:
    paths: set[str] = set()
    for mount, place in words.each_of(container, "volumeMounts", path):
        if not mount["name"]:
            yield words.required(f"{place}.name")
        if mount["name"] not in volumes:
            yield f"{place}.name: Not found: {words.shown(mount['name'])}"
        if not mount["mountPath"]:
            yield words.required(f"{place}.mountPath")
        if mount["mountPath"] in paths:
            yield words.invalid(f"{place}.mountPath", mount["mountPath"], "must be unique")
        paths.add(mount["mountPath"])


def _variable(variable: Object, path: str) -> Iterator[str]:
    name, source = variable["name"], variable.get("valueFrom")
    yield from words.VARIABLE.mistakes(name, f"{path}.name") if name else [words.required(f"{path}.name")]
    if source is None:
        return
    place = f"{path}.valueFrom"
    if variable.get("value") and source:
        yield words.invalid(place, "", "may not be specified when `value` is not empty")
    else:
        yield from _one_of(source, _SOURCES, place)
    if "fieldRef" in source and not _FIELD.fullmatch(label := source["fieldRef"]["fieldPath"]):
        said = f"error converting fieldPath: field label not supported: {label}"
        yield words.invalid(f"{place}.fieldRef.fieldPath", label, said)
    if "resourceFieldRef" in source:
        amount = source["resourceFieldRef"]["resource"]
        if not amount.startswith(("limits.hugepages-", "requests.hugepages-")):
            yield from words.among(AMOUNTS, amount, f"{place}.resourceFieldRef.resource")
    for kind in ("configMapKeyRef", "secretKeyRef"):
        if kind in source:
            yield from words.SUBDOMAIN.mistakes(source[kind].get("name", ""), f"{place}.{kind}.name")
            yield from words.DATA_KEY.mistakes(source[kind]["key"], f"{place}.{kind}.key")


def _one_of(source: Object, known: Sequence[str], path: str) -> Iterator[str]:
    """Yield what is wrong where one of several fields has to be said, and no more."""
    said = [key for key in known if key in source]
    if not said:
        listed = f"{', '.join(f'`{key}`' for key in known[:-1])} or `{known[-1]}`"
        yield words.invalid(path, "", f"must specify one of: {listed}")
    if len(said) > 1:
        yield words.invalid(path, "", "may not have more than one field specified at a time")


def _resources(resources: Object, path: str) -> Iterator[str]:
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    for of, amounts in (("limits", limits), ("requests", requests)):
        for name, amount in amounts.items():
            yield from of_resource(name, f"{path}.{of}[{name}]", RESOURCES, "containers")
            yield from of_quantity(name, amount, f"{path}.{of}[{name}]")
    for name, amount in requests.items():
        asked, limit = parsed(amount), parsed(limits.get(name, ""))
        if name not in limits and not _may_be_shared(name):
            yield words.required(f"{path}.limits", "Limit must be set for non overcommitable resources")
        if asked is None or limit is None:
            continue
        if asked != limit and not _may_be_shared(name):
            yield words.invalid(f"{path}.requests", str(amount), f"must be equal to {name} limit of {limits[name]}")
        elif asked > limit:
            said = f"must be less than or equal to {name} limit of {limits[name]}"
            yield words.invalid(f"{path}.requests", str(amount), said)


def of_resource(name: str, path: str, known: Container[str], of: str) -> Iterator[str]:
    """Yield what is wrong with the name of a resource: one that is known there, or that has a domain."""
    if "/" in name:
        yield from words.of_key(name, path)
    elif name not in known and not name.startswith("hugepages-"):
        yield words.invalid(path, name, "must be a standard resource type or fully qualified")
        yield words.invalid(path, name, f"must be a standard resource for {of}")


def of_quantity(name: str, amount: Any, path: str) -> Iterator[str]:
    """Yield what is wrong with how much of a resource there is to be; of some there are whole ones alone."""
    value = parsed(amount)
    is_whole = name in COUNTED or (not _is_native(name) and not name.startswith("requests."))
    if value is None:
        yield words.invalid(path, str(amount), NO_QUANTITY)
    elif value < 0:
        yield words.invalid(path, str(amount), "must be greater than or equal to 0")
    elif is_whole and value % 1:
        yield words.invalid(path, str(amount), "must be an integer")


def parsed(amount: Any) -> Decimal | None:
    """Return a quantity as a number; None where it is none."""
    return Decimal(parse_quantity(amount)) if _QUANTITY.fullmatch(str(amount)) else None


def _is_native(name: str) -> bool:
    return "/" not in name or "kubernetes.io/" in name


def _may_be_shared(name: str) -> bool:
    """Whether a container may ask for less of a resource than its limit."""
    return _is_native(name) and not name.startswith("hugepages-")


def _toleration(toleration: Object, path: str) -> Iterator[str]:
    key, operator, value = (toleration.get(each, "") for each in ("key", "operator", "value"))
    if key:
        yield from words.of_key(key, f"{path}.key")
    elif operator != "Exists":
        said = 'operator must be Exists when `key` is empty, which means "match all values and all keys"'
        yield words.invalid(f"{path}.operator", operator, said)
    if "tolerationSeconds" in toleration and toleration.get("effect") != "NoExecute":
        said = "effect must be 'NoExecute' when `tolerationSeconds` is set"
        yield words.invalid(f"{path}.effect", toleration.get("effect", ""), said)
    if operator in ("", "Equal"):
        yield from words.LABEL_VALUE.mistakes(value, f"{path}.operator")
    else:
        yield from words.among(("Equal", "Exists"), operator, f"{path}.operator")
    if operator == "Exists" and value:
        yield words.invalid(f"{path}.operator", value, "value must be empty when `operator` is 'Exists'")
    yield from words.among(_EFFECTS, toleration.get("effect") or _EFFECTS[0], f"{path}.effect")


def _spread(spec: Object, path: str) -> Iterator[str]:
    pairs = []
    for each, place in words.each_of(spec, "topologySpreadConstraints", path):
        if each["maxSkew"] <= 0:
            yield words.invalid(f"{place}.maxSkew", each["maxSkew"], words.POSITIVE)
        yield from _topology(each, place)
        yield from words.among(_WITHOUT, each["whenUnsatisfiable"], f"{place}.whenUnsatisfiable")
        pair = f"{{{each['topologyKey']}, {each['whenUnsatisfiable']}}}"
        if pair in pairs:
            yield words.duplicate(f"{place}.{{topologyKey, whenUnsatisfiable}}", pair)
        pairs.append(pair)
        yield from of_selector(each.get("labelSelector", {}), f"{place}.labelSelector")


def _affinity(affinity: Object, path: str) -> Iterator[str]:
    for kind in ("nodeAffinity", "podAffinity", "podAntiAffinity"):
        place, of_kind = f"{path}.{kind}", affinity.get(kind, {})
        if kind == "nodeAffinity" and _REQUIRED in of_kind:
            yield from _node_selector(of_kind[_REQUIRED], f"{place}.{_REQUIRED}")
        elif kind != "nodeAffinity":
            for term, below in words.each_of(of_kind, _REQUIRED, place):
                yield from _pod_term(term, below)
        for term, below in words.each_of(of_kind, _PREFERRED, place):
            if not 1 <= term["weight"] <= 100:
                yield words.invalid(f"{below}.weight", term["weight"], "must be in the range 1-100")
            if kind == "nodeAffinity":
                yield from _node_term(term["preference"], f"{below}.preference", looks_at_values=False)
            else:
                yield from _pod_term(term["podAffinityTerm"], f"{below}.podAffinityTerm")


def _node_selector(selector: Object, path: str) -> Iterator[str]:
    if not selector["nodeSelectorTerms"]:
        yield words.required(f"{path}.nodeSelectorTerms", "must have at least one node selector term")
    for term, place in words.each_of(selector, "nodeSelectorTerms", path):
        yield from _node_term(term, place, looks_at_values=True)


def _node_term(term: Object, path: str, *, looks_at_values: bool) -> Iterator[str]:
    for each, place in words.each_of(term, "matchExpressions", path):
        if each["operator"] in ("Gt", "Lt"):
            if len(each.get("values", [])) != 1:
                said = "must be specified single value when `operator` is 'Lt' or 'Gt'"
                yield words.required(f"{place}.values", said)
            yield from words.of_key(each["key"], f"{place}.key")
        else:
            yield from _requirement(each, place, looks_at_values=looks_at_values)


def _pod_term(term: Object, path: str) -> Iterator[str]:
    yield from of_selector(term.get("labelSelector", {}), f"{path}.labelSelector")
    yield from _topology(term, path)


def _topology(value: Object, path: str) -> Iterator[str]:
    if not value["topologyKey"]:
        yield words.required(f"{path}.topologyKey", "can not be empty")
    else:
        yield from words.of_key(value["topologyKey"], f"{path}.topologyKey")


def of_selector(selector: Object, path: str) -> Iterator[str]:
    """Yield what is wrong with what selects by labels."""
    yield from words.of_labels(selector.get("matchLabels", {}), f"{path}.matchLabels")
    for each, place in words.each_of(selector, "matchExpressions", path):
        yield from _requirement(each, place)


def _requirement(requirement: Object, path: str, *, looks_at_values: bool = True) -> Iterator[str]:
    operator, values = requirement["operator"], requirement.get("values", [])
    if operator in ("In", "NotIn"):
        if not values:
            yield words.required(f"{path}.values", "must be specified when `operator` is 'In' or 'NotIn'")
    elif operator not in ("Exists", "DoesNotExist"):
        yield words.invalid(f"{path}.operator", operator, "not a valid selector operator")
    elif values:
        yield f"{path}.values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
    yield from words.of_key(requirement["key"], f"{path}.key")
    for index, value in enumerate(values if looks_at_values else []):
        yield from words.LABEL_VALUE.mistakes(value, f"{path}.values[{index}]")
