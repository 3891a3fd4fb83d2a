"""Ctrl-C at any moment: the first saves and stops, the second ends at once, and a resume repeats no random number."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.runs import Run
from tests.faults.screens import assert_ended, long_job, wait_for_nothing_left, write_job
from tests.harness import assert_nothing_left, fresh_id, losses, open_run, raylift, start_raylift, wait_for
from tests.needs import long

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]


def is_created(run: Run, _: int) -> bool:
    return Path(run.uri, "job.yaml").exists()


def is_starting_ray(run: Run, attempt: int) -> bool:
    return attempt in run.attempts()


def is_starting_ranks(run: Run, attempt: int) -> bool:
    return any(row["event"] == "cluster" for row in run.rows_of(attempt, "events"))


def is_training(run: Run, attempt: int) -> bool:
    return len(run.rows_of(attempt, "metrics")) > 20


def is_saving(run: Run, attempt: int) -> bool:
    """Whether a checkpoint's files are there and its manifest is not."""
    names = {entry.path for entry in run.storage.list(run.path(f"attempts/{attempt:06d}/checkpoints/"))}
    return any(f"{name.rpartition('/')[0]}/manifest.json" not in names for name in names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_job(tmp_path_factory.mktemp("ctrl-c"), long_job("7 steps")).parent


@contextlib.contextmanager
def start(folder: Path, run: Run, moment: Callable[[Run, int], bool]) -> Iterator[subprocess.Popen[str]]:
    """Start a run, or resume one that there is, and wait until its attempt is where it should be."""
    attempt = max(run.attempts(), default=0) + 1
    first = ("run", folder / "job.yaml", "--id", run.id, "--storage", run.storage.uri)
    with start_raylift(*(first if attempt == 1 else ("resume", run.uri))) as process:
        wait_for(lambda: moment(run, attempt), f"{moment.__name__} of attempt {attempt}")
        yield process


def press(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)


def test_ctrl_c_before_there_is_a_run_leaves_nothing(folder: Path) -> None:
    for number in range(5):  # on a busy machine the key may come too late, when there is a run
        run_id, storage = fresh_id("never"), folder / f"never-{number}"
        with start_raylift("run", folder / "job.yaml", "--id", run_id, "--storage", storage) as process:
            wait_for(lambda: "pydantic" in Path(f"/proc/{process.pid}/maps").read_text(), "the command to load")
            press(process)
            output, _ = process.communicate(timeout=90)
            if not storage.exists():
                assert process.returncode in (130, -signal.SIGINT)  # to a shell these are the same
                assert output.strip() == ""
                assert_nothing_left(run_id)
                return
    pytest.fail("the key came too late each time")


def test_ctrl_c_while_a_run_is_submitted_undoes_or_stops_it(folder: Path) -> None:
    run = open_run(folder / "runs", fresh_id("submitted"))
    with start(folder, run, is_created) as process:
        press(process)
        output, _ = process.communicate(timeout=120)
        assert (process.returncode, is_created(run, 1)) in [(130, False), (4, True)], output
        assert "Traceback" not in output
        wait_for_nothing_left(run.id)


@long
def test_a_run_that_is_stopped_over_and_over_ends_with_the_same_losses(folder: Path, undisturbed: Run) -> None:
    run = open_run(folder / "runs", fresh_id("over-and-over"))
    for moment in (is_starting_ray, is_starting_ranks, is_training, is_saving):
        stop_by_the_first_ctrl_c(folder, run, moment)
    for moment in (is_starting_ray, is_training):
        end_by_the_second_ctrl_c(folder, run, moment)
    resumed = raylift("resume", run.uri)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    wait_for_nothing_left(run.id)
    assert losses(run) == losses(undisturbed)


def stop_by_the_first_ctrl_c(folder: Path, run: Run, moment: Callable[[Run, int], bool]) -> None:
    with start(folder, run, moment) as process:
        press(process)
        output, _ = process.communicate(timeout=120)
        assert_ended(output, process.returncode, run, 4, "STOPPED", "raylift resume")
        assert output.count("stopping: saving a checkpoint first (Ctrl-C again ends it at once)") == 1
        seen = [row["step"] for row in run.rows("metrics") if row["kind"] == "step"]
        assert [checkpoint.step for checkpoint in run.checkpoints()][-1:] == seen[-1:], "the last step is saved"


def end_by_the_second_ctrl_c(folder: Path, run: Run, moment: Callable[[Run, int], bool]) -> None:
    with start(folder, run, moment) as process:
        pressed = time.monotonic()
        press(process)
        time.sleep(0.1)  # for the kernel, which makes one signal of two
        press(process)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 130, output
        assert time.monotonic() - pressed < 15
        assert output.count("ended at once. Go on from the newest checkpoint: raylift resume ") == 1
        assert "Traceback" not in output
        assert_nothing_left(run.id)
        assert "STOPPED: stopped from the keyboard" in raylift("status", run.uri).stdout
