"""What a run prints in its pods: as they fetch raylift, and where the driver is submitted."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

from cluster.kubernetes import api
from cluster.kubernetes.api import Api, ApiError, Object
from cluster.kubernetes.pods import ROLE_LABEL, RUN_LABEL
from cluster.kubernetes.reasons import FETCHING

_SUBMITTER = "ray-job-submitter"
_SUBMISSION = "RAY_JOB_SUBMISSION_ID"  # KubeRay's own variable: which driver a submitter submits
_POLL = 1.0  # seconds
_NO_LOG = (400, 404)  # of HTTP: the container has not begun, or has gone with its pod
_AWAY = 5.0  # seconds until an API server that is away is asked again


class Printed:
    """Reads what a run prints, each byte once, over lost connections and pods that take the place of others."""

    def __init__(self, server: Api, namespace: str, run_id: str, goes_on: Callable[[], bool]) -> None:
        self._server = server
        self._namespace = namespace
        self._run_id = run_id
        self._goes_on = goes_on
        self._sources: dict[tuple[str, str], _Source] = {}  # by uid of their pod and name
        self._said: dict[str, list[bytes]] = {}  # lines, by driver

    def read(self) -> Iterator[bytes]:
        """Yield what there is. Raises ApiError, once all that can be read was."""
        failed = []
        for source in self._begun():
            failed += yield from self._new_of(source, follow=False)
            yield source.fresh.rest()
        if failed:
            raise failed[0]

    def follow(self) -> Iterator[bytes]:
        """Yield what there is and what comes, until the run is over; an API server that is away is waited for."""
        while True:
            try:
                goes_on = self._goes_on()  # asked first: whoever submits before the end is among those that have begun
                for source in self._begun():
                    stands = self._stands(source)  # asked first too: a stream that broke off does not say so
                    if stands != "gone":
                        failed = yield from self._new_of(source, follow=stands == "begun")
                        if stands == "begun" or (failed and goes_on):
                            continue
                    source.ended = True
                    yield source.fresh.rest()
            except ApiError:
                time.sleep(_AWAY)
                continue
            if not goes_on:
                return
            time.sleep(_POLL)

    def _begun(self) -> list[_Source]:
        """Return the containers that have begun and may have more to say, in the order in which they do."""
        pods = self._server.select(api.PODS, self._namespace, f"{RUN_LABEL}={self._run_id}")
        for pod in sorted(pods, key=_order):
            key = (pod["metadata"]["uid"], name := _prints(pod))
            if name and key not in self._sources and _state(pod, name):
                said = self._said.setdefault(_driver(pod), []) if name == _SUBMITTER else []
                self._sources[key] = _Source(
                    pod["metadata"]["name"], pod["metadata"]["uid"], name, _Fresh(said), _heading(pod, name)
                )
        return [each for each in self._sources.values() if not each.ended]

    def _new_of(self, source: _Source, *, follow: bool) -> Generator[bytes, None, list[ApiError]]:
        """Yield what is new of a container; return why that is not all, if so: its node may be lost."""
        path, at = f"{api.PODS.path(self._namespace, source.pod)}/log", 0
        try:
            if follow:
                chunks = self._server.lines(path, container=source.name, follow="true")
            else:
                chunks = iter([self._server.read(path, container=source.name)])
            for chunk in chunks:
                new = chunk[max(0, source.read - at) :]
                at += len(chunk)
                if new and not source.read:
                    yield source.heading
                source.read = max(source.read, at)
                yield source.fresh.feed(new)
        except ApiError as error:
            return [error] if error.status not in _NO_LOG else []
        return []

    def _stands(self, source: _Source) -> str:
        """Return whether a container has "begun" or "ended", or is "gone": its pod's name may be another's by now."""
        pod = self._server.find(api.PODS, self._namespace, source.pod)
        if pod is None or pod["metadata"]["uid"] != source.uid:
            return "gone"
        return _state(pod, source.name) or "begun"


class _Fresh:
    """Passes on what a submitter prints, but not what an earlier one has printed of the same driver."""

    def __init__(self, said: list[bytes]) -> None:
        self._earlier, self._said = list(said), said
        self._at = 0  # in those, up to where this one has repeated them
        self._begun = b""  # a line that has no end yet

    def feed(self, data: bytes) -> bytes:
        *lines, self._begun = (self._begun + data).split(b"\n")
        self._said += lines
        return b"".join(each + b"\n" for each in lines if not self._is_repeated(each)) if self._earlier else data

    def rest(self) -> bytes:
        """Return what is left once all has been printed."""
        return self._begun if self._earlier and not self._is_repeated(self._begun) else b""

    def _is_repeated(self, line: bytes) -> bool:
        try:
            self._at = self._earlier.index(line, self._at) + 1
        except ValueError:
            return False
        return True


@dataclass
class _Source:
    """A container whose log is read."""

    pod: str
    uid: str
    name: str
    fresh: _Fresh
    heading: bytes  # of what it printed
    read: int = field(default=0)  # bytes
    ended: bool = False


def _prints(pod: Object) -> str:
    """Return the container of a pod that says something of the run; an empty text where none does."""
    if pod["spec"]["containers"][0]["name"] == _SUBMITTER:
        return _SUBMITTER
    fetches = FETCHING in [each["name"] for each in pod["spec"].get("initContainers", [])]
    return FETCHING if fetches and (_is_head(pod) or _fetched_in_vain(pod)) else ""  # others fetch the same as the head


def _is_head(pod: Object) -> bool:
    return bool(pod["metadata"].get("labels", {}).get(ROLE_LABEL) == "head")


def _fetched_in_vain(pod: Object) -> bool:
    states = [
        each.get("state", {})
        for each in pod.get("status", {}).get("initContainerStatuses", [])
        if each["name"] == FETCHING
    ]
    return any(each.get("terminated", {}).get("exitCode") for each in states)


def _heading(pod: Object, name: str) -> bytes:
    """Return what stands above that which a container prints: of many workers it says whose it is."""
    return f"pod {pod['metadata']['name']}:\n".encode() if name == FETCHING and not _is_head(pod) else b""


def _order(pod: Object) -> tuple[str, bool]:
    """Sort pods by when they were made, in whole seconds; a head is before who submits to it."""
    return str(pod["metadata"].get("creationTimestamp")), _prints(pod) == _SUBMITTER


def _state(pod: Object, name: str) -> str:
    """Return whether a container has "begun" or "ended"; an empty text: neither."""
    status = pod.get("status", {})
    if name == _SUBMITTER:
        phase = status.get("phase") or "Pending"
        return {"Pending": "", "Succeeded": "ended", "Failed": "ended"}.get(phase, "begun")
    states = [each.get("state", {}) for each in status.get("initContainerStatuses", []) if each["name"] == name]
    if any("terminated" in each for each in states):
        return "ended"
    return "begun" if any("running" in each for each in states) else ""


def _driver(pod: Object) -> str:
    env = pod["spec"]["containers"][0].get("env", [])
    return next((str(each.get("value", "")) for each in env if each["name"] == _SUBMISSION), "")
