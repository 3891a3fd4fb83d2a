"""trainers/memory.py: freed memory is used again."""

from __future__ import annotations

import subprocess
import sys

import pytest

STEPS = """
import resource, sys
from trainers.memory import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory()
def step():
    blocks = [bytes(1) * (3 << 20) for _ in range(6)]
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*arguments: str) -> int:
    command = [sys.executable, "-c", STEPS, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is the C library of Linux")
def test_what_a_step_frees_is_there_for_the_next_without_a_page_fault() -> None:
    assert page_faults("keep") < 100 < page_faults()
