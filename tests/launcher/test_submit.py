"""From a job file to a run: what is frozen, what is refused, and what a relaunch needs."""

from __future__ import annotations

import dataclasses
import json
import secrets
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.attempts import Attempt
from cluster.errors import RunExistsError, StorageError, UsageError
from cluster.local import LocalProvider, processes_of, scratch_folder
from cluster.provider import LaunchRequest
from cluster.records import Result
from cluster.runs import Run
from cluster.storage.open import open_storage
from launcher.spec import LoadedJob, load, load_frozen
from launcher.status import summarize
from launcher.submit import prepare, refuse_while_heard_of, relaunch, submit
from tests.cluster.saves import make_files, make_newer
from tests.finished import new_run, write_rows
from tests.harness import raylift_here
from tests.living import living

Write = Callable[..., Path]


@pytest.fixture
def loaded(job: Write, home: Path) -> LoadedJob:
    return load(job("env: {LEVEL: info}\ntrain: {epochs: 3, max_failures: 7}\n"), storage=str(home / "runs"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path / "runs", f"submit-{secrets.token_hex(4)}")


def move_elsewhere(attempt: Attempt) -> None:
    claim = {**dataclasses.asdict(attempt.claim), "host": "another-machine"}
    attempt.run.storage.write(attempt.run.path("attempts/000001/claim.json"), json.dumps(claim).encode())


def test_a_prepared_job_knows_its_run_its_cluster_and_its_environment(loaded: LoadedJob, home: Path) -> None:
    request = prepare(loaded).request
    assert request.run_id.startswith("job-")
    assert request.run_uri == f"{home}/runs/{request.run_id}"
    assert (request.max_failures, request.env) == (7, {"LEVEL": "info"})


def test_preparing_creates_nothing(loaded: LoadedJob, home: Path) -> None:
    submission = prepare(loaded, "submit-nothing")
    assert {resource.kind for resource in submission.plan.resources} == {"ray", "ranks", "scratch"}
    assert not (home / "runs").exists()
    assert not scratch_folder("submit-nothing").exists()


@pytest.mark.parametrize("run_id", ["UPPER", "a/b", "$(id)", "x" * 41, "-a"])
def test_an_id_that_no_run_may_have_is_refused_before_anything_is_planned(loaded: LoadedJob, run_id: str) -> None:
    with pytest.raises(UsageError, match="lower-case letters, digits and dashes, at most 40"):
        prepare(loaded, run_id)


def test_the_frozen_job_reads_back_as_it_was_submitted(loaded: LoadedJob) -> None:
    assert load_frozen(prepare(loaded).document) == loaded.spec


def test_storage_that_cannot_be_written_is_refused_and_nothing_is_started(job: Write, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    submission = prepare(load(job(), storage=str(tmp_path / "file")))
    with pytest.raises(StorageError):
        submit(submission)
    assert not scratch_folder(submission.request.run_id).exists()


def test_an_id_that_is_taken_is_refused_and_nothing_is_started(loaded: LoadedJob, run: Run) -> None:
    taken = dataclasses.replace(
        prepare(loaded, run.id), spec=loaded.spec.model_copy(update={"storage": run.storage.uri})
    )
    before = run.job()
    with pytest.raises(RunExistsError, match="or choose another --id"):
        submit(taken)
    assert run.job() == before
    assert processes_of(scratch_folder(run.id)) == []


def test_ctrl_c_in_the_midst_of_the_creation_leaves_nothing(
    loaded: LoadedJob, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Run.create

    def interrupted(run: Run, document: bytes) -> None:
        create(run, document)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "create", interrupted)
    with pytest.raises(KeyboardInterrupt):
        submit(prepare(loaded, "submit-interrupted"))
    assert not any(path.is_file() for path in (home / "runs").rglob("*"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_that_succeeded_is_not_relaunched(run: Run) -> None:
    run.claim().finish(Result(state="SUCCEEDED"))
    with pytest.raises(UsageError, match=r"has succeeded: there is nothing to resume\. Export it: raylift export"):
        relaunch(run)


def test_a_run_that_is_running_here_is_not_relaunched(run: Run) -> None:
    run.claim()
    with living(run.id) as process:
        with pytest.raises(UsageError, match=r"is running already, on this machine\. Follow it: raylift logs -f"):
            relaunch(run)
        assert process.poll() is None
    assert run.attempts() == [1]


def test_a_run_that_another_machine_wrote_to_a_moment_ago_is_not_relaunched(run: Run) -> None:
    move_elsewhere(run.claim())
    with pytest.raises(
        UsageError, match=r"running already, on another-machine: heard from it \d s ago\. Stop it first"
    ):
        relaunch(run)


def test_a_run_whose_machine_was_taken_away_a_moment_ago_is_relaunched(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = run.claim()
    move_elsewhere(attempt)
    write_rows(attempt, "events", [{"event": "preempted", "step": 40}])
    launched: list[LaunchRequest] = []
    monkeypatch.setattr(LocalProvider, "launch", lambda _, request: launched.append(request))
    relaunch(run)
    assert launched[0].newest_attempt == 1


def test_a_resume_says_which_attempts_were_there_before(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        run.claim().finish(Result(state="STOPPED", exit_code=4))
    launched: list[LaunchRequest] = []
    monkeypatch.setattr(LocalProvider, "launch", lambda _, request: launched.append(request))
    relaunch(run)
    assert launched[0].newest_attempt == 2


def test_a_run_that_another_machine_has_not_written_to_for_a_minute_may_go_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    move_elsewhere(run.claim())
    monkeypatch.setattr("launcher.submit._SILENCE", 0.0)
    refuse_while_heard_of(run, summarize(run, brief=True))


def test_a_job_file_of_another_version_is_not_relaunched(tmp_path: Path) -> None:
    run = Run(open_storage(str(tmp_path)), "of-the-future")
    run.create(b"task: telepathy\n")
    with pytest.raises(UsageError, match="another version of raylift may have written"):
        relaunch(run)


def test_a_run_that_a_newer_raylift_went_on_with_is_told_as_such_and_nothing_is_started(
    run: Run, tmp_path: Path
) -> None:
    attempt = run.claim()
    newest = attempt.commit(10, make_files(tmp_path, 10), {})
    attempt.finish(Result(state="STOPPED", message="enough", exit_code=4, step=10))
    make_newer(run, newest.folder)
    what = f"{run.uri}/{newest.folder} was written by a newer raylift (format 2, this one reads up to 1). "
    what += "Update: pip install -U raylift"
    resumed = raylift_here("resume", run.uri)
    assert (resumed.returncode, resumed.stdout, resumed.stderr) == (3, "", f"error: {what}\n")
    assert run.attempts() == [1]
    assert not scratch_folder(run.id).exists()
    status = raylift_here("status", run.uri, "--json")
    assert status.returncode == 0, status.stderr
    told = json.loads(status.stdout)
    assert (told["state"], told["reason"], told["step"]) == ("STOPPED", f"enough; {what}", 10)
