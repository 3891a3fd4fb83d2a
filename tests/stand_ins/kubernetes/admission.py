"""What an API server refuses of a pod that a controller makes, and of any object where there are too many.

The schema, what it names, the Pod Security Standard `restricted` where the namespace enforces it
(https://kubernetes.io/docs/concepts/security/pod-security-standards), and resource quotas
(https://kubernetes.io/docs/concepts/policy/resource-quotas), without scopes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from kubernetes.utils.quantity import parse_quantity

from tests.stand_ins.kubernetes import kinds
from tests.stand_ins.kubernetes.kinds import Kind, Object

if TYPE_CHECKING:
    from tests.stand_ins.kubernetes.server import ApiServer

_ENFORCED = "pod-security.kubernetes.io/enforce"
_ALWAYS = ("cpu", "memory")  # a container that does not say them is refused, where a quota has them
_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
    *("persistentVolumeClaim", "projected", "secret"),
}


def refusal(server: ApiServer, pod: Object) -> str:
    """Return what an API server says to a pod; an empty text where it takes it."""
    metadata = pod["metadata"]
    named = f'pods "{metadata["name"]}" is forbidden'
    whole = {"apiVersion": "v1", "kind": "Pod", **pod}
    if found := kinds.mistakes(server.kind("Pod"), whole):
        return f'Pod "{metadata["name"]}" is invalid: {", ".join(found)}'
    account, priority = pod["spec"].get("serviceAccountName", "default"), pod["spec"].get("priorityClassName")
    # that of a namespace, and those of the system, are made by controllers that do not run here
    if account != "default" and server.get("ServiceAccount", metadata["namespace"], account) is None:
        place = f"{metadata['namespace']}/{account}"
        return f'{named}: error looking up service account {place}: serviceaccount "{account}" not found'
    if priority is not None and server.get("PriorityClass", "", priority) is None:
        return f"{named}: no PriorityClass with name {priority} was found"
    namespace = server.get("Namespace", "", metadata["namespace"]) or {"metadata": {}}
    if namespace["metadata"].get("labels", {}).get(_ENFORCED) == "restricted" and (
        found := list(_beyond_restricted(pod["spec"]))
    ):
        return f'{named}: violates PodSecurity "restricted:latest": {", ".join(found)}'
    for quota in server.all("ResourceQuota", metadata["namespace"]):
        if said := _over(quota, pod, server.all("Pod", metadata["namespace"])):
            return f"{named}: {said}"
    return ""


def beyond_count(server: ApiServer, kind: Kind, namespace: str, name: str) -> str:
    """Return what an API server says to one object more of a kind; an empty text where quotas leave room for it."""
    counted = f"count/{kind.qualified}"
    for quota in server.all("ResourceQuota", namespace):
        hard, used = quota["spec"].get("hard", {}).get(counted), len(server.all(kind.name, namespace))
        if hard is not None and used + 1 > parse_quantity(hard):
            said = f"requested: {counted}=1, used: {counted}={used}, limited: {counted}={hard}"
            return f'{kind.qualified} "{name}" is forbidden: exceeded quota: {quota["metadata"]["name"]}, {said}'
    return ""


def _beyond_restricted(spec: Object) -> Iterator[str]:
    yield from (f"host namespaces ({key}=true)" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key))
    for volume in spec.get("volumes", []):
        if more := volume.keys() - {"name"} - _VOLUMES:
            yield f'restricted volume types (volume "{volume["name"]}" uses {", ".join(sorted(more))})'
    for container in _containers(spec):
        own, of_pod = container.get("securityContext", {}), spec.get("securityContext", {})
        name = f'(container "{container["name"]}")'
        if own.get("privileged"):
            yield f"privileged {name}"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"allowPrivilegeEscalation != false {name}"
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []) or {*capabilities.get("add", [])} - {"NET_BIND_SERVICE"}:
            yield f"unrestricted capabilities {name}"
        if own.get("runAsNonRoot", of_pod.get("runAsNonRoot")) is not True:
            yield f"runAsNonRoot != true {name}"
        if own.get("runAsUser", of_pod.get("runAsUser")) == 0:
            yield f"runAsUser=0 {name}"
        profile = own.get("seccompProfile", of_pod.get("seccompProfile", {})).get("type")
        if profile not in ("RuntimeDefault", "Localhost"):
            yield f"seccompProfile {name}"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"hostPort {name}"


def _over(quota: Object, pod: Object, others: list[Object]) -> str:
    """Return which of a quota's resources a pod does not say, or would have too much of."""
    name = quota["metadata"]["name"]
    for resource, hard in quota["spec"].get("hard", {}).items():
        of = "limits" if resource.startswith("limits.") else "requests"
        key = resource.removeprefix(f"{of}.")
        if key in ("pods", "count/pods"):
            asked, used = Decimal(1), Decimal(sum(map(_counts, others)))
        elif key in (*_ALWAYS, "ephemeral-storage") or resource == f"requests.{key}":
            silent = [each["name"] for each in _containers(pod["spec"]) if key not in _amounts(each, of)]
            if silent and key in _ALWAYS:
                return f"failed quota: {name}: must specify {resource} for: {','.join(silent)}"
            asked = _sum(pod, of, key)
            used = sum((_sum(each, of, key) for each in others if _counts(each)), Decimal(0))
        else:
            continue  # no pod counts
        if asked + used > parse_quantity(hard):
            return (
                f"exceeded quota: {name}, requested: {resource}={asked}, used: {resource}={used}, "
                f"limited: {resource}={hard}"
            )
    return ""


def _counts(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")


def _sum(pod: Object, of: str, key: str) -> Decimal:
    """Return what a pod has of a resource: its containers together, or the one of those before them that has most."""
    first, rest = pod["spec"].get("initContainers", []), pod["spec"]["containers"]
    together = sum((_amount(each, of, key) for each in rest), Decimal(0))
    return max(together, *(_amount(each, of, key) for each in first)) if first else together


def _amount(container: Object, of: str, key: str) -> Decimal:
    return Decimal(parse_quantity(_amounts(container, of).get(key, "0")))


def _amounts(container: Object, of: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = container.get("resources", {}).get(of, {})
    return found


def _containers(spec: Object) -> list[Object]:
    return [*spec.get("initContainers", []), *spec["containers"]]
