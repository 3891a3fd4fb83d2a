"""Whether network policies let a pod out to an address. Pure.

https://kubernetes.io/docs/concepts/services-networking/network-policies: a pod that no policy selects is free, else
the union of all rules of those that select it holds.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.kubernetes.fits import matches

Object = Mapping[str, Any]
Labels = Mapping[str, str]


def may_reach(policies: Sequence[Object], labels: Labels, address: str, port: int) -> bool:
    """Whether a pod with these labels may open TCP connections to an address outside of all pods."""
    selecting = [
        policy["spec"]
        for policy in policies
        if "Egress" in policy["spec"].get("policyTypes", ["Egress"] if "egress" in policy["spec"] else [])
        and _selects(policy["spec"].get("podSelector", {}), labels)
    ]
    return not selecting or any(
        _is_peer(rule.get("to"), address) and _is_port(rule.get("ports"), port)
        for spec in selecting
        for rule in spec.get("egress") or []
    )


def _is_peer(peers: Sequence[Object] | None, address: str) -> bool:
    return not peers or any("ipBlock" in peer and _is_in(peer["ipBlock"], address) for peer in peers)


def _is_in(block: Object, text: str) -> bool:
    address = ipaddress.ip_address(text)
    return address in ipaddress.ip_network(block["cidr"]) and not any(
        address in ipaddress.ip_network(each) for each in block.get("except", [])
    )


def _is_port(ports: Sequence[Object] | None, port: int) -> bool:
    return not ports or any(_opens(each, port) for each in ports)


def _opens(opened: Object, port: int) -> bool:
    first = opened.get("port", port)
    # a name is of a container's port, and there is no container at the other end
    if opened.get("protocol", "TCP") != "TCP" or not isinstance(first, int):
        return False
    return first <= port <= int(opened.get("endPort", first))


def _selects(selector: Object, labels: Labels) -> bool:
    return all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items()) and all(
        matches(each, labels) for each in selector.get("matchExpressions") or []
    )
