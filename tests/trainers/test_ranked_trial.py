"""A trial of several workers, as it hears of their end; no Ray runs here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayError
from ray.train.v2.api.exceptions import WorkerGroupError

from cluster.attempts import Attempt
from cluster.errors import CorruptObjectError, DeviceError, InfrastructureError, PreemptedError, SupersededError
from cluster.outages import PATIENCE
from cluster.runs import Run
from cluster.trials import trial_run
from tests.finished import new_run, write_rows
from tests.trainers import training
from trainers.backend import Wait
from trainers.jobs import load_job
from trainers.sweep import ranks as ranked
from trainers.sweep.actor import TrialActor
from trainers.sweep.ranks import RankedTraining, Ranks, References

RANKS = Ranks(2, gpus=False, own_ray=False, temporary=gettempdir(), threads=1)


class Sweep:
    """A sweep of one trial, whose ranks do what a test says."""

    def __init__(self, folder: Path) -> None:
        self.job, self.document = load_job(training.start(folder / "alone"))
        self.run: Run = new_run(folder, "sweep", "task: image-classification\n")
        self.attempt = self.run.claim()
        self.trial = trial_run(self.run, "00000")
        self.wait = Wait()
        self.ranks: Callable[[], None] = lambda: None  # and then they are lost
        self.causes: dict[int, Exception] = {1: RuntimeError("gone")}

    def build_trainer(self, *_: Any, wait: Wait, **__: Any) -> Any:
        def fit() -> None:
            self.ranks()
            raise WorkerGroupError("rank 1", self.causes)

        self.wait = wait
        return SimpleNamespace(fit=fit)

    def begun(self) -> RankedTraining:
        share = lambda _: References({}, {})  # noqa: E731
        return RankedTraining(self.trial, self.job, b"{}", self.attempt, ranks=RANKS, share=share)


class Gone:
    """An actor that is gone, and a Ray that has no other."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.remote = Gone
        self.next = SimpleNamespace(remote=lambda: None)

    def __call__(self, _: object) -> Gone:
        return self


def _no_answer(_: object) -> None:
    raise RayError


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    made = Sweep(tmp_path)
    monkeypatch.setattr(ranked, "ray", SimpleNamespace(remote=Gone, get=_no_answer, kill=lambda _: None))
    monkeypatch.setattr("trainers.backend.build_trainer", made.build_trainer)
    monkeypatch.setattr("trainers.backend.release_resources", lambda: None)
    return made


def test_a_trial_that_loses_a_rank_says_so(sweep: Sweep) -> None:
    with pytest.raises(InfrastructureError, match="a rank of the trial was lost"):
        sweep.begun().next()


def test_a_trial_whose_gpu_failed_says_so_though_other_ranks_miss_it_first(sweep: Sweep) -> None:
    sweep.causes = {0: InfrastructureError("another rank is gone"), 1: DeviceError("rank 1's GPU failed")}
    with pytest.raises(DeviceError, match="rank 1's GPU failed"):
        sweep.begun().next()


def test_ranks_wait_for_room_as_long_as_for_storage_unless_the_sweep_is_to_end(sweep: Sweep) -> None:
    with pytest.raises(InfrastructureError):
        sweep.begun().next()
    assert sweep.wait.seconds == PATIENCE
    assert sweep.wait.is_over is not None
    assert not sweep.wait.is_over()
    sweep.run.request_stop("enough")
    assert sweep.wait.is_over()


def test_a_trial_that_waits_for_room_when_the_sweep_is_stopped_goes_on_with_a_resume(sweep: Sweep) -> None:
    sweep.ranks = lambda: sweep.run.request_stop("enough")
    news = sweep.begun().next()
    assert (news.state, news.message) == ("STOPPED", "enough; it waited for its workers")
    result = sweep.trial.result()
    assert result is not None
    assert (result.state, result.exit_code) == ("STOPPED", 4)


def test_a_trial_that_waits_for_room_when_the_driver_has_to_go_has_no_result(sweep: Sweep) -> None:
    sweep.ranks = lambda: sweep.attempt.give_notice("the machine asked the driver to end")
    assert sweep.begun().next().state == "PREEMPTED"
    assert sweep.trial.result() is None


def test_a_trial_that_waits_for_room_ends_when_another_driver_has_taken_over(sweep: Sweep) -> None:
    sweep.ranks = lambda: (sweep.run.claim(), None)[1]
    with pytest.raises(SupersededError):
        sweep.begun().next()
    assert sweep.wait.is_over is not None
    assert sweep.wait.is_over()


def test_a_trial_whose_ranks_find_their_checkpoint_damaged_starts_them_again_once(sweep: Sweep) -> None:
    def find_damage() -> None:
        Attempt.reopen(sweep.trial, max(sweep.trial.attempts())).report_damage("the checkpoint of step 8 is damaged")

    sweep.ranks = find_damage
    with pytest.raises(CorruptObjectError, match="the checkpoint of step 8 is damaged"):
        sweep.begun().next()
    assert sweep.trial.attempts() == [1, 2]


# -- a machine that is taken away


def saved_at(sweep: Sweep, step: int) -> None:
    """Have the ranks save and end, as they do on a notice."""

    def save() -> None:
        attempt = Attempt.reopen(sweep.trial, max(sweep.trial.attempts()))
        write_rows(attempt, "events", [{"event": "preempted", "step": step}])

    sweep.ranks = save


def test_a_trial_whose_ranks_saved_before_a_machine_went_is_preempted_and_has_not_failed(sweep: Sweep) -> None:
    saved_at(sweep, 7)
    news = sweep.begun().next()
    assert (news.state, news.step, news.message) == ("PREEMPTED", 7, "preempted; saved at step 7")


@pytest.mark.parametrize("drained", [True, False])
def test_a_trial_is_started_elsewhere_if_the_machine_of_its_own_process_goes_too(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, drained: bool
) -> None:
    saved_at(sweep, 7)
    monkeypatch.setattr("trainers.backend.seconds_until_drained", lambda: 60.0 if drained else None)
    actor: Any = TrialActor.__new__(TrialActor)
    actor._lifeline, actor._training = None, sweep.begun()
    actor._shared = SimpleNamespace(ranks=RANKS, metric="eval_accuracy")
    if drained:
        with pytest.raises(PreemptedError, match="saved at step 7"):
            actor.step()
    else:
        assert actor.step()["state"] == "PREEMPTED"
