"""One trial's training, without Ray: it waits at each evaluation, ends when told, goes on where it was."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from cluster.attempts import Attempt
from cluster.errors import CorruptObjectError, InfrastructureError
from cluster.runs import Run
from cluster.trials import Copied, trial_run
from tests.cluster.saves import flip_a_byte, send_half
from tests.finished import new_run
from tests.harness import losses
from tests.trainers import training
from tests.trainers.training import STEPS_PER_EPOCH, Change
from trainers.config import TrainJob
from trainers.context import StopReason
from trainers.jobs import load_job
from trainers.memory import let_go
from trainers.models.cnn import CNN
from trainers.sweep.trial import News, OneRankTraining, Training, data_key
from trainers.tasks.registry import prepare

pytestmark = pytest.mark.usefixtures("one_thread")  # as a trial computes with
EPOCHS = 3


class Sweep:
    """A sweep of one trial, in a folder."""

    def __init__(self, folder: Path, *changes: Change) -> None:
        self.alone = training.start(folder / "alone", *changes)
        self.run = new_run(folder, "sweep", "task: image-classification\n")
        self.attempt: Attempt = self.run.claim()
        self.job, _ = load_job(self.alone)
        self.trial: Run = trial_run(self.run, "00000")

    @contextmanager
    def train(self, run: Run | None = None, copied: Copied | None = None) -> Iterator[Training]:
        document = json.dumps(self.job.model_dump(mode="json")).encode()
        trial = OneRankTraining(run or self.trial, self.job, document, self.attempt, copied, prepare=prepare)
        try:
            yield trial
        finally:
            trial.end(StopReason.PRUNED)

    def train_to_the_end(self) -> list[News]:
        told: list[News] = []
        with self.train() as trial:
            while not told or not told[-1].state:
                told.append(trial.next())
        return told


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path, {"train": {"epochs": EPOCHS}})


def test_a_trial_tells_of_each_evaluation_and_ends_as_a_run_does_bit_for_bit(sweep: Sweep) -> None:
    told = sweep.train_to_the_end()
    assert [(news.iteration, news.epoch, news.step) for news in told] == [
        (epoch, epoch, epoch * STEPS_PER_EPOCH) for epoch in range(1, EPOCHS + 1)
    ]
    assert [news.state for news in told] == ["", "", "SUCCEEDED"]
    training.train(sweep.alone)
    assert losses(sweep.trial) == losses(sweep.alone)
    evaluations = [row for row in sweep.alone.rows("metrics") if row["kind"] == "eval"]
    assert [news.metrics["eval_accuracy"] for news in told] == [row["eval_accuracy"] for row in evaluations]


def test_a_trial_waits_at_an_evaluation_and_saves_when_it_is_ended_there(sweep: Sweep) -> None:
    with sweep.train() as trial:
        assert trial.next().step == STEPS_PER_EPOCH
    result = sweep.trial.result()
    assert result is not None
    assert (result.state, result.exit_code, result.step) == ("PRUNED", 0, STEPS_PER_EPOCH + 1)
    assert sweep.trial.checkpoints()[-1].step == STEPS_PER_EPOCH + 1


def test_a_trial_that_was_cut_off_goes_on_and_counts_its_evaluations_on(sweep: Sweep) -> None:
    with sweep.train() as trial:
        trial.next()
        trial.next()
    told = sweep.train_to_the_end()
    assert [(news.iteration, news.epoch, news.state) for news in told] == [(EPOCHS, EPOCHS, "SUCCEEDED")]
    training.train(sweep.alone)
    assert losses(sweep.trial) == losses(sweep.alone)


def test_a_trial_that_is_cut_off_ten_times_computes_what_one_does_that_never_was(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, {"train": {"epochs": 11}})
    for epoch in range(1, 11):
        with sweep.train() as trial:
            news = trial.next()
            assert (news.iteration, news.epoch, news.state) == (epoch, epoch, "")
    assert [news.state for news in sweep.train_to_the_end()] == ["SUCCEEDED"]
    assert len(sweep.trial.attempts()) == 11
    training.train(sweep.alone)
    assert losses(sweep.trial) == losses(sweep.alone)


def test_a_trial_that_waits_saves_and_goes_on_as_if_it_had_not(sweep: Sweep) -> None:
    with sweep.train() as trial:
        trial.next()
        origin = trial.pause()
        assert origin is not None
        assert (origin.run, origin.attempt, origin.step) == ("00000", 1, STEPS_PER_EPOCH + 1)
        assert sweep.trial.result() is None
        told = [trial.next() for _ in range(EPOCHS - 1)]
    assert [(news.iteration, news.epoch, news.state) for news in told] == [(2, 2, ""), (3, 3, "SUCCEEDED")]
    training.train(sweep.alone)
    assert losses(sweep.trial) == losses(sweep.alone)


def damage(run: Run, folder: str) -> None:
    flip_a_byte(run, f"attempts/{folder}")


def test_a_trial_whose_checkpoint_is_damaged_goes_on_from_the_one_before_and_says_so(sweep: Sweep) -> None:
    with sweep.train() as trial:
        trial.next()
    saved = [one.step for one in sweep.trial.checkpoints()]
    damage(sweep.trial, f"000001/checkpoints/{saved[-1]:09d}")
    told = sweep.train_to_the_end()
    assert told[-1].state == "SUCCEEDED"
    assert [claim.base and claim.base.step for claim in sweep.trial.claims()] == [None, saved[-1], saved[-2]]
    assert [(row["attempt"], row["step"]) for row in training.events(sweep.trial, "checkpoint.corrupt")] == [
        (3, saved[-1])
    ]
    training.train(sweep.alone)
    assert losses(sweep.trial) == losses(sweep.alone)


def test_a_trial_that_goes_on_removes_what_was_sent_half_of(sweep: Sweep) -> None:
    with sweep.train() as trial:
        trial.next()
    send_half(sweep.trial, 1)
    with sweep.train() as trial:
        trial.next()
    assert sweep.trial.storage.sweep() == []


def test_a_trial_takes_the_weights_of_another_again_where_the_copy_is_damaged(sweep: Sweep) -> None:
    with sweep.train() as better:
        better.next()
        origin = better.pause()
        assert origin is not None
    other = trial_run(sweep.run, "00001")
    other.create(b"{}")
    other.claim(origin=origin)
    damage(other, f"000001/checkpoints/{origin.step:09d}")
    with sweep.train(other, Copied(origin, 1)) as worse:
        assert worse.next().iteration == 2
    assert [claim.origin for claim in other.claims()] == [origin, None, origin]


def test_a_trial_whose_weights_of_another_are_damaged_there_says_so(sweep: Sweep) -> None:
    with sweep.train() as better:
        better.next()
        origin = better.pause()
        assert origin is not None
    damage(sweep.trial, f"000001/checkpoints/{origin.step:09d}")
    with (
        sweep.train(trial_run(sweep.run, "00001"), Copied(origin, 1)) as worse,
        pytest.raises(CorruptObjectError, match="trials/00000/attempts/000001/"),
    ):
        worse.next()


def test_a_trial_goes_on_from_the_weights_of_another_and_does_what_that_does(sweep: Sweep) -> None:
    with sweep.train() as better:
        better.next()
        origin = better.pause()
        assert origin is not None
        while not better.next().state:
            pass
    other = trial_run(sweep.run, "00001")
    with sweep.train(other) as worse:
        worse.next()
    with sweep.train(other, Copied(origin, 1)) as worse:
        told = [worse.next(), worse.next()]
    assert [(news.iteration, news.state) for news in told] == [(2, ""), (3, "SUCCEEDED")]
    rows = [row for row in losses(sweep.trial) if dict(row)["step"] > origin.step]
    assert losses(other) == rows


def test_a_trial_goes_on_from_the_weights_of_another_with_its_own_learning_rate(sweep: Sweep) -> None:
    with sweep.train() as better:
        better.next()
        origin = better.pause()
        assert origin is not None
    optimizer = sweep.job.train.optimizer.model_copy(update={"lr": 1e-5})
    sweep.job = sweep.job.model_copy(update={"train": sweep.job.train.model_copy(update={"optimizer": optimizer})})
    other = trial_run(sweep.run, "00001")
    for _ in range(2):  # the second one adopts what the first has saved, from the same copy
        with sweep.train(other, Copied(origin, 1)) as worse:
            worse.next()
    steps = [row for row in other.rows("metrics") if row["kind"] == "step"]
    assert {row["lr"] for row in steps} == {1e-5}
    assert [row["step"] for row in steps] == list(range(origin.step + 1, 3 * STEPS_PER_EPOCH + 1))


def test_a_wish_to_stop_the_sweep_stops_the_trial_and_leaves_it_to_go_on(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, {"train": {"epochs": 10_000, "log_every": 1000}, "checkpoint": {"every": "10000 epochs"}})
    with sweep.train() as trial:
        trial.next()
        sweep.run.request_stop("enough")
        while not (news := trial.next()).state:
            pass
    assert news.state == "STOPPED"
    assert sweep.trial.checkpoints()[-1].step == news.step


def test_a_trial_that_diverges_is_failed_and_says_why(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, {"train": {"optimizer": {"name": "sgd", "lr": 1e30}}})
    news = sweep.train_to_the_end()[-1]
    assert news.state == "FAILED"
    assert news.message.startswith("training diverged: ")
    result = sweep.trial.result()
    assert result is not None
    assert result.state == "FAILED"


@pytest.mark.parametrize("rate", [0.01, 1e30])
def test_a_trial_whose_process_is_lost_before_it_tells_of_its_end_is_not_trained_again(
    tmp_path: Path, rate: float
) -> None:
    sweep = Sweep(tmp_path, {"train": {"epochs": 2, "optimizer": {"name": "sgd", "lr": rate}}})
    told = sweep.train_to_the_end()[-1]
    assert sweep.train_to_the_end() == [told]
    assert sweep.trial.attempts() == [1]


def models_held() -> int:
    return sum(type(each) is CNN for each in gc.get_objects())


def test_a_trial_that_failed_holds_no_memory_while_the_next_one_trains_in_its_process(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, {"train": {"optimizer": {"name": "sgd", "lr": 1e30}}})
    gc.collect()
    before = models_held()
    gc.disable()  # it comes when it comes
    try:
        assert sweep.train_to_the_end()[-1].state == "FAILED"
        assert models_held() == before
    finally:
        gc.enable()


class Gpu:
    """Stands for the device of a process, which may have stopped to answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
        self.calls: list[str] = []
        for name in ("empty_cache", "reset_peak_memory_stats"):
            monkeypatch.setattr(torch.cuda, name, partial(self.calls.append, name))
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "synchronize", self._answer)
        self._said = said

    def _answer(self) -> None:
        if self._said:
            raise RuntimeError(self._said)


def test_a_trial_gives_back_what_it_held_of_a_gpu_that_others_share(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, "")
    let_go(failed=False)
    assert gpu.calls == ["empty_cache", "reset_peak_memory_stats"]


def test_no_trial_follows_in_a_process_whose_gpu_takes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(monkeypatch, "CUDA error: device-side assert triggered")
    with pytest.raises(InfrastructureError, match="the GPU takes nothing more from this process: CUDA error"):
        let_go(failed=True)


def test_a_trial_that_never_trained_can_be_ended(sweep: Sweep) -> None:
    trial = OneRankTraining(sweep.trial, sweep.job, b"{}", sweep.attempt, prepare=prepare)
    trial.end(StopReason.PRUNED)
    assert sweep.trial.attempts() == []


def test_what_changes_the_data_changes_its_key(sweep: Sweep) -> None:
    def key(**change: object) -> str:
        return data_key(sweep.job.model_copy(update={"data": sweep.job.data.model_copy(update=change)}))

    assert key(image_size=12) != data_key(sweep.job)
    assert key(augment=sweep.job.data.augment.model_copy(update={"rotate": 5.0})) == data_key(sweep.job)


@pytest.mark.parametrize(
    ("data", "counts"),
    [
        ({"eval": {"split": 0.2}}, True),
        ({"eval": "builtin:digits"}, False),
        ({"eval": "builtin:digits", "clean": {"drop_label_errors": True}}, True),
    ],
)
def test_a_seed_counts_for_data_that_it_splits_or_cleans(data: dict[str, object], counts: bool) -> None:
    def key(seed: int) -> str:
        job = {"task": "image-classification", "data": {"train": "builtin:digits", **data}, "train": {"seed": seed}}
        return data_key(TrainJob.model_validate(job))

    assert (key(1) != key(2)) is counts
