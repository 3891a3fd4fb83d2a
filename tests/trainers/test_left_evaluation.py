"""A run that is told to end in the midst of an evaluation leaves it, saves, and makes up for it when it goes on."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.errors import InfrastructureError, PreemptedError
from cluster.runs import Run
from cluster.selection import best_of
from launcher.verdict import compare
from tests.harness import environment, losses, wait_for
from tests.trainers.given import Given
from tests.trainers.noticed import SMALL_BATCHES, disturb
from tests.trainers.test_trial import Sweep
from tests.trainers.training import Change, events, of_torchrun, start, steps_of, train
from trainers.context import StopReason
from trainers.loop import Trainer
from trainers.parallel import Agreement
from trainers.pulse import Phase, Pulse, read

pytestmark = pytest.mark.usefixtures("one_thread")
EVERY, LAST, BATCHES = 3, 12, 5  # steps between evaluations, and in all; batches of an evaluation
JOB: Change = {"train": {"batch_size": SMALL_BATCHES, "max_steps": LAST, "eval_every": f"{EVERY} steps"}}
NOWHERE = (-1, -1, -1)


def undisturbed(folder: Path, *changes: Change) -> Run:
    run = start(folder, JOB, *changes, run_id="whole")
    with pytest.MonkeyPatch.context() as patch:
        disturb(patch, NOWHERE, lambda _: None)
        train(run)
    return run


def leave(run: Run, step: int, batch: int, given: Given) -> None:
    """Run an attempt that is told at a batch of the evaluation of a step, and leaves then."""
    with pytest.MonkeyPatch.context() as patch:
        disturb(patch, (0, step, batch), lambda _: given.set())
        with pytest.raises(PreemptedError, match=f"saved at step {step}$"):
            train(run)
    given.clear()


def go_on(run: Run) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        disturb(patch, NOWHERE, lambda _: None)
        return train(run)


def assert_the_same(run: Run, whole: Run) -> None:
    """Fail where a run computed, wrote down or saved something else, or said so more or less than once."""
    assert steps_of(run, "eval") == steps_of(whole, "eval")
    assert losses(run) == losses(whole)
    assert compare(whole, run).equal
    measured, expected = ({one.step: one.info["metrics"] for one in each.checkpoints()} for each in (run, whole))
    assert measured == expected
    best, expected_best = best_of(run.checkpoints()), best_of(whole.checkpoints())
    assert best is not None
    assert expected_best is not None
    assert best.step == expected_best.step
    for checkpoint in run.checkpoints():
        run.verify(checkpoint)
    result, expected_result = run.result(), whole.result()
    assert result is not None
    assert expected_result is not None
    assert (result.state, result.step, result.message) == (
        expected_result.state,
        expected_result.step,
        expected_result.message,
    )
    assert result.metrics.items() - {("loss", result.metrics.get("loss"))} <= expected_result.metrics.items()


@pytest.mark.parametrize(("step", "batch"), [(EVERY, 0), (2 * EVERY, BATCHES // 2), (LAST, BATCHES - 1)])
def test_an_evaluation_that_was_left_is_done_once_and_before_all_else(
    tmp_path: Path, given: Given, step: int, batch: int
) -> None:
    whole, run = undisturbed(tmp_path), start(tmp_path, JOB)
    leave(run, step, batch, given)
    assert step not in steps_of(run, "eval")
    assert run.checkpoints()[-1].step == step
    assert [row["step"] for row in events(run, "preempted")] == [step]
    go_on(run)
    assert_the_same(run, whole)


def test_an_evaluation_can_be_left_again(tmp_path: Path, given: Given) -> None:
    whole, run = undisturbed(tmp_path), start(tmp_path, JOB)
    for _ in range(2):
        leave(run, EVERY, 2, given)
    go_on(run)
    assert len(run.attempts()) == 3
    assert_the_same(run, whole)


def test_a_run_that_dies_after_what_it_made_up_for_does_so_again_and_counts_it_once(
    tmp_path: Path, given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = undisturbed(tmp_path), start(tmp_path, JOB)
    leave(run, EVERY, 2, given)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", _runs_out_of_memory)
        with pytest.raises(InfrastructureError):
            go_on(run)
    assert [row["step"] for row in run.rows_of(2, "metrics")] == [EVERY]
    go_on(run)
    assert next(row["step"] for row in run.rows_of(3, "metrics") if row["kind"] == "eval") == EVERY
    assert_the_same(run, whole)


def _runs_out_of_memory(*_: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("step", [2 * EVERY, LAST], ids=["that ends it", "of the last step"])
def test_early_stopping_counts_an_evaluation_that_was_left(tmp_path: Path, given: Given, step: int) -> None:
    patience = step // EVERY - 1
    stopping: Change = {"train": {"early_stopping": {"metric": "eval_loss", "patience": patience, "min_delta": 100.0}}}
    whole, run = undisturbed(tmp_path, stopping), start(tmp_path, JOB, stopping)
    leave(run, step, 1, given)
    go_on(run)
    assert steps_of(run)[-1] == step
    assert_the_same(run, whole)


def test_a_persons_stop_is_heard_in_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, run = undisturbed(tmp_path), start(tmp_path, JOB)

    def stop(trainer: Trainer) -> None:
        run.request_stop("enough")
        wait_for(trainer.control.urgent_stop, "the wish to be heard")

    with monkeypatch.context() as patch:
        patch.setattr("trainers.control._POLL", 0.05)
        disturb(patch, (0, EVERY, 2), stop)
        train(run)
    result = run.result()
    assert result is not None
    assert (result.state, result.exit_code, result.message) == ("STOPPED", 4, f"enough; saved at step {EVERY}")
    run.withdraw_stop()
    go_on(run)
    assert_the_same(run, whole)


def test_a_trial_that_leaves_an_evaluation_tells_of_it_once(tmp_path: Path, given: Given) -> None:
    sweep = Sweep(tmp_path, JOB)
    with pytest.MonkeyPatch.context() as patch:
        disturb(patch, (0, 2 * EVERY, 2), lambda _: given.set())
        told = sweep.train_to_the_end()
    given.clear()
    with pytest.MonkeyPatch.context() as patch:
        disturb(patch, NOWHERE, lambda _: None)
        told += sweep.train_to_the_end()
        train(sweep.alone)
    assert [(news.iteration, news.step, news.state) for news in told] == [
        (1, EVERY, ""),
        (1, 0, "PREEMPTED"),
        (2, 2 * EVERY, ""),
        (3, 3 * EVERY, ""),
        (4, LAST, "SUCCEEDED"),
    ]
    assert losses(sweep.trial) == losses(sweep.alone)


# -- several ranks


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_all_ranks_leave_an_evaluation_at_the_same_batch(tmp_path: Path, parallel: str) -> None:
    two: Change = {"train": {"parallel": parallel}}
    whole, run = start(tmp_path, JOB, two, run_id="whole"), start(tmp_path, JOB, two)
    _train_two(whole, NOWHERE)
    _train_two(run, (1, EVERY, 1), code=1)
    assert [one.step for one in run.checkpoints()][-1] == EVERY
    assert EVERY not in steps_of(run, "eval")
    _train_two(run, NOWHERE)
    assert_the_same(run, whole)


def _train_two(run: Run, at: tuple[int, int, int], code: int = 0) -> None:
    command = [*of_torchrun(run, 2, "tests.trainers.noticed"), *map(str, at)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment(), check=False)
    assert done.returncode == code, done.stderr[-3000:]


def test_ranks_ask_each_other_before_the_first_batch_and_then_about_once_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two ranks that are alike: each sum of both is twice one's."""
    now, asked = [0.0], list[float]()

    def all_reduce(sums: torch.Tensor) -> None:
        asked.append(now[0])
        sums.mul_(2)

    monkeypatch.setattr("trainers.parallel.time.monotonic", lambda: now[0])
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    pulse = Pulse(0)
    agreement = Agreement(2, torch.device("cpu"), None, pulse)
    for _ in range(60):
        assert agreement.ask(None) is None
        now[0] += 0.1
    assert asked[:5] == pytest.approx([0.0, 0.1, 0.3, 0.7, 1.5])
    assert asked[5:] == pytest.approx([2.5, 3.5, 4.5, 5.5])
    pulse.close()


def test_a_rank_alone_shows_once_a_second_that_its_evaluation_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = [0.0]
    monkeypatch.setattr("trainers.parallel.time.monotonic", lambda: now[0])
    pulse = Pulse(0, tmp_path)
    pulse.enter(Phase.EVALUATING)
    agreement, shown = Agreement(1, torch.device("cpu"), None, pulse), []
    for batch in range(60):
        wish = StopReason.PERSON if batch == 59 else None
        assert agreement.ask(wish) is wish
        found = read(tmp_path / "rank-0")
        assert found is not None
        shown.append(found.entries)
        now[0] += 0.1
    assert 4 <= len({*shown}) - 1 <= 6, "that many times in six seconds, and not before each batch"
    pulse.close()
