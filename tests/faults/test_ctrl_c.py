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
from tests.faults.screens import assert_ended, wait_for_nothing_left, write_job
from tests.finished import train
from tests.harness import assert_nothing_left, fresh_id, losses, open_run, raylift, start_raylift, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

JOB = """\
task: image-classification
model: {name: cnn, dropout: 0.3}
data: {train: builtin:digits, eval: {split: 0.2}, image_size: 28, augment: {rotate: 15, noise: 0.05, mixup: 0.2}}
train: {epochs: 8, batch_size: 64, seed: 11}
checkpoint: {every: 7 steps, keep: 2}
cluster: {provider: local, workers: 2}
"""


def is_created(run: Run) -> bool:
    return Path(run.uri, "job.yaml").exists()


def is_starting_ray(run: Run) -> bool:
    return bool(run.attempts())


def is_starting_ranks(run: Run) -> bool:
    return any(row["event"] == "cluster" for row in run.rows_of(1, "events"))


def is_training(run: Run) -> bool:
    return any(row["step"] > 20 for row in run.rows_of(1, "metrics"))


def is_saving(run: Run) -> bool:
    """Whether a checkpoint's files are there and its manifest is not."""
    names = {entry.path for entry in run.storage.list(run.path("attempts/000001/checkpoints/"))}
    return any(f"{name.rpartition('/')[0]}/manifest.json" not in names for name in names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_job(tmp_path_factory.mktemp("ctrl-c"), JOB).parent


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Run:
    return train(folder / "reference", JOB, ranks=2)


@contextlib.contextmanager
def start(folder: Path, run: Run, moment: Callable[[Run], bool]) -> Iterator[subprocess.Popen[str]]:
    with start_raylift("run", folder / "job.yaml", "--id", run.id, "--storage", run.storage.uri) as process:
        wait_for(lambda: moment(run), moment.__name__)
        yield process


def press(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)


def resume_to_the_end(run: Run) -> None:
    resumed = raylift("resume", run.uri)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    wait_for_nothing_left(run.id)


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
        assert (process.returncode, is_created(run)) in [(130, False), (4, True)], output
        assert "Traceback" not in output
        wait_for_nothing_left(run.id)


@pytest.mark.parametrize("moment", [is_starting_ray, is_starting_ranks, is_training, is_saving])
def test_the_first_ctrl_c_saves_and_stops_and_a_resume_ends_with_the_same_losses(
    folder: Path, undisturbed: Run, moment: Callable[[Run], bool]
) -> None:
    run = open_run(folder / "runs", fresh_id(moment.__name__.replace("_", "-")))
    with start(folder, run, moment) as process:
        press(process)
        output, _ = process.communicate(timeout=120)
        assert_ended(output, process.returncode, run, 4, "STOPPED", "raylift resume")
        assert output.count("stopping: saving a checkpoint first (Ctrl-C again ends it at once)") == 1
        seen = [row["step"] for row in run.rows("metrics") if row["kind"] == "step"]
        assert [checkpoint.step for checkpoint in run.checkpoints()][-1:] == seen[-1:], "the last step is saved"
        resume_to_the_end(run)
        assert losses(run) == losses(undisturbed)


@pytest.mark.parametrize("moment", [is_starting_ray, is_training])
def test_the_second_ctrl_c_ends_the_run_at_once(folder: Path, undisturbed: Run, moment: Callable[[Run], bool]) -> None:
    run = open_run(folder / "runs", fresh_id("twice"))
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
        resume_to_the_end(run)
        assert losses(run) == losses(undisturbed)
