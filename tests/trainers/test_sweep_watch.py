"""When a sweep stops."""

from pathlib import Path

import pytest

from cluster.attempts import Attempt
from tests.finished import new_run
from tests.harness import wait_for
from trainers.sweep import watch
from trainers.sweep.watch import Watch


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempt:
    monkeypatch.setattr(watch, "_POLL", 0.01)
    return new_run(tmp_path, "sweep").claim()


def test_a_sweep_stops_when_a_person_wants_it_to(attempt: Attempt) -> None:
    with Watch(attempt).looking() as looking:
        assert not looking.is_stopping
        attempt.run.request_stop("enough")
        wait_for(lambda: looking.is_stopping, "a stop", timeout=5)
    assert (looking.reason, looking.superseded) == ("enough", None)


def test_a_sweep_that_a_newer_attempt_has_taken_over_ends(attempt: Attempt) -> None:
    with Watch(attempt).looking() as looking:
        attempt.run.claim()
        wait_for(lambda: looking.is_stopping, "a stop", timeout=5)
    assert looking.superseded is not None
    assert looking.reason is None
