"""trainers/memory.py: freed memory is used again, and new memory is made at once."""

from __future__ import annotations

import mmap
import platform
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from trainers import memory

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


@pytest.mark.parametrize(
    ("limit", "free"),
    [("16000", 16000 - 9000 + 4000), ("max", 100_000), ("1000000", 100_000), (None, 100_000)],
    ids=["a pod's", "none", "more than there is", "no container"],
)
def test_what_a_container_may_still_take_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, free: int
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100_000))
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("9000\n")
        (tmp_path / "memory.stat").write_text("anon 5000\ninactive_file 4000\n")
    assert memory.available_memory() == free


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is the C library of Linux")
def test_what_a_step_frees_is_there_for_the_next_without_a_page_fault() -> None:
    assert page_faults("keep") < 100 < page_faults()


def makes_pages_at_once() -> bool:
    release = platform.release().split(".")
    return sys.platform == "linux" and (int(release[0]), int(release[1])) >= (5, 14)


@pytest.mark.skipif(not makes_pages_at_once(), reason="Linux does so from 5.14 on")
def test_new_memory_is_made_without_a_page_fault_for_each_page_and_old_memory_stays_as_it_is() -> None:
    with mmap.mmap(-1, 64 << 20) as mapped, memoryview(mapped) as view, view[100:-100] as inner:
        mapped[1000:1004] = b"here"
        memory.make_pages(inner)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for start in range(0, len(mapped), mmap.PAGESIZE):
            mapped[start] = 1
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        assert mapped[1000:1004] == b"here"
    assert faults < 1000 < (64 << 20) // mmap.PAGESIZE
