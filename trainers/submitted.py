"""The driver of a run, as whoever submits jobs to a Ray cluster starts it.

    RAYLIFT_RUN_URI=s3://… python -P -m trainers.submitted

Ends with 0 once the run has a result in storage, whatever it is: KubeRay starts a job that failed again, on a new
cluster, and that would change no result. Only a driver that was lost is to be started again; one that is told to
leave waits for the end of its pod, as KubeRay counts an exit for a failure.
"""

from __future__ import annotations

import os
import sys
import time

from cluster.errors import RayliftError
from cluster.local import FINAL, PREEMPTED
from cluster.runs import Run
from trainers.main import driver_of

_END_OF_POD = 60.0  # seconds; it comes at once, unless somebody else has told the driver to leave


def main() -> int:
    run = Run.at(os.environ["RAYLIFT_RUN_URI"])
    code = driver_of(run).drive()
    if code == PREEMPTED:
        time.sleep(_END_OF_POD)
    return 0 if code in FINAL and run.result() is not None else code


if __name__ == "__main__":
    try:
        code = main()
    except RayliftError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    sys.exit(code)
