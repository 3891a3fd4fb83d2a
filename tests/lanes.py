"""Runs slow tests with a Ray one after the other, and all others beside them: python -m tests.lanes [options].

Two such tests at a time would starve each other on two processors; the others, and those that are marked as `waiting`,
mostly wait more than they compute.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence

import pytest

HEAVY = "slow and ray and not waiting"
_CODES = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)  # of a lane to which none of the chosen tests belongs


def run(arguments: Sequence[str]) -> int:
    """Run both lanes; what the second prints follows what the first does. Return an exit code of pytest's."""
    command = [sys.executable, "-m", "pytest", *arguments, "-m"]
    with tempfile.TemporaryFile("w+") as printed:
        others = subprocess.Popen([*command, f"not ({HEAVY})"], stdout=printed, stderr=subprocess.STDOUT)
        lanes = [subprocess.Popen([*command, HEAVY]), others]
        codes = [_code(lane) for lane in lanes]
        printed.seek(0)
        print(printed.read(), flush=True)
    failed = [code for code in codes if code not in _CODES]
    return max(failed) if failed else min(codes)


def _code(lane: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            return lane.wait()
        except KeyboardInterrupt:  # which it has heard too, and says what it has found
            continue


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
