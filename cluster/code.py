"""What a run's machines must have: the same code as the machine that launched the run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

DIGEST = "RAYLIFT_CODE"  # the variable by which a run's machines are told
_PACKAGES = ("cluster", "trainers")  # what runs there


@cache
def digest() -> str:
    """Return a digest of our own modules as this process finds them, the same wherever they are installed."""
    found = hashlib.sha256()
    for name, data in files():
        found.update(f"{name} {len(data)}\n".encode() + data)
    return found.hexdigest()[:16]


def files() -> Iterator[tuple[str, bytes]]:
    """Yield the modules that run on a run's machines, each by its path below where they are installed."""
    root = Path(__file__).parents[1]
    for path in sorted(path for package in _PACKAGES for path in (root / package).rglob("*.py")):
        yield path.relative_to(root).as_posix(), path.read_bytes().replace(b"\r\n", b"\n")


if __name__ == "__main__":  # what an image has: compare it with what a laptop prints
    print(digest(), Path(__file__))
