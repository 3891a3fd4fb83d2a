"""The driver of a run on a cluster with a name, started again where it is lost.

    python -P -m trainers.attended TICKET

On a cluster of the run's own KubeRay does that, and ends what outlasts its deadline; on one that others use too, it
does neither. Ends as the driver does; see trainers.submitted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

from cluster.local import PREEMPTED
from cluster.ticket import VARIABLES, Ticket

_DRIVER = (sys.executable, "-P", "-m", "trainers.submitted")
_GRACE = 60.0  # seconds that a driver has to save when its time is over
_POLL = 0.5  # seconds


def attend(ticket: Ticket) -> int:
    """Run the driver until it ends as it should, as often as the ticket allows; return its last exit code."""
    env = {**os.environ, **ticket.variables, VARIABLES: ",".join(ticket.variables)}
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    end = time.monotonic() + ticket.deadline if ticket.deadline is not None else float("inf")
    exit_code = 1
    for _ in range(ticket.max_failures + 1):
        driver = subprocess.Popen(_DRIVER, env=env)
        exit_code = _wait(driver, told, end)
        if exit_code in (0, PREEMPTED) or told or time.monotonic() > end:
            break
        print(f"the driver was lost (exit code {exit_code})", file=sys.stderr, flush=True)
    return exit_code if exit_code >= 0 else 128 - exit_code


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
    sys.exit(attend(Ticket.of(sys.argv[1])))
