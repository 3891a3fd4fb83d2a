"""When processes are started that stand by for the next attempt."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from tests.harness import wait_for
from trainers import backend, spares
from trainers.spares import standing_by


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the counts of the spares that were asked for."""
    counts: list[int] = []
    monkeypatch.setattr(backend, "start_spares", counts.append)
    monkeypatch.setattr(spares, "AFTER", 0.01)
    monkeypatch.setattr(spares, "_AFTER_A_RESTART", 0.01)
    return counts


@pytest.mark.parametrize("attempt", [1, 2])
def test_each_rank_of_a_machine_gets_a_spare(started: list[int], attempt: int) -> None:
    with standing_by(2, attempt=attempt):
        wait_for(lambda: started, "the spares", timeout=10)
    assert started == [2]


def test_an_attempt_that_is_over_before_asks_for_none(started: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares, "AFTER", 0.2)
    with standing_by(2, attempt=1), pytest.raises(AssertionError, match="in vain"):
        wait_for(lambda: started, "the spares", timeout=0.05)
    with pytest.raises(AssertionError, match="in vain"):
        wait_for(lambda: started, "the spares", timeout=0.4)


def test_a_rank_that_is_not_its_machines_first_asks_for_none(started: list[int]) -> None:
    with standing_by(0, attempt=2), pytest.raises(AssertionError, match="in vain"):
        wait_for(lambda: started, "the spares", timeout=0.3)


def test_where_memory_is_short_there_are_none(started: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    free = 2 * spares._MEMORY - 1
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    spares._start_spares(2)
    assert started == []
    spares._start_spares(1)
    assert started == [1]


def test_a_ray_that_can_start_none_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_count: int) -> None:
        raise AttributeError("PrestartWorkersRequest")

    monkeypatch.setattr(backend, "start_spares", refuse)
    monkeypatch.setattr(backend, "start_first_ranks", refuse)
    spares._start_spares(1)
    spares.start_first_ranks(1)
