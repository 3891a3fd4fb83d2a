"""raylift verify, as a person or a program types it."""

from __future__ import annotations

import json
import os
import pty
import re
import secrets
import subprocess
from pathlib import Path

import pytest

from cluster.attempts import Attempt
from cluster.records import Result
from cluster.runs import Run
from cluster.trials import trial_run
from tests.cluster.saves import flip_a_byte, make_files, make_newer, stored
from tests.finished import new_run
from tests.harness import command, environment, raylift_here
from tests.living import living
from tests.sweeps import elsewhere, searched


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a run that saved steps 10 and 20, lost a save of 25, went on from 20, saved step 30 and succeeded."""
    run = new_run(tmp_path / "runs", f"verify-{secrets.token_hex(4)}")
    first = run.claim()
    for step in (10, 20):
        first.commit(step, make_files(tmp_path, step), {})
    run.storage.write(run.path("attempts/000001/checkpoints/000000025/model.safetensors"), b"half a save")
    second = run.claim()
    second.commit(30, make_files(tmp_path, 30), {})
    second.finish(Result(state="SUCCEEDED", step=30))
    return run


def move_elsewhere(run: Run) -> None:
    path = run.path("attempts/000002/claim.json")
    run.storage.write(path, json.dumps({**json.loads(run.storage.read(path)), "host": "another"}).encode())
    run.storage.delete(run.path("attempts/000002/result.json"))


def test_a_run_that_is_intact_is_a_table_and_a_line(run: Run) -> None:
    done = raylift_here("verify", run.uri)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["ATTEMPT", "STEP", "FILES", "SIZE", "VERDICT"]
    assert [re.sub(r" +", " ", line.strip()) for line in lines[1:6]] == [
        "1 10 2 2.5 kB intact",
        "1 20 2 2.5 kB intact",
        "1 25 1 11 B partial: a save that was cut off, or that goes on",
        "2 20 2 2.5 kB intact",
        "2 30 2 2.5 kB intact",
    ]
    assert lines[6] == "4 checkpoints, 10.2 kB: intact; 1 partial, 11 B"
    assert lines[7] == f"no resume needs 3 of them, 5.1 kB. Sweep: raylift verify --sweep {run.uri}"
    assert done.stderr == ""


def test_damage_is_3_with_the_file_and_what_comes_of_it(run: Run) -> None:
    run.storage.delete(run.path("attempts/000002/result.json"))
    flip_a_byte(run, "attempts/000002/checkpoints/000000030")
    done = raylift_here("verify", run.uri)
    assert done.returncode == 3
    assert re.search(r"2 +30 +2 +2\.5 kB +damaged: model\.safetensors holds bytes with SHA-256", done.stdout)
    assert "3 of 4 checkpoints intact; 1 partial" in done.stdout
    assert done.stderr.startswith(f"error: 1 of 4 checkpoints of {run.uri} is damaged: attempts/000002/checkpoints/")
    assert done.stderr.endswith("A resume will fall back to step 20, of attempt 2\n")


def test_a_newer_format_is_3_with_what_to_type(run: Run) -> None:
    make_newer(run, "attempts/000001/checkpoints/000000010")
    done = raylift_here("verify", run.uri)
    assert done.returncode == 3
    assert done.stdout.count("intact") == 4  # three of them, and the summary
    assert "Update: pip install -U raylift" in done.stderr


def test_programs_get_every_folder_and_every_fault(run: Run) -> None:
    run.storage.delete(run.path("attempts/000001/checkpoints/000000010/trainer.json"))
    done = raylift_here("verify", run.uri, "--json")
    assert done.returncode == 3
    told = json.loads(done.stdout)
    assert set(told) == {"run_id", "run_uri", "resume_from", "folders", "swept"}
    assert told["resume_from"] == {"attempt": 2, "step": 30}
    assert told["folders"][0] == {
        "attempt": 1,
        "step": 10,
        "path": "attempts/000001/checkpoints/000000010",
        "files": 2,
        "bytes": 2550,
        "verdict": "damaged",
        "counts": True,
        "faults": {"trainer.json": "is missing"},
    }
    assert [each["verdict"] for each in told["folders"][1:]] == ["intact", "partial", "intact", "intact"]
    assert told["swept"] is None


def test_a_sweep_says_what_it_removed(run: Run) -> None:
    done = raylift_here("verify", "--sweep", run.uri)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "swept 3 folders, 5.1 kB"
    assert not stored(run, "attempts/000001/checkpoints/")
    told = json.loads(raylift_here("verify", "--sweep", run.uri, "--json").stdout)
    assert told["swept"] == {"folders": [], "bytes": 0, "uploads": []}
    assert [each["step"] for each in told["folders"]] == [20, 30]


def test_a_sweep_refuses_a_run_that_is_running(run: Run) -> None:
    before = stored(run)
    with living(run.id):
        done = raylift_here("verify", "--sweep", run.uri)
        looked = raylift_here("verify", run.uri)
    assert done.returncode == 2
    assert f"is running. Stop it first: raylift stop {run.uri}" in done.stderr
    assert looked.returncode == 0
    assert stored(run) == before


def test_a_sweep_refuses_a_run_that_another_machine_wrote_to_a_moment_ago(run: Run) -> None:
    move_elsewhere(run)
    before = stored(run)
    done = raylift_here("verify", "--sweep", run.uri)
    assert done.returncode == 2
    assert "is running already, on another" in done.stderr
    assert stored(run) == before


@pytest.fixture
def sweep(tmp_path: Path) -> Run:
    """Return a sweep of three trials: two have saved twice, one of them lost a save on the way, one has not begun."""
    run, attempt = searched(tmp_path / "runs", 3)
    elsewhere(attempt)
    for name in ("00000", "00001"):
        trial = trial_run(run, name)
        trial.create(run.job())
        trial.claim().commit(10, make_files(tmp_path, 10), {})
        if name == "00001":
            trial.storage.write(trial.path("attempts/000001/checkpoints/000000025/model.safetensors"), b"half a save")
        second = trial.claim()
        second.commit(20, make_files(tmp_path, 20), {})
        second.finish(Result(state="SUCCEEDED", step=20))
    return run


def test_a_sweep_is_as_intact_as_its_trials(sweep: Run) -> None:
    done = raylift_here("verify", sweep.uri)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "00001  3 checkpoints, 7.7 kB: intact; 1 partial, 11 B",
        "3 trials: 6 checkpoints, 15.3 kB: intact; 1 partial, 11 B",
        f"no resume needs 1 of them, 11 B. Sweep: raylift verify --sweep {sweep.uri}",
    ]


def test_damage_in_a_trial_is_3_with_the_file_and_the_trial(sweep: Run) -> None:
    trial = trial_run(sweep, "00000")
    flip_a_byte(trial, "attempts/000002/checkpoints/000000020")
    done = raylift_here("verify", sweep.uri, "--json")
    assert done.returncode == 3
    assert f"1 of 3 checkpoints of {trial.uri} is damaged: attempts/000002/checkpoints/000000020/" in done.stderr
    found = json.loads(done.stdout)["trials"]
    verdicts = {name: [folder["verdict"] for folder in one["folders"]] for name, one in found.items()}
    assert verdicts == {
        "00000": ["intact", "intact", "damaged"],
        "00001": ["intact", "partial", "intact", "intact"],
        "00002": [],
    }


def test_of_a_sweep_that_may_go_on_no_checkpoint_is_swept_that_a_trial_may_start_from(sweep: Run) -> None:
    refused = raylift_here("verify", "--sweep", sweep.uri)
    assert (refused.returncode, "is running already, on another" in refused.stderr) == (2, True)
    attempt = Attempt.reopen(sweep, 1)
    attempt.finish(Result(state="STOPPED", exit_code=4))
    assert raylift_here("verify", "--sweep", sweep.uri).stdout.endswith("swept 1 folder, 11 B\n")
    sweep.claim().finish(Result(state="SUCCEEDED"))
    assert raylift_here("verify", "--sweep", sweep.uri).stdout.endswith("swept 2 folders, 5.1 kB\n")
    for name in ("00000", "00001"):
        assert [(one.attempt, one.step) for one in trial_run(sweep, name).checkpoints()] == [(2, 10), (2, 20)]


def test_a_run_without_checkpoints_is_no_error(tmp_path: Path) -> None:
    done = raylift_here("verify", new_run(tmp_path, "fresh").uri)
    assert (done.returncode, done.stdout) == (0, "no checkpoint yet\n")


def test_a_terminal_shows_how_much_is_read(run: Run) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("verify", run.uri), stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment()
    )
    os.close(theirs)
    output, _ = process.communicate(timeout=60)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert process.returncode == 0
    assert "4 checkpoints" in output
    assert re.search(r"reading .*10\.2(/10\.2)? kB", shown)
