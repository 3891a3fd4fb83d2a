"""Which nodes could take a pod, were they empty: what the scheduler looks at first. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

Object = Mapping[str, Any]
Quantity = Callable[[str], Decimal]  # how Kubernetes' amounts are read: 500m, 4Gi


def obstacles(node: Object, template: Object, quantity: Quantity) -> list[str]:
    """Return what keeps a pod of a template from a node: its labels, its taints, its size; nothing where all fit."""
    spec = template["spec"]
    found = {
        "a cordon": node.get("spec", {}).get("unschedulable"),
        "other labels": not _has_labels(node, spec),
        "a taint": not _is_tolerated(node, spec.get("tolerations", [])),
    }
    short = lacking(node, total([spec]), quantity)
    return [*(what for what, is_so in found.items() if is_so), *(f"too little {resource}" for resource in short)]


def room(node: Object, template: Object, quantity: Quantity) -> int:
    """Return how many pods of a template a node that lets them in has room for."""
    there = node.get("status", {}).get("allocatable", {})
    asked = {resource: sum(map(quantity, amounts)) for resource, amounts in total([template["spec"]]).items()}
    return min(
        [int(quantity(str(there.get(resource, "0"))) // amount) for resource, amount in asked.items() if amount],
        default=0,
    )


def total(specs: Sequence[Object], of: Sequence[str] = ("limits", "requests")) -> dict[str, list[str]]:
    """Return of each resource what the containers of pods ask for."""
    asked: dict[str, list[str]] = {}
    for spec in specs:
        for container in spec["containers"]:
            # what is limited alone is asked for too
            resources = [container.get("resources", {}).get(each, {}) for each in of]
            for resource, amount in {key: value for each in resources for key, value in each.items()}.items():
                asked.setdefault(resource, []).append(str(amount))
    return asked


def lacking(node: Object, asked: Mapping[str, Sequence[str]], quantity: Quantity) -> list[str]:
    """Return the resources of which a node has too little, or nothing."""
    there = node.get("status", {}).get("allocatable", {})
    return [
        resource
        for resource, amounts in asked.items()
        if sum(map(quantity, amounts)) > quantity(str(there.get(resource, "0")))
    ]


def required_labels(template: Object) -> list[str]:
    """Return the names of the labels, of some of which a node of a pod must have a certain value."""
    spec = template["spec"]
    expressions = [each for term in _terms(spec) for each in term.get("matchExpressions", [])]
    of_terms = [each["key"] for each in expressions if each["operator"] in ("In", "Exists", "Gt", "Lt")]
    return list(dict.fromkeys([*spec.get("nodeSelector", {}), *of_terms]))


def _terms(spec: Object) -> Sequence[Object]:
    affinity = spec.get("affinity", {}).get("nodeAffinity", {})
    terms: Sequence[Object] = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get(
        "nodeSelectorTerms", []
    )
    return terms


def _has_labels(node: Object, spec: Object) -> bool:
    labels = node["metadata"].get("labels", {})
    terms = _terms(spec)
    return all(labels.get(key) == value for key, value in spec.get("nodeSelector", {}).items()) and (
        not terms or any(_is_of_term(node["metadata"]["name"], labels, term) for term in terms)
    )


def _is_of_term(name: str, labels: Mapping[str, str], term: Object) -> bool:
    """Whether a node has all that a term says of its labels and of its name; a term that says nothing takes none."""
    of_labels, of_fields = term.get("matchExpressions", []), term.get("matchFields", [])
    return bool(of_labels or of_fields) and (
        all(matches(each, labels) for each in of_labels)
        and all(matches(each, {"metadata.name": name}) for each in of_fields)
    )


def matches(expression: Object, labels: Mapping[str, str]) -> bool:
    """Whether labels are as an expression of a selector wants them."""
    found, values = labels.get(expression["key"]), expression.get("values", [])
    match expression["operator"]:
        case "In":
            return found in values
        case "NotIn":
            return found not in values
        case "Exists":
            return found is not None
        case "DoesNotExist":
            return found is None
        case "Gt":
            return _is_more(found, values[0])
        case _:  # Lt: the API server takes no other
            return _is_more(values[0], found)


def _is_more(number: str | None, than: str | None) -> bool:
    """Compare labels that are numbers; with what is none, nothing matches."""
    try:
        return int(str(number)) > int(str(than))
    except ValueError:
        return False


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
