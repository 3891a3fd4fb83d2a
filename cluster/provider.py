"""What a provider owes to the launcher, and the words they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from cluster.config import ClusterConfig


class State(StrEnum):
    """Where a run stands."""

    PENDING = "PENDING"
    PROVISIONING = "PROVISIONING"
    RUNNING = "RUNNING"
    RECOVERING = "RECOVERING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    PRUNED = "PRUNED"  # a trial that the scheduler of its sweep ended early

    @property
    def is_final(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.STOPPED, State.PRUNED)


@dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """All that a provider needs to start one run."""

    run_id: str
    run_uri: str
    cluster: ClusterConfig
    max_failures: int
    newest_attempt: int = 0  # that was claimed before
    deadline: int | None = None  # seconds that the run may take, by its budget, to which it keeps by itself
    ray_cluster: str = ""  # that is there already, for this run too; as Kubernetes knows it
    bundle: str = ""  # URI of raylift's own code, where machines have none
    code: str = ""  # of raylift, which its machines must have; see cluster.code
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)  # variables of the run that nothing may show


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One thing that exists because of a run: a process, a machine, a pod."""

    kind: str
    name: str
    run_id: str | None = None
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {self.detail}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a launch would create."""

    provider: str
    resources: Sequence[Resource]
    usd_per_hour: float = 0.0  # that it adds to what is paid already
    manifest: str = ""  # exactly what would be applied, where the provider applies a document


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What the provider sees of a run; its training state is in storage."""

    state: State
    reason: str = ""
    resources: Sequence[Resource] = ()
    run_uri: str | None = None  # whose it is, on a cluster: runs of two storages may have the same id; None: no run's
    launch: str | None = None  # which one of the run's this is, on a cluster


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a teardown removed, what it found left when it asked again, and what kinds of object it may not look for."""

    removed: Sequence[Resource] = ()
    leftovers: Sequence[Resource] = ()
    unseen: Sequence[str] = ()

    @property
    def remarks(self) -> list[str]:
        """Lines on what is left, and on what was not looked for."""
        lines = [f"left over: {each}" for each in self.leftovers]
        if self.unseen:
            lines.append(f"not looked for, as you may not list them: {', '.join(self.unseen)}")
        return lines


OnLimit = Callable[[str], None]  # told what an audit had to leave out, in words
OnWait = Callable[[Sequence[Resource]], None]  # told again and again what a teardown waits for


class Provider(Protocol):
    """Starts runs somewhere, and takes away all that it started."""

    def render(self, request: LaunchRequest) -> Plan:
        """Say what `launch` would create. Pure: no run exists yet and nothing is asked."""
        ...

    def launch(self, request: LaunchRequest) -> None:
        """Start the run. Idempotent; returns once the job is accepted. Raises InfrastructureError."""
        ...

    def describe(self, run_id: str) -> RunStatus:
        """Say what exists of a run. Raises RunNotFoundError."""
        ...

    def logs(self, run_id: str, *, follow: bool, offset: int = 0) -> Iterator[bytes]:
        """Yield the driver's output from a byte offset; with `follow`, until the run is over."""
        ...

    def stop(self, run_id: str) -> None:
        """Ask the run to end. Idempotent, does not block."""
        ...

    def teardown(self, run_id: str) -> Receipt:
        """Remove all that exists of a run, ask again, and list what is left. Idempotent, blocks."""
        ...

    def audit(self, *, on_limit: OnLimit | None = None) -> Sequence[Resource]:
        """List everything of ours that exists, found by its tag alone; `on_limit` hears of what it may not look at."""
        ...
