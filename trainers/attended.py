"""The driver of a run on a cluster with a name, started again where it is lost.

    python -P -m trainers.attended TICKET

On a cluster of the run's own KubeRay does that, and ends what outlasts its deadline; on one that others use too, it
does neither. The run's environment is that of its frozen job file. Ends as the driver does; see trainers.submitted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

from ruamel.yaml import YAML

from cluster.errors import RayliftError
from cluster.kubernetes.pods import RUN_URI
from cluster.local import PREEMPTED
from cluster.outages import UNREACHED, patient
from cluster.runs import Run
from cluster.ticket import VARIABLES, Ticket

_DRIVER = (sys.executable, "-P", "-m", "trainers.submitted")
_GRACE = 60.0  # seconds that a driver has to save when its time is over
_POLL = 0.5  # seconds


def attend(ticket: Ticket) -> int:
    """Run the driver until it ends as it should, as often as the ticket allows; return its last exit code.

    Raises RayliftError where the run's job file cannot be read.
    """
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    os.environ.update(ticket.variables)  # by which storage is found
    run = patient(Run.at(ticket.variables[RUN_URI]), seconds=UNREACHED * (ticket.max_failures + 1))
    variables = {**ticket.variables, **_environment(run)}
    env = {**os.environ, **variables, VARIABLES: ",".join(variables)}
    end = time.monotonic() + ticket.deadline if ticket.deadline is not None else float("inf")
    exit_code = 1
    for _ in range(ticket.max_failures + 1):
        driver = subprocess.Popen(_DRIVER, env=env)
        exit_code = _wait(driver, told, end)
        if exit_code in (0, PREEMPTED) or told or time.monotonic() > end:
            break
        print(f"the driver was lost (exit code {exit_code})", file=sys.stderr, flush=True)
    return exit_code if exit_code >= 0 else 128 - exit_code


def _environment(run: Run) -> Mapping[str, str]:
    document: Mapping[str, Mapping[str, str]] = YAML(typ="safe", pure=True).load(run.job())
    return document.get("env", {})


def _wait(driver: subprocess.Popen[bytes], told: list[int], end: float) -> int:
    """Return how the driver ended; it is asked to end once we are, or its time is over."""
    asked = None
    while (exit_code := driver.poll()) is None:
        now = time.monotonic()
        if asked is None and (told or now > end):
            asked = now
            if not told:
                print("it took longer than its budget allows, and did not end by itself", file=sys.stderr, flush=True)
            driver.terminate()
        if asked is not None and now - asked > _GRACE:
            driver.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(_POLL)
    return exit_code


if __name__ == "__main__":
    try:
        sys.exit(attend(Ticket.of(sys.argv[1])))
    except RayliftError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
