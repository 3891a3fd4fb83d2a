"""The driver of a run, as whoever submits jobs to a Ray cluster starts it.

    RAYLIFT_RUN_URI=s3://… python -P -m trainers.submitted

Ends with 0 once the run has a result in storage, whatever it is: KubeRay starts a job that failed again, on a new
cluster, and that would change no result. Only a driver that was lost is to be started again; one that is told to
leave waits for the end of its pod, as KubeRay counts an exit for a failure. An image that does not suit the run is its
end too.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version

from cluster import code
from cluster.config import LocalCluster
from cluster.errors import RayliftError, UsageError
from cluster.kubernetes.versions import PYTHON, RAY_VERSION, TORCH
from cluster.local import FINAL, PREEMPTED
from cluster.records import Result
from cluster.runs import Run
from trainers.main import claim_first, driver_of

_END_OF_POD = 60.0  # seconds; it comes at once, unless somebody else has told the driver to leave


def main() -> int:
    run = Run.at(os.environ["RAYLIFT_RUN_URI"])
    try:
        _check_image()
        driver = driver_of(run)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        claim_first(run).finish(Result(state="FAILED", message=str(error), exit_code=error.exit_code))
        return 0
    exit_code = driver.drive()
    if exit_code == PREEMPTED:
        time.sleep(_END_OF_POD)
    return 0 if exit_code in FINAL and run.result() is not None else exit_code


def _check_image() -> None:
    """Raise UsageError where this image does not have what the run was launched for: raylift, Ray, Python and torch."""
    import ray

    if os.environ.get(code.DIGEST, code.digest()) != code.digest():
        raise UsageError(
            "cluster.image: it has another raylift than the machine that launched this run. Build it anew from the "
            "same checkout (k8s/Dockerfile), under a tag of its own, as nodes keep what they have pulled"
        )
    if ray.__version__ != RAY_VERSION:
        raise UsageError(f"cluster.image: it has Ray {ray.__version__}, and this raylift is made for {RAY_VERSION}")
    _require("Python", platform.python_version(), PYTHON)
    try:
        torch = version("torch")
    except PackageNotFoundError as error:
        raise UsageError("cluster.image: it has no torch") from error
    _require("torch", torch, TORCH)
    cluster = LocalCluster.model_validate_json(os.environ.get("RAYLIFT_CLUSTER", "{}"))
    if cluster.accelerators is not None and torch.endswith("+cpu"):
        raise UsageError(f"cluster.image: its torch {torch} is for processors alone, and the job asks for accelerators")


def _require(name: str, found: str, bounds: tuple[tuple[int, int], tuple[int, int]]) -> None:
    least, below = bounds
    major, minor = (int(part) for part in found.split(".")[:2])
    if not least <= (major, minor) < below:
        raise UsageError(
            f"cluster.image: it has {name} {found}, and this raylift needs {least[0]}.{least[1]} or newer, "
            f"and older than {below[0]}.{below[1]}"
        )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RayliftError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
