"""A run's curves in TensorBoard: the committed history, once."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import StorageError
from cluster.runs import Run
from cluster.storage.file import FileStorage
from launcher.tensorboard import EventFiles, write_event_files
from tests.finished import new_run, training, write_rows, write_story
from tests.harness import raylift, start_raylift, wait_for

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
