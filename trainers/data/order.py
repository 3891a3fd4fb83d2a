"""Which samples a step sees: a function of (seed, epoch, step) alone, whatever the number of workers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class SampleOrder:
    """Every epoch visits each of `samples` once, in batches of `batch_size`; the last one may be smaller."""

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.samples // self.batch_size)

    def size(self, step: int) -> int:
        """Return how many samples the global batch of a step has."""
        return min(self.batch_size, self.samples - step % self.steps_per_epoch * self.batch_size)

    def batch(self, step: int) -> NDArray[np.int64]:
        """Return the samples of the global batch of a step; steps count from 0 over the whole run."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            key = np.random.SeedSequence([self.seed, epoch])
            self._order = np.random.Generator(np.random.Philox(key)).permutation(self.samples)
            self._epoch = epoch
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]


def share(batch: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """Return a rank's part of a global batch: contiguous, sizes differing by one at most, empty if need be."""
    start = len(batch) * rank // world_size
    return batch[start : len(batch) * (rank + 1) // world_size]


def largest_share(samples: int, world_size: int) -> int:
    """Return how many of a batch's samples the rank with most of them gets."""
    return -(-samples // world_size)
