"""Runs on a cluster, as a laptop sees them: through their provider, beside what is in storage."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from cluster.config import KubernetesCluster, LocalCluster
from cluster.errors import (
    InfrastructureError,
    MissingExtraError,
    RayliftError,
    RunExistsError,
    RunNotFoundError,
    StorageError,
    UsageError,
)
from cluster.provider import OnWait, Provider, Receipt, RunStatus, State
from cluster.registry import open_provider
from cluster.runs import Run
from cluster.trials import sweep_of
from launcher.text import typed

_RETRY = 5.0  # seconds
_NO_LAUNCH = "none"  # what no launch of a run is
_LOOK = 5.0  # seconds between looks at pods that have not started
_LOOK_RUNNING = 30.0  # at those that have


class Remote(Provider, Protocol):
    """A provider whose runs go on without this machine."""

    def changes(self, run_id: str) -> Iterator[RunStatus]:
        """Yield where a run stands, now and when that changes, until it is gone. Raises InfrastructureError."""
        ...

    def teardown(self, run_id: str, *, launch: str | None = None, on_wait: OnWait | None = None) -> Receipt:
        """Remove all of a run; with the `launch` that was described, nothing of another. Raises RunExistsError."""
        ...


def remote_of(run: Run) -> Remote | None:
    """Return the provider of a run that is on a cluster; None of one that is on a machine like this. Asks nothing."""
    if not may_be_remote(job := run.job()):
        return None
    from launcher.spec import load_frozen

    cluster = load_frozen(job).cluster
    return None if isinstance(cluster, LocalCluster) else open_provider(cluster)  # type: ignore[return-value]


def may_be_remote(job: bytes) -> bool:
    """Whether the run of a job file may be on a cluster, which is quicker to know than to read it."""
    return b"provider: kubernetes" in job


def describe(run: Run, provider: Provider) -> RunStatus:
    """Say what there is of a run on its cluster. Raises RunNotFoundError, also where something else has its id."""
    status = provider.describe(run.id)
    if status.run_uri != run.uri:
        whose = f"the run {status.run_uri}" if status.run_uri is not None else "no run"
        raise RunNotFoundError(f"what its cluster has under the id {run.id} is {whose}")
    return status


def launch_of(run: Run, provider: Provider) -> str | None:
    """Return which launch of a run is on its cluster; None where there is nothing of it."""
    try:
        return describe(run, provider).launch
    except RunNotFoundError:
        return None


def tear_down_remote(
    run: Run, provider: Remote, *, launch: str | None = None, on_wait: OnWait | None = None
) -> Receipt:
    """Remove all that there is of a run on its cluster, and nothing of what else has its id by now.

    That may be another run, or another launch of this one than the `launch` that was seen to be over: for the latter
    raises RunExistsError.
    """
    try:
        status = provider.describe(run.id)
        if status.run_uri != run.uri:
            return Receipt()
        launch = launch or status.launch
    except RunNotFoundError:
        launch = _NO_LAUNCH  # its own object is gone, and others may be left
    try:
        return provider.teardown(run.id, launch=launch, on_wait=on_wait)
    except RunExistsError as error:
        raise _goes_on(run, error) from error


def clear_remote(run: Run, provider: Remote, launch: str | None) -> None:
    """Remove what a `launch` that is over has left on its cluster. Raises RunExistsError where another one has come."""
    try:
        status = provider.describe(run.id)
        if status.run_uri != run.uri:
            return  # a launch finds the name taken, and says by whom
        found = status.launch
    except RunNotFoundError:
        found = launch = _NO_LAUNCH
    try:
        if found != launch:
            raise RunExistsError("somebody else has launched it")
        provider.teardown(run.id, launch=launch)
    except RunExistsError as error:
        raise _goes_on(run, error) from error


def _goes_on(run: Run, error: RunExistsError) -> RunExistsError:
    uri = typed(run.uri)
    return RunExistsError(
        f"{run.uri} goes on: {error}. Follow it: raylift logs -f {uri}; end it at once: raylift stop --now {uri}"
    )


@contextlib.contextmanager
def or_abandoned(run: Run) -> Iterator[None]:
    """Name the way out where a cluster cannot be asked, and may never be again."""
    try:
        yield
    except (StorageError, MissingExtraError):
        raise
    except InfrastructureError as error:
        if 400 <= getattr(error, "status", 0) < 500:  # it has answered
            raise
        whole = sweep_of(run) or run  # of a trial too, as the cluster is the sweep's
        way_out = (
            f"If that cluster is gone for good, remove the run alone: raylift rm --abandon-cluster {typed(whole.uri)}"
        )
        raise InfrastructureError(f"{error}. {way_out}") from error


def place_of(run: Run) -> str:
    """Say where what there is of a run on its cluster would be. Raises UsageError where it is on none."""
    from launcher.spec import load_frozen

    cluster = load_frozen(run.job()).cluster
    if not isinstance(cluster, KubernetesCluster):
        raise UsageError(f"--abandon-cluster: {run.uri} is on no cluster. Remove it: raylift rm {typed(run.uri)}")
    context = f"the context {cluster.context}" if cluster.context is not None else "the context that was current"
    return f"the namespace {cluster.namespace} of {context}"


def look(run: Run, provider: Provider) -> tuple[State, str]:
    """Return where a run without a result stands, and why: what the cluster says, where it can be asked."""
    try:
        status = describe(run, provider)
    except RunNotFoundError:
        if (stop := run.stop_reason()) is not None:
            return State.STOPPED, stop
        return State.FAILED, "nothing of it is in the cluster any more, and it left no result"
    except InfrastructureError as error:
        return State.RUNNING, f"as far as storage tells: {error}"
    if status.state is State.SUCCEEDED:
        return State.FAILED, "its driver has ended, and left no result"
    return status.state, status.reason


class Watcher:
    """Looks at a run through its provider, in a thread, while its storage is followed."""

    def __init__(self, run: Run, provider: Remote) -> None:
        self._run = run
        self._provider = provider
        self._status: RunStatus | None = None
        self.launch: str | None = None  # of the run, the first that was seen: another may follow it
        self._gone = False
        self._trouble = ""
        self._told = ""
        self._looked = time.monotonic()
        threading.Thread(target=self._watch, name="watcher", daemon=True).start()

    def is_alive(self) -> bool:
        """Whether the run may still write to storage; while that cannot be told, it may."""
        return not self._gone and (self._status is None or not self._status.state.is_final)

    def news(self) -> str:
        """Return in a line what has changed since the last call; an empty text where nothing has."""
        status = self._status
        if status is not None and status.state is not State.SUCCEEDED:
            status = self._look(status)
        line = self._trouble or (f"{status.state}: {status.reason}" if status is not None and status.reason else "")
        if not line or line == self._told:
            return ""
        self._told = line
        return line

    def _look(self, status: RunStatus) -> RunStatus:
        """Look at the pods too: what keeps them from starting, or ends one, does not change the run's own object."""
        if time.monotonic() - self._looked > (_LOOK_RUNNING if status.state is State.RUNNING else _LOOK):
            self._looked = time.monotonic()
            try:
                self._status = status = describe(self._run, self._provider)
                self._trouble = ""
            except RunNotFoundError:
                self._gone = True
            except InfrastructureError as error:
                self._trouble = str(error)
        return status

    def _watch(self) -> None:
        while True:
            try:
                self._status = describe(self._run, self._provider)  # a watch says nothing of what is not there
                self.launch = self.launch or self._status.launch
                for status in self._provider.changes(self._run.id):
                    self._status, self._trouble = status, ""
            except RunNotFoundError:
                pass
            except Exception as error:  # whatever it is: without this thread a run would be followed for ever
                self._trouble = str(error) if isinstance(error, RayliftError) else repr(error)
                time.sleep(_RETRY)
                continue
            self._gone = True
            return
