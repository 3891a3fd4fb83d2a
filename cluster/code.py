"""What a run's machines must have: the same code as the machine that launched the run."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

DIGEST = "RAYLIFT_CODE"  # the variable by which a run's machines are told
_PACKAGES = ("cluster", "trainers")  # what runs there


@cache
def digest() -> str:
    """Return a digest of our own modules as this process finds them, the same wherever they are installed."""
    root = Path(__file__).parents[1]
    found = hashlib.sha256()
    for path in sorted(path for package in _PACKAGES for path in (root / package).rglob("*.py")):
        data = path.read_bytes().replace(b"\r\n", b"\n")
        found.update(f"{path.relative_to(root).as_posix()} {len(data)}\n".encode() + data)
    return found.hexdigest()[:16]
