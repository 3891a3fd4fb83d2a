"""What a pod does before Kubernetes takes it away: it has the run save.

    RAYLIFT_RUN_URI=s3://… python -P -m trainers.leaving head|worker

A worker has Ray drain its node: the ranks on it tell the others, all save, and none is placed there again. With the
head go the driver and Ray, so the driver is asked to end, and tells all ranks. Returns once the save is done; a run
that is over, or that a person stops, is not waited for. Kubernetes ends the wait with the grace period of the pod.
The trials of a sweep go on elsewhere from their newest checkpoints.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil

from cluster.errors import RayliftError
from cluster.runs import Claim, Run
from trainers.jobs import load_job

_RUN_URI = "RAYLIFT_RUN_URI"
_POLL = 1.0  # seconds
_DEADLINE = 3600 * 1000  # ms that Ray is told a drained node has left; the grace period is shorter
_DRIVER = "trainers.submitted"


def leave(run: Run, role: str) -> None:
    """Tell the newest attempt that this pod goes, and wait until it has saved. Raises RayliftError."""
    claims = run.claims()
    if not claims or run.result() is not None or run.stop_reason() is not None:
        return
    if role == "head":
        driver = _driver(claims[-1])
        if driver is None:
            return
        driver.terminate()
        _wait(run, claims[-1].attempt, driver)
    else:
        _drain_this_node()
        if load_job(run)[1].get("tune") is None:
            _wait(run, claims[-1].attempt)


def _driver(claim: Claim) -> psutil.Process | None:
    """Return the driver of an attempt, if it runs in this pod."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(claim.pid)
        if _DRIVER in process.cmdline():
            return process
    return None


def _wait(run: Run, attempt: int, driver: psutil.Process | None = None) -> None:
    while not _has_left(run, attempt) and (driver is None or _is_alive(driver)):
        time.sleep(_POLL)


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _has_left(run: Run, attempt: int) -> bool:
    if run.attempts()[-1] > attempt or run.result() is not None or run.stop_reason() is not None:
        return True
    return any(row["event"] == "preempted" for row in run.rows_of(attempt, "events"))


def _drain_this_node() -> None:
    """Ask Ray to place nothing on this node, and to tell so to those that are there. Raises RuntimeError."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

    gcs, here = GcsClient(address=os.environ["RAY_ADDRESS"]), os.environ["RAYLIFT_NODE_IP"]
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    for node_id, node in gcs.get_all_node_info().items():
        if node.node_manager_address == here:
            gcs.drain_node(node_id.hex(), reason, "its pod is taken away", time.time_ns() // 10**6 + _DEADLINE)


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
