"""With how many ranks a run starts, and when it pays to start again with more."""

from __future__ import annotations

import concurrent.futures
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
)
from ray.train.v2.api.config import ScalingConfig

from cluster.errors import InfrastructureError
from tests.harness import losses
from tests.trainers.training import EVERYTHING, Change, events, start, steps_of, train
from trainers import backend, elastic
from trainers.backend import Wait
from trainers.context import StopReason
from trainers.elastic import GIVEN_BACK, Growth, Room, pays, ranks_to_start, tell_room
from trainers.worker import Elastic

WAIT = Wait()


@pytest.mark.parametrize(
    ("free", "total", "waited", "ranks"),
    [
        ([1, 1], [1, 1], 0.0, 2),
        ([1], [1], 0.0, 1),
        ([8, 8], [8, 8], 0.0, 4),  # no more than asked for
        ([], [], 60.0, None),
        ([0, 0], [1, 1], 60.0, None),
        ([1, 0], [1, 1], 0.0, None),  # the ranks before have not given it back
        ([1, 0], [1, 1], GIVEN_BACK, 1),  # others hold it
        ([4, 2], [4, 4], 0.0, 4),  # they may: there is enough beside
    ],
)
def test_a_start_takes_what_is_free_and_waits_a_moment_for_what_is_given_back(
    free: list[int], total: list[int], waited: float, ranks: int | None
) -> None:
    rooms = [Room(str(index), *counts) for index, counts in enumerate(zip(free, total, strict=True))]
    assert ranks_to_start(rooms, 1, 4, waited) == ranks


@pytest.mark.parametrize(
    ("changed", "worth"),
    [
        ({}, True),
        ({"room": 2}, False),
        ({"room": 1}, False),  # a node that goes away ends its ranks by itself
        ({"trained": 19.0}, False),  # not again so soon
        ({"left": 29.0}, False),  # not so shortly before the end
        ({"left": 46.0, "room": 3}, True),
        ({"left": 44.0, "room": 3}, False),  # the gain is not there
    ],
)
def test_more_ranks_pay_where_they_save_more_than_a_start_costs(changed: dict[str, Any], worth: bool) -> None:
    usual = {"ranks": 2, "room": 4, "trained": 20.0, "left": 31.0, "cost": 10.0}
    assert pays(**{**usual, **changed}) is worth


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A clock that a test moves, for both of Python's."""
    now = SimpleNamespace(at=1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: now.at)
    monkeypatch.setattr(time, "time", lambda: now.at)
    monkeypatch.setattr(elastic, "_room", None)
    return now


def grown_to(growth: Growth, clock: SimpleNamespace, step: int, *, pace: float = 1.0, first: int = 0) -> None:
    for number in range(first + 1, step + 1):
        clock.at += pace
        growth.after(number)


def test_rank_0_wants_more_when_it_has_trained_long_enough_and_was_told_of_room(clock: SimpleNamespace) -> None:
    growth = Growth(1, last_step=200, began=clock.at - 9)
    grown_to(growth, clock, 15)
    tell_room(2)
    assert growth.wanted() is None, "these ranks took 10 s to start"
    grown_to(growth, clock, 21, first=15)
    assert growth.wanted() == 2


def test_rank_0_wants_none_without_room_nor_when_it_is_gone_again(clock: SimpleNamespace) -> None:
    growth = Growth(1, last_step=200, began=clock.at)
    grown_to(growth, clock, 60)
    assert growth.wanted() is None
    tell_room(2)
    assert growth.wanted() == 2
    tell_room(1)
    assert growth.wanted() is None


def test_rank_0_wants_none_shortly_before_the_end(clock: SimpleNamespace) -> None:
    growth = Growth(1, last_step=200, began=clock.at)
    tell_room(2)
    grown_to(growth, clock, 186)
    assert growth.wanted() is None


# -- what a rank makes of it


@pytest.mark.usefixtures("one_thread")
def test_a_rank_that_wants_more_saves_and_ends_and_the_next_go_on_as_if_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seldom: Change = {"checkpoint": {"every": "1000 epochs"}}
    whole, run = start(tmp_path, EVERYTHING, seldom, run_id="whole"), start(tmp_path, EVERYTHING, seldom)
    train(whole)
    with monkeypatch.context() as patch:
        patch.setattr(elastic, "_APART", 0.0)
        patch.setattr(elastic, "_GAIN", 0.0)
        patch.setattr(elastic, "_room", 4)
        assert train(run, Elastic(time.time(), ranks_before=None)).stopped is StopReason.RESIZE
    assert run.result() is None
    (resizing,) = events(run, "resizing")
    saved = resizing["step"]
    assert (resizing["from"], resizing["to"]) == (1, 4)
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [saved] == steps_of(run)[-1:]
    train(run, Elastic(time.time(), ranks_before=4))
    (resized,) = events(run, "resized")
    assert (resized["from"], resized["to"], resized["step"], resized["attempt"]) == (4, 1, saved, 2)
    assert losses(run) == losses(whole)


# -- Ray's policy


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> list[Room]:
    """The rooms that there are: a test changes them."""
    rooms: list[Room] = []

    def counted(_needs: object, own: dict[str, int]) -> list[Room]:
        return [Room(room.node, min(room.free + own.get(room.node, 0), room.total), room.total) for room in rooms]

    monkeypatch.setattr(backend, "_rooms", counted)
    monkeypatch.setattr(backend, "_PAUSE", 0.0)
    monkeypatch.setattr(ray, "nodes", list)
    return rooms


def policy(least: int, most: int, wait: Wait = WAIT) -> Any:
    scaling = ScalingConfig(num_workers=(least, most), elastic_resize_monitor_interval_s=5.0)
    wishing = backend._with_wishes(ElasticScalingPolicy(scaling), wait)
    wishing._maybe_send_resource_request = lambda: None
    return wishing


class Ranks:
    """A worker group that runs, and what rank 0 was told."""

    def __init__(self, *nodes: str) -> None:
        self.told: list[int] = []
        self.start_time = 0.0
        self.workers = [SimpleNamespace(metadata=SimpleNamespace(node_id=node)) for node in nodes]
        self.workers[0].execute_async = lambda _function, ranks: self.told.append(ranks)

    @property
    def num_workers(self) -> int:
        return len(self.workers)


def test_the_policy_can_be_sent_to_rays_controller() -> None:
    assert ray.cloudpickle.loads(ray.cloudpickle.dumps(policy(1, 4))).scaling_config.max_workers == 4


def test_an_attempt_starts_on_the_nodes_that_answer(rooms: list[Room]) -> None:
    rooms += [Room("a", 1, 1), Room("b", 1, 1)]
    wishing = policy(1, 4)
    decision = wishing.make_decision_for_non_running_worker_group()
    assert isinstance(decision, ResizeDecision)
    assert decision.num_workers == 2
    assert wishing.on_controller_start_worker_group(scaling_config=None, num_workers=2) == {"ray.io/node-id": "in(a,b)"}


def test_an_attempt_that_finds_no_room_waits_for_it_and_then_leaves_that_to_the_driver(
    rooms: list[Room], clock: SimpleNamespace
) -> None:
    rooms.append(Room("a", 1, 1))
    wishing = policy(2, 4)
    assert isinstance(wishing.make_decision_for_non_running_worker_group(), NoopDecision)
    clock.at += WAIT.seconds + 1
    with pytest.raises(InfrastructureError, match="no room any more for the 2 workers that it needs"):
        wishing.make_decision_for_non_running_worker_group()


def test_an_attempt_whose_caller_is_patient_waits_longer_but_no_longer_than_it_is_wanted(
    rooms: list[Room], clock: SimpleNamespace
) -> None:
    rooms.append(Room("a", 1, 1))
    over = threading.Event()
    wishing = policy(2, 2, Wait(1800.0, over.is_set))
    for _ in range(3):
        assert isinstance(wishing.make_decision_for_non_running_worker_group(), NoopDecision)
        clock.at += 590.0
    over.set()
    with pytest.raises(InfrastructureError, match="nobody waits any more"):
        wishing.make_decision_for_non_running_worker_group()


def test_ranks_that_run_are_told_of_room_that_stays_and_never_resized(
    rooms: list[Room], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = SimpleNamespace(at=100.0)
    monkeypatch.setattr(
        "ray.train.v2._internal.execution.scaling_policy.elastic.time_monotonic", lambda: now.at
    )  # Ray's name for it there
    rooms.append(Room("a", 0, 1))
    wishing, ranks = policy(1, 4), Ranks("a")

    def look(seconds: float = 6.0) -> list[int]:
        now.at += seconds
        assert isinstance(wishing.make_decision_for_running_worker_group(ranks, None), NoopDecision)
        return ranks.told

    assert look() == []
    assert look() == [1]
    rooms.append(Room("b", 1, 1))
    assert look() == [1], "one more may come"
    rooms.append(Room("c", 1, 1))
    assert look() == [1]
    assert look(1.0) == [1], "that was too soon for a look"
    assert look() == [1, 3]
    assert look() == [1, 3], "said once"
    del rooms[1:]
    look()
    assert look() == [1, 3, 1], "the room is gone again"


# -- a machine that is lost


class Cluster:
    """Nodes that are asked whether they are there, and the controller's looks at the ranks on them."""

    def __init__(self, clock: SimpleNamespace, *nodes: str) -> None:
        self.gone: set[str] = set()
        self._clock = clock
        self._nodes = nodes
        self._wishing = policy(len(nodes), len(nodes))
        self._ranks = Ranks(*nodes)

    def nodes(self) -> list[dict[str, str]]:
        return [{"NodeID": node} for node in [*dict.fromkeys(self._nodes), "of others"]]

    def answers(self, node: dict[str, str], _timeout: float) -> bool:
        assert node["NodeID"] in self._nodes
        return node["NodeID"] not in self.gone

    def look(self, times: int = 1) -> None:
        """Let each node be asked so often, and its answers be heard; raises what a controller does."""
        for _ in range(times):
            self.look_only()
            self.hear()
            self._decide()

    def look_only(self) -> None:
        self._clock.at += backend._ASK
        self._decide()

    def hear(self) -> None:
        concurrent.futures.wait(self._wishing._reach._asked.values(), timeout=20)

    def _decide(self) -> None:
        self._wishing.make_decision_for_running_worker_group(self._ranks, None)


@pytest.fixture
def four_ranks(rooms: list[Room], clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Two machines, of two ranks each, with room for no more."""
    rooms += [Room("a", 0, 2), Room("b", 0, 2)]
    cluster = Cluster(clock, "a", "a", "b", "b")
    monkeypatch.setattr(ray, "nodes", cluster.nodes)
    monkeypatch.setattr(backend, "_answers", cluster.answers)
    return cluster


def test_a_machine_that_misses_three_times_in_a_row_is_lost_with_its_ranks(four_ranks: Cluster) -> None:
    four_ranks.look(5)
    four_ranks.gone.add("b")
    four_ranks.look(2)
    four_ranks.gone.clear()
    four_ranks.look()
    four_ranks.gone.add("b")
    four_ranks.look(2)
    with pytest.raises(InfrastructureError, match="rank 2 no longer answers: its machine is off, or cut off from this"):
        four_ranks.look()


def test_where_no_machine_answers_the_ranks_are_left_to_train(four_ranks: Cluster) -> None:
    four_ranks.gone |= {"a", "b"}
    four_ranks.look(5)
    four_ranks.gone.remove("a")
    with pytest.raises(InfrastructureError, match="rank 2 no longer answers"):
        four_ranks.look()


def test_a_machine_that_takes_long_to_answer_holds_up_no_look_and_is_asked_once(
    four_ranks: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    is_over = threading.Event()

    def slow(node: dict[str, str], _timeout: float) -> bool:
        asked.append(node["NodeID"])
        return is_over.wait(20)

    monkeypatch.setattr(backend, "_answers", slow)
    for _ in range(5):
        four_ranks.look_only()
    is_over.set()
    four_ranks.hear()
    assert sorted(asked) == ["a", "b"]


def test_a_machine_answers_though_its_raylet_has_no_time_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listens:
        raylet = {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": listens.getsockname()[1]}
        assert backend._answers(raylet)
    assert not backend._answers(raylet)
