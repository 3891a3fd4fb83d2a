"""Two runs of one job are the same, or the verdict says where they are not: resumes that are broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster.runs import Run
from cluster.storage.rehearsed import REHEARSAL
from launcher.verdict import TOLERANCE, compare
from tests.trainers.training import EVERYTHING, STEPS_PER_EPOCH, Change, cut_off, start, train, train_ranks
from trainers import loop, state
from trainers.data.order import SampleOrder
from trainers.optim import Schedule

CUT = STEPS_PER_EPOCH + 1
LAST = 3 * STEPS_PER_EPOCH
WITHOUT_DROPOUT: Change = {"train": {"epochs": 2, "schedule": {"name": "cosine", "warmup": 0.2}}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = start(tmp_path_factory.mktemp("whole"), EVERYTHING)
    train(run)
    return run


@pytest.fixture
def resumed(whole: Run, tmp_path: Path) -> Run:
    """Return a copy of the run that was cut off after a step, and has not gone on yet."""
    return cut_off(whole, CUT, tmp_path)


def test_a_run_that_was_resumed_is_equal_to_the_bit(whole: Run, resumed: Run) -> None:
    train(resumed)
    verdict = compare(whole, resumed)
    assert (verdict.equal, verdict.tolerance, verdict.steps) == (True, 0.0, LAST)
    assert str(verdict) == f"EQUAL: {LAST} steps, each on the same samples, all losses and metrics to the bit"


def test_what_was_done_again_is_counted(whole: Run, resumed: Run) -> None:
    train(resumed)
    assert compare(whole, resumed).repeated == LAST - CUT


def _skips_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = SampleOrder.batch

    def shorter(order: SampleOrder, step: int) -> NDArray[np.int64]:
        found = batch(order, step)
        return found[1:] if step == CUT else found

    monkeypatch.setattr(SampleOrder, "batch", shorter)


def _forgets_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "set_state", lambda *_: None)


def _is_a_step_late_in_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    factor = Schedule.factor
    monkeypatch.setattr(Schedule, "factor", lambda schedule, step: factor(schedule, max(0, step - 1)))


def _draws_other_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "DROPOUT", 77)


@pytest.mark.parametrize(
    ("breaks", "told"),
    [
        (_skips_a_sample, f"NOT EQUAL: step {CUT + 1}: "),
        (_forgets_the_optimizer, f"NOT EQUAL: step {CUT + 1}: "),
        (_is_a_step_late_in_the_schedule, f"NOT EQUAL: step {CUT + 1}: "),
        (_draws_other_dropout, f"NOT EQUAL: step {CUT + 1}: "),
    ],
)
def test_a_resume_that_is_broken_is_not_equal(
    whole: Run,
    resumed: Run,
    monkeypatch: pytest.MonkeyPatch,
    breaks: Callable[[pytest.MonkeyPatch], None],
    told: str,
) -> None:
    breaks(monkeypatch)
    train(resumed)
    verdict = compare(whole, resumed)
    assert not verdict.equal
    assert str(verdict).startswith(told)
    for tolerance in {*TOLERANCE.values()}:
        monkeypatch.setattr("launcher.verdict._tolerance", lambda _, tolerance=tolerance: tolerance)
        assert not compare(whole, resumed).equal


def test_a_rehearsal_tells_a_reset_optimizer_where_losses_are_within_the_tolerance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = start(tmp_path, EVERYTHING, {"train": {"optimizer": {"name": "adamw", "lr": 1e-6}}})
    train(whole)
    good, broken = cut_off(whole, CUT, tmp_path / "good"), cut_off(whole, CUT, tmp_path / "broken")
    monkeypatch.setattr("launcher.verdict._tolerance", lambda _: TOLERANCE["bf16"])
    monkeypatch.setenv(REHEARSAL, str(tmp_path))
    (tmp_path / "plan.json").write_text("{}")
    train(good)
    assert compare(whole, good).equal
    _forgets_the_optimizer(monkeypatch)
    train(broken)
    told = f"NOT EQUAL: step {CUT}: it did not go on with the weights and the optimizer state that were saved"
    assert str(compare(whole, broken)) == told


def test_other_samples_are_told_as_such(whole: Run, resumed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _skips_a_sample(monkeypatch)
    train(resumed)
    told = [difference.step for difference in compare(whole, resumed).differences if difference.what == "seen"]
    assert told == [CUT + 1]
    assert f"step {CUT + 1}: it saw other samples" in str(compare(whole, resumed))


def test_a_run_that_ended_early_lacks_steps(whole: Run, resumed: Run) -> None:
    verdict = compare(whole, resumed)
    assert verdict.equal, "cut off, but all of its rows are there"
    for entry in list(resumed.storage.list(resumed.path("attempts/000001/metrics/"))):
        resumed.storage.delete(entry.path)
    verdict = compare(whole, resumed)
    assert not verdict.equal
    assert "step 1: the number of its step rows is 0" in str(verdict)


def test_a_run_without_steps_is_equal_to_nothing(tmp_path: Path) -> None:
    run = start(tmp_path)
    assert str(compare(run, run)) == "NOT EQUAL: the run has no steps to compare"


def test_with_another_number_of_ranks_losses_may_differ_a_little_and_samples_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, other = (start(tmp_path, WITHOUT_DROPOUT, run_id=name) for name in ("one", "two", "other"))
    train(one)
    train_ranks(two, 2)
    verdict = compare(one, two)
    assert verdict.equal, str(verdict)
    assert verdict.tolerance == 1e-3
    _skips_a_sample(monkeypatch)
    train(other)
    assert not compare(two, other).equal
