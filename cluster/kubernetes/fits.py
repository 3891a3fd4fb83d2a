"""Which nodes could take a pod, were they empty: what the scheduler looks at first. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

Object = Mapping[str, Any]
Quantity = Callable[[str], Decimal]  # how Kubernetes' amounts are read: 500m, 4Gi


def fitting(nodes: Sequence[Object], template: Object, quantity: Quantity) -> list[str]:
    """Return the names of the nodes whose labels, taints and size let a pod of a template in."""
    spec = template["spec"]
    return [
        node["metadata"]["name"]
        for node in nodes
        if not node.get("spec", {}).get("unschedulable")
        and _has_labels(node, spec)
        and _is_tolerated(node, spec.get("tolerations", []))
        and not lacking(node, total([spec]), quantity)
    ]


def total(specs: Sequence[Object]) -> dict[str, list[str]]:
    """Return of each resource what the containers of pods ask for."""
    asked: dict[str, list[str]] = {}
    for spec in specs:
        for container in spec["containers"]:
            for resource, amount in container["resources"]["requests"].items():
                asked.setdefault(resource, []).append(amount)
    return asked


def lacking(node: Object, asked: Mapping[str, Sequence[str]], quantity: Quantity) -> list[str]:
    """Return the resources of which a node has too little, or nothing."""
    there = node.get("status", {}).get("allocatable", {})
    return [
        resource
        for resource, amounts in asked.items()
        if sum(map(quantity, amounts)) > quantity(str(there.get(resource, "0")))
    ]


def _has_labels(node: Object, spec: Object) -> bool:
    labels = node["metadata"].get("labels", {})
    required = (
        spec.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    )
    terms = required.get("nodeSelectorTerms", [])
    return all(labels.get(key) == value for key, value in spec.get("nodeSelector", {}).items()) and (
        not terms or any(all(_matches(each, labels) for each in term["matchExpressions"]) for term in terms)
    )


def _matches(expression: Object, labels: Mapping[str, str]) -> bool:
    has = labels.get(expression["key"]) in expression["values"]
    return has if expression["operator"] == "In" else not has


def _is_tolerated(node: Object, tolerations: Sequence[Object]) -> bool:
    taints = node.get("spec", {}).get("taints", [])
    return all(
        taint["effect"] == "PreferNoSchedule" or any(_tolerates(each, taint) for each in tolerations)
        for taint in taints
    )


def _tolerates(toleration: Object, taint: Object) -> bool:
    return (
        toleration.get("key") in (None, taint["key"])
        and toleration.get("effect") in (None, taint["effect"])
        and (toleration.get("operator") == "Exists" or toleration.get("value") == taint.get("value"))
    )
