"""Runs slow tests with a Ray one after the other, and all others beside them: python -m tests.lanes [options].

Two such tests at a time would starve each other on two processors; the others, and those that are marked as `waiting`,
mostly wait more than they compute.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

HEAVY = "slow and ray and not waiting"
_CODES = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)  # of a lane to which none of the chosen tests belongs


def run(arguments: Sequence[str]) -> int:
    """Run both lanes; what the second prints follows what the first does. Return an exit code of pytest's."""
    command = [sys.executable, "-m", "pytest", *arguments, "-m"]
    with tempfile.NamedTemporaryFile() as printed:
        others = subprocess.Popen([*command, f"not ({HEAVY})"], stdout=printed, stderr=subprocess.STDOUT)
        codes = [_code(subprocess.Popen([*command, HEAVY])), _followed(others, Path(printed.name))]
    failed = [code for code in codes if code not in _CODES]
    return max(failed) if failed else min(codes)


def _code(lane: subprocess.Popen[bytes], timeout: float | None = None) -> int:
    while True:
        try:
            return lane.wait(timeout)
        except KeyboardInterrupt:  # which it has heard too, and says what it has found
            continue


def _followed(lane: subprocess.Popen[bytes], printed: Path) -> int:
    """Print what a lane has printed, and on as it prints more: whoever ends it before its end sees how far it came."""
    with printed.open("rb") as output:
        code = None
        while code is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = _code(lane, timeout=1)
            sys.stdout.buffer.write(output.read())
            sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
