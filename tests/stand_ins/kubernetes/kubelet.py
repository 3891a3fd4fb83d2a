"""Runs pods of the stand-in as processes of this machine, from what the API holds and nothing else.

A pod lives as long as its first container; others are started with it, and end with it.
All pods share this machine's network and files, but for the folders that they mount: each has its own, and what its
environment says of them is changed accordingly. Each has an address of its own, which its processes find in POD_IP;
heads have 127.0.0.1, as their services would. Each is on a node of its own, and of nodes there are as many as it takes.
Of volumes that outlive pods it knows those that are a folder of each node, which a DaemonSet has to make.
An image is a set of variables, PATH among them.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import math
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.stand_ins.kubernetes import volumes
from tests.stand_ins.kubernetes.access import User
from tests.stand_ins.kubernetes.kinds import Object
from tests.stand_ins.kubernetes.server import ApiServer
from tests.stand_ins.kubernetes.store import now

FINALIZER = "stand-in/kubelet"  # a pod stays until its processes have ended
_FOLDER = f"k{os.getpid():x}-"  # what the names of this process's pods' folders begin with
_OWN = ("/tmp",)  # what a pod mounts for itself
_FAIR = {name: value for name, value in os.environ.items() if name == "RAY_worker_niceness"}


class _MissingError(Exception):
    """Something that a container needs is not there."""


@dataclass
class _Running:
    """The processes of a pod."""

    process: subprocess.Popen[bytes]  # of its first container
    others: list[subprocess.Popen[bytes]]
    folder: Path
    env: dict[str, str]
    template: Object
    out_of_memory: bool = False
    evicted: str = ""  # why, where it was
    ending: threading.Thread | None = None
    readers: list[threading.Thread] = field(default_factory=list)


class Kubelet:
    """Starts, watches and ends the processes of pods. `is_ready` says of a pod that runs whether it serves."""

    def __init__(
        self, server: ApiServer, images: Mapping[str, Mapping[str, str]], is_ready: Callable[[Object], bool]
    ) -> None:
        self.server = server
        self.images = images
        self.is_ready = is_ready
        self.full = False  # no node takes another pod
        self.pace = 1.0  # of the seconds between two looks whether a container lives
        self._running: dict[str, _Running] = {}
        self._taken: dict[str, float] = {}  # when a node took a pod, by the pod's uid
        self._nodes = Path(tempfile.mkdtemp(prefix="nodes-"))  # what they keep: a folder each
        self._addresses = itertools.count(2)

    def sync(self) -> None:
        """Bring processes to what the API holds of pods, and pods to what became of processes."""
        for pod in self.server.all("Pod"):
            uid = pod["metadata"]["uid"]
            running = self._running.get(uid)
            if pod["metadata"].get("deletionTimestamp"):
                self._end(pod, running)
            elif self._is_past_its_deadline(pod):
                if running is not None:
                    _kill(running)
                self._say(pod, phase="Failed", reason="DeadlineExceeded", conditions=[], containerStatuses=[])
            elif running is None and pod.get("status", {}).get("phase", "Pending") == "Pending":
                self._start(pod)
            elif running is not None:
                self._watch(pod, running)

    def _is_past_its_deadline(self, pod: Object) -> bool:
        """Whether a pod that has not ended has been on a node for longer than it may."""
        if "nodeName" not in pod["spec"] or pod.get("status", {}).get("phase") in ("Failed", "Succeeded"):
            return False
        taken = self._taken.setdefault(pod["metadata"]["uid"], time.monotonic())
        return bool(time.monotonic() - taken > pod["spec"].get("activeDeadlineSeconds", math.inf))

    def stop(self) -> None:
        """End all processes at once."""
        for running in self._running.values():
            _kill(running)
        shutil.rmtree(self._nodes)

    def drain(self, node: str) -> None:
        """Have a node take no more pods and let go of those that it has, with notice: as `kubectl drain` does."""
        self.server.change("Node", "", node, lambda value: value["spec"].update(unschedulable=True), "drain")
        evicting = {"type": "DisruptionTarget", "status": "True"}
        evicting |= {"reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"}
        for pod in self.server.all("Pod"):
            if pod["spec"].get("nodeName") == node:
                self._change(pod, lambda value: _set_condition(value, evicting))
                self.server.delete("Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])

    def kill(self, pod: Object, *, out_of_memory: bool = False) -> None:
        """Have a pod's node lose its power, or have it use more memory than its limit."""
        running = self._running[pod["metadata"]["uid"]]
        running.out_of_memory = out_of_memory
        _kill(running)

    def evict(self, pod: Object, message: str) -> None:
        """Have a pod's node end it, as one does that runs short of something, or whose pod has used too much of it."""
        running = self._running[pod["metadata"]["uid"]]
        running.evicted = message
        self._tell(pod, "Evicted", message)
        _kill(running)

    def _start(self, pod: Object) -> None:
        container = pod["spec"]["containers"][0]
        if self.full:
            message = f"0/1 nodes are available: 1 Insufficient {next(iter(container['resources']['requests']))}."
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
            self._say(pod, phase="Pending", conditions=[condition])
            return
        if said := volumes.unbound(self.server, pod):
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}
            self._say(pod, phase="Pending", conditions=[condition])
            return
        if container["image"] not in self.images:
            self._wait(pod, "ErrImagePull", f"{container['image']}: not found")
            return
        if "nodeName" not in pod["spec"]:
            node = self._free_node()
            pod["spec"]["nodeName"] = node
            self._change(pod, lambda value: value["spec"].update(nodeName=node))
        if said := volumes.unmounted(self.server, pod):
            self._tell(pod, "FailedMount", said)
            self._wait(pod, "ContainerCreating")
            return
        is_head = pod["metadata"].get("labels", {}).get("ray.io/node-type") == "head"
        address = "127.0.0.1" if is_head else f"127.0.0.{next(self._addresses)}"
        folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir="/tmp"))  # short: sockets allow 107 bytes
        try:
            env, *others = [self._environment(pod, each, address, folder) for each in pod["spec"]["containers"]]
        except _MissingError as error:
            folder.rmdir()
            self._wait(pod, "CreateContainerConfigError", str(error))
            return
        for path, volume in volumes.kept(self.server, pod).items():
            place = self._nodes / pod["spec"]["nodeName"] / volume
            place.mkdir(parents=True, exist_ok=True)
            Path(_mounted(path, folder)).symlink_to(place)
        ended: list[Object] = []
        for each in pod["spec"].get("initContainers", []):
            if not self._has_ended_well(pod, each, address, folder, ended):
                shutil.rmtree(folder)
                return
        process = _run(container, env, folder, subprocess.PIPE)
        beside = []
        for other, its_env in zip(pod["spec"]["containers"][1:], others, strict=True):
            with (folder / f"{other['name']}.log").open("wb") as log:
                beside.append(_run(other, its_env | self._service_account(pod, folder), folder, log.fileno()))
        running = self._running[pod["metadata"]["uid"]] = _Running(process, beside, folder, env, container)
        reader = threading.Thread(target=self._read, args=(pod, process), daemon=True)
        reader.start()
        running.readers.append(reader)
        if "livenessProbe" in container:
            threading.Thread(target=self._probe, args=(pod, running), daemon=True).start()
        started = [_status(container, {"running": {}})]
        self._say(pod, phase="Running", podIP=address, conditions=[], containerStatuses=started)

    def _free_node(self) -> str:
        """Return a node that takes a pod and has none; make it where there is none, as autoscalers of nodes do."""
        taken = {pod["spec"].get("nodeName") for pod in self.server.all("Pod")}
        nodes = {node["metadata"]["name"]: node for node in self.server.all("Node")}
        closed = {name for name, node in nodes.items() if node["spec"].get("unschedulable")}
        name = next(name for number in itertools.count(1) if (name := f"node-{number}") not in taken | closed)
        if name not in nodes:
            self.server.create("Node", {"metadata": {"name": name}, "spec": {}})
        return name

    def _has_ended_well(self, pod: Object, container: Object, address: str, folder: Path, before: list[Object]) -> bool:
        """Run one of the containers that come before the others to its end; where it fails, so does the pod.

        Its status goes to those of the containers before it.
        """
        done = subprocess.run(
            [_mounted(each, folder) for each in (*container["command"], *container.get("args", []))],
            cwd=folder,
            env=self._environment(pod, container, address, folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        self.server.log(pod, done.stdout, container["name"])
        ended = {"exitCode": done.returncode} | _last_words(container, done.returncode, done.stdout)
        before.append(_status(container, {"terminated": ended}))
        self._say(
            pod,
            phase="Failed" if done.returncode else "Pending",
            initContainerStatuses=list(before),
            containerStatuses=[
                _status(each, {"waiting": {"reason": "PodInitializing"}}) for each in pod["spec"]["containers"]
            ],
        )
        return done.returncode == 0

    def _probe(self, pod: Object, running: _Running) -> None:
        """End a container that shows no life, by its own measure, again and again."""
        probe, failures = running.template["livenessProbe"], 0
        while failures < probe.get("failureThreshold", 3):
            asked = time.monotonic()
            while time.monotonic() - asked < self.pace * probe.get("periodSeconds", 10):
                time.sleep(0.1)
            if running.process.poll() is not None:
                return
            lives = _succeeds(probe["exec"]["command"], running, timeout=probe.get("timeoutSeconds", 1))
            failures = 0 if lives else failures + 1
        self._tell(pod, "Unhealthy", "Liveness probe failed")
        _kill(running)

    def _watch(self, pod: Object, running: _Running) -> None:
        code = running.process.poll()
        if code is None:
            ready = {"type": "Ready", "status": str(self.is_ready(pod))}
            if ready not in pod["status"].get("conditions", []):
                self._change(pod, lambda value: _set_condition(value, ready))
        elif pod["status"]["phase"] == "Running":
            running.readers[0].join(5)
            _kill(running)
            printed = bytes(self.server.logs.get(pod["metadata"]["uid"], b""))
            ended: Object = {"exitCode": code if code >= 0 else 128 - code}
            ended |= _last_words(running.template, code, printed)
            if running.out_of_memory:
                ended |= {"reason": "OOMKilled"}
            phase = "Failed" if code else "Succeeded"
            statuses = [_status(running.template, {"terminated": ended})]
            why = {"reason": "Evicted", "message": running.evicted} if running.evicted else {}
            self._say(pod, phase=phase, conditions=[], containerStatuses=statuses, **why)

    def _end(self, pod: Object, running: _Running | None) -> None:
        if running is not None and running.ending is None:
            grace = pod["spec"].get("terminationGracePeriodSeconds", 30)
            running.ending = threading.Thread(target=_end_gracefully, args=(running, grace), daemon=True)
            running.ending.start()
        if running is None or (running.ending is not None and not running.ending.is_alive()):
            self._running.pop(pod["metadata"]["uid"], None)
            self._change(pod, lambda value: value["metadata"].update(finalizers=[]))

    def _environment(self, pod: Object, container: Object, address: str, folder: Path) -> dict[str, str]:
        """Return a container's variables, those of its image among them. Raises _MissingError."""
        env: dict[str, str] = {}
        for source in container.get("envFrom", []):
            env |= self._secret(pod, source["secretRef"]["name"])
        for variable in container.get("env", []):
            origin = variable.get("valueFrom")
            if origin is None:
                env[variable["name"]] = variable.get("value", "").replace("$$", "$")
            elif "secretKeyRef" in origin:
                env[variable["name"]] = self._secret(pod, origin["secretKeyRef"]["name"])[origin["secretKeyRef"]["key"]]
            elif origin.get("fieldRef") == {"fieldPath": "status.podIP"}:
                env[variable["name"]] = address
            elif "resourceFieldRef" in origin:
                env[variable["name"]] = _rounded_up(container, origin["resourceFieldRef"]["resource"])
            else:
                raise _MissingError(f"this stand-in does not know {origin}")
        given = {key: _mounted(value, folder) for key, value in env.items()}
        env = {**_FAIR, **self.images[container["image"]], **given}
        return env | {"TMPDIR": str(folder), "POD_IP": address}

    def _service_account(self, pod: Object, folder: Path) -> dict[str, str]:
        """Give a pod the token of its service account; return where that is, and where the API server is."""
        place, token = folder / "account", secrets.token_hex(16)
        place.mkdir(exist_ok=True)
        account = User.service_account(pod["metadata"]["namespace"], pod["spec"].get("serviceAccountName", "default"))
        self.server.tokens[token] = account
        (place / "token").write_text(token)
        shutil.copy(self.server.authority, place / "ca.crt")
        host, _, port = self.server.url.removeprefix("https://").partition(":")
        served = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT_HTTPS": port}
        return {**served, "SERVICE_ACCOUNT": str(place)}

    def _secret(self, pod: Object, name: str) -> dict[str, str]:
        secret = self.server.get("Secret", pod["metadata"]["namespace"], name)
        if secret is None:
            raise _MissingError(f'secret "{name}" not found')
        return {key: base64.b64decode(value).decode() for key, value in secret.get("data", {}).items()}

    def _tell(self, pod: Object, reason: str, message: str) -> None:
        """Make an event about a pod; one of the same reason takes the place of the first."""
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        about = {"kind": "Pod", "name": name, "namespace": namespace, "uid": pod["metadata"]["uid"]}
        event = {"type": "Warning", "reason": reason, "message": message, "lastTimestamp": now()}
        metadata = {"name": f"{name}.{reason.lower()}"}
        self.server.create("Event", {"metadata": metadata, **event, "involvedObject": about}, namespace)

    def _read(self, pod: Object, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            while data := os.read(output.fileno(), 2**16):
                self.server.log(pod, data)

    def _wait(self, pod: Object, reason: str, message: str = "") -> None:
        container = pod["spec"]["containers"][0]
        state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
        placed = {"type": "PodScheduled", "status": "True"}
        self._say(pod, phase="Pending", conditions=[placed], containerStatuses=[_status(container, state)])

    def _say(self, pod: Object, **status: Any) -> None:
        if any(pod.get("status", {}).get(key) != value for key, value in status.items()):
            self._change(pod, lambda value: value.setdefault("status", {}).update(status))

    def _change(self, pod: Object, change: Callable[[Object], None]) -> None:
        with contextlib.suppress(AssertionError):  # it has gone meanwhile
            self.server.change("Pod", pod["metadata"]["namespace"], pod["metadata"]["name"], change, "kubelet")


def processes() -> list[int]:
    """Return the processes that work in the folders of this process's pods."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd().startswith(f"/tmp/{_FOLDER}") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _run(container: Object, env: dict[str, str], folder: Path, output: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [_mounted(each, folder) for each in (*container["command"], *container.get("args", []))],
        cwd=_mounted(container.get("workingDir", "/tmp"), folder),
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _set_condition(pod: Object, condition: Object) -> None:
    others = [each for each in pod["status"].get("conditions", []) if each["type"] != condition["type"]]
    pod["status"]["conditions"] = [*others, condition]


def _status(container: Object, state: Object) -> Object:
    return {"name": container["name"], "image": container["image"], "state": state, "ready": "running" in state}


def _last_words(container: Object, code: int, printed: bytes) -> Object:
    """Return what a kubelet keeps of what a container printed that failed, where its template asks for that."""
    if code == 0 or container.get("terminationMessagePolicy") != "FallbackToLogsOnError":
        return {}
    return {"message": printed[-2048:].decode(errors="replace")}


def _mounted(text: str, folder: Path) -> str:
    """Change a path that a pod mounts, or several with colons between them, to where that is on this machine."""
    parts = text.split(":")
    for path in _OWN:
        own = [part == path or part.startswith(f"{path}/") for part in parts]
        parts = [
            str(folder) + part.removeprefix(path) if is_own else part for part, is_own in zip(parts, own, strict=True)
        ]
    return ":".join(parts)


def _rounded_up(container: Object, resource: str) -> str:
    amount = str(container["resources"]["limits"][resource.removeprefix("limits.")])
    return str(-(-int(amount[:-1]) // 1000)) if amount.endswith("m") else amount


def _end_gracefully(running: _Running, grace: float) -> None:
    """Run the preStop hook, then SIGTERM, and after the grace period SIGKILL."""
    deadline = time.monotonic() + grace
    hook = running.template.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
    if hook is not None and running.process.poll() is None:
        _succeeds(hook, running, timeout=grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.process.wait(max(0.1, deadline - time.monotonic()))
    _kill(running)


def _succeeds(command: Sequence[str], running: _Running, *, timeout: float) -> bool:
    """Run a command in a pod's first container; return whether it ended well, and in time."""
    program = shutil.which(command[0], path=running.env["PATH"]) or command[0]  # on the path of the container
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            [program, *command[1:]],
            cwd=running.folder,
            env=running.env,
            timeout=timeout,
            check=False,
            capture_output=True,
        )
        return done.returncode == 0
    return False


def _kill(running: _Running) -> None:
    """End every process that works in the pod's folder, or descends from its first one."""
    found = [process.pid for process in (running.process, *running.others)]
    with contextlib.suppress(psutil.NoSuchProcess):
        found += [child.pid for child in psutil.Process(running.process.pid).children(recursive=True)]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if Path(process.cwd()).is_relative_to(running.folder):
                found.append(process.pid)
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    for each in (running.process, *running.others):
        each.wait()
    shutil.rmtree(running.folder, ignore_errors=True)
