"""Whether network policies let a pod out, as Kubernetes reads them."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.kubernetes.reach import may_reach

LABELS = {"app": "ray", "role": "head"}
API = ("10.0.0.2", 443)


def policy(*rules: dict[str, Any], selector: dict[str, Any] | None = None, types: Any = None) -> dict[str, Any]:
    spec = {"podSelector": selector or {}, "policyTypes": types or ["Egress"]}
    return {"spec": {**spec, "egress": list(rules)}}


def to(cidr: str, port: Any = 443, **more: Any) -> dict[str, Any]:
    return {"to": [{"ipBlock": {"cidr": cidr}}], "ports": [{"protocol": "TCP", "port": port, **more}]}


@pytest.mark.parametrize(
    ("policies", "reaches"),
    [
        ([], True),
        ([policy()], False),
        ([policy(), policy(to("10.0.0.0/8"))], True),
        ([policy(types=["Ingress"])], True),
        ([{"spec": {"podSelector": {}}}], True),
        ([policy(to("10.0.0.0/8", 6443))], False),
        ([policy(to("10.0.0.0/8", 400, endPort=500))], True),
        ([policy(to("10.0.0.0/8", "https"))], False),
        ([policy(to("10.0.0.0/8", protocol="UDP"))], False),
        ([policy(to("fc00::/7"))], False),
        ([policy({"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]})], False),
        ([policy({"to": [{"podSelector": {}}]})], False),
        ([policy({"ports": [{"port": 443}]})], True),
        ([policy({})], True),
        ([policy(selector={"matchLabels": {"role": "worker"}})], True),
        ([policy(selector={"matchLabels": {"role": "head"}})], False),
        ([policy(selector={"matchExpressions": [{"key": "role", "operator": "In", "values": ["head"]}]})], False),
        ([policy(selector={"matchExpressions": [{"key": "role", "operator": "NotIn", "values": ["head"]}]})], True),
        ([policy(selector={"matchExpressions": [{"key": "app", "operator": "Exists"}]})], False),
        ([policy(selector={"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]})], True),
    ],
)
def test_a_pod_reaches_what_the_policies_that_select_it_let_it(policies: list[dict[str, Any]], reaches: bool) -> None:
    assert may_reach(policies, LABELS, *API) is reaches
