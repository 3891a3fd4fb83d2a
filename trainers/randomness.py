"""Randomness by key: what a number is drawn for decides it, never what was drawn before."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MODEL, DROPOUT, OWN, EVALUATION = 1, 2, 3, 4  # what a seed is for; data and augmentation have keys of their own


def seed_for(*key: int) -> int:
    """Return a 63-bit seed that is a function of the key's numbers."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_all(seed: int) -> None:
    """Seed what code of others may draw from on the CPU: torch, numpy and Python's own random."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    seed_generator(torch.device("cpu"), seed)


def seed_everything(device: torch.device, seed: int) -> None:
    """Seed what a task may draw from: the generators of the CPU and that of its device."""
    seed_all(seed)
    if device.type != "cpu":
        seed_generator(device, seed)


def seed_generator(device: torch.device, seed: int) -> None:
    """Seed a device's own generator. torch.manual_seed seeds all there are, and keeps a trace of every call."""
    import torch

    if device.type == "cuda":
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
