"""The actor in which trials train, without Ray around it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest
import torch

from cluster.errors import PreemptedError
from cluster.runs import Run
from cluster.trials import trial_run
from launcher import submit
from launcher.cli.trials import trials_command
from launcher.spec import load
from tests.finished import DIGITS, new_run
from tests.harness import losses
from tests.sweeps import HEAD
from tests.trainers import training
from tests.trainers.given import Given
from tests.trainers.test_sweep import Launch
from tests.trainers.training import STEPS_PER_EPOCH
from trainers.config import TrainJob
from trainers.jobs import load_job
from trainers.sweep.actor import Shared, TrialActor
from trainers.sweep.ranks import Ranks
from trainers.sweep.trial import TrialContext, data_key
from trainers.tasks.base import Prepared
from trainers.tasks.registry import prepare
from trainers.tuning import Tune


class Sweep:
    """A sweep's folder, and an actor for its trials."""

    def __init__(self, folder: Path) -> None:
        _, self.document = load_job(training.start(folder / "alone", {"train": {"epochs": 2}}))
        self.run: Run = new_run(folder, "sweep", "task: image-classification\n")
        self.attempt = self.run.claim()
        self.actor: Any = TrialActor.__new__(TrialActor)

    def begin(
        self,
        metric: str = "eval_accuracy",
        trial: str = "00000",
        point: dict[str, Any] | None = None,
        data: tuple[str, Mapping[str, Any], Mapping[str, Any]] = ("", {}, {}),
    ) -> None:
        ranks = Ranks(1, gpus=False, own_ray=True, temporary=gettempdir(), threads=1)
        shared = Shared(self.run.uri, self.attempt.number, self.document, 1, *data, metric, ranks)
        self.actor.setup(self.config(trial, point), shared=shared)

    def config(self, trial: str, point: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"trial": trial, "repeat": 0, "point": json.dumps(point or {}), "copied": ""}


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Sweep]:
    made = Sweep(tmp_path)
    yield made
    made.actor.cleanup()


@pytest.mark.parametrize("epochs", [1, 2])  # with one, the first evaluation ends the trial
def test_a_metric_that_there_is_not_fails_the_trial_and_says_which_there_are(sweep: Sweep, epochs: int) -> None:
    sweep.document["tune"] = {"metric": "eval_acuracy"}
    sweep.document["train"]["epochs"] = epochs
    sweep.begin(metric="eval_acuracy")
    told = sweep.actor.step()
    assert (told["state"], told["done"], told["lacks_metric"]) == ("FAILED", True, True)
    assert told["message"] == (
        "tune.metric: there is no 'eval_acuracy'; this task has eval_loss, eval_accuracy, eval_f1"
    )


def test_values_that_no_job_file_may_have_fail_the_trial(sweep: Sweep) -> None:
    sweep.begin(point={"train.optimizer.lr": -1})
    told = sweep.actor.step()
    assert told["state"] == "FAILED"
    assert told["message"].startswith("no job file may have these values: ")


def test_an_actor_begins_when_it_is_asked_for_as_tune_may_have_given_its_trial_to_another(sweep: Sweep) -> None:
    sweep.begin(point={"train.epochs": 1})
    sweep.actor.cleanup()
    assert trial_run(sweep.run, "00000").attempts() == []


def test_an_actor_trains_one_trial_after_another(sweep: Sweep) -> None:
    sweep.begin(point={"train.epochs": 1})
    assert sweep.actor.step()["state"] == "SUCCEEDED"
    assert sweep.actor.reset_config(sweep.config("00001"))
    told = [sweep.actor.step(), sweep.actor.step()]
    assert [(one["training_iteration"], one["state"]) for one in told] == [(1, ""), (2, "SUCCEEDED")]
    results = [trial_run(sweep.run, name).result() for name in ("00000", "00001")]
    assert [result.step for result in results if result] == [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH]


def test_a_trial_that_stands_still_when_its_process_is_let_go_says_no_more_than_that(sweep: Sweep) -> None:
    """A scheduler may have ended it, or somebody the sweep: that one's own events tell."""
    sweep.begin()
    assert not sweep.actor.step()["done"]
    sweep.actor.cleanup()
    result = trial_run(sweep.run, "00000").result()
    assert result is not None
    assert (result.state, result.message) == ("STOPPED", f"its sweep let go of it; saved at step {STEPS_PER_EPOCH + 1}")


def test_trials_train_on_the_data_that_was_prepared_once(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(job: TrainJob) -> Prepared:
        raise AssertionError(f"seed {job.train.seed} prepares it anew")

    job = TrainJob.from_job(sweep.document)
    ready = prepare(job)
    monkeypatch.setattr("ray.get", lambda arrays: arrays)
    monkeypatch.setattr("trainers.tasks.registry.prepare", again)
    sweep.begin(point={"train.epochs": 1}, data=(data_key(job), ready.arrays, ready.meta))
    assert sweep.actor.step()["state"] == "SUCCEEDED"
    sweep.actor.reset_config(sweep.config("00001", {"train.epochs": 1, "data.augment.rotate": 5}))
    assert sweep.actor.step()["state"] == "SUCCEEDED"
    sweep.actor.reset_config(sweep.config("00002", {"train.seed": 9}))  # which splits it in another way
    with pytest.raises(AssertionError, match="seed 9 prepares it anew"):
        sweep.actor.step()


def test_the_job_file_of_the_best_trains_as_its_trial_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, sweep, alone = tmp_path / "job.yaml", Sweep(tmp_path / "sweep"), tmp_path / "alone"
    space = "{train.optimizer: [{name: sgd, lr: 1.0e-5}, {name: adamw, lr: 5.0e-3}], data.augment.rotate: [5]}"
    job.write_text(DIGITS + f"tune: {{scheduler: none, space: {space}}}\n", encoding="utf-8")
    sweep.run = new_run(tmp_path, "searched", submit.prepare(load(job, storage=str(tmp_path))).document.decode())
    _, sweep.document = load_job(sweep.run)
    launch = Launch(sweep.run, Tune.model_validate(sweep.document["tune"]))
    sweep.attempt = launch.attempt
    launch.events.append(HEAD)
    for name in ("a", "b"):
        trial = launch.suggest(name)
        sweep.begin(trial=trial["trial"], point=json.loads(trial["point"]))
        told = sweep.actor.step()
        told |= {f"evaluation/{key}": value for key, value in told["evaluation"].items()}
        launch.bridge.on_trial_complete(name, told)
        sweep.actor.cleanup()
    launch.events.close()
    trials_command(sweep.run.uri, best=True)
    job.write_text(capsys.readouterr().out, encoding="utf-8")
    best = new_run(alone, "best", submit.prepare(load(job, storage=str(alone))).document.decode())
    threads = torch.get_num_threads()  # of this thread of Python, which is not the trial's
    training.train(best, context=TrialContext(threads=1))
    torch.set_num_threads(threads)
    assert losses(best) == losses(trial_run(sweep.run, "00001"))


def test_what_an_actor_saves_names_a_checkpoint_from_which_another_goes_on(sweep: Sweep) -> None:
    sweep.begin()
    sweep.actor.step()
    saved = sweep.actor.save()
    assert saved.checkpoint.path == f"00000/1/{STEPS_PER_EPOCH + 1}"
    assert saved.metrics["training_iteration"] == 1
    copied = {"origin": {"run": "00000", "attempt": 1, "step": STEPS_PER_EPOCH + 1}, "iteration": 1}
    sweep.actor.reset_config({**sweep.config("00001"), "copied": json.dumps(copied)})
    sweep.actor.restore(saved)
    told = sweep.actor.step()
    assert (told["training_iteration"], told["state"]) == (2, "SUCCEEDED")
    assert trial_run(sweep.run, "00001").has_taken(sweep.actor._training._copied.origin)


def test_a_trial_whose_machine_is_taken_away_saves_and_is_to_be_started_elsewhere(sweep: Sweep, given: Given) -> None:
    sweep.begin()
    assert sweep.actor.step()["training_iteration"] == 1
    given.set()
    with pytest.raises(PreemptedError, match=f"saved at step {STEPS_PER_EPOCH + 1}"):
        sweep.actor.step()
    trial = trial_run(sweep.run, "00000")
    saved = trial.newest_intact(read=True)
    assert saved is not None
    assert saved.step == STEPS_PER_EPOCH + 1
    assert trial.result() is None
