"""How this process holds its memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import resource
import sys
from functools import cache
from pathlib import Path

import psutil

from cluster.errors import InfrastructureError

_GROUP = Path("/sys/fs/cgroup")  # of this container, as it sees it
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt, from glibc's malloc.h
_POPULATE_WRITE = 23  # advice of madvise, from Linux's mman.h
_KEPT = 256 << 20  # bytes that stay with the process when they are freed
_WORTH_IT = 1 << 20  # bytes
_LARGEST = 32 << 20  # bytes of a block that is reused at all; glibc takes no more


def keep_freed_memory() -> bool:
    """Let the allocator keep what a training step frees for the next one; return whether it can.

    By default glibc hands the memory back after every step, and the next one pays for each page again: a quarter of
    the CNN's time on a CPU. Holds for the whole process, best called before anything large is made.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT) and mallopt(_MMAP_THRESHOLD, _LARGEST))


def let_go(*, failed: bool) -> None:
    """Free what a training that is over held, where another one follows in this process, or on the same GPU.

    An exception that was raised again holds all that its frames do, and itself: only the collector, which takes a tenth
    of a second, frees that. Raises InfrastructureError where the GPU takes no more orders from this process.
    """
    import torch

    on_gpu = torch.cuda.is_initialized()
    if failed or on_gpu:
        gc.collect()
    if on_gpu:
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        except RuntimeError as error:  # after an assertion on the device, whose trial has failed
            raise InfrastructureError(f"the GPU takes nothing more from this process: {error}") from error


def make_pages(memory: memoryview) -> None:
    """Make all pages of new memory at once, where Linux does, from 5.14 on; what is in it stays.

    One by one, where each is first written to, they take a third longer.
    """
    if sys.platform != "linux" or memory.nbytes < _WORTH_IT:
        return
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + memory.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    # where it cannot, they come one by one
    _libc().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _POPULATE_WRITE)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def available_memory() -> int:
    """Return how many bytes can still be had, on this machine and in the container that we are in."""
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # a container without a limit says "max"
        limit, held = (int((_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        free = min(free, limit - held + int(stat.get("inactive_file", 0)))  # what is cached of files is given back
    return free


def peak_memory() -> int:
    """Return the most memory that this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def held_on_gpu() -> str:
    """Say how much of this process's GPU its tensors have held, for a message."""
    import torch

    held = f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    if not torch.cuda.is_initialized():
        return held
    there = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"{held} of the {there.total_memory / 1e9:.1f} GB of an {there.name}"
