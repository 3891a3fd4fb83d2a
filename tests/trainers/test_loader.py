"""A rank's micro-batches of each step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainers.data.loader import Loader, split
from trainers.data.order import SampleOrder
from trainers.tasks.base import Draw

if TYPE_CHECKING:
    from trainers.tasks.base import Batch

SAMPLES, BATCH, SEED = 50, 16, 9  # the last batch of an epoch has 2 samples


class Numbers:
    """Samples that are their own numbers."""

    def __init__(self) -> None:
        self.draws: list[Draw] = []

    def __len__(self) -> int:
        return SAMPLES

    def batch(self, samples: NDArray[np.int64], draw: Draw | None) -> Batch:
        assert draw is not None
        self.draws.append(draw)
        return {"inputs": torch.from_numpy(samples.copy())}


def load(
    start: int, end: int, *, rank: int = 0, world_size: int = 1, micro: int | None = None, data: Numbers | None = None
) -> list[list[list[int]]]:
    """Return for each step its micro-batches' samples."""
    order = SampleOrder(SAMPLES, BATCH, SEED)
    device = torch.device("cpu")
    loader = Loader(data or Numbers(), order, rank=rank, world_size=world_size, micro_batch_size=micro, device=device)
    return [[batch["inputs"].tolist() for batch in loaded.batches] for loaded in loader.steps(start, end)]


def test_a_single_rank_gets_the_batches_of_the_order() -> None:
    order = SampleOrder(SAMPLES, BATCH, SEED)
    assert load(0, 8) == [[order.batch(step).tolist()] for step in range(8)]


def test_the_last_partial_batch_of_an_epoch_is_kept() -> None:
    assert [sum(map(len, step)) for step in load(0, 5)] == [16, 16, 16, 2, 16]


@pytest.mark.parametrize("micro", [None, 1, 3, 5, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_and_micro_batches_together_are_the_batch_in_its_order(world_size: int, micro: int | None) -> None:
    ranks = [load(0, 4, rank=rank, world_size=world_size, micro=micro) for rank in range(world_size)]
    for step in range(4):
        taken = [sample for rank in ranks for part in rank[step] for sample in part]
        assert taken == SampleOrder(SAMPLES, BATCH, SEED).batch(step).tolist()


@pytest.mark.parametrize("start", [1, 3, 4, 7])
def test_from_any_step_on_the_batches_are_those_of_an_undisturbed_run(start: int) -> None:
    assert load(start, 9) == load(0, 9)[start:]


def test_an_empty_share_is_one_empty_micro_batch() -> None:
    assert load(3, 4, rank=0, world_size=3, micro=4) == [[[]]]


def test_a_draw_names_the_epoch_and_the_whole_batch_on_every_rank() -> None:
    data = Numbers()
    load(3, 5, rank=1, world_size=2, data=data)
    batches = [SampleOrder(SAMPLES, BATCH, SEED).batch(step).tolist() for step in (3, 4)]
    assert [(draw.seed, draw.epoch, draw.batch.tolist()) for draw in data.draws] == [
        (SEED, 0, batches[0]),
        (SEED, 1, batches[1]),
    ]


@pytest.mark.parametrize(("samples", "size", "lengths"), [(10, 4, [4, 3, 3]), (8, 4, [4, 4]), (3, 4, [3]), (0, 4, [0])])
def test_micro_batches_are_even_and_never_too_large(samples: int, size: int, lengths: list[int]) -> None:
    assert [len(part) for part in split(np.arange(samples), size, samples)] == lengths


def test_every_rank_has_as_many_micro_batches_as_the_one_with_most_samples() -> None:
    counts = {rank: [len(part) for part in load(3, 4, rank=rank, world_size=3, micro=2)[0]] for rank in range(3)}
    assert len({len(lengths) for lengths in counts.values()}) == 1, counts
    assert [len(part) for part in split(np.arange(4), 4, 5)] == [2, 2]
    assert [len(part) for part in split(np.arange(0), 4, 5)] == [0, 0]


def test_nothing_is_left_to_load_at_the_end() -> None:
    assert load(9, 9) == []
