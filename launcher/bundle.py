"""This raylift, and the versions of what it needs, as one archive that pods without it fetch out of storage.

It has what runs on a cluster, and nothing else of the checkout.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cluster
from cluster.bundles import Bundle, bundle_of
from cluster.code import files
from cluster.errors import InfrastructureError

_OF_CLUSTERS = ".raylift"  # in a storage; the name of no run


def bundle(run_id: str | None, *, on_gpus: bool) -> Bundle:
    """Return the bundle of a run, or of a cluster with a name. Raises InfrastructureError where there are no locks."""
    there = (*files(), ("requirements.lock", lock(on_gpus=on_gpus).encode()))
    return bundle_of(there, run_id if run_id is not None else _OF_CLUSTERS)


def lock(*, on_gpus: bool) -> str:
    """Return what is installed beside an image's Ray: on processors, what the locks of both have in common."""
    gpus, cpus = _lines("cuda.lock"), {*_lines("cpu.lock")}
    wanted = [line for line in gpus if (on_gpus or line in cpus) and not line.startswith("ray==")]
    return "".join(f"{line}\n" for line in wanted)


def _lines(name: str) -> list[str]:
    for folder in _folders():
        if (file := folder / "requirements" / name).is_file():
            return [line for line in file.read_text().splitlines() if line and not line.lstrip().startswith("#")]
    raise InfrastructureError(
        f"requirements/{name} is not installed with raylift: name an image with raylift in it, as cluster.image"
    )


def _folders() -> Iterator[Path]:
    """Yield where requirements/ is: in a checkout beside the packages, and else in this one."""
    yield Path(cluster.__path__[0]).parent
    yield Path(__file__).parent
