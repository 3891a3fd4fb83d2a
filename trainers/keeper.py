"""Has a cluster with a name end once no run has been on it for a while.

    python -P -m trainers.keeper SECONDS

It is a job of that cluster, and the cluster is made for it: once it ends, however it does, KubeRay takes the cluster
away. So the cluster outlives no laptop, and not its keeper either; no pod needs a right at the API server for it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from typing import Any

from cluster.kubernetes.named import KEEPER

_POLL = 5.0  # seconds
_PATIENCE = 10.0  # seconds for Ray to answer
_DASHBOARD = "127.0.0.1:8265"  # of the head, on which jobs run
_OVER = ("SUCCEEDED", "FAILED", "STOPPED")


def keep(idle: float, *, poll: float = _POLL) -> None:
    """Return once no other job has run for `idle` seconds. While Ray does not answer, that is not known."""
    last = time.monotonic()
    while time.monotonic() - last < idle:
        time.sleep(min(poll, idle))
        if is_busy():
            last = time.monotonic()
    print(f"no run for {idle:g} s: the cluster ends", flush=True)


def is_busy() -> bool:
    """Whether a job but this one has not ended, a person's own included."""
    try:
        jobs = _jobs()
    except (OSError, ValueError) as error:
        print(f"Ray does not say what runs: {error}", flush=True)
        return True
    return any(job["status"] not in _OVER and job["submission_id"] != KEEPER for job in jobs)


def _jobs() -> list[dict[str, Any]]:
    """Return the jobs of this Ray, submitted or not. Raises OSError, ValueError."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    # KubeRay's variable, of its submitters: set where the dashboard is not where Ray has it
    url = f"http://{os.environ.get('RAY_DASHBOARD_ADDRESS', _DASHBOARD)}/api/jobs/"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
        found: list[dict[str, Any]] = json.load(answer)
        return found


if __name__ == "__main__":
    keep(float(sys.argv[1]))
