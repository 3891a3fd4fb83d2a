"""How many trials run at once."""

import pytest

from trainers.sweep.room import Room, fit

NODE = {"CPU": 16.0, "GPU": 2.0, "memory": 1e9}


@pytest.mark.parametrize(
    ("workers", "gpus", "trials"),
    [
        (1, 0.0, 16),
        (3, 0.0, 4),
        (1, 1.0, 2),
        (1, 0.25, 8),
        (2, 1.0, 1),
        (3, 1.0, 0),
        (1, 0.3, 6),
        (1, 0.6, 2),
        (1, 0.4, 4),
    ],
)
def test_as_many_trials_run_as_fit_into_a_ray(workers: int, gpus: float, trials: int) -> None:
    """A trial of several workers has a process of its own beside them."""
    assert fit(NODE, workers, gpus) == trials


def test_a_job_file_limits_how_many_trials_run() -> None:
    assert Room(1, most=3).slots() == 3
    assert Room(2, most=5).slots() == 2
    assert Room(1, gpus=0.5, most=2).slots() == 4
    assert Room(1, gpus=0.6, most=2).slots() == 2


@pytest.mark.parametrize(
    ("room", "trials"),
    [
        (Room(2, most=6), 3),  # a Ray of our own has processors for them beside
        (Room(2, most=6, grows=True), 2),
        (Room(1, most=6, grows=True), 6),
        (Room(2, most=2, grows=True), 1),
        (Room(2, gpus=1.0, most=6, grows=True), 3),
    ],
)
def test_on_a_ray_of_others_the_process_of_a_trial_of_several_workers_counts_unless_these_have_gpus(
    room: Room, trials: int
) -> None:
    assert room.slots() == trials


def test_where_nodes_may_come_one_more_trial_of_one_worker_waits_than_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: NODE)
    assert Room(1).slots() == 16
    assert Room(1, grows=True).slots() == 17
    assert Room(3, grows=True).slots() == 4, "one without room for its workers would only wait"
    assert Room(20, grows=True).slots() == 1


@pytest.mark.parametrize(
    ("room", "full"),
    [
        (Room(1), True),
        (Room(1, most=16), True),
        (Room(1, most=15), False),
        (Room(1, gpus=1.0, most=2), True),
        (Room(1, gpus=0.5, most=1), False),
        (Room(1, grows=True), False),
        (Room(2), False),
    ],
)
def test_one_trial_more_waits_where_it_neither_runs_nor_takes_room(
    monkeypatch: pytest.MonkeyPatch, room: Room, full: bool
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: NODE)
    assert room.is_full is full


@pytest.mark.parametrize(
    ("gpus", "nodes", "threads"),
    [
        (1.0, [{"CPU": 4.0}, {"CPU": 64.0, "GPU": 8.0}], 8),
        (0.5, [{"CPU": 64.0, "GPU": 8.0}], 4),
        (0.4, [{"CPU": 64.0, "GPU": 8.0}], 4),
        (1.0, [{"CPU": 64.0, "GPU": 8.0}, {"CPU": 6.0, "GPU": 2.0}], 3),
        (1.0, [{"GPU": 8.0}], 1),
        (1.0, [{"CPU": 4.0}], None),
    ],
)
def test_workers_with_gpus_share_the_processors_of_their_own_machine(
    monkeypatch: pytest.MonkeyPatch, gpus: float, nodes: list[dict[str, float]], threads: int | None
) -> None:
    gone = {"Alive": False, "Resources": {"CPU": 1.0, "GPU": 1.0}}
    monkeypatch.setattr("ray.nodes", lambda: [gone, *({"Alive": True, "Resources": each} for each in nodes)])
    assert Room(1, gpus=gpus, grows=True).threads() == threads


def test_a_trial_sets_aside_what_its_one_worker_takes() -> None:
    assert Room(1).resources == {"CPU": 1.0}
    assert Room(1, gpus=0.25).resources["GPU"] == 0.25
    assert "GPU" not in Room(2, gpus=1.0).resources  # its workers take them
