"""What the stand-in's API server refuses though schemas let it through, in the words of the real one."""

from __future__ import annotations

import base64
import copy
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.kubernetes.golden import documents
from tests.k8s.manifests import K8S, read
from tests.stand_ins.kubernetes.kinds import BUILT_IN, Kind, Object, custom, mistakes
from tests.stand_ins.kubernetes.schemas import kuberay_crds
from tests.stand_ins.kubernetes.semantics import of_change

DOCUMENTS = documents()
KINDS = {kind.name: kind for kind in BUILT_IN}
FIRST = ("spec", "containers", 0)
NO_LABEL = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end"
)
NO_SUBDOMAIN = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must"
NO_KEY = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric"
)
NO_VALUE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start"
)
NO_QUANTITY = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
ONE_OF_A_VALUE = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"
NO_PROBE = "Forbidden: may not be set for init containers without restartPolicy=Always"
Path = tuple[str | int, ...]


def changed(value: Object, path: Path, to: Any) -> Object:
    """Return an object with something else in one place, or one thing more in a list; or without it, for None."""
    value = copy.deepcopy(value)
    *way, last = path
    place: Any = value
    for key in way:
        place = place.setdefault(key, {}) if isinstance(place, dict) else place[int(key)]
    if to is None:
        del place[last]
    elif isinstance(place, list) and last == len(place):
        place.append(to)
    else:
        place[last] = to
    return value


def refused(value: Object) -> list[str]:
    found = mistakes(KINDS[value["kind"]], value)
    assert found != []
    return found


def ray_jobs() -> Kind:
    (definition,) = [each for each in kuberay_crds() if each["spec"]["names"]["kind"] == "RayJob"]
    return custom(definition)


def one(found: list[str], said: str) -> None:
    """Hold what was found to one message that begins so."""
    assert [each[: len(said)] for each in found] == [said]


# Pods


def pod() -> Object:
    """Return the first worker of a run on GPUs."""
    (group,) = DOCUMENTS["spot-with-fallback"][0]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return pod_of(group["template"])


def pod_of(template: Object) -> Object:
    metadata = {**copy.deepcopy(template.get("metadata", {})), "name": "x", "namespace": "raylift"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": copy.deepcopy(template["spec"])}


def templates(document: Object) -> Iterator[Object]:
    """Yield of what a RayJob has pods made."""
    spec = document["spec"]
    if "submitterPodTemplate" in spec:
        yield spec["submitterPodTemplate"]
    cluster = spec.get("rayClusterSpec")
    for group in [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])] if cluster else []:
        yield group["template"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_pod_that_raylift_has_made_is_taken(name: str) -> None:
    made = [pod_of(each) for each in templates(DOCUMENTS[name][0])]
    assert made != []
    assert [mistakes(KINDS["Pod"], each) for each in made] == [[] for _ in made]
    for each in made:
        assert refused(changed(each, ("spec", "volumes"), []))


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        (("spec",), {"containers": []}, "spec.containers: Required value"),
        (("spec", "containers", 0), {"image": "x"}, "spec.containers[0].name: Required value"),
        ((*FIRST, "name"), "", "spec.containers[0].name: Required value"),
        ((*FIRST, "name"), "Ray", f'spec.containers[0].name: Invalid value: "Ray": {NO_LABEL}'),
        ((*FIRST, "name"), "x" * 64, f'spec.containers[0].name: Invalid value: "{"x" * 64}": must be no more than 63'),
        (("spec", "containers", 1), {"name": "ray", "image": "x"}, 'spec.containers[1].name: Duplicate value: "ray"'),
        (("spec", "initContainers"), [{"name": "ray", "image": "x"}], "spec.initContainers[0].name: Duplicate value"),
        ((*FIRST, "image"), None, "spec.containers[0].image: Required value"),
        ((*FIRST, "image"), "x ", 'spec.containers[0].image: Invalid value: "x ": must not have leading or trailing'),
        (
            (*FIRST, "imagePullPolicy"),
            "Sometimes",
            'spec.containers[0].imagePullPolicy: Unsupported value: "Sometimes": supported values: "Always", '
            '"IfNotPresent", "Never"',
        ),
        ((*FIRST, "terminationMessagePolicy"), "x", "spec.containers[0].terminationMessagePolicy: Unsupported value"),
        (
            ("spec", "restartPolicy"),
            "No",
            'spec.restartPolicy: Unsupported value: "No": supported values: "Always", "OnFailure", "Never"',
        ),
        (
            ("spec", "activeDeadlineSeconds"),
            0,
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 21",
        ),
        (("spec", "serviceAccountName"), "A", f'spec.serviceAccountName: Invalid value: "A": {NO_SUBDOMAIN}'),
        (("spec", "priorityClassName"), "A", f'spec.priorityClassName: Invalid value: "A": {NO_SUBDOMAIN}'),
        (("spec", "nodeSelector"), {"a/b/c": "x"}, 'spec.nodeSelector: Invalid value: "a/b/c": prefix part a lower'),
        (("spec", "nodeSelector"), {"a.b/-": "x"}, f'spec.nodeSelector: Invalid value: "a.b/-": {NO_KEY}'),
        (("spec", "nodeSelector"), {"a": "x y"}, f'spec.nodeSelector: Invalid value: "x y": {NO_VALUE}'),
    ],
)
def test_a_pod_is_refused(path: Path, to: Any, said: str) -> None:
    one(refused(changed(pod(), path, to)), said)


@pytest.mark.parametrize(
    ("volume", "said"),
    [
        ({"name": "scratch"}, 'name: Duplicate value: "scratch"'),
        ({"name": "", "emptyDir": {}}, "name: Required value"),
        ({"name": "a_b", "emptyDir": {}}, f'name: Invalid value: "a_b": {NO_LABEL}'),
        (
            {"name": "x", "emptyDir": {}, "secret": {"secretName": "x"}},
            "secret: Forbidden: may not specify more than 1 volume type",
        ),
        ({"name": "x", "emptyDir": {"sizeLimit": "1GB"}}, f'emptyDir.sizeLimit: Invalid value: "1GB": {NO_QUANTITY}'),
        ({"name": "x", "hostPath": {"path": ""}}, "hostPath.path: Required value"),
        (
            {"name": "x", "hostPath": {"path": "/a/../b"}},
            "hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
        ),
        (
            {"name": "x", "hostPath": {"path": "/x", "type": "Folder"}},
            'hostPath.type: Unsupported value: "Folder": supported values: "", "BlockDevice", "CharDevice", "Directory'
            '", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"',
        ),
        ({"name": "x", "secret": {}}, "secret.secretName: Required value"),
        ({"name": "x", "configMap": {}}, "configMap.name: Required value"),
        ({"name": "x", "persistentVolumeClaim": {"claimName": ""}}, "persistentVolumeClaim.claimName: Required value"),
    ],
)
def test_a_volume_is_refused(volume: Object, said: str) -> None:
    one(refused(changed(pod(), ("spec", "volumes", 2), volume)), f"spec.volumes[2].{said}")


def test_a_volume_of_no_kind_is_an_empty_folder() -> None:
    assert mistakes(KINDS["Pod"], changed(pod(), ("spec", "volumes", 2), {"name": "x", "hostPath": None})) == []


@pytest.mark.parametrize(
    ("mount", "said"),
    [
        ({"name": "x", "mountPath": "/x"}, 'name: Not found: "x"'),
        ({"name": "scratch"}, "mountPath: Required value"),
        ({"name": "scratch", "mountPath": ""}, "mountPath: Required value"),
        ({"name": "scratch", "mountPath": "/dev/shm"}, 'mountPath: Invalid value: "/dev/shm": must be unique'),
    ],
)
def test_a_mount_is_refused(mount: Object, said: str) -> None:
    one(refused(changed(pod(), (*FIRST, "volumeMounts", 2), mount)), f"spec.containers[0].volumeMounts[2].{said}")


def test_a_mount_without_a_name_names_no_volume() -> None:
    found = refused(changed(pod(), (*FIRST, "volumeMounts", 2), {"name": "", "mountPath": "/x"}))
    place = "spec.containers[0].volumeMounts[2].name"
    assert found == [f"{place}: Required value", f'{place}: Not found: ""']


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ({"name": ""}, "name: Required value"),
        ({"name": "1ST"}, 'name: Invalid value: "1ST": a valid environment variable name must consist of alphabetic'),
        ({"name": "X", "valueFrom": {}}, f'valueFrom: Invalid value: "": {ONE_OF_A_VALUE}'),
        (
            {"name": "X", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            'valueFrom: Invalid value: "": may not be specified when `value` is not empty',
        ),
        (
            {
                "name": "X",
                "valueFrom": {
                    "fieldRef": {"fieldPath": "metadata.labels['a/b']"},
                    "resourceFieldRef": {"resource": "limits.cpu"},
                },
            },
            'valueFrom: Invalid value: "": may not have more than one field specified at a time',
        ),
        (
            {"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "status.podIp"}}},
            'valueFrom.fieldRef.fieldPath: Invalid value: "status.podIp": error converting fieldPath: field label not '
            "supported: status.podIp",
        ),
        (
            {"name": "X", "valueFrom": {"resourceFieldRef": {"resource": "cpu"}}},
            'valueFrom.resourceFieldRef.resource: Unsupported value: "cpu": supported values: "limits.cpu", "limits.ep',
        ),
        (
            {"name": "X", "valueFrom": {"secretKeyRef": {"name": "A", "key": "a"}}},
            f'valueFrom.secretKeyRef.name: Invalid value: "A": {NO_SUBDOMAIN}',
        ),
        (
            {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "a/b"}}},
            'valueFrom.configMapKeyRef.key: Invalid value: "a/b": a valid config key must consist of alphanumeric',
        ),
    ],
)
def test_a_variable_is_refused(variable: Object, said: str) -> None:
    last = len(pod()["spec"]["containers"][0]["env"])
    one(refused(changed(pod(), (*FIRST, "env", last), variable)), f"spec.containers[0].env[{last}].{said}")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({}, 'envFrom: Invalid value: "": must specify one of: `configMapRef` or `secretRef`'),
        (
            {"secretRef": {"name": "a"}, "configMapRef": {"name": "a"}},
            'envFrom: Invalid value: "": may not have more than one field specified at a time',
        ),
        ({"secretRef": {}}, "envFrom[0].secretRef.name: Required value"),
        ({"secretRef": {"name": "A"}}, f'envFrom[0].secretRef.name: Invalid value: "A": {NO_SUBDOMAIN}'),
    ],
)
def test_a_source_of_variables_is_refused(source: Object, said: str) -> None:
    one(refused(changed(pod(), (*FIRST, "envFrom"), [source])), f"spec.containers[0].{said}")


@pytest.mark.parametrize(
    ("of", "resource", "amount", "said"),
    [
        ("requests", "cpu", "4", 'requests: Invalid value: "4": must be less than or equal to cpu limit of 3'),
        (
            "requests",
            "memory",
            "12.5Gi",
            'requests: Invalid value: "12.5Gi": must be less than or equal to memory limit',
        ),
        ("limits", "cpu", "three", f'limits[cpu]: Invalid value: "three": {NO_QUANTITY}'),
        ("limits", "memory", "12GB", f'limits[memory]: Invalid value: "12GB": {NO_QUANTITY}'),
        ("requests", "cpu", "-1", 'requests[cpu]: Invalid value: "-1": must be greater than or equal to 0'),
        ("requests", "nvidia.com/gpu", "2", 'requests: Invalid value: "2": must be equal to nvidia.com/gpu limit of 1'),
        ("requests", "nvidia.com/gpu", "0", 'requests: Invalid value: "0": must be equal to nvidia.com/gpu limit of 1'),
        (
            "limits",
            "nvidia.com/gpu",
            None,
            "limits: Required value: Limit must be set for non overcommitable resources",
        ),
        ("limits", "amd.com/gpu", "500m", 'limits[amd.com/gpu]: Invalid value: "500m": must be an integer'),
        (
            "limits",
            "amd_com/gpu",
            "1",
            'limits[amd_com/gpu]: Invalid value: "amd_com/gpu": prefix part a lowercase RFC',
        ),
    ],
)
def test_resources_are_refused(of: str, resource: str, amount: str | None, said: str) -> None:
    one(refused(changed(pod(), (*FIRST, "resources", of, resource), amount)), f"spec.containers[0].resources.{said}")


def test_a_resource_without_a_domain_is_one_of_kubernetes() -> None:
    found = refused(changed(pod(), (*FIRST, "resources", "limits", "gpu"), "1"))
    place = 'spec.containers[0].resources.limits[gpu]: Invalid value: "gpu": must be a standard resource'
    assert found == [f"{place} type or fully qualified", f"{place} for containers"]


@pytest.mark.parametrize("amount", ["1", "0.5", ".5", "500m", "1e3", "1E", "12Gi", 1, 1.5])
def test_an_amount_is_taken(amount: Any) -> None:
    whole = changed(pod(), (*FIRST, "resources"), {"limits": {"cpu": amount}, "requests": {"cpu": amount}})
    assert mistakes(KINDS["Pod"], whole) == []


@pytest.mark.parametrize(
    ("toleration", "said"),
    [
        (
            {"key": "a", "operator": "Exists", "value": "x"},
            "operator: Invalid value: \"x\": value must be empty when `operator` is 'Exists'",
        ),
        (
            {"value": "x"},
            'operator: Invalid value: "": operator must be Exists when `key` is empty, which means "match',
        ),
        (
            {"key": "a", "operator": "In", "value": "x"},
            'operator: Unsupported value: "In": supported values: "Equal", "Exists"',
        ),
        (
            {"key": "a", "operator": "Exists", "effect": "No"},
            'effect: Unsupported value: "No": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute"',
        ),
        (
            {"key": "a", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 1},
            "effect: Invalid value: \"NoSchedule\": effect must be 'NoExecute' when `tolerationSeconds` is set",
        ),
        ({"key": "a b", "operator": "Exists"}, f'key: Invalid value: "a b": {NO_KEY}'),
        ({"key": "a", "value": "x y"}, f'operator: Invalid value: "x y": {NO_VALUE}'),
    ],
)
def test_a_toleration_is_refused(toleration: Object, said: str) -> None:
    one(refused(changed(pod(), ("spec", "tolerations"), [toleration])), f"spec.tolerations[0].{said}")


@pytest.mark.parametrize(
    ("container", "said"),
    [
        ({"lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}, f"initContainers[0].lifecycle: {NO_PROBE}"),
        ({"startupProbe": {"exec": {"command": ["x"]}}}, f"initContainers[0].startupProbe: {NO_PROBE}"),
        (
            {"restartPolicy": "Never"},
            'initContainers[0].restartPolicy: Unsupported value: "Never": supported values: "Always"',
        ),
        (
            {"restartPolicy": "Always", "livenessProbe": {"periodSeconds": 1}},
            "initContainers[0].livenessProbe: Required value: must specify a handler type",
        ),
    ],
)
def test_a_container_that_comes_first_is_refused(container: Object, said: str) -> None:
    first = {"name": "first", "image": "x", **container}
    one(refused(changed(pod(), ("spec", "initContainers"), [first])), f"spec.{said}")


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        (("lifecycle", "preStop"), {}, "lifecycle.preStop: Required value: must specify a handler type"),
        (("lifecycle", "preStop"), {"exec": {"command": []}}, "lifecycle.preStop.exec.command: Required value"),
        (
            ("readinessProbe",),
            {"exec": {"command": ["x"]}, "tcpSocket": {"port": 1}},
            "readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
        ),
    ],
)
def test_a_handler_is_refused(path: Path, to: Any, said: str) -> None:
    one(refused(changed(pod(), (*FIRST, *path), to)), f"spec.containers[0].{said}")


@pytest.mark.parametrize(
    ("key", "to", "said"),
    [
        ("maxSkew", 0, "maxSkew: Invalid value: 0: must be greater than zero"),
        ("topologyKey", "", "topologyKey: Required value: can not be empty"),
        ("topologyKey", None, "topologyKey: Required value"),
        ("topologyKey", "a b", f'topologyKey: Invalid value: "a b": {NO_KEY}'),
        (
            "whenUnsatisfiable",
            "Never",
            'whenUnsatisfiable: Unsupported value: "Never": supported values: "DoNotSchedule", "ScheduleAnyway"',
        ),
        (
            "labelSelector",
            {"matchLabels": {"a": "x y"}},
            f'labelSelector.matchLabels: Invalid value: "x y": {NO_VALUE}',
        ),
        (
            "labelSelector",
            {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]},
            'labelSelector.matchExpressions[0].operator: Invalid value: "Gt": not a valid selector operator',
        ),
        (
            "labelSelector",
            {"matchExpressions": [{"key": "a b", "operator": "Exists"}]},
            f'labelSelector.matchExpressions[0].key: Invalid value: "a b": {NO_KEY}',
        ),
    ],
)
def test_a_way_to_spread_is_refused(key: str, to: Any, said: str) -> None:
    place = ("spec", "topologySpreadConstraints", 0)
    one(refused(changed(pod(), (*place, key), to)), f"spec.topologySpreadConstraints[0].{said}")


def test_a_way_to_spread_is_said_once() -> None:
    (once,) = pod()["spec"]["topologySpreadConstraints"]
    pair = '"{kubernetes.io/hostname, ScheduleAnyway}"'
    said = f"spec.topologySpreadConstraints[1].{{topologyKey, whenUnsatisfiable}}: Duplicate value: {pair}"
    assert refused(changed(pod(), ("spec", "topologySpreadConstraints", 1), once)) == [said]


@pytest.mark.parametrize(
    ("operator", "values", "said"),
    [
        ("In", [], "values: Required value: must be specified when `operator` is 'In' or 'NotIn'"),
        ("Exists", ["x"], "values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'"),
        ("Gt", ["1", "2"], "values: Required value: must be specified single value when `operator` is 'Lt' or 'Gt'"),
        ("Is", ["x"], 'operator: Invalid value: "Is": not a valid selector operator'),
        ("In", ["x y"], f'values[0]: Invalid value: "x y": {NO_VALUE}'),
    ],
)
def test_what_a_node_has_to_be_is_refused(operator: str, values: list[str], said: str) -> None:
    way = ("nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
    expression = {"key": "a", "operator": operator, "values": values}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    place = f"spec.affinity.{'.'.join(way)}.nodeSelectorTerms[0].matchExpressions[0]"
    one(refused(changed(pod(), ("spec", "affinity", *way), terms)), f"{place}.{said}")


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        (
            ("nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"),
            [],
            "nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have",
        ),
        (
            ("nodeAffinity", "preferredDuringSchedulingIgnoredDuringExecution", 0, "weight"),
            101,
            "nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 101: must be in",
        ),
        (
            ("nodeAffinity", "preferredDuringSchedulingIgnoredDuringExecution", 0, "preference", "matchExpressions"),
            [{"key": "a b", "operator": "Lt", "values": ["1"]}],
            "nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].preference.matchExpressions[0].key: Inval",
        ),
        (
            ("podAffinity", "preferredDuringSchedulingIgnoredDuringExecution", 0, "podAffinityTerm", "topologyKey"),
            "",
            "podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.topologyKey: Required v",
        ),
        (
            ("podAntiAffinity",),
            {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "a b"}]},
            "podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Invalid value",
        ),
        (
            ("podAffinity", "preferredDuringSchedulingIgnoredDuringExecution", 0, "podAffinityTerm", "labelSelector"),
            {"matchLabels": {"a": "-"}},
            "podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector.matchLabels",
        ),
    ],
)
def test_what_a_pod_wants_to_be_near_to_is_refused(path: Path, to: Any, said: str) -> None:
    one(refused(changed(pod(), ("spec", "affinity", *path), to)), f"spec.affinity.{said}")


# What makes pods


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        (
            ("containers", 0, "image"),
            "",
            "spec.template.spec.containers[0].image: Required value",
        ),
        (
            ("initContainers", 0, "volumeMounts", 0, "name"),
            "x",
            'spec.template.spec.initContainers[0].volumeMounts[0].name: Not found: "x"',
        ),
        (
            ("restartPolicy",),
            "Never",
            'spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"',
        ),
    ],
)
def test_a_daemon_set_is_refused(path: Path, to: Any, said: str) -> None:
    one(refused(changed(daemons(), ("spec", "template", "spec", *path), to)), said)


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        (
            ("template", "metadata", "labels"),
            {},
            "spec.template.metadata.labels: Invalid value: {}: `selector` does not",
        ),
        (("selector",), {}, "spec.selector: Invalid value: {}: empty selector is invalid for daemonset"),
        (("template", "metadata", "labels", "a"), "-", f'spec.template.labels: Invalid value: "-": {NO_VALUE}'),
        (
            ("selector", "matchExpressions"),
            [{"key": "a", "operator": "In"}],
            "spec.selector.matchExpressions[0].values: Required value",
        ),
    ],
)
def test_a_daemon_set_selects_its_pods(path: Path, to: Any, said: str) -> None:
    one(refused(changed(daemons(), ("spec", *path), to)), said)


def daemons() -> Object:
    file = K8S / "components" / "package-cache" / "node-folders.yaml"
    (found,) = [each for each in read(file) if each["kind"] == "DaemonSet"]
    assert mistakes(KINDS["DaemonSet"], found) == []
    return found


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        (
            ("restartPolicy",),
            None,
            'spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"',
        ),
        (("containers", 0, "image"), None, "spec.template.spec.containers[0].image: Required value"),
    ],
)
def test_a_job_is_refused(path: Path, to: Any, said: str) -> None:
    template = copy.deepcopy(DOCUMENTS["processors"][0]["spec"]["submitterPodTemplate"])
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": {"template": template}}
    assert mistakes(KINDS["Job"], job) == []
    one(refused(changed(job, ("spec", "template", "spec", *path), to)), said)


def test_what_a_ray_job_makes_pods_of_is_looked_at_when_it_does() -> None:
    mounts: Path = ("spec", "submitterPodTemplate", "spec", "containers", 0, "volumeMounts", 0, "name")
    document = changed(DOCUMENTS["processors"][0], mounts, "x")
    assert mistakes(ray_jobs(), document) == []
    assert 'spec.containers[0].volumeMounts[0].name: Not found: "x"' in refused(
        pod_of(document["spec"]["submitterPodTemplate"])
    )


# Data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"data": {"a b": ""}}, 'data[a b]: Invalid value: "a b": a valid config key must consist of alphanumeric'),
        (
            {"stringData": {"x" * 254: ""}},
            f'data[{"x" * 254}]: Invalid value: "{"x" * 254}": must be no more than 253 by',
        ),
        ({"data": {"a": "a secret"}}, "data[a]: Invalid value: illegal base64 data"),
        ({"data": {"a": "QQ"}}, "data[a]: Invalid value: illegal base64 data"),
        (
            {"data": {"a": base64.b64encode(b"x" * 2**20).decode(), "b": "QQ=="}},
            "data: Too long: may not be more than 10",
        ),
        (
            {"data": {"a": "QQ=="}, "stringData": {"b": "x" * 2**20}},
            "data: Too long: may not be more than 1048576 bytes",
        ),
    ],
)
def test_a_secret_is_refused(data: Object, said: str) -> None:
    one(refused({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, **data}), said)


def test_a_secret_of_the_most_bytes_is_taken() -> None:
    data = {"a": base64.b64encode(b"x" * 2**20).decode(), "b": "", "c": None}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, "data": data}
    assert mistakes(KINDS["Secret"], secret) == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"data": {"a/b": ""}}, 'data[a/b]: Invalid value: "a/b": a valid config key must consist of alphanumeric'),
        ({"binaryData": {"a/b": ""}}, 'binaryData[a/b]: Invalid value: "a/b": a valid config key must consist of'),
        ({"binaryData": {"a": "x"}}, "binaryData[a]: Invalid value: illegal base64 data"),
        (
            {"data": {"a": ""}, "binaryData": {"a": ""}},
            'data[a]: Invalid value: "a": duplicate of key present in binaryData',
        ),
        ({"data": {"a": "ü" * 2**19}, "binaryData": {"b": "QQ=="}}, "[]: Too long: may not be more than 1048576 bytes"),
    ],
)
def test_a_config_map_is_refused(data: Object, said: str) -> None:
    one(refused({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, **data}), said)


# What an administrator applies


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"to": [{}]}, "to[0]: Required value: must specify a peer"),
        (
            {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]},
            "to[0]: Forbidden: may not specify both ipBlock and another peer",
        ),
        ({"to": [{"ipBlock": {"cidr": ""}}]}, "to[0].ipBlock.cidr: Required value"),
        ({"to": [{"ipBlock": {"cidr": "10.0.0.1"}}]}, 'to[0].ipBlock.cidr: Invalid value: "10.0.0.1": must be a valid'),
        ({"to": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}, 'to[0].ipBlock.cidr: Invalid value: "10.0.0.0/33": must be a'),
        (
            {"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.0.0.0/8"]}}]},
            'to[0].ipBlock.except[1]: Invalid value: "10.0.0.0/8": must be a strict subset of `cidr`',
        ),
        (
            {"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]},
            'to[0].ipBlock.except[0]: Invalid value: "11.0.0.0/16": must be a strict subset of `cidr`',
        ),
        (
            {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["fe80::/10"]}}]},
            'to[0].ipBlock.except[0]: Invalid value: "fe80::/10": must be a strict subset of `cidr`',
        ),
        (
            {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10/8"]}}]},
            'to[0].ipBlock.except[0]: Invalid value: "10/8": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8',
        ),
        (
            {"to": [{"podSelector": {"matchLabels": {"a": "-"}}}]},
            f'to[0].podSelector.matchLabels: Invalid value: "-": {NO_VALUE}',
        ),
        ({"ports": [{"port": 0}]}, "ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"),
        ({"ports": [{"port": 65536}]}, "ports[0].port: Invalid value: 65536: must be between 1 and 65535, inclusive"),
        ({"ports": [{"port": "443"}]}, 'ports[0].port: Invalid value: "443": must contain at least one letter (a-z)'),
        ({"ports": [{"port": "a--b"}]}, 'ports[0].port: Invalid value: "a--b": must not contain consecutive hyphens'),
        ({"ports": [{"port": "-a"}]}, 'ports[0].port: Invalid value: "-a": must not begin or end with a hyphen'),
        ({"ports": [{"port": "a" * 16}]}, f'ports[0].port: Invalid value: "{"a" * 16}": must be no more than 15 bytes'),
        (
            {"ports": [{"port": "a_b"}]},
            'ports[0].port: Invalid value: "a_b": must contain only alpha-numeric characters',
        ),
        (
            {"ports": [{"port": 6383, "endPort": 6379}]},
            "ports[0].endPort: Invalid value: 6379: must be greater than or equal to `port`",
        ),
        (
            {"ports": [{"port": 1, "endPort": 65536}]},
            "ports[0].endPort: Invalid value: 65536: must be between 1 and 65535, inclusive",
        ),
        (
            {"ports": [{"endPort": 1}]},
            "ports[0].endPort: Invalid value: 1: may not be specified when `port` is not spec",
        ),
        (
            {"ports": [{"port": "http", "endPort": 1}]},
            "ports[0].endPort: Invalid value: 1: may not be specified when `port` is non-numeric",
        ),
        (
            {"ports": [{"port": 1, "protocol": "tcp"}]},
            'ports[0].protocol: Unsupported value: "tcp": supported values: "TCP", "UDP", "SCTP"',
        ),
    ],
)
def test_a_network_policy_is_refused(rule: Object, said: str) -> None:
    one(refused(policy(egress=[rule])), f"spec.egress[0].{said}")
    as_ingress = {"from" if key == "to" else key: each for key, each in rule.items()}
    one(refused(policy(ingress=[as_ingress])), f"spec.ingress[0].{said.replace('to[', 'from[', 1)}")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            {"policyTypes": ["Out"]},
            'spec.policyTypes[0]: Unsupported value: "Out": supported values: "Ingress", "Egress"',
        ),
        (
            {"podSelector": {"matchLabels": {"a b": "x"}}},
            f'spec.podSelector.matchLabels: Invalid value: "a b": {NO_KEY}',
        ),
    ],
)
def test_whom_a_network_policy_is_for_is_refused(spec: Object, said: str) -> None:
    one(refused(policy(**spec)), said)


def policy(**spec: Any) -> Object:
    kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "x"}}
    return {**kind, "spec": {"podSelector": {}, **spec}}


@pytest.mark.parametrize(
    ("name", "amount", "said"),
    [
        ("requests.cpu", "many", f'spec.hard[requests.cpu]: Invalid value: "many": {NO_QUANTITY}'),
        ("limits.memory", "-1", 'spec.hard[limits.memory]: Invalid value: "-1": must be greater than or equal to 0'),
        ("pods", "1.5", 'spec.hard[pods]: Invalid value: "1.5": must be an integer'),
        (
            "count/rayjobs.ray.io",
            "1500m",
            'spec.hard[count/rayjobs.ray.io]: Invalid value: "1500m": must be an integer',
        ),
        ("count/ray jobs", "1", f'spec.hard[count/ray jobs]: Invalid value: "count/ray jobs": {NO_KEY}'),
    ],
)
def test_a_quota_is_refused(name: str, amount: str, said: str) -> None:
    one(refused(quota(**{name: amount})), said)


def test_a_quota_is_of_resources_that_are_known_or_have_a_domain() -> None:
    place = 'spec.hard[gpus]: Invalid value: "gpus": must be a standard resource'
    assert refused(quota(gpus="1")) == [f"{place} type or fully qualified", f"{place} for quota"]
    assert mistakes(KINDS["ResourceQuota"], quota(**{"requests.nvidia.com/gpu": "1", "requests.storage": "1Ti"})) == []


def quota(**hard: str) -> Object:
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "x"}, "spec": {"hard": hard}}


@pytest.mark.parametrize(
    ("key", "to", "said"),
    [
        ("accessModes", [], "spec.accessModes: Required value"),
        (
            "accessModes",
            ["All"],
            'spec.accessModes: Unsupported value: "All": supported values: "ReadOnlyMany", "ReadWri',
        ),
        (
            "accessModes",
            ["ReadWriteOncePod", "ReadOnlyMany"],
            "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
        ),
        ("capacity", {"storage": "0"}, 'spec.capacity[storage]: Invalid value: "0": must be greater than zero'),
        ("capacity", {"storage": "64GB"}, f'spec.capacity[storage]: Invalid value: "64GB": {NO_QUANTITY}'),
        ("capacity", {"storage": 1, "cpu": 1}, "spec.capacity: Unsupported value: {"),
        ("hostPath", None, "spec: Required value: must specify a volume type"),
        (
            "hostPath",
            {"path": "/x", "type": "Dir"},
            'spec.hostPath.type: Unsupported value: "Dir": supported values: ""',
        ),
        ("nfs", {"path": "/x", "server": "x"}, "spec.nfs: Forbidden: may not specify more than 1 volume type"),
        (
            "persistentVolumeReclaimPolicy",
            "Keep",
            'spec.persistentVolumeReclaimPolicy: Unsupported value: "Keep": suppor',
        ),
        ("storageClassName", "A", f'spec.storageClassName: Invalid value: "A": {NO_SUBDOMAIN}'),
    ],
)
def test_a_volume_of_the_cluster_is_refused(key: str, to: Any, said: str) -> None:
    one(refused(changed(volume(), ("spec", key), to)), said)


def test_a_volume_of_the_cluster_has_a_capacity() -> None:
    unsupported = 'spec.capacity: Unsupported value: {}: supported values: "storage"'
    assert refused(changed(volume(), ("spec", "capacity"), None)) == ["spec.capacity: Required value", unsupported]


def volume() -> Object:
    file = K8S / "components" / "package-cache" / "node-folders.yaml"
    (found,) = [each for each in read(file) if each["kind"] == "PersistentVolume"]
    assert mistakes(KINDS["PersistentVolume"], found) == []
    return found


@pytest.mark.parametrize(
    ("key", "to", "said"),
    [
        ("accessModes", None, "spec.accessModes: Required value: at least 1 access mode is required"),
        (
            "accessModes",
            ["All"],
            'spec.accessModes: Unsupported value: "All": supported values: "ReadOnlyMany", "ReadWri',
        ),
        ("resources", {}, "spec.resources[storage]: Required value"),
        (
            "resources",
            {"requests": {"storage": "0"}},
            'spec.resources[storage]: Invalid value: "0": must be greater than',
        ),
        ("storageClassName", "A", f'spec.storageClassName: Invalid value: "A": {NO_SUBDOMAIN}'),
    ],
)
def test_a_claim_is_refused(key: str, to: Any, said: str) -> None:
    (claim,) = read(K8S / "components" / "package-cache" / "claim.yaml")
    assert mistakes(KINDS["PersistentVolumeClaim"], claim) == []
    one(refused(changed(claim, ("spec", key), to)), said)


# All kinds


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"name": "A"}, f'metadata.name: Invalid value: "A": {NO_SUBDOMAIN}'),
        ({"name": "a..b"}, f'metadata.name: Invalid value: "a..b": {NO_SUBDOMAIN}'),
        ({"name": "x", "labels": {"a": "-"}}, f'metadata.labels: Invalid value: "-": {NO_VALUE}'),
        ({"name": "x", "labels": {"a": 1}}, "metadata.labels: Invalid value: 1: must be a string"),
        ({"name": "x", "annotations": {"a": True}}, "metadata.annotations: Invalid value: true: must be a string"),
        ({"name": "x", "annotations": {"a b": ""}}, f'metadata.annotations: Invalid value: "a b": {NO_KEY}'),
        (
            {"name": "x", "annotations": {"a": "ü" * 2**16, "b": "x" * (2**17 - 1)}},
            "metadata.annotations: Too long: may not be more than 262144 bytes",
        ),
    ],
)
def test_metadata_is_refused(metadata: Object, said: str) -> None:
    one(mistakes(ray_jobs(), {**DOCUMENTS["processors"][0], "metadata": metadata}), said)


def test_annotations_of_the_most_bytes_are_taken() -> None:
    annotations = {"a": "x" * 2**17, "B.c/D": "x" * (2**17 - 6)}
    document = {**DOCUMENTS["processors"][0], "metadata": {"name": "x", "annotations": annotations, "labels": None}}
    assert mistakes(ray_jobs(), document) == []


@pytest.mark.parametrize(
    ("path", "form", "most"),
    [
        (("spec", "ttlSecondsAfterFinished"), "int32", 2**31 - 1),
        (("spec", "submitterPodTemplate", "spec", "terminationGracePeriodSeconds"), "int64", 2**63 - 1),
    ],
)
def test_a_number_is_in_the_range_of_its_field(path: Path, form: str, most: int) -> None:
    document, kind = DOCUMENTS["processors"][0], ray_jobs()
    place = ".".join(map(str, path))
    said = f'<nil>: Invalid value: "": Checked value must be of type integer with format {form} in {place}'
    for within, beyond in ((most, most + 1), (-most - 1, -most - 2)):
        assert mistakes(kind, changed(document, path, within)) == []
        assert mistakes(kind, changed(document, path, beyond)) == [said]


@pytest.mark.parametrize(
    ("kind", "before", "after", "said"),
    [
        ("Secret", {}, {"type": "a/b"}, ['type: Invalid value: "a/b": field is immutable']),
        ("Secret", {"type": "a/b"}, {}, ['type: Invalid value: "Opaque": field is immutable']),
        ("Secret", {}, {"type": "Opaque", "data": {"a": ""}}, []),
        (
            "Secret",
            {"immutable": True, "data": {"a": ""}},
            {"immutable": True, "data": {}},
            ["data: Forbidden: field is immutable when `immutable` is set"],
        ),
        (
            "ConfigMap",
            {"immutable": True},
            {"binaryData": {"a": ""}},
            [f"{key}: Forbidden: field is immutable when `immutable` is set" for key in ("immutable", "binaryData")],
        ),
        (
            "RoleBinding",
            {"roleRef": {"kind": "Role", "name": "a"}},
            {"roleRef": {"kind": "Role", "name": "b"}},
            [
                'roleRef: Invalid value: {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "b"}: '
                "cannot change roleRef"
            ],
        ),
        (
            "RoleBinding",
            {"roleRef": {"kind": "Role", "name": "a"}},
            {"roleRef": {"kind": "Role", "name": "a", "apiGroup": "rbac.authorization.k8s.io"}, "subjects": []},
            [],
        ),
    ],
)
def test_what_does_not_change(kind: str, before: Object, after: Object, said: list[str]) -> None:
    assert of_change(kind, before, after) == said
