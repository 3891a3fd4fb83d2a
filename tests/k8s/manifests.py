"""What the manifests under k8s/ say, rendered by kubectl and read the way Kubernetes reads them."""

from __future__ import annotations

import ipaddress
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from tests.harness import ROOT
from tests.needs import kubectl

K8S = ROOT / "k8s"
Manifest = dict[str, Any]
Labels = Mapping[str, str]


class Pod(NamedTuple):
    """A pod as a policy sees it."""

    labels: Labels
    namespace: str = "raylift"


def read(file: Path) -> list[Manifest]:
    return list(YAML(typ="safe").load_all(file))


def render(folder: Path) -> list[Manifest]:
    """Return what `kubectl apply -k` would apply. Ends the test where there is no kubectl."""
    done = subprocess.run([kubectl(), "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(YAML(typ="safe").load_all(done.stdout))


def render_with(folder: Path, overlay: str) -> list[Manifest]:
    """Return what an overlay of a user's own gives, written in `folder` beside a copy of k8s/."""
    shutil.copytree(K8S, folder / "k8s")
    (folder / "k8s" / "kustomization.yaml").write_text(overlay)
    return render(folder / "k8s")


def render_beside(folder: Path, overlay: str) -> list[Manifest]:
    """Return what an overlay gives that is in a folder beside a copy of k8s/, as the README has it."""
    shutil.copytree(K8S, folder / "k8s")
    (folder / "my-cluster").mkdir()
    (folder / "my-cluster" / "kustomization.yaml").write_text(overlay)
    return render(folder / "my-cluster")


def policies_of_kuberay(spec: Manifest, cluster: str) -> list[Manifest]:
    """Return what KubeRay makes of a RayCluster's networkPolicy.

    After networkpolicy_controller.go of https://github.com/ray-project/kuberay, as of 1.7, but for its rule for the pod
    that submits, of whose labels versions differ.
    """
    policy, own = spec["networkPolicy"], {"podSelector": {"matchLabels": {"ray.io/cluster": cluster}}}
    operator = {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}}
    system = {"matchLabels": {"kubernetes.io/metadata.name": "ray-system"}}
    asking = [{"podSelector": operator, "namespaceSelector": system}]
    to_head = {"from": asking, "ports": [{"protocol": "TCP", "port": 8265}]}
    dns = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    return [
        {
            "kind": "NetworkPolicy",
            "metadata": {"name": f"{cluster}-{role}", "namespace": "raylift"},
            "spec": {
                "podSelector": {"matchLabels": {"ray.io/cluster": cluster, "ray.io/node-type": role}},
                "policyTypes": [
                    each for each in ("Ingress", "Egress") if policy["mode"] in ("DenyAll", f"DenyAll{each}")
                ],
                "ingress": [
                    {"from": [own]},
                    *([to_head] if role == "head" else []),
                    *policy.get(role, {}).get("ingressRules", []),
                ],
                "egress": [{"to": [own]}, {"ports": dns}, *policy.get(role, {}).get("egressRules", [])],
            },
        }
        for role in ("head", "worker")
    ]


def of_kind(manifests: Sequence[Manifest], kind: str) -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def may(role: Manifest, verb: str, resource: str, group: str = "") -> bool:
    """Whether a Role allows a verb on every object of a resource."""
    return any(
        verb in rule["verbs"] and resource in rule["resources"] and group in rule["apiGroups"] for rule in role["rules"]
    )


def may_send(manifests: Sequence[Manifest], pod: Pod, to: str | Pod, port: int, protocol: str = "TCP") -> bool:
    """Whether the network policies let a pod out to an address or a pod."""
    return _allows(manifests, "Egress", pod, to, port, protocol)


def may_receive(manifests: Sequence[Manifest], pod: Pod, sender: str | Pod, port: int, protocol: str = "TCP") -> bool:
    """Whether the network policies let an address or a pod in to a pod."""
    return _allows(manifests, "Ingress", pod, sender, port, protocol)


def _allows(manifests: Sequence[Manifest], direction: str, pod: Pod, peer: str | Pod, port: int, protocol: str) -> bool:
    """Say what https://kubernetes.io/docs/concepts/services-networking/network-policies says.

    What no policy selects is open, else the union of all rules holds; a rule without peers or ports is for all of them.
    """
    selecting = [
        policy["spec"]
        for policy in of_kind(manifests, "NetworkPolicy").values()
        if direction in policy["spec"]["policyTypes"]
        and policy["metadata"]["namespace"] == pod.namespace
        and _selects(policy["spec"]["podSelector"], pod.labels)
    ]
    if not selecting:
        return True
    return any(
        _has_peer(rule.get("to" if direction == "Egress" else "from"), peer, pod.namespace)
        and _has_port(rule.get("ports"), port, protocol)
        for spec in selecting
        for rule in spec.get(direction.lower(), [])
    )


def _has_peer(peers: list[Manifest] | None, peer: str | Pod, namespace: str) -> bool:
    return peers is None or any(_is_peer(each, peer, namespace) for each in peers)


def _is_peer(rule: Manifest, peer: str | Pod, namespace: str) -> bool:
    if isinstance(peer, str):
        return "ipBlock" in rule and _in_block(rule["ipBlock"], peer)
    if "ipBlock" in rule:
        return False
    if "namespaceSelector" in rule:
        named = {"kubernetes.io/metadata.name": peer.namespace}
        return _selects(rule["namespaceSelector"], named) and _selects(rule.get("podSelector", {}), peer.labels)
    return peer.namespace == namespace and _selects(rule["podSelector"], peer.labels)


def _in_block(block: Manifest, text: str) -> bool:
    address = ipaddress.ip_address(text)
    inside = address in ipaddress.ip_network(block["cidr"])
    return inside and not any(address in ipaddress.ip_network(each) for each in block.get("except", []))


def _has_port(ports: list[Manifest] | None, port: int, protocol: str) -> bool:
    return ports is None or any(
        each["protocol"] == protocol and port in range(each["port"], _last_port(each) + 1) for each in ports
    )


def _last_port(ports: Manifest) -> int:
    return int(ports["endPort"] if "endPort" in ports else ports["port"])


def _selects(selector: Manifest, labels: Labels) -> bool:
    wanted = selector.get("matchLabels", {})
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _matches(each, labels) for each in selector.get("matchExpressions", [])
    )


def _matches(expression: Manifest, labels: Labels) -> bool:
    if expression["operator"] == "Exists":
        return expression["key"] in labels
    assert expression["operator"] == "In", "no other operator is used"
    return labels.get(expression["key"]) in expression["values"]


def strings(value: Any) -> Iterator[str]:
    """Yield every string in a manifest, keys too."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from strings(key)
            yield from strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)
    elif isinstance(value, str):
        yield value
