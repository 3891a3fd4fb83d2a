"""A rank of torchrun that shares no memory with the others: python -m tests.trainers.unshared RUN_URI."""

from __future__ import annotations

from trainers import shared_memory, worker

if __name__ == "__main__":
    shared_memory.is_supported = lambda: False
    worker.end_with(worker.main)
