"""The manifests: that they render and are well-formed, and what they allow."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import kubernetes_validate
import pytest
from kubernetes.utils.quantity import parse_quantity

from cluster.kubernetes.manifest import render as render_job
from cluster.kubernetes.named import render_cluster
from cluster.kubernetes.pods import pod_security
from cluster.kubernetes.versions import KUBERAY
from tests.cluster.kubernetes.golden import named_cluster, on_named_cluster
from tests.cluster.kubernetes.golden import request as launch
from tests.harness import ROOT
from tests.k8s.manifests import (
    K8S,
    Manifest,
    Pod,
    may,
    may_receive,
    may_send,
    of_kind,
    policies_of_kuberay,
    read,
    render,
    render_beside,
    render_with,
    strings,
)

README = (ROOT / "README.md").read_text()
FOLDERS = ("base", "overlays/kind")
CLUSTER_QUEUE = K8S / "components" / "kueue" / "cluster-queue.yaml"
NODE_FOLDERS = K8S / "components" / "package-cache" / "node-folders.yaml"
EVERYTHING = """
namespace: ml
resources: [base]
components:
  - components/autoscaler
  - components/kueue
  - components/node-local-dns
  - components/package-cache
  - components/runs-apart
  - components/workload-identity-eks
  - components/workload-identity-gke
"""
OURS = {"app.kubernetes.io/managed-by": "raylift"}
WORKER = Pod({**OURS, "raylift.dev/run": "digits-261125025111-3c1e", "ray.io/node-type": "worker"})
HEAD = Pod({**WORKER.labels, "ray.io/node-type": "head"})
SUBMITTER = Pod({**OURS, "raylift.dev/run": "digits-261125025111-3c1e"})
STRANGER = Pod({"app": "notebook"})
OPERATORS = [  # as KubeRay's chart labels it, and its kustomization
    Pod({"app.kubernetes.io/name": name, "app.kubernetes.io/component": "kuberay-operator"}, "ray-system")
    for name in ("kuberay-operator", "kuberay")
]
DNS = Pod({"k8s-app": "kube-dns"}, "kube-system")

S3 = "52.217.1.1"
METADATA = (
    "169.254.169.254",
    "fd00:ec2::254",
    "fd20:ce::254",
    "64:ff9b::a9fe:a9fe",
    "168.63.129.16",
    "100.100.100.200",
)
CLUSTER = ("10.96.0.1", "10.244.1.7", "172.18.0.2", "192.168.49.2", "100.64.3.4", "240.10.0.9", "fd00:10:96::1")
# what the pods' `ray start` is given, and Ray's own: GCS, raylet, objects, environments, agent, dashboard, workers
RAY_PORTS = (6379, 6380, 6381, 6382, 6383, 8265, 10002, 19999, 52365)
PORTS_OF_LINUX = (32768, 60999)


@pytest.fixture(scope="module", params=FOLDERS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(K8S / request.param)


@pytest.fixture(scope="module")
def base() -> list[Manifest]:
    return render(K8S / "base")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """An overlay of a user's own, in another namespace and with all components."""
    return render_with(tmp_path_factory.mktemp("overlay"), EVERYTHING)


@pytest.fixture(scope="module")
def role(base: list[Manifest]) -> Manifest:
    return of_kind(base, "Role")["raylift-launcher"]


def validate(manifests: list[Manifest]) -> set[str]:
    """Hold the kinds of Kubernetes itself to their schemas, with no field unknown, and return what kinds they were."""
    core = [each for each in manifests if not each["apiVersion"].startswith("kueue.x-k8s.io/")]
    for each in core:
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    return {each["kind"] for each in core}


def test_every_manifest_holds_to_the_schema_of_its_kind(manifests: list[Manifest]) -> None:
    kinds = {"Namespace", "ServiceAccount", "Role", "RoleBinding", "NetworkPolicy", "ResourceQuota"}
    assert validate(manifests) == kinds


def test_a_field_that_kubernetes_does_not_know_is_noticed(base: list[Manifest]) -> None:
    policy = of_kind(base, "NetworkPolicy")["deny-all"]
    with pytest.raises(kubernetes_validate.ValidationError, match="podSelectors"):
        validate([{**policy, "spec": {**policy["spec"], "podSelectors": {}}}])


def test_every_file_is_rendered_by_a_test(base: list[Manifest], everything: list[Manifest]) -> None:
    of_the_cluster = (*read(CLUSTER_QUEUE), *read(NODE_FOLDERS))
    rendered = {(each["kind"], each["metadata"]["name"]) for each in (*base, *everything, *of_the_cluster)}
    files = [each for folder in ("base", "components") for each in (K8S / folder).rglob("*.yaml")]
    sources = [each for file in files if file.name != "kustomization.yaml" for each in read(file)]
    assert {(each["kind"], each["metadata"]["name"]) for each in sources} - rendered == set()


def test_the_overlay_in_the_readme_opens_what_it_says(tmp_path: Path) -> None:
    (overlay,) = (each for each in README.split("```yaml\n") if each.startswith("# my-cluster/kustomization.yaml"))
    rendered = render_beside(tmp_path, overlay.partition("```")[0])
    assert of_kind(rendered, "NetworkPolicy").keys() >= {"autoscaler", "workload-identity-gke"}
    assert of_kind(rendered, "LocalQueue").keys() == {"raylift"}
    assert may_send(rendered, HEAD, "10.0.0.2", 443)


def test_the_readme_installs_the_kuberay_that_manifests_are_made_for_and_names_what_there_is(
    base: list[Manifest],
) -> None:
    assert f"kuberay/kuberay-operator --version {KUBERAY}." in README
    accounts, (namespace,) = of_kind(base, "ServiceAccount"), of_kind(base, "Namespace")
    annotated = re.findall(r"annotate serviceaccount (\S+) --namespace (\S+)", README)
    assert len(annotated) == 2
    assert {(account, namespace) for account in accounts} >= {*annotated}
    told = (K8S / "base" / "service-accounts.yaml").read_text()
    for annotation in ("eks.amazonaws.com/role-arn", "iam.gke.io/gcp-service-account"):
        assert f"{annotation}=" in README
        assert annotation in told


# Pods


def test_the_namespace_admits_no_pod_that_is_root_or_privileged(manifests: list[Manifest]) -> None:
    labels = of_kind(manifests, "Namespace")["raylift"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_no_service_account_has_its_token_mounted(manifests: list[Manifest]) -> None:
    accounts = of_kind(manifests, "ServiceAccount")
    assert accounts.keys() == {"raylift-launcher", "raylift-run"}
    assert {each["automountServiceAccountToken"] for each in accounts.values()} == {False}


def test_the_pods_of_a_run_have_no_rights(everything: list[Manifest]) -> None:
    bindings = of_kind(everything, "RoleBinding").values()
    assert {subject["name"] for each in bindings for subject in each["subjects"]} == {"raylift-launcher"}


# Packages that are kept on nodes


def test_packages_are_kept_in_a_folder_of_each_node_that_the_pods_of_runs_own(tmp_path: Path) -> None:
    overlay = render_with(tmp_path, "resources: [base]\ncomponents: [components/package-cache]\n")
    assert validate([*overlay, *read(NODE_FOLDERS)]) >= {"PersistentVolumeClaim", "PersistentVolume", "DaemonSet"}
    (claim,) = of_kind(overlay, "PersistentVolumeClaim").values()
    (volume,), (daemons,) = (of_kind(read(NODE_FOLDERS), kind).values() for kind in ("PersistentVolume", "DaemonSet"))
    assert volume["spec"]["claimRef"] == {key: claim["metadata"][key] for key in ("namespace", "name")}
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    for key in ("accessModes", "storageClassName"):
        assert claim["spec"][key] == volume["spec"][key]
    asked, there = claim["spec"]["resources"]["requests"]["storage"], volume["spec"]["capacity"]["storage"]
    assert parse_quantity(asked) <= parse_quantity(there)
    assert quota_of(overlay)["persistentvolumeclaims"] == 1
    spec = daemons["spec"]["template"]["spec"]
    (folder,), (mounted,) = spec["volumes"], spec["initContainers"][0]["volumeMounts"]
    assert volume["spec"]["hostPath"]["path"] == f"{folder['hostPath']['path']}/packages"
    *_, command = spec["initContainers"][0]["command"]
    place = tmp_path / "node"
    place.mkdir()
    owner = f"{pod_security()['runAsUser']}:{pod_security()['fsGroup']}"
    # with one's own user and group, which one may give it to without being root
    here = command.replace(mounted["mountPath"], str(place)).replace(owner, f"{os.getuid()}:{os.getgid()}")
    assert here != command.replace(mounted["mountPath"], str(place)), "it is given to the user of the pods"
    for _ in range(2):
        subprocess.run(["sh", "-ec", here], check=True)
    assert stat.S_IMODE((place / "packages").stat().st_mode) == 0o2775


def test_where_nodes_are_prepared_no_run_is(base: list[Manifest]) -> None:
    (namespace,) = of_kind(read(NODE_FOLDERS), "Namespace")
    assert namespace not in of_kind(base, "Namespace")
    assert all(each["metadata"].get("namespace", namespace) == namespace for each in read(NODE_FOLDERS))


# The role


def test_every_role_is_bound_to_the_launcher_of_its_namespace(everything: list[Manifest]) -> None:
    bindings = of_kind(everything, "RoleBinding")
    assert {each["roleRef"]["name"] for each in bindings.values()} == of_kind(everything, "Role").keys()
    launcher = {"kind": "ServiceAccount", "name": "raylift-launcher", "namespace": "ml"}
    assert [each["subjects"] for each in bindings.values()] == [[launcher]] * len(bindings)


@pytest.mark.parametrize(
    ("group", "resource", "verbs"),
    [
        ("", "secrets", "get list watch update deletecollection"),
        ("", "pods", "create patch update delete"),
        ("", "pods/exec", "get create"),
        ("", "pods/portforward", "get create"),
        ("", "serviceaccounts/token", "create"),
        ("networking.k8s.io", "networkpolicies", "create patch update delete"),
        ("rbac.authorization.k8s.io", "roles", "create patch update bind escalate"),
        ("rbac.authorization.k8s.io", "rolebindings", "create patch update"),
        ("", "resourcequotas", "create patch update delete"),
        ("", "namespaces", "create patch update delete"),
    ],
)
def test_the_role_allows_nothing_that_leads_further(role: Manifest, group: str, resource: str, verbs: str) -> None:
    assert [verb for verb in verbs.split() if may(role, verb, resource, group)] == []


def test_no_role_has_a_wildcard_or_reaches_beyond_its_namespace(everything: list[Manifest]) -> None:
    assert [each for role in of_kind(everything, "Role").values() for each in strings(role) if "*" in each] == []
    assert {"ClusterRole", "ClusterRoleBinding"} & {each["kind"] for each in everything} == set()


# The network


def test_a_pod_that_is_not_of_a_run_reaches_nobody_and_nobody_reaches_it(manifests: list[Manifest]) -> None:
    for peer in (S3, *METADATA, *CLUSTER, DNS, HEAD, STRANGER):
        for port in (53, 80, 443, 6379):
            assert not may_send(manifests, STRANGER, peer, port)
            assert not may_receive(manifests, STRANGER, peer, port)


@pytest.mark.parametrize("pod", [HEAD, WORKER, SUBMITTER], ids=["head", "worker", "submitter"])
def test_a_run_reaches_names_and_storage_on_the_internet(manifests: list[Manifest], pod: Pod) -> None:
    assert may_send(manifests, pod, DNS, 53, "UDP")
    assert may_send(manifests, pod, "169.254.20.10", 53, "UDP")
    assert may_send(manifests, pod, S3, 443)
    assert may_send(manifests, pod, "2600:1f18::1", 443)
    assert not may_send(manifests, pod, S3, 80)
    assert not may_send(manifests, pod, S3, 22)


@pytest.mark.parametrize("pod", [HEAD, WORKER, SUBMITTER], ids=["head", "worker", "submitter"])
@pytest.mark.parametrize("address", METADATA)
def test_a_run_reaches_no_metadata_service(manifests: list[Manifest], pod: Pod, address: str) -> None:
    assert [port for port in (53, 80, 443, 988, 8265) if may_send(manifests, pod, address, port)] == []


@pytest.mark.parametrize("address", CLUSTER)
def test_a_run_reaches_nothing_else_of_the_cluster(base: list[Manifest], address: str) -> None:
    ports = (53, 80, 443, 6443, 10250, *RAY_PORTS)
    assert [port for port in ports if may_send(base, HEAD, address, port)] == []
    assert [port for port in ports if may_send(base, HEAD, STRANGER, port)] == []


@pytest.mark.parametrize("port", [*RAY_PORTS, *PORTS_OF_LINUX])
def test_the_pods_of_a_run_reach_each_other_on_the_ports_of_ray_and_torch(manifests: list[Manifest], port: int) -> None:
    for sender, receiver in ((WORKER, HEAD), (HEAD, WORKER), (SUBMITTER, HEAD)):
        assert may_send(manifests, sender, receiver, port)
        assert may_receive(manifests, receiver, sender, port)


@pytest.mark.parametrize("port", [22, 80, 443, 8080, 10001, 32767, 61000])
def test_the_pods_of_a_run_reach_each_other_on_no_other_port(manifests: list[Manifest], port: int) -> None:
    assert not may_send(manifests, WORKER, HEAD, port)
    assert not may_receive(manifests, HEAD, WORKER, port)


def test_nobody_else_reaches_ray_but_the_operator_its_dashboard(manifests: list[Manifest]) -> None:
    elsewhere = Pod(WORKER.labels, "another-namespace")
    impostor = Pod(OPERATORS[0].labels, "another-namespace")
    for peer in (STRANGER, elsewhere, impostor, *CLUSTER, S3):
        assert [port for port in RAY_PORTS if may_receive(manifests, HEAD, peer, port)] == []
    for operator in OPERATORS:
        assert [port for port in RAY_PORTS if may_receive(manifests, HEAD, operator, port)] == [8265]
        assert [port for port in RAY_PORTS if may_receive(manifests, WORKER, operator, port)] == []


def of_run(name: str) -> tuple[Pod, Pod, Pod]:
    """Return a head, a worker and a submitter of a run, as KubeRay labels them."""
    run = {**OURS, "raylift.dev/run": name}
    in_cluster = {**run, "ray.io/cluster": f"{name}-x7k2p"}
    head, worker = ({**in_cluster, "ray.io/node-type": role} for role in ("head", "worker"))
    return Pod(head), Pod(worker), Pod(run)


@pytest.fixture(scope="module")
def closed() -> list[Manifest]:
    """Return KubeRay's own policies of two runs with `network_policy: true`."""
    of_runs = [render_job(replace(launch("plain", network_policy=True), run_id=name))[0] for name in ("one", "two")]
    return [
        policy
        for job in of_runs
        for policy in policies_of_kuberay(job["spec"]["rayClusterSpec"], f"{job['metadata']['name']}-x7k2p")
    ]


def test_where_runs_are_closed_against_each_other_without_the_policy_ray_each_of_them_works(
    tmp_path: Path, closed: list[Manifest]
) -> None:
    overlay = [*render_with(tmp_path, "resources: [base]\ncomponents: [components/runs-apart]\n"), *closed]
    assert "ray" not in of_kind(overlay, "NetworkPolicy")
    (head, worker, submitter), others = of_run("one"), of_run("two")
    for sender, receiver in ((worker, head), (head, worker)):
        assert [port for port in RAY_PORTS if not reaches(overlay, sender, receiver, port)] == []
    assert reaches(overlay, submitter, head, 8265)
    assert may_receive(overlay, head, OPERATORS[0], 8265)
    for pod in (head, worker, submitter):
        assert may_send(overlay, pod, S3, 443)
        assert may_send(overlay, pod, DNS, 53, "UDP")
        assert [address for address in METADATA if may_send(overlay, pod, address, 80)] == []
    for sender in others:
        assert [port for port in RAY_PORTS if reaches(overlay, sender, head, port)] == []
        assert [port for port in RAY_PORTS if reaches(overlay, sender, worker, port)] == []


def test_a_run_that_is_closed_against_others_reaches_its_storage_where_there_is_no_other_policy(
    closed: list[Manifest],
) -> None:
    (head, worker, submitter), (other, _, _) = of_run("one"), of_run("two")
    for pod in (head, worker):
        # on the internet, in the cluster, and where clouds hand out identities
        for address, port in ((S3, 443), ("10.96.0.7", 9000), ("169.254.170.23", 80), ("169.254.169.252", 988)):
            assert may_send(closed, pod, address, port)
    assert reaches(closed, submitter, head, 8265)
    for peer in (other, STRANGER, "10.244.1.7"):
        assert [port for port in RAY_PORTS if may_receive(closed, head, peer, port)] == []


def test_a_cluster_with_a_name_lets_in_what_submits_to_it_and_no_other_run() -> None:
    up = named_cluster()
    closed = replace(up, cluster=up.cluster.model_copy(update={"network_policy": True}))
    policies = policies_of_kuberay(render_cluster(closed)[0]["spec"]["rayClusterSpec"], "dev-x7k2p")
    guest = render_job(on_named_cluster())[0]["spec"]["submitterPodTemplate"]
    head, _, _ = of_run("dev")
    assert reaches(policies, Pod(guest["metadata"]["labels"]), head, 8265)
    assert not reaches(policies, SUBMITTER, head, 8265)


def reaches(manifests: list[Manifest], sender: Pod, receiver: Pod, port: int) -> bool:
    return may_send(manifests, sender, receiver, port) and may_receive(manifests, receiver, sender, port)


def test_in_kind_an_autoscaler_reaches_the_api_server_and_a_worker_does_not() -> None:
    kind = render(K8S / "overlays" / "kind")
    assert may_send(kind, HEAD, "172.18.0.2", 6443)
    assert not may_send(kind, WORKER, "172.18.0.2", 6443)


def example_of(component: str) -> str:
    """Return what the comment of a component has an overlay say."""
    file = (K8S / "components" / component / "kustomization.yaml").read_text()
    return "".join(f"{line[4:]}\n" for line in file.splitlines() if line.startswith("#   ")).replace("../../", "")


def test_a_cache_of_names_with_the_address_of_a_service_is_asked_where_an_overlay_says_and_nothing_else(
    tmp_path: Path, base: list[Manifest]
) -> None:
    overlay = render_with(tmp_path, "resources: [base]\n" + example_of("node-local-dns"))
    for pod in (HEAD, WORKER, SUBMITTER):
        assert all(may_send(overlay, pod, "10.96.0.10", 53, protocol) for protocol in ("UDP", "TCP"))
        assert not may_send(base, pod, "10.96.0.10", 53, "UDP")
        assert not may_send(overlay, pod, "10.96.0.10", 443)
        assert not may_send(overlay, pod, "10.96.0.11", 53, "UDP")


def test_an_autoscaler_reaches_the_api_server_where_an_overlay_says_and_nothing_else(tmp_path: Path) -> None:
    overlay = render_with(tmp_path, "resources: [base]\n" + example_of("autoscaler"))
    tried = {(each, port) for each in (*METADATA, *CLUSTER, "10.0.0.2") for port in (80, 443, 6443)}
    assert {(each, port) for each, port in tried if may_send(overlay, HEAD, each, port)} == {("10.0.0.2", 443)}
    assert not may_send(overlay, WORKER, "10.0.0.2", 443)


@pytest.mark.parametrize(
    ("cloud", "opened"),
    [
        ("eks", {("169.254.170.23", 80), ("fd00:ec2::23", 80)}),
        ("gke", {("169.254.169.252", 988), ("169.254.169.254", 80)}),
    ],
)
def test_an_identity_in_a_cloud_opens_its_own_server_alone(
    tmp_path: Path, cloud: str, opened: set[tuple[str, int]]
) -> None:
    overlay = render_with(tmp_path, f"resources: [base]\ncomponents: [components/workload-identity-{cloud}]\n")
    tried = {(each, port) for each in (*METADATA, *CLUSTER, *(one for one, _ in opened)) for port in (80, 443, 988)}
    assert {(each, port) for each, port in tried if may_send(overlay, WORKER, each, port)} == opened
    assert not may_send(overlay, STRANGER, "169.254.169.254", 80)


# Quotas


def quota_of(manifests: list[Manifest]) -> dict[str, Decimal]:
    hard = of_kind(manifests, "ResourceQuota")["raylift"]["spec"]["hard"]
    return {name: parse_quantity(value) for name, value in hard.items()}


def test_the_quota_bounds_what_costs_money_and_lets_nothing_be_reached_from_outside(manifests: list[Manifest]) -> None:
    quota = quota_of(manifests)
    assert quota.keys() >= {"requests.cpu", "requests.memory", "requests.nvidia.com/gpu", "pods"}
    assert quota["services.loadbalancers"] == quota["services.nodeports"] == quota["persistentvolumeclaims"] == 0
    assert quota["requests.cpu"] > 0
    assert quota["requests.memory"] > 0
    assert quota["pods"] > 0


def test_kueue_admits_nothing_that_the_quota_refuses(base: list[Manifest]) -> None:
    quota = quota_of(base)
    (group,) = of_kind(read(CLUSTER_QUEUE), "ClusterQueue")["raylift"]["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    queued = {each["name"]: parse_quantity(each["nominalQuota"]) for each in flavor["resources"]}
    assert list(queued) == group["coveredResources"]
    assert queued["cpu"] < quota["requests.cpu"]
    assert queued["memory"] < quota["requests.memory"]
    assert queued["nvidia.com/gpu"] <= quota["requests.nvidia.com/gpu"]


def test_the_queue_names_what_there_is_and_takes_this_namespace_under_any_name(everything: list[Manifest]) -> None:
    cluster_wide = read(CLUSTER_QUEUE)
    (queue,) = of_kind(cluster_wide, "ClusterQueue").values()
    (local,) = of_kind(everything, "LocalQueue").values()
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    assert local["metadata"]["namespace"] == "ml"
    flavors = {each["name"] for group in queue["spec"]["resourceGroups"] for each in group["flavors"]}
    assert flavors == of_kind(cluster_wide, "ResourceFlavor").keys()
    labels = of_kind(everything, "Namespace")["ml"]["metadata"]["labels"]
    assert queue["spec"]["namespaceSelector"]["matchLabels"].items() <= labels.items()
