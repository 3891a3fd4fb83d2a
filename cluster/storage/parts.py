"""Objects, fetched in parallel parts where they are large."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from cluster.storage.base import Digest

Read = Callable[[int, int | None], bytes]  # from a first byte to, and without, a last one; None: to the end


def fetch(read: Read, target: Path, *, size: int, part_size: int, connections: int) -> Digest:
    """Write an object that should have `size` bytes into a new file, and return what it holds.

    It is hashed as it comes, which takes a second reading off the time; no more than two parts a connection are in
    memory. Raises what `read` does, and OSError.
    """
    hashed, found = hashlib.sha256(), 0
    with target.open("wb") as file, ThreadPoolExecutor(connections) as pool:

        def part(start: int) -> bytes:
            end = start + part_size
            data = read(start, end if end < size else None)  # the last part may be longer than it should be
            os.pwrite(file.fileno(), data, start)
            return data

        starts = iter(range(0, max(size, 1), part_size))
        coming = deque(pool.submit(part, start) for start in islice(starts, 2 * connections))
        while coming:
            data = coming.popleft().result()
            coming.extend(pool.submit(part, start) for start in islice(starts, 1))
            hashed.update(data)
            found += len(data)
    return Digest(found, hashed.hexdigest())
