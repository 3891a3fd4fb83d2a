"""A rank of torchrun to which something happens as it saves: python -m tests.trainers.meddled RUN_URI FOLDER [WHAT].

Each rank writes what it uploads into a file of its own in FOLDER. WHAT is `die:RANK:NAME`: the process of that rank
is killed just before it writes or uploads the first file of that name; or `refuse:RANK:NAME`: it may not, from now on.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cluster.errors import StorageDeniedError
from cluster.storage.open import open_storage
from tests.hooked import hooked
from trainers import checkpoint, worker

RANK = int(os.environ["RANK"])


def before(name: str, *arguments: Any) -> None:
    if name not in ("upload", "write"):
        return
    path = str(arguments[-1 if name == "upload" else 0])
    own = f"{RANK}:{path.partition('/checkpoints/')[2]}"
    if sys.argv[3:] == [f"die:{own}"]:
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[3:] == [f"refuse:{own}"]:
        raise StorageDeniedError(f"{path} may not be written")
    with (Path(sys.argv[2]) / f"rank-{RANK}").open("a") as file:
        file.write(path + "\n")


def main() -> int:
    if sys.argv[3:]:
        checkpoint._REFUSED = 0.0  # nobody mends it
    with patch("cluster.runs.open_storage", lambda root: hooked(open_storage(root), before=before)):
        return worker.main()


if __name__ == "__main__":
    worker.end_with(main)
