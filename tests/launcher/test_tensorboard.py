"""A run's curves in TensorBoard: the committed history, once; and a sweep's trials side by side."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tensorboard.plugins.hparams.metadata import parse_experiment_plugin_data

from cluster.errors import StorageError
from cluster.runs import Run
from cluster.storage.file import FileStorage
from cluster.trials import trial_run
from launcher.status import open_sweep
from launcher.sweeps import shown
from launcher.tensorboard import EventFiles, SweepFiles, write_event_files
from tests.finished import DIGITS, new_run, training, write_rows, write_story
from tests.harness import raylift, start_raylift, wait_for
from tests.sweeps import HEAD, SEARCHED, begun, elsewhere, ended, searched

BROWSERLESS = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Return a curve as TensorBoard itself reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def losses(run: Run) -> list[tuple[int, Any]]:
    return [(row["step"], pytest.approx(row["loss"])) for row in run.rows("metrics") if row["kind"] == "step"]


def test_a_run_that_lost_a_rank_has_no_step_twice_and_misses_none(tmp_path: Path) -> None:
    run = write_story(tmp_path / "runs")
    rows = write_event_files([run], tmp_path / "tb")
    assert rows == len(run.all_rows("metrics"))
    assert curve(tmp_path / "tb" / run.id, "train/loss") == losses(run)
    assert [step for step, _ in curve(tmp_path / "tb" / run.id, "train/lr")] == list(range(1, 13))
    assert [step for step, _ in curve(tmp_path / "tb" / run.id, "eval/accuracy")] == [4, 8, 12]
    assert [step for step, _ in curve(tmp_path / "tb" / run.id, "epoch/loss")] == [4, 8, 12]


def test_saves_are_curves_too(tmp_path: Path) -> None:
    run = new_run(tmp_path / "runs")
    attempt = run.claim()
    saves = [
        {"event": "checkpoint", "step": step, "bytes": 2500, "seconds": 2.0, "blocked": 0.25 * step, "mb_per_s": 1.5}
        for step in (2, 4)
    ]
    skipped = {"event": "checkpoint.skipped", "step": 3, "blocked": 30.0}
    write_rows(attempt, "metrics", training(0, 4, begin=1.0))
    write_rows(attempt, "events", [saves[0], skipped, saves[1]])
    assert write_event_files([run], tmp_path / "tb") == len(run.all_rows("metrics")) + 3
    assert curve(tmp_path / "tb" / run.id, "save/bytes") == [(2, 2500), (4, 2500)]
    assert curve(tmp_path / "tb" / run.id, "save/mb_per_s") == [(2, 1.5), (4, 1.5)]
    assert curve(tmp_path / "tb" / run.id, "save/blocked") == [(2, 0.5), (3, 30.0), (4, 1.0)]


def test_an_attempt_that_begins_anew_takes_all_before_it_back(tmp_path: Path) -> None:
    run = new_run(tmp_path / "runs")
    write_rows(run.claim(), "metrics", training(0, 6, begin=1.0))
    write_rows(run.claim(), "metrics", training(0, 3, begin=2.0))
    write_event_files([run], tmp_path / "tb")
    assert [step for step, _ in curve(tmp_path / "tb" / run.id, "train/loss")] == [1, 2, 3]


def test_what_comes_later_is_added_and_storage_that_is_away_in_between_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path / "runs")
    write_rows(run.claim(), "metrics", training(0, 2, begin=1.0))
    with EventFiles(run, tmp_path / "tb") as files:
        files.update()
        write_rows(run.claim(), "metrics", training(0, 3, begin=2.0))
        with monkeypatch.context() as patch:
            patch.setattr(Run, "claims", _away)
            with pytest.raises(StorageError):
                files.update()
        assert files.update() == 3
        assert files.update() == 0
    assert [step for step, _ in curve(tmp_path / "tb", "train/loss")] == [1, 2, 3]


def _away(_: Run) -> Any:
    raise StorageError("the bucket does not answer")


def test_tensorboard_shows_the_runs_of_a_storage_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    run = write_story(tmp_path / "runs")
    with start_raylift("tensorboard", "--storage", tmp_path / "runs", "--port", "0") as process:
        assert process.stdout is not None
        address = next(found[0] for line in process.stdout if (found := re.search(r"http://localhost:\d+/", line)))
        told = wait_for(lambda: _ask(f"{address}data/plugin/scalars/scalars?run={run.id}&tag=train/loss"), "the curve")
        assert [(step, value) for _, step, value in told] == losses(run)
        texts = _ask(f"{address}data/plugin/text/tags")
        assert texts == {run.id: ["job.yaml"]}
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0
    with pytest.raises(urllib.error.URLError):
        BROWSERLESS.open(address, timeout=5)


def _ask(url: str) -> Any:
    """Return what TensorBoard says; None while it has not read its files."""
    try:
        with BROWSERLESS.open(url, timeout=10) as reply:
            return json.loads(reply.read())
    except urllib.error.HTTPError:
        return None


# -- sweeps


def write_trials(folder: Path, count: int) -> Run:
    """Write a sweep whose trials have metrics of their own, as long as they were evaluated."""
    run, attempt = searched(folder, count)
    elsewhere(attempt)
    for trial in open_sweep(run).trials:
        of_it = trial_run(run, trial.id)
        of_it.create(run.job())
        write_rows(of_it.claim(), "metrics", training(0, 4 * trial.epoch, begin=trial.started))
    return run


def ask_hparams(address: str, what: str, **request: Any) -> Any:
    query = urllib.parse.urlencode({"request": json.dumps(request)})
    return _ask(f"{address}data/plugin/hparams/{what}?{query}")


def test_the_trials_of_a_sweep_are_compared_on_tensorboards_hparams_page(tmp_path: Path) -> None:
    run = write_trials(tmp_path / "runs", 12)
    sweep = open_sweep(run)
    columns = [{"hparam": key} for key in sweep.names] + [{"metric": {"tag": "eval/accuracy"}}]
    wanted = {"startIndex": 0, "sliceSize": 100, "colParams": columns}
    wanted |= {"allowedStatuses": ["STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING", "STATUS_UNKNOWN"]}
    with start_raylift("tensorboard", run.uri, "--port", "0") as process:
        assert process.stdout is not None
        address = next(found[0] for line in process.stdout if (found := re.search(r"http://localhost:\d+/", line)))

        def groups() -> Any:
            found = ask_hparams(address, "session_groups", **wanted)
            return found["sessionGroups"] if found and found.get("totalSize") == 12 else None

        told = {group["name"]: group for group in wait_for(groups, "the trials")}
        known = ask_hparams(address, "experiment")
        curve = _ask(f"{address}data/plugin/scalars/scalars?run={run.id}/00003&tag=train/loss")
        process.terminate()  # it alone
        process.communicate(timeout=30)
    with pytest.raises(urllib.error.URLError):
        BROWSERLESS.open(address, timeout=5)
    assert {f"{trial.id} of {run.id}" for trial in sweep.trials} == set(told)
    for trial in sweep.trials:
        group = told[f"{trial.id} of {run.id}"]
        expect = {key: shown(value) if isinstance(value, dict) else value for key, value in trial.point.items()}
        assert group["hparams"] == expect
        assert group["metricValues"][0]["value"] == pytest.approx(1 - 1 / (4 * trial.epoch))
        status = {"FAILED": "STATUS_FAILURE", "RUNNING": "STATUS_UNKNOWN", "STOPPED": "STATUS_UNKNOWN"}
        assert [one["status"] for one in group["sessions"]] == [status.get(trial.state, "STATUS_SUCCESS")]
    infos = {info["name"]: info for info in known["hparamInfos"]}
    assert set(infos) == set(sweep.names)
    assert infos["train.optimizer.lr"]["domainInterval"] == {"minValue": 1e-4, "maxValue": 0.1}
    assert infos["train.optimizer.name"]["domainDiscrete"] == ["adamw", "sgd", "muon"]
    assert infos["data.augment.flip"]["type"] == "DATA_TYPE_BOOL"
    assert [info["name"]["tag"] for info in known["metricInfos"]] == ["eval/accuracy", "eval/f1", "eval/loss"]
    assert len(curve) == 4 * next(trial for trial in sweep.trials if trial.id == "00003").epoch


def test_a_trial_is_added_when_it_begins_and_ended_when_it_ends(tmp_path: Path) -> None:
    run = new_run(tmp_path / "runs", "sweep", DIGITS + "tune: {trials: 8}\n")
    attempt = run.claim()
    write_rows(attempt, "events", [HEAD, begun(0)], by="driver")
    with SweepFiles(run, tmp_path / "tb", {}) as files:
        assert files.update() == 0  # the trial has no folder yet
        trial = trial_run(run, "00000")
        trial.create(run.job())
        write_rows(trial.claim(), "metrics", training(0, 4, begin=1.0))
        assert files.update() == len(trial.all_rows("metrics"))
        write_rows(attempt, "events", [ended(0, "PRUNED")], by="rank-0")
        assert files.update() == 0
        assert files.update() == 0
    assert [step for step, _ in curve(tmp_path / "tb" / "00000", "train/loss")] == [1, 2, 3, 4]
    assert set(hparams_of(tmp_path / "tb" / "00000")) == {f"_hparams_/session_{part}_info" for part in ("start", "end")}


def test_storage_that_is_away_for_a_while_loses_nothing_of_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_trials(tmp_path / "runs", 6)
    rows = sum(len(trial_run(run, trial.id).all_rows("metrics")) for trial in open_sweep(run).trials)
    with SweepFiles(run, tmp_path / "tb", {}) as files:
        with monkeypatch.context() as patch:
            patch.setattr(Run, "claims", _away)
            with pytest.raises(StorageError):
                files.update()
        assert files.update() == rows
    longest = max(open_sweep(run).trials, key=lambda trial: trial.epoch)
    steps = [step for step, _ in curve(tmp_path / "tb" / longest.id, "train/loss")]
    assert steps == list(range(1, 4 * longest.epoch + 1))


def test_several_sweeps_share_one_experiment_with_the_keys_of_all(tmp_path: Path) -> None:
    first, _ = searched(tmp_path / "runs", 3)
    second, _ = searched(tmp_path / "runs", 4, SEARCHED.replace("model.dropout", "data.augment.noise"))
    plain = new_run(tmp_path / "runs")
    write_event_files([plain, first, second], tmp_path / "tb")
    written = [hparams_of(tmp_path / "tb" / run.id) for run in (plain, first, second)]
    assert [list(each) for each in written] == [[], ["_hparams_/experiment"], []]
    found = parse_experiment_plugin_data(written[1]["_hparams_/experiment"])
    assert {"model.dropout", "data.augment.noise"} < {info.name for info in found.hparam_infos}


def hparams_of(folder: Path) -> dict[str, bytes]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.summary_metadata
    return {tag: about.plugin_data.content for tag, about in tags.items() if about.plugin_data.plugin_name == "hparams"}


def test_a_trial_that_went_on_from_another_forgets_what_it_had_done_itself(tmp_path: Path) -> None:
    run = new_run(tmp_path / "runs")
    write_rows(run.claim(), "metrics", training(0, 6, begin=1.0))
    other = run.claim()
    path = run.path(f"attempts/{other.number:06d}/claim.json")
    origin = {"run": "another", "attempt": 1, "step": 4}
    run.storage.write(path, json.dumps({**json.loads(run.storage.read(path)), "origin": origin}).encode())
    write_rows(other, "metrics", training(4, 8, begin=2.0))
    write_event_files([run], tmp_path / "tb")
    assert [step for step, _ in curve(tmp_path / "tb" / run.id, "train/loss")] == list(range(1, 9))


def test_the_files_are_written_for_a_tensorboard_of_ones_own_but_never_over_others(tmp_path: Path) -> None:
    run = write_story(tmp_path / "runs")
    done = raylift("tensorboard", run.uri, "--logdir", tmp_path / "my tb")
    assert done.returncode == 0, done.stderr
    assert f"Look at them: tensorboard --logdir '{tmp_path}/my tb'" in done.stdout
    again = raylift("tensorboard", run.uri, "--logdir", tmp_path / "my tb")
    assert again.returncode == 2
    assert "holds event files already" in again.stderr


def test_a_storage_without_runs_says_how_to_begin(tmp_path: Path) -> None:
    FileStorage(tmp_path / "empty")
    done = raylift("tensorboard", "--storage", tmp_path / "empty")
    assert done.returncode == 2
    assert "no runs in" in done.stderr
