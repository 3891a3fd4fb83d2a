"""The commands as a person or a program types them: help, JSON, exit codes, questions."""

from __future__ import annotations

import itertools
import json
import os
import pty
import re
import secrets
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster import local
from cluster.errors import StorageError
from cluster.local import LocalProvider, scratch_folder
from cluster.records import Result
from cluster.runs import Run
from launcher.cli.app import app
from launcher.following import follow_to_the_end, watch_only
from tests.finished import DIGITS, new_run, started, training, write_rows, write_story
from tests.harness import command, environment, raylift, raylift_here, start_raylift, wait_for
from tests.hooked import hooked
from tests.living import living, process_in, scratch_of
from tests.sweeps import STORY

COMMANDS = [name.name or "" for name in app.registered_commands]
QUICK = 2.0  # CPU seconds; torch alone takes more


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path / "runs", f"cli-{secrets.token_hex(4)}")


def answer(*arguments: str | Path) -> Any:
    """Return what a command prints as JSON."""
    done = raylift_here(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# -- help


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_command_takes(name: str) -> None:
    done = CliRunner().invoke(app, [name, "--help"])
    assert done.exit_code == 0
    assert re.search(rf"Usage: .*{name}", done.stdout)
    assert len(done.stdout.splitlines()) > 6


@pytest.mark.parametrize("arguments", [[], ["run"], ["logs"]], ids=["all", "run", "logs"])
def test_help_is_quick(arguments: list[str]) -> None:
    process = subprocess.Popen(command(*arguments, "--help"), stdout=subprocess.PIPE, env=environment())
    assert process.stdout is not None
    with process.stdout:
        assert b"Usage: " in process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert used.ru_utime + used.ru_stime < QUICK


def test_all_commands_of_the_design_are_there() -> None:
    promised = "init check plan run ps status logs stop resume export evaluate predict report verify rm schema"
    assert set(promised.split()) <= set(COMMANDS)


def test_the_version_is_said() -> None:
    done = raylift_here("--version")
    assert (done.returncode, re.fullmatch(r"raylift \d+\.\d+\.\d+\S*\n", done.stdout) is not None) == (0, True)


# -- for programs


def test_ps_of_an_empty_storage_is_an_empty_list(tmp_path: Path) -> None:
    assert answer("ps", "--storage", tmp_path / "none") == []


def test_ps_lists_runs_with_their_states(tmp_path: Path) -> None:
    write_story(tmp_path)
    new_run(tmp_path, "fresh")
    found = answer("ps", "--storage", tmp_path)
    assert {each["id"]: each["state"] for each in found} == {"story": "SUCCEEDED", "fresh": "PENDING"}
    assert answer("ps", "--storage", tmp_path, "-n", "1") == [found[0]]


def test_ps_passes_over_folders_that_are_no_runs(tmp_path: Path) -> None:
    new_run(tmp_path, "fresh")
    (tmp_path / "holiday-photos").mkdir()
    (tmp_path / "holiday-photos" / "beach.jpg").write_bytes(b"sand")
    assert [each["id"] for each in answer("ps", "--storage", tmp_path)] == ["fresh"]


def test_status_tells_all_of_a_summary(tmp_path: Path) -> None:
    told = answer("status", write_story(tmp_path).uri)
    assert set(told) == {
        *("id", "uri", "state", "reason", "attempt", "step", "last_step", "epoch", "loss", "samples_per_s"),
        *("metrics", "checkpoints", "restarts", "ranks", "host", "exit_code", "traceback", "data", "goodput", "sweep"),
        "trial_of",
    }
    assert (told["state"], told["step"], told["checkpoints"], told["exit_code"]) == ("SUCCEEDED", 12, [8, 12], 0)


def test_a_number_that_json_has_not_is_null(run: Run) -> None:
    attempt = run.claim()
    write_rows(attempt, "metrics", [{**row, "loss": float("nan")} for row in training(0, 1, begin=1.0)])
    done = raylift_here("status", run.uri, "--json")
    assert json.loads(done.stdout, parse_constant=pytest.fail)["loss"] is None


def test_logs_are_an_object_a_line(tmp_path: Path) -> None:
    run = write_story(tmp_path)
    done = raylift_here("logs", run.uri, "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["attempt"] for row in rows] == [1] * 5 + [2] * 2
    assert rows[4]["reason"] == "rank 1 died"


def test_stop_tells_whether_it_asked(run: Run) -> None:
    attempt = run.claim()
    told = answer("stop", run.uri)
    ended = {"asked": True, "ended": 0, "left": 0, "not_looked_for": []}
    assert told == {"run_id": run.id, "run_uri": run.uri, **ended}
    assert run.stop_reason() == "stopped by raylift stop"
    attempt.finish(Result(state="STOPPED", exit_code=4))
    assert answer("stop", run.uri)["asked"] is False


def test_rm_tells_what_it_removed(run: Run) -> None:
    run.claim()
    told = {"objects": 2, "leftovers": [], "cluster_abandoned": False, "not_looked_for": []}
    assert answer("rm", run.uri, "-y") == {"run_id": run.id, "run_uri": run.uri, **told}


def test_a_plan_tells_the_run_what_it_would_create_and_the_whole_job(job: Callable[..., Path], home: Path) -> None:
    job()
    told = answer("plan", home / "job.yaml", "--storage", home / "runs", "--set", "train.epochs=3")
    assert set(told) == {"run_id", "run_uri", "provider", "resources", "usd_per_hour", "manifest", "job"}
    assert told["run_uri"] == f"{home}/runs/{told['run_id']}"
    assert {resource["kind"] for resource in told["resources"]} == {"ray", "ranks", "scratch"}
    assert told["job"]["train"]["epochs"] == 3
    assert not (home / "runs").exists()


def test_a_dry_run_is_the_plan(job: Callable[..., Path], home: Path) -> None:
    job()
    plan = answer("plan", home / "job.yaml", "--storage", home / "runs")
    dry = answer("run", home / "job.yaml", "--storage", home / "runs", "--dry-run", "--id", plan["run_id"])
    assert dry == plan


def test_a_check_tells_what_it_looked_at(tmp_path: Path) -> None:
    done = raylift_here("check", "--storage", tmp_path / "runs", "--json")
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert set(found) == {"python", "ray", "torch", "processors", "memory", "disk", "accelerators", "storage"}
    assert all(set(finding) == {"name", "ok", "detail"} for finding in found.values())
    assert done.returncode == (0 if all(finding["ok"] for finding in found.values()) else 3)


def test_an_audit_lists_the_processes_of_every_run() -> None:
    run_id = f"audit-{secrets.token_hex(4)}"
    with scratch_of(run_id) as scratch, process_in(scratch) as process:
        rows = [line.split() for line in raylift_here("audit").stdout.splitlines()]
        told = json.loads(raylift_here("audit", "--json").stdout)
    assert rows[0] == ["RUN", "KIND", "NAME"]
    assert [run_id, "process", str(process.pid)] in [row[:3] for row in rows]
    assert (run_id, str(process.pid)) in [(each["run_id"], each["name"]) for each in told]
    assert run_id not in raylift_here("audit").stdout


# -- exit codes


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (Result(state="SUCCEEDED"), 0),
        (Result(state="FAILED", message="the data is empty", exit_code=1), 1),
        (Result(state="FAILED", message="the job file is wrong", exit_code=2), 2),
        (Result(state="FAILED", message="no Ray", exit_code=3), 3),
        (Result(state="STOPPED", message="enough", exit_code=4), 4),
    ],
    ids=lambda value: value.state.lower() if isinstance(value, Result) else str(value),
)
def test_a_followed_run_ends_with_the_code_of_its_result(
    run: Run, result: Result, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run.claim().finish(result)
    assert follow_to_the_end(run, LocalProvider()) == code
    assert f"\n{result.state} in " in capsys.readouterr().out


def test_json_of_a_followed_run_is_alone_on_standard_output(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.claim().finish(Result(state="SUCCEEDED", step=3))
    follow_to_the_end(run, LocalProvider(), json=True)
    captured = capsys.readouterr()
    assert json.loads(captured.out)["step"] == 3
    assert "SUCCEEDED in" in captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["run"], "Missing argument 'JOB.yaml'"),
        (["run", "missing.yaml"], "missing.yaml does not exist"),
        (["status", "none"], "there is no run"),
        (["ps", "--limit", "0"], "Invalid value for '--limit'"),
        (["ps", "--storage", "gopher://x"], "gopher://"),
        (["rm", "none", "-y"], "there is no run"),
        (["stop", "A b"], "is no run id"),
        (["logs", "none", "--colour"], "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_on_the_command_line_is_2_and_is_said(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = raylift_here(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_infrastructure_that_fails_is_3(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    done = raylift_here("check", "--storage", tmp_path / "file")
    assert done.returncode == 3
    assert re.search(r"^NO +storage +.*file", done.stdout, re.MULTILINE)


def test_losing_sight_of_a_run_that_goes_on_is_5(run: Run) -> None:
    attempt = run.claim()
    write_rows(attempt, "events", [started(0, at=1.0)])
    with living(run.id) as process, start_raylift("logs", "-f", run.uri) as follower:
        assert follower.stdout is not None
        assert "training: 12 steps" in follower.stdout.readline()
        follower.send_signal(signal.SIGINT)
        output, _ = follower.communicate(timeout=60)
        assert process.poll() is None
    assert follower.returncode == 5
    assert "it goes on. Stop it: raylift stop" in output


@pytest.mark.parametrize("follow", [lambda run: follow_to_the_end(run, LocalProvider()), watch_only])
def test_storage_that_goes_away_while_a_run_is_followed_is_5(
    run: Run, follow: Callable[[Run], int], capsys: pytest.CaptureFixture[str]
) -> None:
    looks = itertools.count()

    def goes_away(*_: Any) -> None:
        if next(looks) > 40:
            raise StorageError("the bucket does not answer")

    write_rows(run.claim(), "events", [started(0, at=1.0)])
    with living(run.id):
        assert follow(Run(hooked(run.storage, before=goes_away), run.id)) == 5
    told = capsys.readouterr().out
    assert "training: 12 steps" in told
    assert told.endswith(f"the bucket does not answer\nfollow it: raylift logs -f {run.uri}\n")


def test_a_process_that_stays_is_6_and_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_GRACE", 0.0)  # seconds in which it is killed
    with scratch_of(run.id) as scratch, process_in(scratch, "stays") as process:
        done = CliRunner().invoke(app, ["rm", run.uri, "-y"])
        assert done.exit_code == 6
        assert f"left over: process {process.pid}" in done.stdout
        assert f"Once that is gone: raylift rm {run.uri}" in done.stdout
        assert Path(run.uri).exists()


def test_a_traceback_is_shown_where_it_is_asked_for(tmp_path: Path) -> None:
    done = raylift_here("--debug", "status", "none", "--storage", tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "RunNotFoundError" in done.stderr


# -- stop and rm


def test_stop_now_ends_the_processes_at_once(run: Run) -> None:
    run.claim()
    with living(run.id) as process:
        done = raylift("stop", run.uri, "--now")
        assert done.stdout == "ended 1 processes; 0 left\n"
        assert process.wait(timeout=10) == -signal.SIGKILL
    assert raylift_here("status", run.uri).stdout.count("STOPPED: stopped by raylift stop") == 1


@pytest.mark.parametrize(("typed", "code"), [("y", 0), ("n", 4)])
def test_rm_asks_a_person_first(run: Run, typed: str, code: int) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("rm", run.uri), stdin=theirs, stdout=subprocess.PIPE, text=True, env=environment()
    )
    os.close(theirs)
    os.write(ours, f"{typed}\n".encode())
    output, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == code, output
    assert f"Remove {run.uri} with its 0 checkpoints?" in output
    assert Path(run.uri).exists() is (typed == "n")


def test_rm_without_a_person_to_ask_wants_yes(run: Run) -> None:
    done = raylift("rm", run.uri)
    assert done.returncode == 2
    assert "Nobody is here to answer: add --yes" in done.stderr
    assert Path(run.uri).exists()


def test_rm_of_a_sweep_counts_its_trials(tmp_path: Path) -> None:
    run = new_run(tmp_path / "runs", f"cli-{secrets.token_hex(4)}", f"{DIGITS}tune: {{trials: 8}}\n")
    attempt = run.claim()
    write_rows(attempt, "events", STORY, by="driver")
    attempt.finish(Result(state="SUCCEEDED"))
    assert f"Remove {run.uri} with its 4 trials?" in raylift("rm", run.uri).stderr


def test_rm_removes_the_run_its_processes_and_its_scratch_folder(run: Run) -> None:
    with scratch_of(run.id) as scratch, process_in(scratch, "left behind") as process:
        done = raylift("rm", run.uri, "--yes")
        assert done.returncode == 0, done.stderr
        assert process.wait(timeout=10) == -signal.SIGKILL
    assert not Path(run.uri).exists()
    assert not scratch_folder(run.id).exists()


def test_rm_abandons_no_cluster_where_there_is_none(run: Run) -> None:
    done = raylift_here("rm", run.uri, "-y", "--abandon-cluster")
    assert done.returncode == 2
    assert "is on no cluster" in done.stderr
    assert Path(run.uri).exists()


def test_rm_refuses_a_run_that_is_running(run: Run) -> None:
    run.claim()
    with living(run.id):
        done = raylift_here("rm", run.uri, "-y")
    assert done.returncode == 2
    assert f"is running. Stop it first: raylift stop {run.uri}" in done.stderr
    assert run.attempts() == [1]


def test_rm_refuses_a_run_that_another_machine_wrote_to_a_moment_ago(run: Run) -> None:
    path = run.path("attempts/000001/claim.json")
    run.claim()
    run.storage.write(path, json.dumps({**json.loads(run.storage.read(path)), "host": "another"}).encode())
    done = raylift_here("rm", run.uri, "-y")
    assert done.returncode == 2
    assert "is running already, on another" in done.stderr
    assert run.attempts() == [1]


# -- logs


def test_logs_tell_what_happened_and_what_was_printed(tmp_path: Path) -> None:
    output = raylift_here("logs", write_story(tmp_path).uri).stdout
    told = [line[10:] for line in output.splitlines()]
    assert told[0] == "starting Ray and reading the data"
    assert "recovering: rank 1 died" in told


def test_logs_of_a_run_without_an_attempt_are_its_drivers_words(run: Run) -> None:
    with scratch_of(run.id) as scratch:
        (scratch / "driver.log").write_text("no module named ray\n")
        assert raylift_here("logs", run.uri).stdout == "no module named ray\n"


def test_following_logs_show_the_newest_attempt_alone_and_end_with_the_run(tmp_path: Path) -> None:
    done = raylift_here("logs", "-f", write_story(tmp_path).uri)
    assert done.returncode == 0
    assert "training: 12 steps" in done.stdout
    assert "rank 1 died" not in done.stdout
    assert done.stdout.splitlines()[-1] == "SUCCEEDED"


def test_a_pipe_that_closes_early_is_no_error(tmp_path: Path) -> None:
    run = new_run(tmp_path, "long")
    rows = [{"event": "recovering", "reason": f"reason {number}"} for number in range(20_000)]
    write_rows(run.claim(), "events", rows)
    process = subprocess.Popen(
        command("logs", run.uri), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    wait_for(lambda: process.poll() is not None, "the command to end", timeout=60)
