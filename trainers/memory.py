"""How this process holds its memory."""

from __future__ import annotations

import ctypes
import resource
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt, from glibc's malloc.h
_KEPT = 256 << 20  # bytes that stay with the process when they are freed
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


def peak_memory() -> int:
    """Return the most memory that this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
