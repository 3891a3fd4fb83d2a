"""How many trials run at once: as many as there is room for, and no more than the job file allows."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import ray

_LITTLE = 0.01  # of a processor, where GPUs say how many trials there is room for
_LOOK = 5.0  # seconds between looks at a Ray that may grow


@dataclass
class Room:
    """What a trial takes of a Ray, and how often that is there."""

    workers: int  # of a trial
    gpus: float = 0.0  # of each worker
    most: int | None = None  # workers of all trials together; None: as many as there is room for
    grows: bool = False  # others' nodes come and go
    _seen: int = 0
    _looked: float = field(default=float("-inf"))

    @property
    def resources(self) -> dict[str, float]:
        """What Tune is to set aside for a trial; Ray Train sets aside the workers of a trial that has several."""
        if not self.gpus:
            return {"CPU": 1.0}
        return {"CPU": _LITTLE, **({"GPU": self.gpus} if self.workers == 1 else {})}

    @property
    def beside(self) -> int:
        """How many of the processors for workers the process takes that looks after a trial of several.

        Where there are GPUs, it takes none of them; a Ray of our own is started with processors for it.
        """
        return 1 if self.workers > 1 and self.grows and not self.gpus else 0

    def slots(self) -> int:
        """Return how many trials run at once.

        Where nodes may come, one of one worker more, as that is how Ray is asked for them; of several workers, it
        would hold a processor while these are missing.
        """
        if self.most is not None:
            return max(1, self.most * _on_each(self.gpus or 1.0) // (self.workers + self.beside))
        if time.monotonic() - self._looked > _LOOK:
            self._seen, self._looked = fit(ray.cluster_resources(), self.workers, self.gpus), time.monotonic()
        return self._seen + 1 if self.grows and self.workers == 1 else max(1, self._seen)

    def threads(self) -> int | None:
        """Return how many threads a worker with a GPU computes with: its part of the processors of its machine.

        Of machines that differ, the least; None where there is no GPU yet.
        """
        there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        shares = [
            node.get("CPU", 0.0) / (node["GPU"] * _on_each(self.gpus or 1.0)) for node in there if node.get("GPU")
        ]
        return max(1, int(min(shares))) if shares else None

    @property
    def is_full(self) -> bool:
        """Whether Ray keeps one trial more than `slots` waiting, and it costs those that run nothing.

        A Ray with room to spare would start it, one that grows add a node for it; and the process that looks after a
        trial of several workers would take the place of one of them.
        """
        return self.workers == 1 and not self.grows and fit(ray.cluster_resources(), 1, self.gpus) <= self.slots()


def fit(resources: dict[str, float], workers: int, gpus: float) -> int:
    """Return how many trials fit into a Ray of so much."""
    if gpus:
        return int(resources.get("GPU", 0.0)) * _on_each(gpus) // workers
    return int(resources.get("CPU", 0.0)) // (workers if workers == 1 else workers + 1)


def _on_each(share: float) -> int:
    """Return how many workers with such a share of a GPU there is room for on one: what is left of it is no room."""
    return int(1 / share + 1e-9)
