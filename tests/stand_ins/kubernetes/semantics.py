"""What an API server refuses of objects that their schemas let through, in its words.

After https://github.com/kubernetes/kubernetes (pkg/apis/core/validation, and those of apps, batch, networking and
rbac), once defaults are filled in, as far as the project may get it wrong.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Iterator

from tests.stand_ins.kubernetes import pods, words
from tests.stand_ins.kubernetes.words import Object

_MOST_ANNOTATIONS, _MOST_DATA = 256 * 2**10, 2**20  # bytes
_OF_QUOTAS = {*pods.COUNTED, *pods.RESOURCES, *pods.AMOUNTS, "requests.storage"}
_PROTOCOLS = ("TCP", "UDP", "SCTP")
_PORTS = range(1, 65536)
_NAME_OF_PORT = {
    r".{0,15}": "must be no more than 15 bytes",
    r"[-a-z0-9]*": "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
    r".*[a-z].*": "must contain at least one letter (a-z)",
    r"(?!.*--).*": "must not contain consecutive hyphens",
    r"(?!-).*(?<!-)": "must not begin or end with a hyphen",
}
_ACCESS = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
_RECLAIMS = ("Delete", "Recycle", "Retain")
_NOT_A_SOURCE = {  # of a PersistentVolume
    *("accessModes", "capacity", "claimRef", "mountOptions", "nodeAffinity", "persistentVolumeReclaimPolicy"),
    *("storageClassName", "volumeAttributesClassName", "volumeMode"),
}


def mistakes(kind: str, value: Object) -> list[str]:
    """Return what is wrong with an object of one of Kubernetes' own kinds that its schema lets through."""
    of_kind = {
        "Pod": pods.of_pod,
        "DaemonSet": _daemon_set,
        "Job": _job,
        "Secret": _secret,
        "ConfigMap": _config_map,
        "NetworkPolicy": _network_policy,
        "ResourceQuota": _quota,
        "PersistentVolume": _volume,
        "PersistentVolumeClaim": _claim,
    }.get(kind)
    return [] if of_kind is None else list(of_kind(words.without_nulls(value)))


def of_metadata(metadata: Object) -> list[str]:
    """Return what is wrong with the metadata of an object of any kind."""
    said, found = words.without_nulls(metadata), []
    for kind in ("labels", "annotations"):
        texts = [each for each in said.get(kind, {}).values() if not isinstance(each, str)]
        found += [words.invalid(f"metadata.{kind}", each, "must be a string") for each in texts]
    if found:
        return found
    annotations = said.get("annotations", {})
    found += words.SUBDOMAIN.mistakes(said["name"], "metadata.name")
    found += words.of_labels(said.get("labels", {}), "metadata.labels")
    found += [each for key in annotations for each in words.of_key(key.lower(), "metadata.annotations")]
    if sum(map(words.size, [*annotations, *annotations.values()])) > _MOST_ANNOTATIONS:
        found.append(words.too_long("metadata.annotations", _MOST_ANNOTATIONS))
    return found


def of_change(kind: str, before: Object, after: Object) -> list[str]:
    """Return what an update changes that stays as it was made."""
    found = []
    if kind == "Secret" and before.get("type", "Opaque") != after.get("type", "Opaque"):
        found.append(words.invalid("type", after.get("type", "Opaque"), "field is immutable"))
    if kind == "RoleBinding" and _role(before) != _role(after):
        found.append(words.invalid("roleRef", _role(after), "cannot change roleRef"))
    if kind in ("Secret", "ConfigMap") and before.get("immutable"):
        for key in ("immutable", "data", "binaryData"):
            if before.get(key) != after.get(key):
                found.append(f"{key}: Forbidden: field is immutable when `immutable` is set")
    return found


# What makes pods


def _daemon_set(daemons: Object) -> Iterator[str]:
    template, selector = daemons["spec"]["template"], daemons["spec"]["selector"]
    labels = template.get("metadata", {}).get("labels", {})
    yield from pods.of_selector(selector, "spec.selector")
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        yield words.invalid("spec.selector", selector, "empty selector is invalid for daemonset")
    if not selector.get("matchLabels", {}).items() <= labels.items():
        said = "`selector` does not match template `labels`"
        yield words.invalid("spec.template.metadata.labels", labels, said)
    yield from pods.of_template(template, "spec.template")
    restarts = template.get("spec", {}).get("restartPolicy") or "Always"
    if restarts in pods.RESTARTS:
        yield from words.among(("Always",), restarts, "spec.template.spec.restartPolicy")


def _job(job: Object) -> Iterator[str]:
    template = job["spec"]["template"]
    yield from pods.of_template(template, "spec.template")
    if (template.get("spec", {}).get("restartPolicy") or "Always") == "Always":
        yield words.required("spec.template.spec.restartPolicy", 'valid values: "OnFailure", "Never"')


# Data


def _secret(secret: Object) -> Iterator[str]:
    """Yield what is wrong with a Secret; its values are not shown."""
    data = {key: text.encode() for key, text in secret.get("stringData", {}).items()}
    for key, text in secret.get("data", {}).items():
        if (decoded := _decoded(text)) is None:
            yield f"data[{key}]: Invalid value: illegal base64 data"
        data.setdefault(key, decoded or b"")
    for key in data:
        yield from words.DATA_KEY.mistakes(key, f"data[{key}]")
    if sum(map(len, data.values())) > _MOST_DATA:
        yield words.too_long("data", _MOST_DATA)


def _config_map(config: Object) -> Iterator[str]:
    data, binary = config.get("data", {}), config.get("binaryData", {})
    for key in data:
        yield from words.DATA_KEY.mistakes(key, f"data[{key}]")
        if key in binary:
            yield words.invalid(f"data[{key}]", key, "duplicate of key present in binaryData")
    for key, text in binary.items():
        yield from words.DATA_KEY.mistakes(key, f"binaryData[{key}]")
        if _decoded(text) is None:
            yield f"binaryData[{key}]: Invalid value: illegal base64 data"
    if sum(map(words.size, data.values())) + sum(len(_decoded(text) or b"") for text in binary.values()) > _MOST_DATA:
        yield words.too_long("[]", _MOST_DATA)


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(re.sub(r"[\r\n]", "", text), validate=True)
    except binascii.Error:
        return None


# What an administrator applies


def _network_policy(policy: Object) -> Iterator[str]:
    spec = policy.get("spec", {})
    yield from pods.of_selector(spec.get("podSelector", {}), "spec.podSelector")
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for rule, path in words.each_of(spec, direction, "spec"):
            for port, place in words.each_of(rule, "ports", path):
                yield from _ports(port, place)
            for peer, place in words.each_of(rule, peers, path):
                yield from _peer(peer, place)
    for index, each in enumerate(spec.get("policyTypes", [])):
        yield from words.among(("Ingress", "Egress"), each, f"spec.policyTypes[{index}]")


def _ports(ports: Object, path: str) -> Iterator[str]:
    yield from words.among(_PROTOCOLS, ports.get("protocol", "TCP"), f"{path}.protocol")
    first, last, said = ports.get("port"), ports.get("endPort"), "must be between 1 and 65535, inclusive"
    if isinstance(first, str):
        wrong = [why for pattern, why in _NAME_OF_PORT.items() if not re.fullmatch(pattern, first)]
        yield from (words.invalid(f"{path}.port", first, why) for why in wrong)
    if isinstance(first, int) and first not in _PORTS:
        yield words.invalid(f"{path}.port", first, said)
    if last is None:
        return
    if not isinstance(first, int):
        when = "not specified" if first is None else "non-numeric"
        yield words.invalid(f"{path}.endPort", last, f"may not be specified when `port` is {when}")
        return
    if last < first:
        yield words.invalid(f"{path}.endPort", last, "must be greater than or equal to `port`")
    if last not in _PORTS:
        yield words.invalid(f"{path}.endPort", last, said)


def _peer(peer: Object, path: str) -> Iterator[str]:
    for key in ("podSelector", "namespaceSelector"):
        yield from pods.of_selector(peer.get(key, {}), f"{path}.{key}")
    if "ipBlock" in peer:
        yield from _block(peer["ipBlock"], f"{path}.ipBlock")
    if not peer:
        yield words.required(path, "must specify a peer")
    elif "ipBlock" in peer and len(peer) > 1:
        yield f"{path}: Forbidden: may not specify both ipBlock and another peer"


def _block(block: Object, path: str) -> Iterator[str]:
    no_range = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
    if not block["cidr"]:
        yield words.required(f"{path}.cidr")
    elif (whole := _range(block["cidr"])) is None:
        yield words.invalid(f"{path}.cidr", block["cidr"], no_range)
    else:
        for index, text in enumerate(block.get("except", [])):
            if (part := _range(text)) is None:
                yield words.invalid(f"{path}.except[{index}]", text, no_range)
            elif part.network_address not in whole or part.prefixlen <= whole.prefixlen:
                yield words.invalid(f"{path}.except[{index}]", text, "must be a strict subset of `cidr`")


def _range(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False) if re.search(r"/\d+$", text) else None
    except ValueError:
        return None


def _quota(quota: Object) -> Iterator[str]:
    hard = quota.get("spec", {}).get("hard", {})
    for name, amount in hard.items():
        yield from pods.of_resource(name, f"spec.hard[{name}]", _OF_QUOTAS, "quota")
        yield from pods.of_quantity(name, amount, f"spec.hard[{name}]")


def _volume(volume: Object) -> Iterator[str]:
    spec = volume.get("spec", {})
    capacity, sources = spec.get("capacity", {}), {key: spec[key] for key in spec if key not in _NOT_A_SOURCE}
    if not spec.get("accessModes"):
        yield words.required("spec.accessModes")
    yield from _access(spec)
    if not capacity:
        yield words.required("spec.capacity")
    if capacity.keys() != {"storage"}:
        yield f'spec.capacity: Unsupported value: {words.shown(capacity)}: supported values: "storage"'
    yield from _positive(capacity, "spec.capacity")
    reclaims = spec.get("persistentVolumeReclaimPolicy") or "Retain"
    yield from words.among(_RECLAIMS, reclaims, "spec.persistentVolumeReclaimPolicy")
    if not sources:
        yield words.required("spec", "must specify a volume type")
    yield from pods.of_sources(sources, "spec")
    if spec.get("storageClassName"):
        yield from words.SUBDOMAIN.mistakes(spec["storageClassName"], "spec.storageClassName")


def _claim(claim: Object) -> Iterator[str]:
    spec = claim.get("spec", {})
    requests = spec.get("resources", {}).get("requests", {})
    if not spec.get("accessModes"):
        yield words.required("spec.accessModes", "at least 1 access mode is required")
    yield from _access(spec)
    if "storage" not in requests:
        yield words.required("spec.resources[storage]")
    yield from _positive({key: each for key, each in requests.items() if key == "storage"}, "spec.resources")
    if spec.get("storageClassName"):
        yield from words.SUBDOMAIN.mistakes(spec["storageClassName"], "spec.storageClassName")


def _access(spec: Object) -> Iterator[str]:
    modes = spec.get("accessModes", [])
    for each in modes:
        yield from words.among(_ACCESS, each, "spec.accessModes")
    if "ReadWriteOncePod" in modes and len({*modes}) > 1:
        yield "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes"


def _positive(amounts: Object, path: str) -> Iterator[str]:
    for name, amount in amounts.items():
        if (value := pods.parsed(amount)) is None:
            yield words.invalid(f"{path}[{name}]", str(amount), pods.NO_QUANTITY)
        elif value <= 0:
            yield words.invalid(f"{path}[{name}]", str(amount), words.POSITIVE)


def _role(binding: Object) -> Object:
    return {"apiGroup": "rbac.authorization.k8s.io", **binding["roleRef"]}
