"""Which samples a step sees, whatever the number of workers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.order import SampleOrder, share

SIZES = st.tuples(st.integers(1, 300), st.integers(1, 320), st.integers(0, 2**63 - 1))


@given(SIZES, st.integers(0, 3))
def test_every_epoch_visits_every_sample_once(sizes: tuple[int, int, int], epoch: int) -> None:
    order = SampleOrder(*sizes)
    first = epoch * order.steps_per_epoch
    seen = np.concatenate([order.batch(step) for step in range(first, first + order.steps_per_epoch)])
    assert sorted(seen) == list(range(sizes[0]))


@given(SIZES)
def test_all_batches_are_full_but_for_the_last_of_an_epoch(sizes: tuple[int, int, int]) -> None:
    order = SampleOrder(*sizes)
    lengths = [len(order.batch(step)) for step in range(order.steps_per_epoch)]
    assert lengths[:-1] == [order.batch_size] * (order.steps_per_epoch - 1)
    assert 1 <= lengths[-1] <= order.batch_size


@given(SIZES, st.lists(st.integers(0, 1000), min_size=1, max_size=8))
def test_a_steps_batch_does_not_depend_on_what_was_asked_before(sizes: tuple[int, int, int], steps: list[int]) -> None:
    order = SampleOrder(*sizes)
    for step in steps:
        assert order.batch(step).tolist() == SampleOrder(*sizes).batch(step).tolist()


def test_another_epoch_and_another_seed_are_other_orders() -> None:
    order, other = SampleOrder(100, 100, seed=1), SampleOrder(100, 100, seed=2)
    assert len({tuple(batch) for batch in (order.batch(0), order.batch(1), other.batch(0), other.batch(1))}) == 4


def test_the_order_is_the_same_on_every_machine_and_in_every_version() -> None:
    # a change here breaks the resume of runs that are under way
    assert SampleOrder(10, 4, seed=7).batch(3).tolist() == [2, 6, 3, 7]


@given(st.integers(0, 200), st.integers(1, 64))
def test_the_shares_of_all_ranks_are_the_batch_in_its_order(length: int, world_size: int) -> None:
    batch = np.arange(length)[::-1]
    shares = [share(batch, rank, world_size) for rank in range(world_size)]
    assert np.concatenate(shares).tolist() == batch.tolist()


@given(st.integers(0, 200), st.integers(1, 64))
def test_shares_differ_by_one_sample_at_most(length: int, world_size: int) -> None:
    lengths = [len(share(np.arange(length), rank, world_size)) for rank in range(world_size)]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("length", [0, 1, 2])
def test_where_ranks_outnumber_samples_some_shares_are_empty(length: int) -> None:
    lengths = [len(share(np.arange(length), rank, 3)) for rank in range(3)]
    assert sorted(lengths) == [0] * (3 - length) + [1] * length
