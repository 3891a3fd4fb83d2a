"""A run that is cut off and resumed ends bit for bit as one that was never touched."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.errors import TrainingError
from cluster.records import Checkpoint
from cluster.runs import Run
from tests.harness import losses
from tests.trainers import training
from tests.trainers.pictures import digits, write_idx
from tests.trainers.training import EVERYTHING, STEPS_PER_EPOCH, Change, cut_off, events, start, steps_of, train
from trainers import control
from trainers.checkpoint import TRAINER_FILE
from trainers.config import OPTIMIZERS
from trainers.context import StopReason

pytestmark = pytest.mark.usefixtures("one_thread")
LAST = 3 * STEPS_PER_EPOCH
LATE: Change = {"train": {"early_stopping": {"metric": "eval_loss", "patience": 2, "min_delta": 100.0}, "epochs": 9}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = start(tmp_path_factory.mktemp("whole"), EVERYTHING)
    train(run)
    return run


@pytest.fixture
def cut(tmp_path: Path) -> Run:
    """Return a run that was killed after step 5, with data that no other run has."""
    run = start(tmp_path / "first", EVERYTHING)
    train(run)
    training._prepared.cache_clear()
    return cut_off(run, 5, tmp_path / "first" / "cut")


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = start(tmp_path_factory.mktemp("early"), LATE)
    train(run)
    return run


def state(checkpoint: Checkpoint) -> dict[str, str]:
    return {name: digest.sha256 for name, digest in checkpoint.files.items()}


@pytest.mark.parametrize("step", [1, STEPS_PER_EPOCH - 1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1, LAST - 1])
def test_a_run_resumed_from_any_step_has_the_same_losses_and_weights(whole: Run, tmp_path: Path, step: int) -> None:
    run = cut_off(whole, step, tmp_path)
    train(run)
    assert events(run, "restored")[0]["step"] == step
    assert losses(run) == losses(whole)
    assert state(run.checkpoints()[-1]) == state(whole.checkpoints()[-1])


def test_the_scale_of_gradients_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for fp16 on a GPU, but that there a scale may be too large."""

    def growing(*_: object) -> tuple[AbstractContextManager[None], torch.amp.grad_scaler.GradScaler]:
        return nullcontext(), torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)

    monkeypatch.setattr("trainers.loop.mixed_precision", growing)
    run = start(tmp_path, EVERYTHING, {"train": {"max_steps": 7}})
    train(run)
    resumed = cut_off(run, 5, tmp_path / "resumed")
    train(resumed)
    saved = run.checkpoints()[-1]
    scaler = json.loads(run.storage.read(run.path(f"{saved.folder}/{TRAINER_FILE}")))["scaler"]
    assert (scaler["scale"], scaler["_growth_tracker"]) == (4096.0, 1), "it grew twice"
    assert state(resumed.checkpoints()[-1]) == state(saved)
    assert losses(resumed) == losses(run)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_resumes_exactly(tmp_path: Path, optimizer: str) -> None:
    momentum = {"momentum": 0.9} if optimizer in ("sgd", "rmsprop", "muon") else {}
    chosen = {"name": optimizer, "weight_decay": 0.01, **momentum}
    run = start(tmp_path, EVERYTHING, {"train": {"optimizer": chosen, "max_steps": 6}})
    train(run)
    resumed = cut_off(run, 3, tmp_path / "resumed")
    train(resumed)
    assert losses(resumed) == losses(run)
    assert state(resumed.checkpoints()[-1]) == state(run.checkpoints()[-1])


def test_a_run_that_was_done_trains_no_step_more(whole: Run, tmp_path: Path) -> None:
    run = cut_off(whole, LAST, tmp_path)
    outcome = train(run)
    assert losses(run) == losses(whole)
    result = whole.result()
    assert result is not None
    assert outcome.metrics == result.metrics


def test_early_stopping_ends_a_run_after_so_many_evaluations_without_gain(early: Run) -> None:
    result = early.result()
    assert result is not None
    assert (result.state, result.step) == ("SUCCEEDED", LAST)
    assert result.message == "stopped early at step 12: no more gain"


@pytest.mark.parametrize("step", [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH + 1])
def test_early_stopping_counts_on_after_a_resume(early: Run, tmp_path: Path, step: int) -> None:
    run = cut_off(early, step, tmp_path)
    train(run)
    assert losses(run) == losses(early)


def test_a_run_that_had_stopped_early_trains_no_step_more(early: Run, tmp_path: Path) -> None:
    run = cut_off(early, LAST, tmp_path)
    assert train(run).early
    assert losses(run) == losses(early)


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_later_as_if_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_POLL", 0.05)
    long: Change = {"train": {"epochs": 30, "eval_every": "90 steps"}, "checkpoint": {"every": "1000 epochs"}}
    whole, run = start(tmp_path, EVERYTHING, long, run_id="whole"), start(tmp_path, EVERYTHING, long)
    train(whole)
    run.request_stop("enough")
    stopped = train(run)
    result = run.result()
    assert result is not None
    assert stopped.stopped is StopReason.PERSON
    assert (result.state, result.exit_code, result.step) == ("STOPPED", 4, stopped.step)
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [stopped.step]
    assert stopped.step < 30 * STEPS_PER_EPOCH
    run.withdraw_stop()
    train(run)
    assert losses(run) == losses(whole)
    assert steps_of(run) == list(range(1, 30 * STEPS_PER_EPOCH + 1))


# -- other data, other processors


@pytest.mark.parametrize("change", ["more", "fewer", "another order", "other labels"])
def test_a_run_does_not_go_on_with_other_samples(cut: Run, tmp_path: Path, change: str) -> None:
    images, labels = digits(210 if change == "more" else 190 if change == "fewer" else 200)
    if change == "another order":
        images, labels = images[::-1].copy(), labels[::-1].copy()
    if change == "other labels":
        labels = (labels + 1) % 10
    write_idx(tmp_path / "first" / "data", "train", images, labels)
    said = {
        "another order": "their labels or their order, and their pixels",
        "other labels": "their labels, or their order",
    }.get(change, r"train was 160 and is 1\d\d")
    with pytest.raises(TrainingError, match=f"not those that step 5 was reached with: {said}.* back as it was, or"):
        train(cut)
    assert [one.step for one in cut.checkpoints()] == [1, 2, 3, 4, 5], "nothing is lost"


def test_where_another_decoder_has_others_held_out_that_is_said(cut: Run, tmp_path: Path) -> None:
    images, labels = digits(200)
    write_idx(tmp_path / "first" / "data", "train", images ^ np.uint8(1), labels)
    with pytest.raises(
        TrainingError, match=r"or their order, and their pixels, from which .* the versions that read it"
    ):
        train(cut)


def test_a_run_that_goes_on_with_other_pixels_says_so(tmp_path: Path) -> None:
    images, labels = digits(200)
    held = write_idx(tmp_path / "held", "t10k", images[:20] ^ np.uint8(3), labels[:20])
    run = start(tmp_path, {"data": {"eval": str(held)}})
    train(run)
    training._prepared.cache_clear()
    write_idx(tmp_path / "data", "train", images ^ np.uint8(1), labels)
    resumed = cut_off(run, 5, tmp_path / "cut")
    train(resumed)
    (warning,) = events(resumed, "warning")
    assert "not to the pixel those that this run began with" in warning["message"]
    assert resumed.checkpoints()[-1].step == run.checkpoints()[-1].step


@pytest.mark.parametrize(
    ("began", "now", "said"),
    [
        (1, 2, "with 1 threads, as it began, of the 2 that it may have: so sums stay the same"),
        (2, 1, "with 1 threads, where it had 2: losses may differ in their last digits"),
    ],
)
def test_a_rank_goes_on_with_as_many_threads_as_it_began_with_where_it_may_have_them(
    tmp_path: Path, began: int, now: int, said: str
) -> None:
    torch.set_num_threads(began)
    whole = start(tmp_path, EVERYTHING)
    train(whole)
    torch.set_num_threads(now)
    run = cut_off(whole, 5, tmp_path / "cut")
    train(run)
    assert [warning["message"] for warning in events(run, "warning")] == [f"each rank computes {said}"]
    assert torch.get_num_threads() == 1
    if began == 1:
        assert losses(run) == losses(whole)
    torch.set_num_threads(1)
