"""A sweep's searcher, record and scheduler, as Ray Tune calls them; no Ray runs here."""

import math
import random
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from ray import cloudpickle
from ray.tune import Experiment, Trainable

from cluster.attempts import Attempt
from cluster.errors import DeviceError, PreemptedError, StorageDeniedError, StorageError, TrainingError
from cluster.records import Base, Origin, Result
from cluster.runs import Run
from cluster.segments import SegmentWriter
from cluster.trials import Copied, Evaluation, ranked, read_trials, trial_run
from tests.finished import new_run, training, write_rows
from tests.sweeps import begun, ended, evaluated
from trainers.sweep.actor import as_path
from trainers.sweep.bridge import Bridge, Generator, Listener
from trainers.sweep.record import Record
from trainers.sweep.schedulers import build_scheduler, remember, remember_one
from trainers.sweep.search import build_searcher
from trainers.tuning import Scheduler, Search, Tune, lone_job, trial_job

SWEEP = Tune.model_validate({"trials": 4, "search": "random", "space": {"train.optimizer.lr": {"uniform": [0, 1]}}})
LONGEST = {"training_iteration": 9, "epoch": 9, "step": 90}


class Launch:
    """One launch of a sweep, without Ray."""

    def __init__(self, run: Run, sweep: Tune = SWEEP, *, slots: int = 2, ahead: int = 0, grows: bool = False) -> None:
        self.attempt: Attempt = run.claim()
        self.events = SegmentWriter(run, self.attempt.number, "events", "driver")
        self.record = Record(run, self.events, "eval_accuracy", sweep.scheduler)
        self.resumed: list[tuple[str, int]] = []
        self.stopping = False
        self.bridge = Bridge(
            sweep,
            build_searcher(sweep, "max"),
            self.record,
            slots=lambda: slots,
            ahead=ahead,
            grows=grows,
            mode="max",
            is_stopping=lambda: self.stopping,
            on_resumed=lambda name, trial: self.resumed.append((name, trial.number)),
        )

    def suggest(self, name: str) -> Any:
        return self.bridge.suggest(name)

    def result(self, name: str, iteration: int, value: float, *, state: str = "", complete: bool = False) -> None:
        told = {"training_iteration": iteration, "step": iteration, "epoch": iteration, "state": state, "message": ""}
        told["evaluation/eval_accuracy"] = value
        if complete:
            self.bridge.on_trial_complete(name, told)
        else:
            self.bridge.on_trial_result(name, told)


class Newcomer:
    """A trial, as a scheduler sees it."""

    status, experiment_tag = "RUNNING", ""

    def __init__(self, name: str = "new", trial: str = "00000", **config: str) -> None:
        self.trial_id, self.config = name, {"trial": trial, **config}

    def is_finished(self) -> bool:
        return self.status in ("TERMINATED", "ERROR")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path, "sweep")


def states(launch: Launch) -> list[str]:
    return [trial.state for trial in launch.record.trials.values()]


def test_as_many_trials_run_at_once_as_there_is_room_for_and_no_more_than_asked(run: Run) -> None:
    launch = Launch(run)
    assert [launch.suggest(name) is not None for name in "abc"] == [True, True, False]
    for name in "abcd":
        if name in "cd":
            assert launch.suggest(name) is not None
        launch.result(name, 1, 0.5, state="SUCCEEDED", complete=True)
    assert launch.suggest("e") == "FINISHED"
    assert states(launch) == ["SUCCEEDED"] * 4


def test_a_trial_is_in_storage_before_it_starts(run: Run) -> None:
    launch = Launch(run)
    suggested = launch.suggest("a")
    assert suggested["trial"] == "00000"
    assert [row["trial"] for row in run.all_rows("events")] == ["00000"]


def test_a_trial_that_tune_stops_was_pruned_and_one_that_says_its_end_was_not(run: Run) -> None:
    launch = Launch(run, slots=4)
    for name in "abc":
        launch.suggest(name)
    launch.result("a", 1, 0.1, complete=True)
    launch.result("b", 9, 0.9, state="SUCCEEDED", complete=True)
    launch.result("c", 1, 0.5, state="FAILED", complete=True)
    assert states(launch) == ["PRUNED", "SUCCEEDED", "FAILED"]
    assert launch.record.trials["00000"].message == "ended by asha after epoch 1"
    assert launch.record.trials["00002"].evaluations == {}


def test_no_more_trials_begin_once_one_has_shown_that_there_is_no_such_metric(run: Run) -> None:
    launch = Launch(run)
    launch.suggest("a")
    told = {"training_iteration": 1, "step": 9, "epoch": 1, "state": "FAILED", "message": "", "lacks_metric": True}
    launch.bridge.on_trial_complete("a", told)
    assert states(launch) == ["FAILED"]
    assert launch.suggest("b") == "FINISHED"


def test_a_metric_that_some_trials_have_ends_no_sweep_where_another_lacks_it(run: Run) -> None:
    launch = Launch(run)
    launch.suggest("a")
    launch.result("a", 9, 0.9, state="SUCCEEDED", complete=True)
    launch.suggest("b")
    told = {"training_iteration": 1, "step": 9, "epoch": 1, "state": "FAILED", "message": "", "lacks_metric": True}
    launch.bridge.on_trial_complete("b", told)
    assert states(launch) == ["SUCCEEDED", "FAILED"]
    assert launch.suggest("c") != "FINISHED"


def test_an_evaluation_without_the_metric_is_none_to_compare_by(run: Run) -> None:
    launch = Launch(run)
    launch.suggest("a")
    launch.result("a", 1, 0.5)
    (trial,) = launch.record.trials.values()
    trial.evaluations[2] = Evaluation(2, 9, 2, {"eval_loss": 0.1})
    assert launch.record.values(trial.number) == {1: 0.5}


def test_a_trial_whose_machine_is_taken_away_goes_on_elsewhere(run: Run) -> None:
    launch = Launch(run)
    launch.suggest("a")
    launch.result("a", 1, 0.5)
    launch.result("a", 1, 0.5, state="PREEMPTED", complete=True)
    assert states(launch) == ["STOPPED"]
    assert launch.suggest("b")["trial"] == "00000"
    assert launch.resumed == [("b", 0)]
    assert states(launch) == ["RUNNING"]


def test_a_trial_whose_machine_is_taken_away_with_the_driver_waits_for_the_next_launch(run: Run) -> None:
    launch = Launch(run)
    launch.suggest("a")
    launch.stopping = True
    launch.result("a", 1, 0.5, state="PREEMPTED", complete=True)
    assert states(launch) == ["STOPPED"]
    assert launch.suggest("b") == "FINISHED"


class Untrained(Trainable):
    """What Tune is to train, if it came to that."""


def test_a_trial_that_leaves_its_machine_when_all_others_have_begun_is_taken_up_by_tune(
    run: Run, tmp_path: Path
) -> None:
    launch = Launch(run, SWEEP.model_copy(update={"trials": 2}), slots=3)
    asked = Generator(launch.bridge)
    asked.add_configurations(Experiment("sweep", Untrained, storage_path=str(tmp_path / "tune"), num_samples=99))

    def begun() -> list[Any]:
        return list(iter(asked.next_trial, None))

    first, second = begun()
    assert asked.is_finished(), "nothing is kept for more"
    launch.result(first.trial_id, 1, 0.5, state="PREEMPTED", complete=True)
    assert not asked.is_finished()
    (again,) = begun()
    assert again.config["trial"] == first.config["trial"]
    for trial in (second, again):
        assert asked.is_finished()
        launch.result(trial.trial_id, 1, 0.5, state="SUCCEEDED", complete=True)
    assert asked.is_finished()
    assert states(launch) == ["SUCCEEDED"] * 2


class Ended:
    """A trial of Tune whose actor has raised something."""

    def __init__(self, trial_id: str, cause: Exception) -> None:
        self.trial_id, self.max_failures = trial_id, 3
        self._file = NamedTemporaryFile()  # noqa: SIM115  # gone with this
        self.pickled_error_file = self._file.name
        self._file.write(cloudpickle.dumps(SimpleNamespace(cause=cause)))  # as Ray wraps it
        self._file.flush()


@pytest.mark.parametrize(("cause", "restarts"), [(PreemptedError("saved at step 7"), 4), (TrainingError("no"), 3)])
def test_a_trial_that_saved_before_its_machine_went_has_as_many_restarts_left(
    run: Run, cause: Exception, restarts: int
) -> None:
    trial: Any = Ended("a", cause)
    Listener(Launch(run).bridge).on_trial_recover(trial=trial)
    assert trial.max_failures == restarts


@pytest.mark.parametrize(
    ("cause", "state", "again"),
    [(PreemptedError("saved at step 7"), "STOPPED", "00000"), (TrainingError("no"), "FAILED", "00001")],
)
def test_a_trial_without_restarts_left_goes_on_elsewhere_if_it_saved_before_its_machine_went(
    run: Run, cause: Exception, state: str, again: str
) -> None:
    launch = Launch(run)
    launch.suggest("a")
    launch.bridge.on_started("a")
    trial: Any = Ended("a", cause)
    launch.bridge.on_trial_complete("a", error=True)
    Listener(launch.bridge).on_trial_error(trial=trial)
    assert states(launch) == [state]
    assert launch.suggest("b")["trial"] == again


def test_a_trial_whose_process_is_lost_too_often_has_failed(run: Run) -> None:
    launch = Launch(run)
    launch.suggest("a")
    launch.bridge.on_started("a")
    launch.bridge.on_trial_complete("a", None, error=True)
    launch.bridge.on_lost("a", "its process was lost")
    assert (states(launch), launch.record.trials["00000"].message) == (["FAILED"], "its process was lost")


@pytest.mark.parametrize("restarted", [False, True])
def test_a_trial_whose_process_is_lost_before_it_begins_is_tried_again_but_not_for_ever(
    run: Run, restarted: bool
) -> None:
    launch = Launch(run)
    for name in ("a", "b", "c", "d"):
        assert launch.suggest(name)["trial"] == "00000"
        if restarted:  # the actor before had begun
            launch.bridge.on_started(name)
            Listener(launch.bridge).on_trial_recover(trial=cast("Any", Ended(name, TrainingError("no"))))
        launch.bridge.on_trial_complete(name, None, error=True)
        launch.bridge.on_lost(name, "its process was lost")
    assert states(launch) == ["FAILED"]
    assert launch.suggest("e")["trial"] == "00001"


def lose_device(launch: Launch, name: str, trial: str) -> None:
    """Have a trial's accelerator fail once more than it may."""
    assert launch.suggest(name)["trial"] == trial
    launch.bridge.on_started(name)
    launch.bridge.on_trial_complete(name, None, error=True)
    Listener(launch.bridge).on_trial_error(trial=cast("Any", Ended(name, DeviceError("rank 0's GPU on h1 failed"))))


def test_a_trial_whose_accelerator_fails_is_tried_once_more_when_all_others_have_ended(run: Run) -> None:
    launch = Launch(run)
    lose_device(launch, "a", "00000")
    assert states(launch) == ["STOPPED"]
    for name in "bcd":
        assert launch.suggest(name) is not None
        launch.result(name, 1, 0.5, state="SUCCEEDED", complete=True)
    assert launch.suggest("e")["trial"] == "00000"
    assert launch.resumed == [("e", 0)]
    launch.result("e", 1, 0.5, state="SUCCEEDED", complete=True)
    assert states(launch) == ["SUCCEEDED"] * 4
    assert launch.bridge.is_done
    assert launch.bridge.device_failure is None


def test_a_trial_whose_accelerator_fails_again_after_others_have_ended_well_has_failed(run: Run) -> None:
    launch = Launch(run)
    lose_device(launch, "a", "00000")
    for name in "bc":
        assert launch.suggest(name) is not None
    launch.result("b", 1, 0.5, state="SUCCEEDED", complete=True)
    assert launch.suggest("d") is not None
    launch.result("c", 1, 0.5, state="SUCCEEDED", complete=True)
    assert launch.suggest("e") == "FINISHED", "the accelerator that is free now may be the one that fails"
    launch.result("d", 1, 0.5, state="SUCCEEDED", complete=True)
    lose_device(launch, "f", "00000")
    assert states(launch) == ["FAILED"] + ["SUCCEEDED"] * 3
    assert launch.record.trials["00000"].message == "rank 0's GPU on h1 failed"
    assert launch.bridge.device_failure is None
    assert launch.bridge.is_done


def test_an_accelerator_that_fails_the_only_trial_that_is_left_fails_none(run: Run) -> None:
    launch = Launch(run, SWEEP.model_copy(update={"trials": 1}))
    lose_device(launch, "a", "00000")
    lose_device(launch, "b", "00000")
    assert states(launch) == ["STOPPED"]
    why = "accelerators have failed a trial twice; the last, 00000: rank 0's GPU on h1 failed"
    assert launch.bridge.device_failure == why
    assert launch.bridge.is_done
    launch.events.close()
    assert [row["message"] for row in run.all_rows("events") if row["event"] == "warning"] == [
        f"{why}. No more trials begin"
    ]


def test_an_accelerator_that_fails_one_trial_after_another_does_not_get_through_all_of_them(run: Run) -> None:
    launch = Launch(run)
    assert launch.suggest("well")["trial"] == "00000"
    for name, trial in (("a", "00001"), ("b", "00002")):
        lose_device(launch, name, trial)
    assert launch.bridge.device_failure is None
    lose_device(launch, "c", "00003")
    why = "accelerators have failed 3 trials; the last, 00003: rank 0's GPU on h1 failed"
    assert launch.bridge.device_failure == why
    assert launch.suggest("d") == "FINISHED"
    assert launch.bridge.is_stopping
    launch.result("well", 1, 0.5, state="SUCCEEDED", complete=True)
    assert states(launch) == ["SUCCEEDED"] + ["STOPPED"] * 3
    launch.events.close()
    again = Launch(run, SWEEP.model_copy(update={"trials": 5}))
    found = []
    for name in "abcd":
        found.append(again.suggest(name)["trial"])
        again.result(name, 1, 0.5, state="SUCCEEDED", complete=True)
    assert found == ["00004", "00001", "00002", "00003"], "those come last"
    assert again.bridge.device_failure is None


def test_trials_that_break_their_accelerator_every_time_fail_at_the_second_resume_and_the_sweep_ends(run: Run) -> None:
    for resumes in range(2):
        launch = Launch(run)
        if not resumes:
            assert launch.suggest("well") is not None
            launch.result("well", 1, 0.5, state="SUCCEEDED", complete=True)
        for trial in ("00001", "00002", "00003"):
            lose_device(launch, trial, trial)
        assert launch.bridge.device_failure is not None
        assert states(launch) == ["SUCCEEDED"] + ["STOPPED"] * 3
        launch.events.close()
    last = Launch(run)
    for trial in ("00001", "00002", "00003"):
        lose_device(last, trial, trial)
    assert states(last) == ["SUCCEEDED"] + ["FAILED"] * 3
    assert last.bridge.device_failure is None
    assert last.bridge.is_done
    assert last.record.trials["00003"].message == "rank 0's GPU on h1 failed"


def test_a_trial_that_broke_its_accelerator_twice_in_one_launch_was_set_aside_in_one(run: Run) -> None:
    alone = SWEEP.model_copy(update={"trials": 1})
    for found in (["STOPPED"], ["STOPPED"], ["FAILED"]):
        launch = Launch(run, alone)
        lose_device(launch, "a", "00000")
        if found == ["STOPPED"]:
            lose_device(launch, "b", "00000")
        assert states(launch) == found
        launch.events.close()


def test_a_trial_that_froze_too_often_has_failed_for_that(run: Run) -> None:
    launch = Launch(run)
    launch.suggest("a")
    trial = trial_run(run, "00000")
    trial.create(run.job())
    launch.bridge.on_started("a")
    write_rows(trial.claim(), "events", [{"event": "rank.ended", "rank": 0, "reason": "it froze"}])
    launch.bridge.on_lost("a", "its process was lost")
    assert launch.record.trials["00000"].message == "it was ended: it froze"
    result = trial.result()
    assert result is not None
    assert (result.state, result.message) == ("FAILED", "it was ended: it froze")


def test_while_storage_is_away_no_trial_starts_and_none_is_forgotten(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch(run)

    def away() -> None:
        raise StorageError("away")

    with monkeypatch.context() as patch:
        patch.setattr(launch.record, "flush", away)
        assert launch.suggest("a") is None
        assert launch.suggest("b") is None
    assert launch.suggest("c")["trial"] == "00000"


def test_storage_that_refuses_ends_a_sweep_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch(run)

    def refuse() -> None:
        raise StorageDeniedError("the key is wrong")

    monkeypatch.setattr(launch.record, "flush", refuse)
    with pytest.raises(StorageDeniedError):
        launch.suggest("a")


def test_a_sweep_that_is_stopped_begins_nothing(run: Run) -> None:
    launch = Launch(run)
    launch.stopping = True
    assert launch.suggest("a") == "FINISHED"


def test_a_sweep_goes_on_with_what_was_running_and_never_with_what_ended(run: Run) -> None:
    first = Launch(run)
    points = [first.suggest(name)["point"] for name in "ab"]
    first.result("a", 1, 0.5, state="SUCCEEDED", complete=True)
    points.append(first.suggest("c")["point"])
    first.events.close()  # then it is killed
    again = Launch(run)
    told = [again.suggest(name) for name in "de"]
    assert [(one["trial"], one["point"]) for one in told] == [("00001", points[1]), ("00002", points[2])]
    assert again.resumed == [("d", 1), ("e", 2)]
    again.result("d", 1, 0.5, state="SUCCEEDED", complete=True)
    assert again.suggest("f")["trial"] == "00003"


def test_a_sweep_goes_on_after_the_clock_of_its_driver_was_set_back(run: Run) -> None:
    events = [begun(0, 5.0), {**evaluated(0, 1, 0.5), "time": 4.0}, ended(0, "SUCCEEDED", 3.0), begun(1, 4.0)]
    write_rows(run.claim(), "events", events, by="driver")
    tpe = SWEEP.model_copy(update={"search": Search(name="tpe")})
    launch = Launch(run, tpe)
    assert states(launch) == ["SUCCEEDED", "RUNNING"]
    assert launch.suggest("a")["trial"] == "00001"


def test_what_a_sweep_could_not_write_down_any_more_its_trials_know(run: Run) -> None:
    write_rows(run.claim(), "events", [begun(0), begun(1)], by="driver")
    for number, name in enumerate(["00000", "00001"]):
        trial = trial_run(run, name)
        trial.create(b"task: image-classification\n")
        attempt = trial.claim()
        write_rows(attempt, "metrics", training(0, 8, begin=10.0))
        if number == 0:
            attempt.finish(Result(state="PRUNED", message="the sweep's scheduler ended it, at step 8"))
    launch = Launch(run)
    assert states(launch) == ["PRUNED", "RUNNING"]
    assert launch.record.values(0) == {1: 0.75, 2: 0.875}
    assert launch.suggest("a")["trial"] == "00001"
    launch.events.close()
    written = {trial.id: trial.value("eval_accuracy") for trial in read_trials(run.all_rows("events"))}
    assert written == {"00000": 0.875, "00001": 0.875}, "who reads the sweep's events knows it too"
    again = Launch(run)
    again.events.close()
    assert run.rows_of(again.attempt.number, "events") == [], "written once"


@pytest.mark.parametrize(("name", "state"), [("asha", "SUCCEEDED"), ("hyperband", "PRUNED")])
def test_a_trial_that_comes_to_max_t_was_trained_to_its_end(run: Run, name: str, state: str) -> None:
    """Not with HyperBand, some of whose brackets end a little before that."""
    known = {"scheduler": Scheduler.model_validate({"name": name, "max_t": 3})}
    launch = Launch(run, SWEEP.model_copy(update=known))
    heard: list[Any] = []
    launch.bridge._searcher.tell = lambda *told, completed: heard.append((told[0], completed))  # type: ignore[method-assign]
    for name, last in (("a", 3), ("b", 2)):
        launch.suggest(name)
        launch.result(name, last, 0.9)
        launch.result(name, last, 0.9, complete=True)
    assert states(launch) == [state, "PRUNED"]
    assert heard == [(0, state == "SUCCEEDED"), (1, False)]


def test_a_trial_that_came_to_max_t_before_its_driver_was_lost_was_trained_to_its_end(run: Run) -> None:
    write_rows(run.claim(), "events", [begun(0), begun(1)], by="driver")
    for name, last in (("00000", 12), ("00001", 8)):
        trial = trial_run(run, name)
        trial.create(b"task: image-classification\n")
        attempt = trial.claim()
        write_rows(attempt, "metrics", training(0, last, begin=10.0))
        attempt.finish(Result(state="PRUNED", message=f"the sweep's scheduler ended it, at step {last}"))
    scheduler = Scheduler.model_validate({"name": "asha", "max_t": 3})
    launch = Launch(run, SWEEP.model_copy(update={"scheduler": scheduler}))
    assert states(launch) == ["SUCCEEDED", "PRUNED"]


@pytest.mark.parametrize("seed", range(3))
def test_a_searcher_that_was_lost_suggests_what_it_would_have(run: Run, tmp_path: Path, seed: int) -> None:
    sweep = Tune.model_validate(
        {"trials": 30, "search": {"name": "tpe", "seed": seed}, "space": {"x": {"uniform": [0, 1]}, "y": [1, 2, 3]}}
    )

    def go_on(launch: Launch, first: int, last: int) -> list[Any]:
        points = []
        for number in range(first, last):
            name = str(number)
            points.append(launch.suggest(name)["point"])
            x = launch.record.trials[f"{number:05d}"].point["x"]
            launch.result(name, 1, x, state="SUCCEEDED" if number % 4 else "", complete=True)
        return points

    whole = go_on(Launch(new_run(tmp_path, "whole"), sweep), 0, 30)
    first = Launch(run, sweep)
    before = go_on(first, 0, 17)
    first.events.close()
    assert before + go_on(Launch(run, sweep), 17, 30) == whole


def test_two_sweeps_that_train_one_trial_after_another_choose_the_same_points(tmp_path: Path) -> None:
    space = {"x": {"loguniform": [1e-4, 1]}, "y": [1, 2, 3]}
    sweep = Tune.model_validate({"trials": 20, "search": {"name": "tpe", "seed": 5}, "space": space})
    chosen = []
    for name in ("one", "two"):
        random.seed()
        np.random.seed()
        launch = Launch(new_run(tmp_path, name), sweep, slots=1)
        for number in range(20):
            launch.suggest(str(number))
            point = launch.record.trials[f"{number:05d}"].point
            launch.result(str(number), 1, point["x"] * point["y"], state="SUCCEEDED", complete=True)
        chosen.append([trial.point for trial in launch.record.trials.values()])
    assert chosen[0] == chosen[1]
    assert len({point["x"] for point in chosen[0]}) == 20


@pytest.mark.parametrize(("name", "options"), [("asha", {}), ("median", {"min_samples_required": 3})])
def test_a_scheduler_that_was_lost_judges_as_it_would_have(run: Run, name: str, options: dict[str, Any]) -> None:
    def judge(*, remembers: bool) -> str:
        tune = SWEEP.model_copy(update={"scheduler": Scheduler.model_validate({"name": name, **options})})
        record = Launch(run).record
        scheduler: Any = build_scheduler(tune, record, "max", LONGEST, lambda: False)
        if remembers:
            remember(scheduler, record)
        newcomer = Newcomer()
        scheduler.on_trial_add(None, newcomer)
        return str(scheduler.on_trial_result(None, newcomer, {"training_iteration": 1, "eval_accuracy": 0.2}))

    rows = [[begun(number), evaluated(number, 1, number / 10), ended(number, "PRUNED")] for number in range(9)]
    write_rows(run.claim(), "events", [row for each in rows for row in each], by="driver")
    assert (judge(remembers=False), judge(remembers=True)) == ("CONTINUE", "STOP")


def test_a_trial_that_goes_on_is_compared_with_the_median_by_the_best_that_it_has_reached(run: Run) -> None:
    def judge(run: Run, told: list[float], *, before: int) -> str:
        """Have a trial beside three at 0.6 reach these values, the first `before` of them in an earlier launch."""
        others = [row for n in range(1, 4) for row in (begun(n), *(evaluated(n, i, 0.6) for i in range(1, 5)))]
        others += [ended(number, "SUCCEEDED") for number in range(1, 4)]
        past = [evaluated(0, iteration, value) for iteration, value in enumerate(told[:before], 1)]
        write_rows(run.claim(), "events", [begun(0), *past, *others], by="driver")
        scheduler, record = scheduler_of(run, 1, name="median", grace_period=1 if math.isfinite(told[0]) else 2)
        remember(scheduler, record)
        trial: Any = Newcomer("as Tune calls it")
        remember_one(scheduler, trial.trial_id, record.trials["00000"], "eval_accuracy")
        scheduler.on_trial_add(None, trial)
        told_now = enumerate(told[before:], before + 1)
        return [
            str(scheduler.on_trial_result(None, trial, {"training_iteration": iteration, "eval_accuracy": value}))
            for iteration, value in told_now
        ][-1]

    folder = Path(run.uri).parent
    for name, first in (("all", 0.65), ("nan", math.nan)):
        values = [first, 0.9, 0.9, 0.55]
        found = [judge(new_run(folder, f"{name}-{before}"), values, before=before) for before in range(4)]
        assert found == ["CONTINUE"] * 4
    assert judge(new_run(folder, "worse"), [0.4, 0.5, 0.55], before=2) == "STOP"


@pytest.mark.parametrize("lost", ["nothing", "its actor", "its driver"])
def test_an_evaluation_that_a_trial_does_again_counts_once_in_the_median(run: Run, lost: str) -> None:
    """The mean of 0.2 and 0.9 is no reason to end one that has reached 0.6; that of 0.2, 0.9 and 0.9 were one."""
    first = [evaluated(0, 1, 0.2), evaluated(0, 2, 0.9)] if lost == "its driver" else []
    write_rows(run.claim(), "events", [begun(0), *first, begun(1)], by="driver")
    scheduler, _ = scheduler_of(run, 1, name="median", min_samples_required=1)
    one, other = Newcomer("one", "00000"), Newcomer("other", "00001")
    judged: list[str] = []

    def tell(trial: Any, iteration: int, value: float) -> None:
        told = {"training_iteration": iteration, "eval_accuracy": value}
        judged.append(scheduler.on_trial_result(None, trial, told))

    scheduler.on_trial_add(None, one)
    if lost != "its driver":
        tell(one, 1, 0.2)
        tell(one, 2, 0.9)
    scheduler.on_trial_add(None, other)
    tell(other, 1, 0.3)
    if lost != "nothing":
        tell(one, 2, 0.9)
    tell(other, 2, 0.6)
    assert {*judged} == {"CONTINUE"}


def test_the_median_of_trials_does_not_depend_on_how_one_failed(run: Run) -> None:
    write_rows(run.claim(), "events", [begun(number) for number in range(2)], by="driver")
    scheduler, _ = scheduler_of(run, 1, name="median", min_samples_required=1)
    failed, other = Newcomer("failed", "00000"), Newcomer("other", "00001")
    for trial in (failed, other):
        scheduler.on_trial_add(None, trial)
    told = {"training_iteration": 1, "eval_accuracy": 0.9, "state": ""}
    scheduler.on_trial_result(None, failed, told)
    scheduler.on_trial_complete(None, failed, {**told, "eval_accuracy": math.nan, "state": "FAILED"})
    assert scheduler.on_trial_result(None, other, {**told, "eval_accuracy": 0.5}) == "STOP"


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_trial_that_goes_on_elsewhere_counts_once_and_not_by_how_it_left(run: Run, name: str) -> None:
    write_rows(run.claim(), "events", [begun(0), evaluated(0, 1, 0.9), begun(1), begun(2), begun(3)], by="driver")
    scheduler, record = scheduler_of(run, 1, name=name)
    for turn in range(5):  # its node is taken away again and again
        trial: Any = Newcomer(f"turn-{turn}", "00000")
        remember_one(scheduler, trial.trial_id, record.trials["00000"], "eval_accuracy")
        scheduler.on_trial_add(None, trial)
        if not turn:
            scheduler.on_trial_result(None, trial, {"training_iteration": 1, "eval_accuracy": 0.9})
        left = {"training_iteration": 1, "eval_accuracy": math.nan, "state": "PREEMPTED"}
        scheduler.on_trial_complete(None, trial, left)
    judged = []
    for number, value in enumerate([0.5, 0.6, 0.55], 1):
        other: Any = Newcomer(str(number), f"{number:05d}")
        scheduler.on_trial_add(None, other)
        told = {"training_iteration": 1, "eval_accuracy": value}
        judged.append(scheduler.on_trial_result(None, other, told))
    if name == "asha":
        (bracket,) = scheduler._brackets
        assert [len(recorded) for _, recorded in bracket._rungs] == [0, 0, 4]
    else:
        assert len(scheduler._results) == 4


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_metric_that_is_no_number_is_the_worst(run: Run, mode: str) -> None:
    write_rows(run.claim(), "events", [begun(number) for number in range(9)], by="driver")
    tune = SWEEP.model_copy(update={"scheduler": Scheduler(name="asha")})
    record = Launch(run).record
    scheduler: Any = build_scheduler(tune, record, mode, LONGEST, lambda: False)
    judged = []
    for number, value in enumerate([0.4, 0.5, 0.6, math.nan, math.inf, 0.5]):
        trial: Any = Newcomer(str(number), f"{number:05d}")
        scheduler.on_trial_add(None, trial)
        judged.append(scheduler.on_trial_result(None, trial, {"training_iteration": 1, "eval_accuracy": value}))
    assert judged[3:5] == ["STOP", "STOP"]


def scheduler_of(run: Run, seed: int, **options: Any) -> Any:
    """Return the scheduler of a sweep whose first trials have begun, with Python's and numpy's generators anywhere."""
    random.seed()
    np.random.seed()
    known = {"scheduler": Scheduler.model_validate(options), "search": Search(name="random", seed=seed)}
    record = Launch(run).record
    return build_scheduler(SWEEP.model_copy(update=known), record, "max", LONGEST, lambda: False), record


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "asha"}, {"_max_t": 9, "_reduction_factor": 3, "_stop_last_trials": False, "rungs": [[1, 3, 9]]}),
        ({"name": "asha", "time_attr": "step"}, {"_max_t": 90, "_time_attr": "step"}),
        ({"name": "asha", "grace_period": 20}, {"_max_t": 20, "rungs": [[20]]}),  # longer than a trial
        (
            {"name": "asha", "grace_period": 2, "max_t": 32, "reduction_factor": 4, "brackets": 2},
            {"_max_t": 32, "_reduction_factor": 4, "_stop_last_trials": True, "rungs": [[2, 8, 32], [8, 32]]},
        ),
        ({"name": "median"}, {"_grace_period": 1, "_min_samples_required": 3}),
        (
            {"name": "median", "time_attr": "epoch", "grace_period": 4, "min_samples_required": 7},
            {"_time_attr": "epoch", "_grace_period": 4, "_min_samples_required": 7},
        ),
        ({"name": "hyperband"}, {"_max_t_attr": 9, "_eta": 3, "_stop_last_trials": False}),
        (
            {"name": "hyperband", "time_attr": "epoch", "max_t": 5, "reduction_factor": 2},
            {"_time_attr": "epoch", "_max_t_attr": 5, "_eta": 2, "_stop_last_trials": True},
        ),
        (
            {"name": "pbt"},
            {"_perturbation_interval": 2, "_burn_in_period": 0, "_quantile_fraction": 0.25, "_synch": False},
        ),
        (
            {
                "name": "pbt",
                "time_attr": "step",
                "perturbation_interval": 7,
                "burn_in_period": 21,
                "quantile_fraction": 0.4,
                "synch": True,
            },
            {
                "_time_attr": "step",
                "_perturbation_interval": 7,
                "_burn_in_period": 21,
                "_quantile_fraction": 0.4,
                "_synch": True,
            },
        ),
    ],
)
def test_rays_scheduler_gets_the_options_of_the_job_file_and_the_length_of_a_trial(
    run: Run, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    scheduler, _ = scheduler_of(run, 1, **options)
    expected = {"_metric": "eval_accuracy", "_mode": "max", "_time_attr": "training_iteration", **expected}
    rungs = expected.pop("rungs", None)
    assert {name: getattr(scheduler, name) for name in expected} == expected
    if rungs is not None:
        assert [[at for at, _ in reversed(bracket._rungs)] for bracket in scheduler._brackets] == rungs


def test_the_bracket_of_a_trial_follows_from_the_seed_and_the_trial_and_is_the_same_after_a_resume(run: Run) -> None:
    write_rows(run.claim(), "events", [begun(number) for number in range(30)], by="driver")

    def brackets(seed: int, *, remembered: bool = False) -> list[int]:
        scheduler, record = scheduler_of(run, seed, name="asha", brackets=3)
        for name, trial in record.trials.items():
            if remembered:
                remember_one(scheduler, name, trial, "eval_accuracy")
            else:
                scheduler.on_trial_add(None, Newcomer(name, name))
        return [scheduler._brackets.index(scheduler._trial_info[name]) for name in record.trials]

    assert brackets(1) == brackets(1) == brackets(1, remembered=True)
    assert {*brackets(1)} == {0, 1, 2}
    assert brackets(1) != brackets(2)


def test_whom_a_poor_trial_copies_follows_from_the_seed_and_its_number_and_iteration(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(run.claim(), "events", [begun(number) for number in range(8)], by="driver")

    def copied(seed: int) -> list[str]:
        scheduler, _ = scheduler_of(run, seed, name="pbt")
        trials: list[Any] = [Newcomer(str(number), f"{number:05d}") for number in range(8)]
        for trial in trials:
            scheduler.on_trial_add(None, trial)
        chosen: list[str] = []
        monkeypatch.setattr(scheduler, "_exploit", lambda _, __, better: chosen.append(better.trial_id))
        for iteration in range(1, 20):
            for trial in trials:
                scheduler._trial_state[trial].last_result = {"training_iteration": iteration}
                scheduler._trial_state[trial].last_checkpoint = "a checkpoint"
            scheduler._checkpoint_or_exploit(trials[0], None, trials[4:], trials[:4])
        return chosen

    assert copied(1) == copied(1)
    assert {*copied(1)} == {"4", "5", "6", "7"}
    assert copied(1) != copied(2)


def test_trials_of_a_population_wait_for_each_other_also_after_a_resume(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They met at 2 and 4; the launch was cut off when two of them had come to 5, and one to 6."""
    reached = {"00000": 4, "00001": 5, "00002": 5, "00003": 6}
    rows = [
        row for number, last in enumerate(reached.values()) for row in (begun(number), evaluated(number, last, 0.5))
    ]
    write_rows(run.claim(), "events", rows, by="driver")
    scheduler, _ = scheduler_of(run, 1, name="pbt", synch=True, perturbation_interval=2)
    trials = [Newcomer(name, name) for name in reached]
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    met: list[int] = []
    monkeypatch.setattr(scheduler, "_checkpoint_or_exploit", lambda trial, *_: met.append(trials.index(trial)))
    controller = SimpleNamespace(get_live_trials=lambda: trials, get_trials=lambda: trials)

    def evaluate(number: int, iteration: int) -> str:
        told = {"training_iteration": iteration, "eval_accuracy": 0.5}
        return str(scheduler.on_trial_result(controller, trials[number], told))

    assert [evaluate(1, 6), evaluate(2, 6), evaluate(0, 5), met] == ["PAUSE", "PAUSE", "CONTINUE", []]
    evaluate(0, 6)
    assert sorted(met) == [0, 1, 2, 3]
    assert scheduler._next_perturbation_sync == 8


def test_a_trial_of_a_population_whose_metric_is_no_number_is_the_poorest_also_after_a_resume(run: Run) -> None:
    values = [0.5, math.nan, 0.7, 0.9]
    rows = [row for number, value in enumerate(values) for row in (begun(number), evaluated(number, 3, value))]
    write_rows(run.claim(), "events", rows, by="driver")
    scheduler, _ = scheduler_of(run, 1, name="pbt", perturbation_interval=2)
    trials = [Newcomer(f"{number:05d}", f"{number:05d}") for number in range(4)]
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    poorest, best = scheduler._quantiles()
    assert (poorest, best) == ([trials[1]], [trials[3]])


def test_trials_of_a_population_go_on_where_the_one_that_they_wait_for_fails(run: Run) -> None:
    write_rows(run.claim(), "events", [begun(number) for number in range(3)], by="driver")
    scheduler, _ = scheduler_of(run, 1, name="pbt", synch=True, perturbation_interval=2)
    trials: list[Any] = [Newcomer(f"{number:05d}", f"{number:05d}") for number in range(3)]
    controller = SimpleNamespace(get_live_trials=lambda: trials, get_trials=lambda: trials)
    for trial in trials:
        scheduler.on_trial_add(controller, trial)
    for trial in trials[:2]:
        told = {"training_iteration": 2, "eval_accuracy": 0.5}
        assert scheduler.on_trial_result(controller, trial, told) == "PAUSE"
        trial.status = "PAUSED"
    assert scheduler.choose_trial_to_run(controller) is None
    trials[2].status = "ERROR"  # Tune has it among the living, where its actor was lost too often
    assert scheduler.choose_trial_to_run(controller) is trials[0]


def copy_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> Copied:
    """Have trial 0 go on from trial 1, in a launch that is cut off at once; return what it copied."""
    monkeypatch.setattr(SegmentWriter, "_flush_now_and_then", lambda _: None)
    scheduler, record = scheduler_of(run, 1, name="pbt")
    point = '{"train.optimizer.lr": 0.5}'
    poor, better = (Newcomer(name, name, point=point) for name in ("00000", "00001"))
    for trial in (poor, better):
        scheduler.on_trial_add(None, trial)
    scheduler._trial_state[better].last_checkpoint = SimpleNamespace(path=as_path(Origin("00001", 1, 4)))
    scheduler._trial_state[better].last_result = {"training_iteration": 1}
    copied = Copied.from_json(scheduler._get_new_config(poor, better)[0]["copied"])
    assert record.trials["00000"].copied == copied
    return copied


def test_that_a_trial_goes_on_from_another_is_in_storage_before_it_does(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(run.claim(), "events", [begun(0), evaluated(0, 1, 0.1), begun(1), evaluated(1, 1, 0.9)], by="driver")
    copied = copy_of(run, monkeypatch)
    folder = trial_run(run, "00000")
    folder.create(run.job())
    folder.claim().finish(Result(state="PRUNED", message="its actor was given to another trial"))
    again = Launch(run)
    trial = again.record.trials["00000"]
    assert (trial.state, trial.copied) == ("RUNNING", copied)
    assert Copied.from_json(again.suggest("a")["copied"]) == copied


def test_a_trial_that_copies_the_same_checkpoint_again_leaves_its_own_behind(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(run.claim(), "events", [begun(0), evaluated(0, 1, 0.1), begun(1), evaluated(1, 1, 0.9)], by="driver")
    (tmp_path / "weights").write_bytes(b"weights")
    poor, better = (trial_run(run, name) for name in ("00000", "00001"))
    for trial in (poor, better):
        trial.create(run.job())
    better.claim().commit(4, [tmp_path / "weights"], {})
    first = copy_of(run, monkeypatch).origin
    poor.claim(origin=first).commit(8, [tmp_path / "weights"], {})
    assert poor.claim(origin=first).claim.base == Base(1, 8), "it goes on from its own"
    second = copy_of(run, monkeypatch).origin
    again = poor.claim(origin=second)
    assert (again.claim.base, again.claim.origin) == (None, second)
    assert [found.step for found in poor.checkpoints()] == [4]
    assert poor.claim(origin=second).claim.base == Base(3, 4)


@pytest.mark.parametrize(
    "cluster", [{"provider": "local", "workers": 2}, {"provider": "kubernetes", "accelerators": "L4", "nodes": 2}]
)
def test_the_job_of_a_trial_is_the_sweeps_with_its_values_for_one_worker(cluster: dict[str, Any]) -> None:
    sweep = {"train": {"optimizer": {"lr": None}}, "tune": {}, "budget": {"max_hours": 1}, "cluster": cluster}
    assert trial_job(sweep, {"train.optimizer.lr": 0.5}) == {
        "train": {"optimizer": {"lr": 0.5}},
        "cluster": {"provider": "local", "address": None, "workers": 1},
        "checkpoint": {"metric": "eval_loss", "mode": None},
    }


@pytest.mark.parametrize(
    ("cluster", "workers", "gpus", "left"),
    [
        ({"provider": "local", "workers": 8}, 1, False, {"provider": "local", "workers": 1}),
        ({"provider": "local", "workers": None}, 2, True, {"workers": None, "accelerators": "GPU:2"}),
        ({"accelerators": "GPU:4", "nodes": None}, 2, True, {"accelerators": "GPU:2", "nodes": None}),
        ({"accelerators": "L4", "nodes": {"min": 0, "max": 8}}, 1, True, {"accelerators": "L4:1", "nodes": 1}),
        ({"accelerators": "H100:8", "nodes": 4}, 16, True, {"accelerators": "H100:8", "nodes": 2}),
        ({"accelerators": "H100:8", "nodes": 4}, 12, True, {"accelerators": "H100:6", "nodes": 2}),
    ],
)
def test_a_trial_by_itself_runs_on_what_it_had_of_the_sweeps_cluster(
    cluster: dict[str, Any], workers: int, gpus: bool, left: dict[str, Any]
) -> None:
    sweep = {"tune": {"workers_per_trial": workers}, "budget": {"max_hours": 1}, "cluster": {"context": "k", **cluster}}
    alone = lone_job(sweep, {"train.seed": 5}, gpus=gpus)
    assert alone["train"] == {"seed": 5}
    assert alone.keys() == {"train", "cluster", "checkpoint"}
    assert {key: alone["cluster"].get(key) for key in left} == left
    assert alone["cluster"]["context"] == "k"


# -- repeats


REPEATED = Tune.model_validate(
    {"trials": 6, "repeats": 3, "search": {"name": "tpe"}, "space": {"x": {"uniform": [0, 1]}}}
)


def test_each_point_is_trained_so_often_as_asked_for_and_the_searcher_told_their_mean(run: Run) -> None:
    launch = Launch(run, REPEATED, slots=4)
    told = [launch.suggest(name) for name in "abcd"]
    assert [one["trial"] for one in told] == ["00000-0", "00000-1", "00000-2", "00001-0"]
    assert len({one["point"] for one in told[:3]}) == 1
    heard: list[Any] = []
    launch.bridge._searcher.tell = lambda *told, completed: heard.append((*told, completed))  # type: ignore[method-assign]
    for name, value in zip("cab", (0.3, 0.6, 0.9), strict=True):
        assert heard == []
        launch.result(name, 1, value, state="SUCCEEDED", complete=True)
    assert heard == [(0, {1: pytest.approx(0.6)}, True)]
    best = ranked(list(launch.record.trials.values()), "eval_accuracy", "max")
    assert [trial.id for trial in best] == ["00000-1", "00000-0", "00000-2"]


def test_a_point_that_fails_with_one_seed_has_failed(run: Run) -> None:
    launch = Launch(run, REPEATED, slots=3)
    heard: list[Any] = []
    launch.bridge._searcher.tell = lambda *told, completed: heard.append((*told, completed))  # type: ignore[method-assign]
    for name, state in zip("abc", ("SUCCEEDED", "FAILED", "SUCCEEDED"), strict=True):
        launch.suggest(name)
        launch.result(name, 1, 0.5, state=state, complete=True)
    assert heard == [(0, {}, False)]


@pytest.mark.parametrize("lost", ["a", "c"])
def test_a_point_that_ends_with_no_finite_value_with_one_seed_has_none(run: Run, lost: str) -> None:
    launch = Launch(run, REPEATED, slots=3)
    heard: list[Any] = []
    launch.bridge._searcher.tell = lambda *told, completed: heard.append((*told, completed))  # type: ignore[method-assign]
    for name in "abc":
        launch.suggest(name)
        launch.result(name, 1, 0.9)
        launch.result(name, 2, math.nan if name == lost else 0.9, state="SUCCEEDED", complete=True)
    assert heard == [(0, {}, True)]


def test_a_sweep_with_repeats_goes_on_with_those_that_are_left_and_suggests_what_it_would_have(
    run: Run, tmp_path: Path
) -> None:
    def finish(launch: Launch, name: str) -> Any:
        told = launch.suggest(name)
        x = launch.record.trials[told["trial"]].point["x"]
        launch.result(name, 1, x, state="SUCCEEDED", complete=True)
        return told["trial"], told["point"]

    undisturbed = Launch(new_run(tmp_path, "whole"), REPEATED)
    whole = [finish(undisturbed, str(number)) for number in range(18)]
    first = Launch(run, REPEATED)
    before = [finish(first, str(number)) for number in range(8)]
    first.events.close()
    again = Launch(run, REPEATED)
    assert before + [finish(again, str(number)) for number in range(8, 18)] == whole
    assert again.suggest("more") == "FINISHED"


def test_a_repeat_has_another_seed() -> None:
    sweep = {"train": {"seed": 7}, "tune": {"repeats": 3}}
    assert [trial_job(sweep, {}, repeat)["train"]["seed"] for repeat in range(3)] == [7, 8, 9]


# -- trials that wait


def test_a_trial_that_waits_is_told_apart_from_one_that_runs(run: Run) -> None:
    launch = Launch(run)
    launch.suggest("a")
    trial = launch.record.trials["00000"]
    for state in ("WAITING", "WAITING", "RUNNING", "WAITING"):
        launch.record.is_now(trial, state)
    launch.events.close()
    rows = [row for row in run.all_rows("events") if row["event"] == "trial.state"]
    assert [row["state"] for row in rows] == ["WAITING", "RUNNING", "WAITING"]
    assert states(Launch(run)) == ["WAITING"]
    launch.bridge.on_started("a")
    assert states(launch) == ["RUNNING"]


@pytest.mark.parametrize("saved", [True, False], ids=["it waits", "it saves, to wait"])
def test_of_a_trial_that_waited_when_it_was_ended_its_own_folder_says_so(run: Run, *, saved: bool) -> None:
    launch = Launch(run, slots=2)
    launch.suggest("a")
    folder = trial_run(run, "00000")
    folder.create(b"task: image-classification\n")
    folder.claim()
    launch.result("a", 2, 0.5)
    launch.record.is_now(launch.record.trials["00000"], "WAITING")
    if saved:
        launch.bridge.on_trial_complete("a", None)
    else:
        launch.result("a", 2, 0.5, complete=True)
    result = folder.result()
    assert result is not None
    assert (result.state, result.step, result.metrics) == ("PRUNED", 2, {"eval_accuracy": 0.5})
    assert states(launch) == ["PRUNED"]


def test_a_trial_that_is_ended_as_it_trains_writes_its_own_end(run: Run) -> None:
    launch = Launch(run)
    launch.suggest("a")
    folder = trial_run(run, "00000")
    folder.create(b"task: image-classification\n")
    folder.claim()
    launch.result("a", 2, 0.5, complete=True)
    assert (states(launch), folder.result()) == (["PRUNED"], None)


def test_a_trial_that_is_begun_ahead_waits_until_another_ends(run: Run) -> None:
    launch = Launch(run, slots=2, ahead=1)
    assert [launch.suggest(name) is not None for name in "abcd"] == [True, True, True, False]
    assert states(launch) == ["RUNNING", "RUNNING", "WAITING"]
    launch.result("a", 1, 0.5, state="SUCCEEDED", complete=True)
    launch.bridge.on_started("c")
    assert launch.suggest("d") is not None
    assert states(launch) == ["SUCCEEDED", "RUNNING", "RUNNING", "WAITING"]


def test_where_nodes_may_come_a_trial_waits_until_it_is_started(run: Run) -> None:
    launch = Launch(run, slots=2, grows=True)
    launch.suggest("a")
    launch.suggest("b")
    assert states(launch) == ["WAITING", "WAITING"]
    launch.bridge.on_started("b")
    assert states(launch) == ["WAITING", "RUNNING"]


def test_a_trial_that_waits_when_the_sweep_is_stopped_goes_on_with_a_resume(run: Run) -> None:
    launch = Launch(run)
    launch.suggest("a")
    launch.record.is_now(launch.record.trials["00000"], "WAITING")
    launch.stopping = True
    launch.bridge.on_trial_complete("a", None)
    assert states(launch) == ["STOPPED"]
    launch.events.close()
    assert Launch(run).suggest("b")["trial"] == "00000"
