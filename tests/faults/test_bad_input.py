"""What is wrong before training starts: one message, the right exit code, and nothing created or lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.records import Result
from tests.faults.screens import (
    assert_ended,
    assert_refused,
    wait_for_nothing_left,
    write_console_script,
    write_job,
    write_modules,
)
from tests.finished import new_run
from tests.harness import ROOT, command, environment, fresh_id, open_run, raylift, raylift_here
from tests.real.seaweedfs import SeaweedFS
from tests.trainers.pictures import digits, write_folder, write_idx

FIVE_MISTAKES = """\
name: Digits of Mine
task: image-clasification
data: {train: builtin:digits, normalise: auto}
train: {epochs: many}
checkpoint: {every: 3 hours}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write_job(tmp_path / "project")


def test_a_missing_job_file_is_told_with_those_that_are_there(job: Path) -> None:
    done = raylift_here("run", job.with_name("jop.yaml"), cwd=job.parent)
    assert_refused(done, 2, "jop.yaml does not exist", "did you mean job.yaml?")


def test_five_mistakes_are_told_at_once_each_with_its_line(tmp_path: Path) -> None:
    job = write_job(tmp_path, FIVE_MISTAKES)
    done = raylift_here("run", job, cwd=tmp_path)
    lines = [f"{job}:{line}:" for line in range(1, 6)]
    assert_refused(done, 2, *lines, "5 mistakes in", "nothing was created")
    assert not (tmp_path / "runs").exists()


def test_a_key_of_set_that_is_misspelled_is_told_with_the_nearest_one(job: Path) -> None:
    done = raylift_here("run", job, "--set", "train.epoch=3", cwd=job.parent)
    assert_refused(done, 2, "--set train.epoch=3: unknown key; did you mean epochs?")
    assert not (job.parent / "runs").exists()


def test_a_missing_data_file_is_told_with_what_is_there_instead(job: Path) -> None:
    (job.parent / "digits.parquet").touch()
    done = raylift_here("run", job, "--set", "data.train=digit.parquet", cwd=job.parent)
    assert_refused(done, 2, "digit.parquet does not exist", "did you mean digits.parquet?")
    assert not (job.parent / "runs").exists()


@pytest.mark.parametrize("uri", ["s3://", "ftp://host/images"])
def test_a_data_uri_that_leads_nowhere_is_refused_before_a_run_is_created(job: Path, uri: str) -> None:
    done = raylift_here("run", job, "--set", f"data.train={uri}", cwd=job.parent)
    assert_refused(done, 2, f"--set data.train={uri}: ", "write ", "nothing was created")
    assert not (job.parent / "runs").exists()


@pytest.mark.parametrize("option", ["--name", "--id"])
def test_a_name_with_shell_characters_is_refused(job: Path, option: str) -> None:
    assert_refused(
        raylift_here("run", job, option, "$(touch hit);`touch hit`", cwd=job.parent), 2, "lower-case letters"
    )
    assert list(job.parent.iterdir()) == [job]


@pytest.mark.parametrize("command_name", ["status", "logs", "stop", "resume", "rm", "report"])
def test_a_run_that_is_not_there_is_an_error_of_the_command_line(tmp_path: Path, command_name: str) -> None:
    done = raylift_here(command_name, "no-such-run", "--storage", tmp_path / "runs")
    assert_refused(done, 2, "no-such-run", "raylift ps")


# -- storage


def test_storage_on_a_read_only_file_system_is_refused_by_name(job: Path, read_only_disk: Path) -> None:
    done = raylift_here("run", job, "--storage", read_only_disk / "runs")
    assert_refused(done, 3, "read-only file system", "check its owner and mode, or its mount")


def test_storage_that_is_a_file_is_refused_by_name(job: Path) -> None:
    assert_refused(raylift_here("run", job, "--storage", job), 3, f"{job}", "a file and a folder cannot share a name")


def test_a_full_disk_is_told_before_a_run_is_created(job: Path, small_disk: Path) -> None:
    (small_disk / "movie").write_bytes(bytes(2 << 20))
    assert_refused(raylift_here("run", job, "--storage", small_disk / "runs"), 3, "no space for", "are free")
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["movie"]


@pytest.mark.parametrize("command_name", ["run", "ps", "status"])
def test_a_wrong_s3_secret_is_told_without_the_secret(
    job: Path, s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch, command_name: str
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-this-one")
    done = _with_storage(command_name, job, s3_env.fresh_uri())
    assert_refused(done, 3, "AWS_SECRET_ACCESS_KEY")
    assert "not-this-one" not in done.stderr


def test_an_s3_user_who_may_only_read_is_told_what_to_ask_for(
    job: Path, s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_env.env_of(s3_env.reader).items():
        monkeypatch.setenv(name, value)
    assert_refused(_with_storage("run", job, s3_env.fresh_uri()), 3, "s3:PutObject")


@pytest.mark.parametrize("command_name", ["run", "ps", "status"])
@pytest.mark.usefixtures("s3_env")
def test_a_missing_bucket_is_told_with_the_command_that_makes_it(job: Path, command_name: str) -> None:
    done = _with_storage(command_name, job, "s3://no-such-bucket/runs")
    assert_refused(done, 3, "bucket no-such-bucket does not exist", "aws s3 mb s3://no-such-bucket")


@pytest.mark.parametrize("command_name", ["run", "ps"])
@pytest.mark.usefixtures("gcs_env")
def test_a_missing_gcs_bucket_is_told_by_its_name(job: Path, command_name: str) -> None:
    done = _with_storage(command_name, job, "gs://no-such-bucket/runs")
    assert_refused(done, 3, "bucket no-such-bucket does not exist", "create it with")


@pytest.mark.parametrize("command_name", ["run", "ps", "status"])
def test_an_endpoint_that_does_not_answer_is_told_by_its_address(
    job: Path, s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch, command_name: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    done = _with_storage(command_name, job, s3_env.fresh_uri())
    assert_refused(done, 3, "http://127.0.0.1:9 does not answer (connection refused)", "AWS_ENDPOINT_URL")


def _with_storage(command_name: str, job: Path, uri: str) -> subprocess.CompletedProcess[str]:
    arguments = {"run": [str(job)], "ps": [], "status": ["some-run"]}[command_name]
    return raylift_here(command_name, *arguments, "--storage", uri)


# -- data: the run exists by then, and ends before Ray has started


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of data sets that cannot be trained on, each for its own reason."""
    root = tmp_path_factory.mktemp("pictures")
    pixels, labels = digits(200)
    write_folder(root / "all", pixels[:100], labels[:100])
    few = labels < 5
    write_folder(root / "five", pixels[100:][few[100:]], labels[100:][few[100:]])
    threes = labels == 3
    write_folder(root / "threes", pixels[threes], labels[threes])
    write_folder(root / "corrupt", pixels[:50], labels[:50])
    (root / "corrupt" / "0" / "0000.png").write_bytes(b"no picture at all")
    write_folder(root / "ruined", pixels[:4], labels[:4])
    for image in (root / "ruined").rglob("*.png"):
        image.write_bytes(image.read_bytes()[:40])
    idx = write_idx(root, "cut", pixels, labels)
    idx.write_bytes(idx.read_bytes()[:1000])
    (root / "empty").mkdir()
    return root


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param(["data.train=empty"], ["empty holds no images"], id="empty"),
        pytest.param(["data.train=threes"], ["images belong to one class, 3", "add images of another"], id="one class"),
        pytest.param(
            ["data.train=five", "data.eval=all"],
            ["labels that training has no samples of: 5, 6, 7, 8, 9"],
            id="more labels in eval",
        ),
        pytest.param(
            ["data.train=corrupt", "data.clean.drop_unreadable=false"],
            ["1 of 50 images cannot be read: 0/0000.png (no image)", "data.clean.drop_unreadable: true"],
            id="one corrupt",
        ),
        pytest.param(["data.train=ruined"], ["none of the 4 images is left to train: 4 unreadable"], id="all corrupt"),
        pytest.param(["data.train=cut-images-idx3-ubyte"], ["cut-images-idx3-ubyte is damaged"], id="cut off"),
    ],
)
def test_data_that_cannot_be_trained_on_ends_the_run_before_ray_is_there(
    job: Path, pictures: Path, settings: list[str], words: list[str]
) -> None:
    run = open_run(job.parent / "runs", fresh_id("bad-data"))
    options = [part for setting in settings for part in ("--set", setting)]
    done = raylift("run", job, "--id", run.id, "--storage", run.storage.uri, *options, cwd=pictures)
    assert_ended(done.stdout + done.stderr, done.returncode, run, 1, "FAILED", *words)
    assert [row["event"] for row in run.rows("events")] == ["claimed", "finished"]


# -- two runs of one name


def test_of_two_runs_that_start_with_one_id_one_wins_and_the_other_is_told_who_holds_it(
    job: Path, pictures: Path
) -> None:
    run_id = fresh_id("wanted")
    start = command("run", job, "--id", run_id, "--storage", job.parent / "runs", "--set", "data.train=empty", "-d")
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen(start, text=True, cwd=pictures, env=environment(), stdout=pipe, stderr=pipe) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in both]
    winner, loser = sorted(range(2), key=lambda index: both[index].returncode)
    assert both[winner].returncode == 0, outputs
    told = subprocess.CompletedProcess(start, both[loser].returncode, *outputs[loser])
    assert_refused(told, 2, f"{run_id} exists already", f"created by process {both[winner].pid}", "another --id")
    wait_for_nothing_left(run_id)


def test_an_id_that_a_finished_run_has_is_refused_and_that_run_stays(job: Path) -> None:
    run = new_run(job.parent / "runs", "taken")
    run.claim().finish(Result(state="SUCCEEDED"))
    before = {entry.path: entry.modified for entry in run.storage.list()}
    done = raylift_here("run", job, "--id", "taken", "--storage", run.storage.uri)
    assert_refused(done, 2, f"{run.uri} exists already", "another --id")
    assert {entry.path: entry.modified for entry in run.storage.list()} == before


def test_a_run_that_has_succeeded_is_not_resumed(tmp_path: Path) -> None:
    run = new_run(tmp_path / "my runs", "done")
    run.claim().finish(Result(state="SUCCEEDED"))
    assert_refused(raylift_here("resume", run.uri), 2, "there is nothing to resume", f"raylift export '{run.uri}' DIR")


# -- names of ours in the user's folder


OURS = ("launcher", "cluster", "trainers")


@pytest.mark.parametrize("names", [OURS, ("loop.py", "state.py", "data")], ids="-".join)
def test_modules_named_like_ours_in_the_working_folder_do_not_get_in_the_way(job: Path, names: tuple[str, ...]) -> None:
    write_modules(job.parent, names)
    done = _plan(job, environment())
    assert done.returncode == 0, done.stderr
    assert "image-classification with cnn" in done.stdout


@pytest.mark.parametrize("name", OURS)
def test_a_package_that_pythonpath_puts_before_ours_is_named(job: Path, name: str) -> None:
    write_modules(job.parent, (name,))
    done = _plan(job, {**environment(), "PYTHONPATH": f"{job.parent}{os.pathsep}{ROOT}"})
    assert_refused(done, 2, f"the package {name} in {job.parent} hides that of raylift", "PYTHONPATH")


def _plan(job: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `raylift plan` as it is installed, in the job's folder."""
    script = write_console_script(job.parent.parent)
    return subprocess.run(
        [sys.executable, script, "plan", job.name],
        cwd=job.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
