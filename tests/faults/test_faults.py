"""What goes wrong while a run is under way: one message, the right exit code, and no checkpoint lost."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from cluster.runs import Run
from tests.faults.screens import (
    DIGITS,
    assert_ended,
    assert_refused,
    wait_for_nothing_left,
    write_console_script,
    write_job,
    write_modules,
)
from tests.harness import (
    assert_clean,
    command,
    environment,
    find_process,
    fresh_id,
    kill,
    open_run,
    raylift,
    start_raylift,
    wait_for,
)
from tests.real.mounts import mounted
from tests.trainers.pictures import digits, write_folder

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

ODD_NAME = "my rüns; $(touch hit) `touch hit` & ☃"
EPOCHS = 12  # some seconds for what comes while it trains, also on a fast machine
WHILE = DIGITS.replace("epochs: 3", f"epochs: {EPOCHS}")
LONG = DIGITS.replace("epochs: 3", "epochs: 500")


def steps(run: Run) -> list[int]:
    return sorted(row["step"] for row in run.rows("metrics") if row["kind"] == "step")


# -- a hostile working folder, names with shell characters, and corrupt images: a run all the same


@dataclass(frozen=True)
class Odd:
    """A run from the worst working folder that a person may have."""

    folder: Path
    script: Path  # the command raylift, as it is installed
    done: subprocess.CompletedProcess[str]
    run: Run


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Odd:
    folder = tmp_path_factory.mktemp("odd") / ODD_NAME
    pixels, labels = digits(300)
    images = write_folder(folder / "images", pixels, labels)
    for image in sorted(images.rglob("*.png"))[:3]:
        image.write_bytes(b"no picture at all")
    write_modules(folder, ("launcher", "cluster", "trainers", "loop.py", "state.py", "worker.py", "data", "ray"))
    job = DIGITS.replace("builtin:digits", "images").replace("epochs: 3", "epochs: 1")
    write_job(folder, job, name="$(touch hit); ünd.yaml")
    script = write_console_script(folder)
    run_id = fresh_id("odd")
    arguments = ["run", "$(touch hit); ünd.yaml", "--storage", "rüns & more", "--id", run_id]
    done = _in(folder, [sys.executable, str(script), *arguments])
    return Odd(folder, script, done, open_run(folder / "rüns & more", run_id))


def test_modules_named_like_ours_in_the_working_folder_stay_out_of_the_workers(
    odd: Odd,
) -> None:
    assert odd.done.returncode == 0, odd.done.stdout + odd.done.stderr
    assert "SUCCEEDED in " in odd.done.stdout


def test_no_name_with_shell_characters_reaches_a_shell(
    odd: Odd,
) -> None:
    assert odd.done.returncode == 0
    assert not list(odd.folder.parent.rglob("hit"))
    assert not Path("hit").exists()
    printed = next(line for line in odd.done.stdout.splitlines() if line.startswith("export it: raylift "))
    export = printed.removeprefix("export it: raylift ").replace(" DIR", " model")
    pasted = _in(odd.folder, ["sh", "-c", f"{shlex.join([sys.executable, str(odd.script)])} {export}"])
    assert pasted.returncode == 0, pasted.stderr
    assert (odd.folder / "model" / "model.safetensors").exists()


def test_corrupt_images_among_good_ones_are_dropped_counted_and_listed(
    odd: Odd,
) -> None:
    assert "data: dropped 3 of train (unreadable): 0/0000.png: no image, 0/0010.png: no image" in odd.done.stdout
    dropped = [row for row in odd.run.rows("events") if row["event"] == "data.cleaned"]
    assert [(row["reason"], row["count"], len(row["items"])) for row in dropped] == [("unreadable", 3, 3)]
    ready = next(row for row in odd.run.rows("events") if row["event"] == "data.ready")
    assert ready["train"] + ready["eval"] == 297


def _in(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=folder, env=environment(), capture_output=True, text=True, timeout=240)


# -- while one run is under way


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_job(tmp_path / "project", WHILE).parent


@pytest.fixture(scope="module")
def under_way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, subprocess.Popen[str]]]:
    """Return a run that trains and goes on doing so, and the command that follows it."""
    folder = tmp_path_factory.mktemp("under-way")
    run = open_run(folder / "runs", fresh_id("under-way"))
    with start_raylift("run", write_job(folder, LONG), "--id", run.id, "--storage", run.storage.uri) as process:
        wait_for(run.checkpoints, "the first checkpoint")
        yield run, process
        process.kill()
        raylift("stop", run.uri, "--now")
        wait_for_nothing_left(run.id)


def test_a_run_under_way_is_shown_as_running(under_way: tuple[Run, subprocess.Popen[str]]) -> None:
    run = under_way[0]
    assert "RUNNING" in raylift("status", run.uri).stdout
    assert "RUNNING" in raylift("ps", "--storage", run.storage.uri).stdout


@pytest.mark.parametrize("command_name", ["resume", "rm"])
def test_a_run_under_way_is_neither_resumed_nor_removed(
    under_way: tuple[Run, subprocess.Popen[str]], command_name: str
) -> None:
    assert_refused(raylift(command_name, under_way[0].uri), 2, f"{under_way[0].uri} is running")
    assert len(under_way[0].attempts()) == 1


def test_the_id_of_a_run_under_way_is_refused_with_who_holds_it(
    under_way: tuple[Run, subprocess.Popen[str]], project: Path
) -> None:
    run, process = under_way
    done = raylift("run", project / "job.yaml", "--id", run.id, "--storage", run.storage.uri)
    assert_refused(done, 2, f"{run.uri} exists already", f"created by process {process.pid} on ")


def test_the_id_of_a_run_under_way_is_refused_in_another_storage_of_this_machine_too(
    under_way: tuple[Run, subprocess.Popen[str]], project: Path
) -> None:
    run = under_way[0]
    done = raylift("run", project / "job.yaml", "--id", run.id, "--storage", project / "elsewhere")
    assert_refused(done, 2, f"another run {run.id} is running on this machine: {run.uri}", "--id")
    assert list(open_run(project / "elsewhere", run.id).storage.list()) == []
    assert "RUNNING" in raylift("status", run.uri).stdout


def test_raylift_stop_saves_and_stops(under_way: tuple[Run, subprocess.Popen[str]]) -> None:
    run, process = under_way
    assert raylift("stop", run.uri).returncode == 0
    output, _ = process.communicate(timeout=60)
    told = ("STOPPED", "stopped by raylift stop; saved at step ", "raylift resume")
    assert_ended(output, process.returncode, run, 4, *told)
    assert run.checkpoints()[-1].step == steps(run)[-1]
    assert_clean(run, output)


def test_a_closed_terminal_ends_nothing(project: Path) -> None:
    run = open_run(project / "runs", fresh_id("closed"))
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(project)
        start = command("run", "job.yaml", "--id", run.id)
        os.execve(start[0], start, environment())
    seen = bytearray()

    def shows_a_loss() -> bool:
        seen.extend(os.read(terminal, 65536))
        return b"  loss " in seen

    wait_for(shows_a_loss, "the progress display")
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status), "the command outlived its terminal"
    assert run.result() is None
    wait_for(run.result, "the end of the run")
    assert "SUCCEEDED" in raylift("status", run.uri).stdout
    wait_for_nothing_left(run.id)


# -- ends that nobody wished for


def test_training_that_diverges_stops_at_the_step_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    job = write_job(tmp_path, DIGITS.replace("seed: 5", "optimizer: {name: sgd, lr: 40}").replace("5 steps", "1 step"))
    run = open_run(tmp_path / "runs", fresh_id("diverged"))
    done = raylift("run", job, "--id", run.id, "--storage", run.storage.uri, "--set", "checkpoint.keep=1")
    good = run.checkpoints()[-1].step
    kept = f"The last good checkpoint, of step {good}, is kept"
    assert_ended(done.stdout + done.stderr, done.returncode, run, 1, "FAILED", "training diverged: ", kept)
    assert good == steps(run)[-1] - 1, "the checkpoint before the last step with a finite loss is good"
    assert raylift("export", run.uri, tmp_path / "model").returncode == 0
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert all(abs(values).max() < 1e6 for values in weights.values())


def _kill_a_worker(run: Run) -> None:
    attempt = wait_for(lambda: len(run.attempts()), "an attempt")
    wait_for(lambda: [row for row in run.rows_of(attempt, "metrics") if row["step"]], f"attempt {attempt} to train")
    victim = find_process(run.id, "worker")
    assert victim is not None
    kill(victim)
    wait_for(lambda: len(run.attempts()) > attempt or run.result(), "the loss to be noticed")


def _kill_the_driver(run: Run) -> None:
    wait_for(run.checkpoints, "the first checkpoint")
    victim = find_process(run.id, "driver")
    assert victim is not None
    kill(victim)


@pytest.mark.parametrize(
    ("deadly", "restarts", "reason"),
    [
        (_kill_a_worker, 1, "GB at most), and no restart is left"),
        (_kill_the_driver, 0, "the driver died (signal SIGKILL)"),
    ],
    ids=["worker", "driver"],
)
def test_a_run_that_loses_more_than_max_failures_fails_with_the_reason(
    tmp_path: Path, deadly: Callable[[Run], None], restarts: int, reason: str
) -> None:
    run = open_run(tmp_path / "runs", fresh_id("unlucky"))
    limit = f"train.max_failures={restarts}"
    job = write_job(tmp_path, LONG)
    with start_raylift("run", job, "--id", run.id, "--storage", run.storage.uri, "--set", limit) as process:
        for _ in range(restarts + 1):
            deadly(run)
        output, _ = process.communicate(timeout=120)
        assert_ended(output, process.returncode, run, 3, "FAILED", reason, "train.max_failures", "raylift resume")
        assert "gloo" not in output
        assert len(run.attempts()) == restarts + 1
        assert run.newest_intact(read=True) is not None


@pytest.fixture
def roomy_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 20 MB, as a file can fill it up."""
    with mounted(tmp_path / "roomy", "size=20m") as folder:
        yield folder


@pytest.mark.waiting
@pytest.mark.root
def test_a_disk_that_fills_up_ends_the_run_and_a_resume_goes_on_once_there_is_space(
    tmp_path: Path, roomy_disk: Path
) -> None:
    run = open_run(roomy_disk / "runs", fresh_id("full"))
    with start_raylift("run", write_job(tmp_path, WHILE), "--id", run.id, "--storage", run.storage.uri) as process:
        wait_for(run.checkpoints, "the first checkpoint")
        ballast = _fill(roomy_disk)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 3, output
        assert output.count("FAILED in ") == 1
        assert "no space for " in output
        assert "Traceback" not in output
        assert "FAILED: no space for " in raylift("status", run.uri).stdout
        assert "FAILED: no space for " in raylift("logs", run.uri).stdout
        assert find_process(run.id, "supervisor") is None
        assert run.newest_intact(read=True) is not None
        assert_refused(raylift("resume", run.uri), 3, "no space for ")
        ballast.unlink()
        resumed = raylift("resume", run.uri)
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
        assert steps(run) == list(range(1, EPOCHS * 23 + 1))
        wait_for_nothing_left(run.id)
        assert_clean(run, output + resumed.stdout + resumed.stderr)


@pytest.mark.root
def test_a_full_folder_for_temporary_files_is_no_matter(
    project: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(project / "runs", fresh_id("no-tmp"))
    (small_disk / "ballast").write_bytes(bytes(1_500_000))  # less is left than a checkpoint takes
    monkeypatch.setenv("TMPDIR", str(small_disk))
    with start_raylift("run", project / "job.yaml", "--id", run.id, "--storage", run.storage.uri) as process:
        wait_for(run.checkpoints, "a save")
        assert raylift("stop", run.uri).returncode == 0
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 4, output
    done = raylift("resume", run.uri)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes on from the checkpoint of step " in done.stdout
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]
    wait_for_nothing_left(run.id)


def _fill(folder: Path) -> Path:
    """Write a file that takes the last byte of a file system."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast
