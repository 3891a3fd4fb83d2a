"""Random numbers as a pure function of what they are for: nothing is drawn in turn, so no order can change them.

The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014):
the value at position i of a stream is a bijective mix of its key plus i times an odd constant, which makes it
counter-based and lets numpy compute any part of any stream at once.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Keyed:
    """Streams of random numbers, one for each (seed, epoch, sample, operation)."""

    seed: int
    epoch: int
    samples: NDArray[np.int64] | NDArray[np.uint64]

    def uniform(self, operation: str, count: int = 1) -> NDArray[np.float64]:
        """Return [samples, count] numbers of [0, 1)."""
        return (self._bits(operation, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def spread(self, operation: str) -> NDArray[np.float64]:
        """Return one number of [-1, 1) a sample."""
        return self.uniform(operation)[:, 0] * 2 - 1

    def normal(self, operation: str, count: int) -> NDArray[np.float32]:
        """Return [samples, count] standard normal numbers, two from each 64 bits (Box and Muller, 1958)."""
        bits = self._bits(operation, -(-count // 2))
        above_zero = ((bits >> np.uint64(40)) + np.uint64(1)).astype(np.float32) * np.float32(2.0**-24)
        angle = (bits & np.uint64(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24 * 2 * np.pi)
        radius = np.sqrt(np.float32(-2) * np.log(above_zero))
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count]

    def order(self, operation: str) -> NDArray[np.int64]:
        """Return a permutation of the samples' positions."""
        return np.argsort(self._bits(operation, 1)[:, 0], kind="stable")

    def _bits(self, operation: str, count: int) -> NDArray[np.uint64]:
        name = f"{self.seed}/{self.epoch}/{operation}".encode()
        start = np.frombuffer(hashlib.blake2b(name, digest_size=8).digest(), dtype="<u8").astype(np.uint64)
        keys = _mix(start + (self.samples.astype(np.uint64) + np.uint64(1)) * _GAMMA)
        return _mix(keys[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GAMMA)


def fingerprint(samples: NDArray[np.int64]) -> int:
    """Return a number below 2^53 that tells which samples these are, whatever their order.

    Fingerprints of parts add up to that of the whole: it is the sum of 32 bits a sample, exact in a float64 for up to
    two million samples.
    """
    mixed: NDArray[np.uint64] = _mix((samples.astype(np.uint64) + np.uint64(1)) * _GAMMA) >> np.uint64(32)
    return int(mixed.sum())


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finish as SplitMix64 does (variant 13 of Stafford's mixers of MurmurHash3)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def beta(uniforms: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Turn numbers of [0, 1) into numbers of Beta(alpha, alpha), by the inverse of its distribution function."""
    cumulated, powers = _beta_table(alpha)
    lower = np.interp(np.minimum(uniforms, 1 - uniforms), cumulated, powers) ** (1 / min(alpha, 1.0))
    return np.where(uniforms < 0.5, lower, 1 - lower)


@functools.cache
def _beta_table(alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tabulate the lower half of the distribution function over t = x^min(alpha, 1), where its density is finite."""
    power = min(alpha, 1.0)
    t = np.linspace(0, 0.5**power, 8193)
    x = t ** (1 / power)
    density = (1 - x) ** (alpha - 1) if alpha < 1 else (4 * x * (1 - x)) ** (alpha - 1)
    cumulated = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return cumulated * (0.5 / cumulated[-1]), t
