"""Runs on this machine: a supervisor, its driver, and the single-node Ray that the driver starts.

Every process of a run has the run's scratch folder (or one below it) as its working directory. That is their tag:
they are found by it again, whoever started them and whoever died meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from cluster import redaction
from cluster.config import LocalCluster, Nodes, Workers
from cluster.errors import InfrastructureError, RunExistsError, RunNotFoundError
from cluster.provider import LaunchRequest, OnLimit, Plan, Receipt, Resource, RunStatus, State

UNRECORDED = "unrecorded.txt"  # how a run ended, where storage would not take it
LAUNCH = "launch.json"
FINAL = (0, 1, 2, 3, 4)  # exit codes of a driver that came to its end; of the others it is started again
PREEMPTED = 75  # exit code of a driver that was asked to leave: all is saved, nothing is over
TAKEN_AWAY = 76  # the same where its cloud takes this machine away, so that nothing is started on it again
_TEMPORARY = "tmp"  # in the scratch folder: a link to where the run's processes keep their temporary files
_STARTED: list[subprocess.Popen[bytes]] = []  # supervisors are left alone, on purpose: kept, that is no warning
_GRACE = 10.0  # seconds until a process that does not end counts as left over


class LocalProvider:
    """The provider `local`."""

    def render(self, request: LaunchRequest) -> Plan:
        assert isinstance(request.cluster, LocalCluster)
        ranks = _in_words(request.cluster)
        where = request.cluster.address or "started for this run, ended with it"
        return Plan(
            provider="local",
            resources=[
                Resource(kind="ray", name="single-node Ray on this machine", run_id=request.run_id, detail=where),
                Resource(kind="ranks", name=ranks, run_id=request.run_id),
                Resource(kind="scratch", name=str(scratch_folder(request.run_id)), run_id=request.run_id),
            ],
        )

    def launch(self, request: LaunchRequest) -> None:
        scratch = scratch_folder(request.run_id)
        if processes_of(scratch):
            if self.is_here(request.run_id, request.run_uri):
                return
            raise RunExistsError(
                f"another run {request.run_id} is running on this machine: {_recorded_uri(scratch)}. Choose another "
                f"--id, or stop that one: raylift stop {shlex.quote(str(_recorded_uri(scratch)))}"
            )
        _make_private(scratch.parent)
        with contextlib.ExitStack() as undo:
            undo.callback(self.teardown, request.run_id)  # first: Ctrl-C may come at any moment
            clear(scratch)
            scratch.mkdir(mode=0o700)
            _start_supervisor(scratch, request)
            undo.pop_all()

    def describe(self, run_id: str) -> RunStatus:
        scratch = scratch_folder(run_id)
        if not scratch.is_dir():
            raise RunNotFoundError(f"nothing of run {run_id} is on this machine")
        processes = processes_of(scratch)
        resources = [_resource(process, run_id) for process in processes]
        if self.is_running(run_id):
            return RunStatus(state=State.RUNNING, resources=resources)
        reason = "its driver is gone"
        with contextlib.suppress(FileNotFoundError):
            reason = (scratch / UNRECORDED).read_text()
        return RunStatus(state=State.FAILED, reason=reason, resources=resources)

    def is_here(self, run_id: str, run_uri: str) -> bool:
        """Whether what this machine has under a run's id, if anything, is this run: another storage may have one."""
        recorded = _recorded_uri(scratch_folder(run_id))
        return recorded is None or _real(recorded) == _real(run_uri)

    def is_running(self, run_id: str) -> bool:
        """Whether a run goes on: its supervisor, or a driver without one. Cheap while the supervisor lives."""
        scratch = scratch_folder(run_id)
        if not scratch.is_dir():
            return False
        return _supervisor(scratch) is not None or any(_is_driver(process) for process in processes_of(scratch))

    def logs(self, run_id: str, *, follow: bool, offset: int = 0) -> Iterator[bytes]:
        log = scratch_folder(run_id) / "driver.log"
        while True:
            alive = bool(processes_of(log.parent)) if follow else False
            with contextlib.suppress(FileNotFoundError), log.open("rb") as file:
                file.seek(offset)
                data = file.read()
                offset += len(data)
                if data:
                    yield data
            if not alive:
                return
            time.sleep(0.5)

    def stop(self, run_id: str) -> None:
        supervisor = _supervisor(scratch_folder(run_id))
        if supervisor is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                supervisor.terminate()

    def teardown(self, run_id: str) -> Receipt:
        scratch = scratch_folder(run_id)
        removed = [_resource(process, run_id) for process in processes_of(scratch)]
        supervisor = _supervisor(scratch)
        if supervisor is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                supervisor.kill()  # first: it would restart what we end
        left = end_processes(scratch)
        if not left:
            clear(scratch)
        return Receipt(removed=removed, leftovers=[_resource(process, run_id) for process in left])

    def audit(self, *, on_limit: OnLimit | None = None) -> Sequence[Resource]:  # noqa: ARG002  # it sees all there is
        root = scratch_folder("x").parent
        return [_resource(process, _run_of(process, root)) for process in processes_of(root)]


def _in_words(cluster: LocalCluster) -> str:
    """Say how many ranks there are to be, and on what."""
    if cluster.accelerators is not None:
        return f"{_number(cluster.nodes)} × {cluster.accelerators}" if cluster.nodes else cluster.accelerators
    return f"{_number(cluster.workers)} CPU" if cluster.workers else "one per accelerator, or 1 CPU"


def _number(counted: int | Workers | Nodes) -> str:
    return str(counted) if isinstance(counted, int) else f"{counted.min} to {counted.max}"


def scratch_folder(run_id: str) -> Path:
    """Return the folder of a run's files on this machine; its name tags the run's processes."""
    root = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())  # short: sockets allow 107 bytes
    return root.resolve() / f"raylift-{os.getuid()}" / run_id


def ray_folder(scratch: Path) -> Path:
    """Return Ray's own temporary folder of a run: as short as can be, for its sockets' sake."""
    return scratch.parent / hashlib.sha256(scratch.name.encode()).hexdigest()[:8]


def clear(scratch: Path) -> None:
    """Remove all files of a run on this machine."""
    for folder in ((scratch / _TEMPORARY).resolve(), ray_folder(scratch), scratch):
        shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return this user's processes that work in `folder` or below, and all that descend from them, but not us.

    Nor our parents: a person's shell may work there.
    """
    found: dict[int, psutil.Process] = {}
    parents = {parent.pid for parent in psutil.Process().parents()}
    for pid in psutil.pids():  # process_iter() keeps what it saw, and takes one whose number was another's for that one
        with contextlib.suppress(psutil.Error, OSError):
            if pid in parents:
                continue
            process = psutil.Process(pid)
            cwd = Path(process.cwd().removesuffix(" (deleted)"))
            if process.status() != psutil.STATUS_ZOMBIE and (cwd == folder or folder in cwd.parents):
                found[pid] = process
                found.update((child.pid, child) for child in process.children(recursive=True))
    mine = {os.getpid(), *parents}
    return [process for pid, process in found.items() if pid not in mine and is_alive(process)]


def end_processes(folder: Path) -> list[psutil.Process]:
    """Kill every process of a folder, and ask again until none is left; return those that stay."""
    deadline = time.monotonic() + _GRACE
    while (left := processes_of(folder)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1.0)
    return left


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs still; one that only waits to be reaped does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _start_supervisor(scratch: Path, request: LaunchRequest) -> None:
    token = scratch / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    temporary = scratch / _TEMPORARY
    temporary.symlink_to(tempfile.mkdtemp(prefix="raylift-"))
    launch = {
        "run_id": request.run_id,
        "run_uri": request.run_uri,
        "max_failures": request.max_failures,
        "newest_attempt": request.newest_attempt,
        "cluster": request.cluster.model_dump(mode="json"),
    }
    (scratch / LAUNCH).write_text(json.dumps(launch))
    named = {redaction.NAMES: ",".join(request.secrets)}
    with (scratch / "supervisor.log").open("ab") as log:
        # -P: a package called `cluster` or `trainers` in the user's working folder must not shadow ours
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cluster.supervisor", str(scratch)],
            cwd=scratch,
            env={**os.environ, **request.env, **request.secrets, **named, "TMPDIR": str(temporary)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    _STARTED.append(process)
    (scratch / "supervisor.json").write_text(json.dumps(_identify(process.pid)))
    if process.poll() is not None:
        raise InfrastructureError(f"the run's supervisor ended at once: see {scratch / 'supervisor.log'}")


def _recorded_uri(scratch: Path) -> str | None:
    try:
        return str(json.loads((scratch / LAUNCH).read_text())["run_uri"])
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _real(uri: str) -> str:
    return uri if "://" in uri else os.path.realpath(uri)


def _is_driver(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "trainers.main" in process.cmdline()
    return False


def _identify(pid: int) -> dict[str, float]:
    return {"pid": pid, "started": psutil.Process(pid).create_time()}


def _supervisor(scratch: Path) -> psutil.Process | None:
    """Return the run's supervisor, if the recorded pid is still the same process."""
    try:
        recorded = json.loads((scratch / "supervisor.json").read_text())
        process = psutil.Process(int(recorded["pid"]))
        same = is_alive(process) and abs(process.create_time() - recorded["started"]) < 0.01
    except (FileNotFoundError, json.JSONDecodeError, psutil.NoSuchProcess):
        return None
    return process if same else None


def _run_of(process: psutil.Process, root: Path) -> str | None:
    """Return the run whose folder a process works in; None where it only descends from one that does."""
    with contextlib.suppress(psutil.Error, OSError, ValueError):
        return next(iter(Path(process.cwd()).relative_to(root).parts), None)
    return None


def _resource(process: psutil.Process, run_id: str | None) -> Resource:
    try:
        program, *arguments = process.cmdline()
        command = " ".join([Path(program).name, *arguments])[:80]
    except (psutil.Error, ValueError):  # a process that is ending has no command line
        command = "?"
    return Resource(kind="process", name=str(process.pid), run_id=run_id, detail=command)


def _make_private(folder: Path) -> None:
    """Make a folder that only this user enters; refuse one that somebody else prepared."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise InfrastructureError(f"{folder} is not ours alone; remove it, or chmod 700 it, and try again")
