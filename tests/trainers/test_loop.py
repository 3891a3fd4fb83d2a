"""The training loop on one rank: what it counts, writes down, saves, and when it ends."""

from __future__ import annotations

import math
import re
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.errors import InfrastructureError, TrainingError
from cluster.runs import Run
from cluster.storage.base import Digest
from cluster.storage.file import FileStorage
from cluster.storage.sources import Source
from tests.harness import wait_for
from tests.trainers.training import EVERYTHING, STEPS_PER_EPOCH, cut_off, events, start, steps_of, train
from trainers.checkpoint import Checkpointer
from trainers.config import Every
from trainers.context import LocalContext
from trainers.jobs import load_job
from trainers.loop import Outcome, Trainer
from trainers.pulse import Phase, Pulse, read
from trainers.tasks.registry import prepare
from trainers.worker import run_rank

pytestmark = pytest.mark.usefixtures("one_thread")
LAST = 3 * STEPS_PER_EPOCH
SGD = {"train": {"optimizer": {"name": "sgd", "lr": 0.05}}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = start(tmp_path_factory.mktemp("run"), SGD)
    train(run)
    return run


def values(run: Run, kind: str, name: str) -> list[float]:
    return [row[name] for row in run.rows("metrics") if row["kind"] == kind]


def saved(run: Run) -> list[int]:
    return [checkpoint.step for checkpoint in run.checkpoints()]


# -- what a step computes


def test_training_learns(tmp_path: Path) -> None:
    run = start(tmp_path, {"train": {"epochs": 12}})
    train(run)
    losses = values(run, "epoch", "train_loss")
    assert losses[0] > 2.0
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("micro", [1, 7, 25])
def test_accumulated_micro_batches_are_the_full_batch(run: Run, tmp_path: Path, micro: int) -> None:
    accumulated = start(tmp_path, SGD, {"train": {"micro_batch_size": micro, "max_steps": 6}})
    train(accumulated)
    for name in ("loss", "grad_norm"):
        torch.testing.assert_close(
            values(accumulated, "step", name), values(run, "step", name)[:6], rtol=1e-4, atol=1e-5
        )


def test_the_loss_of_an_epoch_is_the_mean_over_its_samples_not_its_batches(run: Run) -> None:
    losses, sizes = values(run, "step", "loss")[:STEPS_PER_EPOCH], (49, 49, 49, 13)
    mean = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / 160
    assert values(run, "epoch", "train_loss")[0] == pytest.approx(mean, rel=1e-6)


def test_a_clipped_step_still_tells_the_norm_before(run: Run, tmp_path: Path) -> None:
    clipped = start(tmp_path, SGD, {"train": {"clip_norm": 1e-9, "max_steps": 3}})
    train(clipped)
    assert values(clipped, "step", "grad_norm")[0] == pytest.approx(values(run, "step", "grad_norm")[0])
    assert max(values(clipped, "step", "grad_norm")) > 1e-3


def test_the_same_seed_gives_the_same_run_and_another_does_not(run: Run, tmp_path: Path) -> None:
    again, other = start(tmp_path, SGD, run_id="again"), start(tmp_path, SGD, {"train": {"seed": 6}}, run_id="other")
    train(again)
    train(other)
    assert values(again, "step", "loss") == values(run, "step", "loss")
    assert values(other, "step", "loss")[0] != values(run, "step", "loss")[0]


# -- how long, and what is written down


def test_a_run_takes_every_step_of_its_epochs(run: Run) -> None:
    assert steps_of(run) == list(range(1, LAST + 1))
    assert steps_of(run, "epoch") == [4, 8, 12]
    result = run.result()
    assert result is not None
    assert (result.state, result.step, result.exit_code) == ("SUCCEEDED", LAST, 0)


@pytest.mark.parametrize(
    ("train_block", "last"),
    [({"max_steps": 3}, 3), ({"max_steps": 6, "epochs": None}, 6), ({"max_steps": 99, "epochs": 2}, 8)],
    ids=["fewer than the epochs", "without epochs", "more than the epochs"],
)
def test_max_steps_ends_a_run(tmp_path: Path, train_block: dict[str, Any], last: int) -> None:
    run = start(tmp_path, {"train": train_block})
    assert train(run).step == last
    assert (steps_of(run)[-1], steps_of(run, "eval")[-1], saved(run)[-1]) == (last, last, last)


@pytest.mark.parametrize(
    ("every", "steps"),
    [("1 epoch", [4, 8, 12]), ("5 steps", [5, 10, 12]), ("0.5 epochs", [2, 4, 6, 8, 10, 12]), ("9 epochs", [12])],
)
def test_evaluation_comes_as_often_as_asked_and_at_the_end(tmp_path: Path, every: str, steps: list[int]) -> None:
    run = start(tmp_path, {"train": {"eval_every": every}})
    train(run)
    assert steps_of(run, "eval") == steps


def test_without_data_for_it_nothing_is_evaluated(tmp_path: Path) -> None:
    run = start(tmp_path, {"data": {"eval": None}})
    assert set(train(run).metrics) == {"loss"}
    assert steps_of(run, "eval") == []


def test_log_every_thins_the_rows_of_steps_alone(tmp_path: Path, run: Run) -> None:
    thin = start(tmp_path, SGD, {"train": {"log_every": 5}})
    train(thin)
    assert steps_of(thin) == [5, 10]
    assert steps_of(thin, "epoch") == [4, 8, 12]
    assert values(thin, "epoch", "train_loss") == values(run, "epoch", "train_loss")


@pytest.mark.parametrize("step", [2, 5, 8])
def test_a_row_has_the_samples_of_all_its_steps_though_a_resume_comes_between(tmp_path: Path, step: int) -> None:
    thin = start(tmp_path, SGD, {"train": {"log_every": 5}})
    train(thin)
    resumed = cut_off(thin, step, tmp_path / "resumed")
    train(resumed)
    assert steps_of(resumed) == [5, 10]
    assert values(resumed, "step", "seen") == values(thin, "step", "seen")


def test_the_result_tells_the_last_evaluation_and_the_last_loss(run: Run) -> None:
    result = run.result()
    assert result is not None
    assert result.metrics["loss"] == values(run, "step", "loss")[-1]
    assert result.metrics["eval_accuracy"] == values(run, "eval", "eval_accuracy")[-1]


def test_the_events_tell_how_training_began_and_ended(run: Run) -> None:
    (began,) = events(run, "training")
    assert (began["step"], began["last_step"], began["steps_per_epoch"]) == (0, LAST, STEPS_PER_EPOCH)
    assert (began["world_size"], began["device"]) == (1, "cpu")
    assert [event["state"] for event in events(run, "finished")] == ["SUCCEEDED"]


# -- checkpoints


@pytest.mark.parametrize(
    ("every", "steps"),
    [("5 steps", [5, 10, 12]), ("1 epoch", [4, 8, 12]), ("0.5 epochs", [2, 4, 6, 8, 10, 12]), ("9 epochs", [12])],
)
def test_checkpoints_come_as_often_as_asked_and_at_the_end(tmp_path: Path, every: str, steps: list[int]) -> None:
    run = start(tmp_path, {"checkpoint": {"every": every}})
    train(run)
    assert saved(run) == steps


def test_checkpoints_by_the_clock_come_when_their_minutes_have_passed(tmp_path: Path) -> None:
    often = start(tmp_path, {"checkpoint": {"every": "0.0001 min"}}, run_id="often")
    seldom = start(tmp_path, {"checkpoint": {"every": "60 min"}}, run_id="seldom")
    train(often)
    train(seldom)
    assert len(saved(often)) > 3
    assert saved(seldom) == [LAST]


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run = start(tmp_path, {"checkpoint": {"every": "2 steps", "keep": 2, "best": False}})
    train(run)
    assert saved(run) == [10, 12]
    assert len(list(run.storage.folders(run.path("attempts/000001/checkpoints/")))) == 2


def test_the_best_checkpoint_is_kept_however_old(tmp_path: Path) -> None:
    getting_worse = {"optimizer": {"name": "sgd", "lr": 0.3, "momentum": 0.9}, "epochs": 5, "eval_every": "1 step"}
    run = start(tmp_path, {"train": getting_worse, "checkpoint": {"every": "1 step", "keep": 2}})
    train(run)
    rank = [(row["eval_accuracy"], -row["eval_loss"], row["step"]) for row in run.rows("metrics") if "eval_loss" in row]
    assert saved(run) == sorted({max(rank)[2], 5 * STEPS_PER_EPOCH - 1, 5 * STEPS_PER_EPOCH})
    assert max(rank)[2] < 5 * STEPS_PER_EPOCH - 1, "training went on to get worse"


def test_the_best_checkpoint_is_kept_where_none_is_of_the_step_of_an_evaluation(tmp_path: Path) -> None:
    getting_worse = {"optimizer": {"name": "sgd", "lr": 0.3, "momentum": 0.9}, "epochs": 6, "eval_every": "5 steps"}
    run = start(tmp_path, {"train": getting_worse, "checkpoint": {"every": "7 steps", "keep": 1}})
    train(run)
    rank = {row["step"]: (row["eval_accuracy"], -row["eval_loss"]) for row in run.rows("metrics") if "eval_loss" in row}
    stands_for = {7: 5, 14: 10, 21: 20, 24: 24}
    best = max(stands_for, key=lambda step: rank[stands_for[step]])
    assert best < 24, "training went on to get worse"
    assert saved(run) == [best, 24]
    assert run.checkpoints()[0].info["metrics"] == {}


def test_a_checkpoint_holds_the_metrics_of_its_own_weights_alone(run: Run) -> None:
    accuracy = {row["step"]: row["eval_accuracy"] for row in run.rows("metrics") if row["kind"] == "eval"}
    found = {checkpoint.step: checkpoint.info["metrics"].get("eval_accuracy") for checkpoint in run.checkpoints()}
    assert found == {step: accuracy.get(step) for step in range(1, LAST + 1)}


@pytest.mark.parametrize(("count", "per_epoch"), [(0.07, 100), (0.1, 10), (1.1, 10), (0.3, 7), (2.0, 3)])
def test_a_share_of_an_epoch_ends_where_arithmetic_says(count: float, per_epoch: int) -> None:
    class Order:
        steps_per_epoch = per_epoch

    trainer = Trainer.__new__(Trainer)
    trainer.order = Order()  # type: ignore[assignment]
    due = []
    for step in range(1, 10 * per_epoch + 1):
        trainer.progress = type("P", (), {"step": step})()
        if trainer.is_due(Every(count=count, unit="epoch")):
            due.append(step)
    hundredths = round(count * 100) * per_epoch
    times = 1000 * per_epoch // hundredths
    assert due == [-(-number * hundredths // 100) for number in range(1, times + 1)]


# -- when it goes wrong


@pytest.mark.parametrize("lr", [1e2, 1e5, 1e18])
def test_training_that_diverges_ends_with_its_step_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, lr: float
) -> None:
    run = start(tmp_path, {"train": {"optimizer": {"name": "sgd", "lr": lr}}})
    with pytest.raises(TrainingError) as raised:
        train(run)
    result = run.result()
    assert result is not None
    assert (result.state, result.exit_code, result.message) == ("FAILED", 1, str(raised.value))
    told = re.search(r"is (?:nan|inf) at step (\d+) \(epoch 1\)\.", result.message)
    assert told is not None
    good = int(told[1]) - 2  # the step before the last computed a loss, which its update then spoiled
    assert saved(run) == list(range(1, good + 1))
    assert (f"checkpoint, of step {good}, is kept" if good else "no checkpoint before it") in result.message
    assert f"smaller train.optimizer.lr (it is {lr:g}) or train.clip_norm: 1" in result.message


def test_the_result_of_a_run_that_diverged_can_be_resumed_from(tmp_path: Path) -> None:
    run = start(tmp_path, {"train": {"optimizer": {"name": "sgd", "lr": 1e2}}})
    for _ in range(2):
        with pytest.raises(TrainingError, match="diverged"):
            train(run)
    assert [claim.base.step if claim.base else None for claim in run.claims()] == [None, saved(run)[-1]]


def test_an_early_stopping_metric_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    run = start(tmp_path, {"train": {"early_stopping": {"metric": "eval_bleu"}}})
    with pytest.raises(TrainingError, match=r"no 'eval_bleu'; this task has eval_loss, eval_accuracy"):
        train(run)


def test_the_best_checkpoint_is_kept_by_the_metric_that_the_job_file_names(tmp_path: Path) -> None:
    run = start(tmp_path, {"train": {"epochs": 6}, "checkpoint": {"keep": 1, "metric": "eval_loss", "mode": "max"}})
    train(run)
    losses = {row["step"]: row["eval_loss"] for row in run.rows("metrics") if row["kind"] == "eval"}
    assert saved(run) == sorted({max(losses, key=lambda step: losses[step]), max(losses)})
    assert run.checkpoints()[-1].info["best"] == {"metric": "eval_loss", "mode": "max"}


def test_a_metric_of_the_best_checkpoint_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    run = start(tmp_path, {"checkpoint": {"metric": "eval_bleu"}})
    with pytest.raises(TrainingError, match=r"checkpoint\.metric: there is no 'eval_bleu'; this task has eval_loss"):
        train(run)


def test_every_number_of_a_full_run_is_finite(tmp_path: Path) -> None:
    run = start(tmp_path, EVERYTHING)
    train(run)
    for row in run.rows("metrics"):
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))


def test_the_model_is_gone_before_the_rank_leaves_the_process_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where DDP goes last, it may wait for gloo for ever."""
    trainers: list[weakref.ref[Trainer]] = []

    def remembered(trainer: Trainer) -> Outcome:
        trainers.append(weakref.ref(trainer))
        return original(trainer)

    class Leaving(LocalContext):
        there: bool | None = None

        def leave(self) -> None:
            self.there = trainers[0]() is not None

    original = Trainer.run
    monkeypatch.setattr(Trainer, "run", remembered)
    context = Leaving()
    train(start(tmp_path), context=context)
    assert context.there is False


def test_a_rank_shows_which_step_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has not written down is known by that when it was killed."""
    run, shown, whole = start(tmp_path), list[tuple[int, int]](), Trainer.train_step

    def train_step(self: Trainer, loaded: Any) -> None:
        reading = read(tmp_path / "rank-0")
        assert reading is not None
        shown.append((reading.step, self.progress.step))
        whole(self, loaded)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    job, _ = load_job(run)
    run_rank(LocalContext(), run.claim(), job, prepare(job), pulse=Pulse(0, tmp_path))
    assert shown == [(step, step) for step in range(LAST)]


def test_the_steps_up_to_a_lack_of_memory_are_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By them the driver knows that it is the same step each time."""
    run = start(tmp_path)
    whole = Trainer.train_step

    def train_step(self: Trainer, loaded: Any) -> None:
        if self.progress.step == 7:
            raise MemoryError
        whole(self, loaded)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    with pytest.raises(InfrastructureError, match="ran out of memory, at step 8"):
        train(run)
    assert steps_of(run) == list(range(1, 8))


class NarrowUplink(FileStorage):
    """A storage to which bytes go in small parts, and none while the rank has not shown what it is at since."""

    def __init__(self, folder: Path, pulse: Pulse) -> None:
        super().__init__(folder)
        self._pulse = pulse
        self.waited = 0

    def upload(self, source: Path | Source, path: str) -> Digest:
        if not isinstance(source, Path) and source.size > 1000 and self._pulse._phase is Phase.SAVING:
            for begin in range(0, source.size, source.size // 4):
                before = self._pulse._entries
                source.read(begin, min(begin + source.size // 4, source.size))
                wait_for(partial(self._has_shown, before), "a sign that it goes on", timeout=20)
                self.waited += 1
        return super().upload(source, path)

    def _has_shown(self, before: int) -> bool:
        return self._pulse._entries > before


def test_a_rank_shows_that_its_last_save_goes_on_however_long_that_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.loop._LOOK", 0.01)
    run = start(tmp_path, {"checkpoint": {"every": "100 epochs"}})
    pulse = Pulse(0)
    storage = NarrowUplink(tmp_path, pulse)
    job, _ = load_job(run)
    run_rank(LocalContext(), Run(storage, run.id).claim(), job, prepare(job), pulse=pulse)
    assert storage.waited >= 8  # of the model and of the optimizer
    assert saved(run) == [LAST]


def test_a_rank_shows_that_a_restore_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = start(tmp_path / "whole")
    train(whole)
    run = cut_off(whole, 5, tmp_path)
    restored: list[int] = []
    restore = Checkpointer.restore

    def watched(self: Checkpointer, trainer: Trainer) -> None:
        before = trainer.pulse._entries
        restore(self, trainer)
        restored.append(trainer.pulse._entries - before)

    monkeypatch.setattr(Checkpointer, "restore", watched)
    train(run)
    assert restored[0] >= 2  # for the model and the optimizer
