"""The `cluster:` block of the job file, one class a provider."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

CLUSTER_NAME_LENGTH = 40  # as that of a run's id
CLUSTER_NAME = rf"^[a-z]([-a-z0-9]{{0,{CLUSTER_NAME_LENGTH - 2}}}[a-z0-9])?$"
_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"  # of an object of Kubernetes
_LABEL = r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)"
_LABEL_KEY = rf"^({_NAME[1:-1]}/)?{_LABEL}$"
_NAMED_BY = {
    "name": "--id says what a run is called",
    "generateName": "--id says what a run is called",
    "namespace": "cluster.namespace says where it is",
}
_OWN_LABELS = ("raylift.dev/", "app.kubernetes.io/managed-by")
_QUANTITY = r"^[1-9][0-9]*(Mi|Gi|Ti)$"
_KINDS = ("GPU", "T4", "V100", "L4", "L40S", "A10G", "A100", "H100", "H200", "B200")  # on Kubernetes
MOST_RANKS = 8192
_ACCELERATORS = r"^[A-Za-z][A-Za-z0-9-]*(:[1-9][0-9]*)?$"


@dataclass(frozen=True)
class Words:
    """What may stand under a key, in the words of a message; annotates its type."""

    text: str


class Block(BaseModel):
    """A block of the job file: unknown keys are errors, values never change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        defer_build=True,  # a job file is read by its outermost block alone, and every build takes milliseconds
    )


class Workers(Block):
    """A number of ranks that may change while a run goes on."""

    min: Annotated[int, Field(ge=1, le=MOST_RANKS)] = Field(
        description="with fewer a run does not train, but waits for more"
    )
    max: Annotated[int, Field(ge=1, le=MOST_RANKS)] = Field(
        description="more are not used, however many there is room for"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Workers:
        if self.min > self.max:
            raise ValueError(f"min: {self.min} is more than max, which is {self.max}")
        return self


class Nodes(Block):
    """A number of nodes that changes with what is to be done."""

    min: Annotated[int, Field(ge=0, le=512)] = Field(description="are kept, also while there is nothing to do for them")
    max: Annotated[int, Field(ge=1, le=512)] = Field(description="are started at most")

    @model_validator(mode="after")
    def _in_order(self) -> Nodes:
        if self.min > self.max:
            raise ValueError(f"min: {self.min} is more than max, which is {self.max}")
        return self


class LocalCluster(Block):
    """A single-node Ray on this machine, or one that runs already."""

    provider: Literal["local"] = Field(default="local", description="or kubernetes, whose keys raylift schema has")
    workers: Annotated[int, Field(ge=1, le=512)] | Workers | None = Field(
        default=None,
        description="ranks: a number, or {min, max} for as many as there is room for; "
        "default: one per accelerator, or one on a machine without",
    )
    accelerators: str | None = Field(
        default=None,
        pattern=_ACCELERATORS,
        description="for example GPU:2: two ranks with a GPU each",
    )
    nodes: Annotated[int, Field(ge=1, le=512)] | Nodes | None = Field(
        default=None,
        description="of a Ray at an address: how many have the accelerators, each as many: a number, or {min, max}",
    )
    address: str | None = Field(
        default=None, description="a running Ray to attach to, as host:port; it may have many nodes"
    )
    usd_per_hour: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="what it costs with all the workers that it may have, for budget.max_usd"
    )

    @property
    def workers_on_accelerators(self) -> Workers | None:
        """How many ranks have an accelerator each; None: it names none."""
        return _ranks(self.nodes, self.accelerators)

    @property
    def most_workers(self) -> int | None:
        """The most ranks that it allows; None: it sets no limit."""
        workers = self.workers_on_accelerators or self.workers
        return workers.max if isinstance(workers, Workers) else workers

    @model_validator(mode="after")
    def _one_way_to_count(self) -> LocalCluster:
        if self.workers is not None and self.accelerators is not None:
            raise ValueError("workers and accelerators exclude each other: accelerators GPU:2 is two ranks already")
        if self.nodes is not None and (self.address is None or self.accelerators is None):
            raise ValueError("nodes are those of a Ray at an address, with accelerators each: without, say workers")
        _ranks(self.nodes, self.accelerators)  # not too many
        return self


class Resources(Block):
    """What a pod asks for, and may not exceed."""

    cpu: Annotated[float, Field(ge=0.1, le=1024)] | None = Field(
        default=None, description="processors; default: 1, or 3 for each accelerator"
    )
    memory: str | None = Field(
        default=None, pattern=_QUANTITY, description="for example 16Gi; default: 4Gi, or 12Gi for each accelerator"
    )
    disk: str = Field(default="10Gi", pattern=_QUANTITY, description="scratch on the node's disk, for example 100Gi")


class Spot(Block):
    """Machines that are cheap, and may be taken away."""

    fallback: Literal["on-demand"] = Field(description="what is used while there is no spot machine")


class KubernetesCluster(Block):
    """A RayJob on a Kubernetes cluster that has KubeRay."""

    provider: Literal["kubernetes"]
    context: str | None = Field(default=None, description="of the kubeconfig; default: its current one")
    name: str | None = Field(
        default=None,
        pattern=CLUSTER_NAME,
        description="a cluster that raylift up has made, to which the run goes; also --cluster NAME",
    )
    namespace: str = Field(
        default="raylift", pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", description="where the run's objects are"
    )
    image: str | None = Field(
        default=None,
        min_length=1,
        pattern=r"^\S*$",
        description="of all pods, with this version of raylift in it: k8s/Dockerfile builds one; "
        "default: Ray's own, to which pods fetch raylift from storage, and its packages from an index",
    )
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    pull_secret: str | None = Field(
        default=None, pattern=_NAME, description="a Secret in the namespace, for a registry that asks who you are"
    )
    workers: Annotated[int, Field(ge=1, le=512)] | Workers | None = Field(
        default=None, description="ranks on processors, a pod each: a number, or {min, max}; default: 1"
    )
    nodes: Annotated[int, Field(ge=1, le=512)] | Nodes | None = Field(
        default=None, description="pods with accelerators: a number, or {min, max}; default: 1"
    )
    accelerators: str | None = Field(
        default=None, pattern=_ACCELERATORS, description="of each node, for example L4:1, H100:8, or GPU:1 for any kind"
    )
    accelerator_resource: str = Field(
        default="nvidia.com/gpu",
        pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$",
        description="what a device plugin calls them",
    )
    resources: Resources = Resources()
    head: Resources = Resources()
    spot: bool | Spot | None = Field(
        default=None,
        description="true: workers on spot machines alone; {fallback: on-demand}: where there are some; "
        "false: on none; default: as the cluster decides. The head is on none",
    )
    node_selector: dict[Annotated[str, Field(pattern=_LABEL_KEY)], Annotated[str, Field(pattern=rf"^{_LABEL}?$")]] = (
        Field(default={}, description="labels that a node of any pod has")
    )
    service_account: str = Field(
        default="raylift-run", pattern=_NAME, description="of the pods; a cloud's identity for storage hangs on it"
    )
    head_service_account: str | None = Field(
        default=None,
        pattern=_NAME,
        description="of the head where workers are a range: KubeRay lets it change the cluster; "
        "default: one that KubeRay makes, which has no identity",
    )
    storage_secret: str | None = Field(
        default=None,
        pattern=_NAME,
        description="a Secret in the namespace whose keys are variables for storage, such as AWS_ACCESS_KEY_ID",
    )
    queue: str | None = Field(default=None, pattern=_NAME, description="a LocalQueue of Kueue")
    priority_class: str | None = Field(default=None, pattern=_NAME)
    package_cache: str | None = Field(
        default=None,
        pattern=_NAME,
        description="a PersistentVolumeClaim in the namespace where pods keep what they install, for those that come "
        "after: k8s/components/package-cache has one that is a folder of each node",
    )
    network_policy: bool = Field(
        default=False,
        description="have KubeRay let in a run's own pods alone, beside what other policies let in: needs its "
        "RayClusterNetworkPolicy",
    )
    pre_running_deadline_seconds: Annotated[int, Field(ge=60)] = Field(
        default=3600,
        description="that pods may take to start, in each of train.max_failures + 1 tries; what a run waits in a "
        "queue is no part of it",
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0)] = Field(
        default=60, description="until the pods of a run that is over are removed"
    )
    termination_grace_period_seconds: Annotated[int, Field(ge=30, le=3600)] = Field(
        default=120, description="that a pod has for a last save when its node is taken away"
    )
    usd_per_hour: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="what it costs, head and all the workers that it may have, for budget.max_usd"
    )
    pod_template: dict[str, dict[str, Any]] = Field(
        default={},
        description="merged into the pods of head and workers, whose container is called ray; where pods are placed, "
        "also into the one that submits",
    )
    overrides: dict[str, Any] = Field(
        default={},
        description="merged into the RayJob at last; of a cluster with a name, what is of the RayCluster by raylift up",
    )

    @property
    def most_workers(self) -> int:
        """The most ranks that it allows."""
        workers = _ranks(self.nodes, self.accelerators) or self.workers
        return workers.max if isinstance(workers, Workers) else workers or 1

    @field_validator("pod_template")
    @classmethod
    def _leaves_what_pods_need(cls, template: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        _check_metadata(template.get("metadata", {}))
        _check_pod(template, "spec")
        return template

    @field_validator("overrides")
    @classmethod
    def _leave_what_jobs_need(cls, overrides: dict[str, Any]) -> dict[str, Any]:
        if fixed := {"apiVersion", "kind"} & {*overrides}:
            raise ValueError(f"{min(fixed)} stays as it is: a run is a RayJob")
        _check_metadata(overrides.get("metadata", {}))
        _check_pod(overrides, "spec", "rayClusterSpec", "headGroupSpec", "template", "spec")
        return overrides

    @model_validator(mode="after")
    def _the_heads_own_account(self) -> KubernetesCluster:
        counted = self.workers if self.accelerators is None else self.nodes
        is_range = isinstance(counted, Workers | Nodes) and counted.min != counted.max
        if is_range and "serviceAccountName" in self.pod_template.get("spec", {}):
            raise ValueError(
                "pod_template: spec.serviceAccountName would not be the head's, as its number of workers is a range: "
                "say service_account for the workers, and head_service_account for the head"
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_count(self) -> KubernetesCluster:
        if self.workers is not None and (self.nodes is not None or self.accelerators is not None):
            raise ValueError("workers are ranks on processors; with accelerators, nodes says how many pods there are")
        if self.nodes is not None and self.accelerators is None:
            raise ValueError("nodes are pods with accelerators, and there are none; without, say workers")
        if self.accelerators is not None and self.accelerators.partition(":")[0].upper() not in _KINDS:
            raise ValueError(
                f"accelerators: {self.accelerators} is of no kind that is known here: {', '.join(_KINDS)}; "
                "GPU:1 takes any, and node_selector can say which"
            )
        if self.package_cache is not None and self.image is not None:
            raise ValueError(
                f"package_cache: {self.package_cache} is for pods that install packages, and image: {self.image} has "
                "them: leave one of the two out"
            )
        if self.head_service_account == self.service_account:
            raise ValueError(
                f"head_service_account: {self.head_service_account} is that of all pods, and KubeRay would let them "
                "change clusters: name another"
            )
        _ranks(self.nodes, self.accelerators)  # not too many
        return self


def _check_metadata(metadata: Any) -> None:
    """Raise ValueError where raylift would not find again what has these metadata laid over its own."""
    if not isinstance(metadata, dict):
        raise ValueError("metadata is a block, and cannot be taken away")
    for key, instead in _NAMED_BY.items():
        if key in metadata:
            raise ValueError(f"metadata.{key} is what raylift finds its objects by: {instead}")
    for part in ("labels", "annotations"):
        said = metadata.get(part, {})
        if not isinstance(said, dict):
            raise ValueError(f"metadata.{part} is a block, and cannot be taken away")
        for key in said:
            if str(key).startswith(_OWN_LABELS):
                raise ValueError(f"metadata.{part}: {key} is what raylift finds its objects by, and stays as it is")


def _check_pod(block: Any, *path: str) -> None:
    """Raise ValueError where a block would take away what is on the way to a pod's containers, or those."""
    for key in path:
        block = block.get(key, {})
        if not isinstance(block, dict):
            raise ValueError(f"{key} is a block, and cannot be taken away")
    if not isinstance(block.get("containers", []), list):
        raise ValueError("containers is a list, and cannot be taken away")


def _ranks(nodes: int | Nodes | None, accelerators: str | None) -> Workers | None:
    """Return how many ranks nodes with accelerators have: one at least, though none of the nodes may be kept."""
    if accelerators is None:
        return None
    least, most = (nodes.min, nodes.max) if isinstance(nodes, Nodes) else (nodes or 1,) * 2
    each = int(accelerators.partition(":")[2] or 1)
    if most * each > MOST_RANKS:
        raise ValueError(f"nodes: {most} × {accelerators} are more than {MOST_RANKS} ranks, which is the most")
    return Workers(min=max(1, least * each), max=most * each)


def _class_of(block: Any) -> str:
    """Return the class that a block is checked against. Where there is no such provider, the first says so."""
    if isinstance(block, KubernetesCluster) or (isinstance(block, dict) and block.get("provider") == "kubernetes"):
        return KubernetesCluster.__name__
    return LocalCluster.__name__


ClusterConfig = Annotated[
    Annotated[LocalCluster, Tag(LocalCluster.__name__)] | Annotated[KubernetesCluster, Tag(KubernetesCluster.__name__)],
    Discriminator(_class_of),
]
