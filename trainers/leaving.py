"""What a pod does before Kubernetes takes it away: it has the run save.

    RAYLIFT_RUN_URI=s3://… python -P -m trainers.leaving head|worker

A worker has Ray drain its node: the ranks on it tell the others, all save, and none is placed there again; the trials
on it save and go on elsewhere. With the head go the driver and Ray, so the driver is asked to end, and tells all ranks.
Returns once the save is done; a pod in which nothing trains, a run that is over, or one that a person stops, is not
waited for. Kubernetes ends the wait with the grace period of the pod.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil

from cluster.attempts import Attempt
from cluster.errors import RayliftError, StorageError
from cluster.local import scratch_folder
from cluster.records import Claim
from cluster.runs import Run
from trainers.pulse import readings

_RUN_URI = "RAYLIFT_RUN_URI"
_POLL = 1.0  # seconds
_GRACE = "RAYLIFT_GRACE_SECONDS"  # that this pod has from when it is to end
_MOST = 3600.0  # seconds that a pod has
_DRIVER = "trainers.submitted"
_HERE = "RAYLIFT_NODE_IP"  # of this pod


def leave(run: Run, role: str) -> None:
    """Tell the newest attempt that this pod goes, and wait until it has saved. Raises RayliftError."""
    claims = run.claims()
    if not claims or run.result() is not None or run.stop_reason() is not None:
        return
    if role == "head":
        driver = _driver(claims[-1])
        if driver is None:
            return
        with contextlib.suppress(StorageError):  # then the driver tells, without a deadline
            Attempt(run, claims[-1]).give_notice("its pod is taken away", seconds=_left())
        driver.terminate()
        while _is_alive(driver) and not _has_left(run, claims[-1].attempt):
            time.sleep(_POLL)
    else:
        _drain_this_node()
        while _trains_here(run) and not _has_left(run, claims[-1].attempt):
            time.sleep(_POLL)


def _driver(claim: Claim) -> psutil.Process | None:
    """Return the driver of an attempt, if it runs in this pod."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(claim.pid)
        if _DRIVER in process.cmdline():
            return process
    return None


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _has_left(run: Run, attempt: int) -> bool:
    if run.attempts()[-1] > attempt or run.result() is not None or run.stop_reason() is not None:
        return True
    return any(row["event"] == "preempted" for row in run.rows_of(attempt, "events"))


def _trains_here(run: Run) -> bool:
    """Whether a rank or a trial of the run is at work in this pod."""
    return any(_is_of_this_pod(reading.pid) for reading in readings(scratch_folder(run.id).parents[1], run.uri))


def _is_of_this_pod(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return _is_alive(process) and process.environ().get(_HERE) == os.environ[_HERE]
    return False


def _left() -> float:
    """Return how many seconds of the grace period are left: it began when this process did."""
    return float(os.environ.get(_GRACE, _MOST)) - (time.time() - psutil.Process().create_time())


def _drain_this_node() -> None:
    """Ask Ray to place nothing on this node, and to tell so to those that are there. Raises RuntimeError."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

    gcs, here = GcsClient(address=os.environ["RAY_ADDRESS"]), os.environ[_HERE]
    reason, deadline = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), int((time.time() + _left()) * 1000)
    for node_id, node in gcs.get_all_node_info().items():
        if node.node_manager_address == here:
            gcs.drain_node(node_id.hex(), reason, "its pod is taken away", deadline)


def runs_here() -> set[str]:
    """Return the URIs of the runs that have a process in this pod, which more than one may share."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if _RUN_URI in environment and environment.get("HOME") == os.environ.get("HOME"):
                found.add(environment[_RUN_URI])
    return found


def _leave(uri: str, role: str) -> None:
    with contextlib.suppress(RayliftError, RuntimeError):  # storage or Ray is gone: there is nobody left to tell
        leave(Run.at(uri), role)


def main(role: str) -> None:
    if (uri := os.environ.get(_RUN_URI)) is not None:
        _leave(uri, role)
    elif uris := runs_here():  # this pod is of a cluster with a name
        with ThreadPoolExecutor(len(uris)) as pool:
            list(pool.map(_leave, uris, [role] * len(uris)))


if __name__ == "__main__":
    main(sys.argv[1])
