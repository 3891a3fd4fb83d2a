"""The driver as a job of a Ray cluster, and what a pod does before it goes."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from cluster import code
from cluster.attempts import Attempt
from cluster.config import Workers
from cluster.errors import UsageError
from cluster.records import Result
from cluster.runs import Run
from tests.finished import DIGITS, new_run
from tests.harness import ROOT, environment, wait_for
from trainers import leaving, processors, submitted
from trainers.leaving import leave
from trainers.main import Driver, Ready, driver_of
from trainers.pulse import pulse_folder
from trainers.sweep.driver import SweepDriver
from trainers.sweep.room import Room
from trainers.sweep.trial import ALL_OF_ITS_POD, TrialContext, threads_each


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    run = new_run(tmp_path / "runs", f"submitted-{secrets.token_hex(3)}")
    monkeypatch.setenv("RAYLIFT_RUN_URI", run.uri)
    return run


@pytest.mark.parametrize(
    ("code", "recorded", "ends_with"),
    [
        (0, True, 0),
        (1, True, 0),  # the training failed: it would fail again
        (4, True, 0),
        (3, False, 3),  # storage took no record of the end
        (75, False, 75),  # its pod is taken away, and did not end in time
    ],
)
def test_a_job_fails_only_where_it_is_to_be_started_again(
    run: Run, monkeypatch: pytest.MonkeyPatch, code: int, recorded: bool, ends_with: int
) -> None:
    def drive(driver: Driver) -> int:
        attempt = driver.run.claim()
        if recorded:
            attempt.finish(Result(state="FAILED", exit_code=code))
        return code

    monkeypatch.setattr(Driver, "drive", drive)
    monkeypatch.setattr(submitted, "_END_OF_POD", 0.0)
    assert submitted.main() == ends_with
    assert (run.result() is not None) is recorded


def test_an_image_with_other_code_is_the_end_of_the_run_and_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(code.DIGEST, "0123456789abcdef")
    assert submitted.main() == 0, "another try would change nothing"
    result = run.result()
    assert result is not None
    assert (result.state, result.exit_code) == ("FAILED", 2)
    assert "cluster.image: it has another raylift than the machine that launched this run" in result.message


def test_an_image_with_another_ray_is_the_end_of_the_run_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitted, "RAY_VERSION", "2.59.0")
    monkeypatch.setenv(code.DIGEST, code.digest())
    assert submitted.main() == 0
    result = run.result()
    assert result is not None
    assert result.message.endswith("and this raylift is made for 2.59.0")


@pytest.mark.parametrize(
    ("python", "torch", "cluster", "message"),
    [
        ("3.10.14", "2.13.0", "{}", "it has Python 3.10.14, and this raylift needs 3.11 or newer, and older than 3.14"),
        ("3.12.1", "2.9.1+cu128", "{}", "it has torch 2.9.1+cu128, and this raylift needs 2.10 or newer"),
        ("3.12.1", "2.13.0+cpu", '{"accelerators": "GPU:1"}', "its torch 2.13.0+cpu is for processors alone"),
        ("3.12.1", "2.13.0+cu130", '{"accelerators": "GPU:1"}', ""),
        ("3.12.1", "2.13.0+cpu", '{"workers": 2}', ""),
    ],
)
def test_python_and_torch_of_an_image_are_checked_before_training_starts(
    monkeypatch: pytest.MonkeyPatch, python: str, torch: str, cluster: str, message: str
) -> None:
    monkeypatch.setattr("platform.python_version", lambda: python)
    monkeypatch.setattr(submitted, "version", lambda _: torch)
    monkeypatch.setenv("RAYLIFT_CLUSTER", cluster)
    with pytest.raises(UsageError, match=re.escape(message)) if message else contextlib.nullcontext():
        submitted._check_image()


def test_a_job_file_of_another_version_is_the_end_of_the_run_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path, job="task: image-classification\ndata: {train: builtin:digits, colour: red}\n")
    monkeypatch.setenv("RAYLIFT_RUN_URI", run.uri)
    assert submitted.main() == 0
    result = run.result()
    assert result is not None
    assert "was made for another version of raylift" in result.message


def test_code_is_the_same_wherever_it_is_installed(tmp_path: Path) -> None:
    for package in ("cluster", "trainers"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))

    def there() -> str:
        command = [sys.executable, "-c", "from cluster import code; print(code.digest())"]
        env = {**environment(), "PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    assert there() == code.digest()
    file = tmp_path / "trainers" / "loop.py"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert there() == code.digest()
    file.write_text(file.read_text() + "# another line\n")
    assert there() != code.digest()


def test_a_pod_of_a_run_that_is_over_or_not_begun_or_to_be_stopped_waits_for_nothing(run: Run) -> None:
    leave(run, "worker")
    attempt = run.claim()
    attempt.finish(Result(state="SUCCEEDED"))
    leave(run, "worker")
    again = run.claim()
    run.request_stop("enough")
    leave(run, "head")
    assert again.notice() is None


def a_driver(run: Run, *, saves: bool) -> subprocess.Popen[bytes]:
    """Return a process that passes for the driver of a run: told to end, it writes that it has saved, or dies."""
    program = f"""
import signal, sys, threading
from cluster.runs import Run
from cluster.segments import SegmentWriter
told = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: told.set() if {saves} else sys.exit(143))
attempt = Run.at({run.uri!r}).claim()
told.wait()
events = SegmentWriter(attempt.run, attempt.number, "events", "rank-0")
events.append({{"event": "preempted", "step": 7}})
events.close()
signal.pause()
"""
    process = subprocess.Popen([sys.executable, "-c", program, "trainers.submitted"], env=environment())
    wait_for(run.attempts, "the attempt", timeout=30)
    return process


@pytest.mark.parametrize("saves", [True, False])
def test_the_pod_of_the_driver_asks_that_to_leave_and_waits_until_it_has_saved_or_ended(
    run: Run, monkeypatch: pytest.MonkeyPatch, saves: bool
) -> None:
    monkeypatch.setattr(leaving, "_POLL", 0.02)
    driver = a_driver(run, saves=saves)
    try:
        monkeypatch.setenv("RAYLIFT_GRACE_SECONDS", "7000")
        age = time.time() - psutil.Process().create_time()
        leave(run, "head")
        notice = Attempt.reopen(run, 1).notice()
        assert notice is not None
        assert notice.seconds == pytest.approx(7000 - age, abs=5), "the grace period began with this process"
        assert (driver.poll() is None) is saves
        assert any(row["event"] == "preempted" for row in run.rows_of(1, "events")) is saves
    finally:
        driver.kill()
        driver.wait()


def test_no_other_process_is_taken_for_the_driver(run: Run) -> None:
    run.claim()  # this process
    leave(run, "head")


@pytest.fixture
def drained(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return whether the node of this pod has been drained."""
    drained: list[bool] = []
    monkeypatch.setattr(leaving, "_POLL", 0.02)
    monkeypatch.setattr(leaving, "_drain_this_node", lambda: drained.append(True))
    monkeypatch.setenv("RAYLIFT_NODE_IP", "10.0.0.7")
    return drained


@contextlib.contextmanager
def a_rank(run_uri: str, attempt: int, *, pod: str) -> Iterator[subprocess.Popen[bytes]]:
    """Have a rank, or a trial, of an attempt at work in a pod."""
    program = f"""
import pathlib, time
from trainers.pulse import Pulse, pulse_folder
folder = pulse_folder(pathlib.Path("/tmp"), {run_uri!r}, {attempt})
folder.mkdir(exist_ok=True)
Pulse(0, folder, run_uri={run_uri!r}, attempt={attempt})
print("at work", flush=True)
time.sleep(60)
"""
    environ = {**environment(), "RAYLIFT_NODE_IP": pod}
    with subprocess.Popen([sys.executable, "-c", program], env=environ, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"at work\n"
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(pulse_folder(Path("/tmp"), run_uri, attempt))


@pytest.mark.parametrize("of", ["", "/trials/00003"])
def test_a_pod_waits_until_what_trains_there_has_ended(run: Run, drained: list[bool], of: str) -> None:
    run.claim()
    with a_rank(run.uri + of, 1, pod="10.0.0.7") as process:
        thread = threading.Thread(target=leave, args=(run, "worker"))
        thread.start()
        thread.join(0.5)
        assert drained == [True]
        assert thread.is_alive()
        process.kill()
        thread.join(10)
        assert not thread.is_alive()


def test_a_pod_in_which_nothing_trains_waits_for_nothing(run: Run, drained: list[bool]) -> None:
    run.claim()
    with a_rank(run.uri, 1, pod="10.0.0.8"), a_rank(f"{run.uri}-2", 1, pod="10.0.0.7"):
        leave(run, "worker")
    assert drained == [True]


def test_a_pod_waits_no_longer_than_until_another_attempt_has_begun(
    run: Run, drained: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "_drain_this_node", lambda: drained.append(bool(run.claim())))
    run.claim()
    with a_rank(run.uri, 1, pod="10.0.0.7"):
        leave(run, "worker")
    assert drained == [True]


def test_the_processors_of_a_pod_are_not_those_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYLIFT_CPUS", raising=False)
    assert not processors.is_shared()
    monkeypatch.setenv("RAYLIFT_CPUS", "3")
    assert processors.is_shared()
    assert processors.cpu_count() == 3


def test_a_trial_in_a_pod_has_all_of_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("RAYLIFT_CPUS", "3")  # fewer than the machine has, or more
    try:
        TrialContext(ALL_OF_ITS_POD).join()
        assert torch.get_num_threads() == 3
        TrialContext(2).join()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert threads_each(2) == 1


@pytest.mark.parametrize(("cpus", "gpus", "threads"), [("4", False, ALL_OF_ITS_POD), ("4", True, 2), (None, False, 1)])
def test_trials_share_the_processors_of_a_machine_and_not_those_of_their_pods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: str | None, gpus: bool, threads: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.delenv("RAYLIFT_CPUS", raising=False)
    if cpus is not None:
        monkeypatch.setenv("RAYLIFT_CPUS", cpus)
    run = new_run(tmp_path / "sweeps", job=DIGITS + "tune: {}\n")
    driver = driver_of(run)
    assert isinstance(driver, SweepDriver)
    driver.room = Room(1, most=2)
    assert driver._threads_each(Ready(Workers(min=1, max=2), gpus, {}, {})) == threads
