"""The supervisor of a local run: real processes, with a driver that does what each test wants of it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import psutil
import pytest

from cluster import local
from cluster.attempts import Attempt
from cluster.config import LocalCluster
from cluster.errors import RunExistsError, RunNotFoundError
from cluster.local import LocalProvider, processes_of, ray_folder, scratch_folder
from cluster.memory import SHORT_OF_MEMORY
from cluster.provider import LaunchRequest, State
from cluster.records import Result
from cluster.runs import Run
from cluster.storage.file import FileStorage
from cluster.supervisor import Supervisor
from tests.harness import ROOT, find_process, wait_for
from tests.hooked import hooked
from tests.real.memory_limit import memory_limit

DRIVER = """
import os, shutil, signal, subprocess, sys, time
from pathlib import Path
from cluster.records import Result
from cluster.runs import Run
from cluster.storage.open import open_storage, split_run_uri

def claim():
    root, run_id = split_run_uri(sys.argv[1])
    return Run(open_storage(root), run_id).claim(launch=os.environ["RAYLIFT_LAUNCH"])

def succeed():
    claim().finish(Result(state="SUCCEEDED"))

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def claim_and_die():
    claim()
    die()

def succeed_and_die():
    succeed()
    die()

def fail_in_a_save():
    attempt = claim()
    parts = Path(sys.argv[1], "attempts", "000001", "checkpoints", "000000000004")
    parts.mkdir(parents=True)
    (parts / ".raylift-partial-0123-model.safetensors").write_text("half")
    attempt.finish(Result(state="FAILED", exit_code=1))
    sys.exit(1)

def leave_processes_and_succeed():
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)", os.environ["TURNS"]]
    subprocess.Popen(sleeper, start_new_session=True)
    subprocess.Popen(sleeper, start_new_session=True, cwd="/")
    succeed()

def wait():
    attempt = claim()
    def stop(*_):
        attempt.finish(Result(state="STOPPED", exit_code=4))
        sys.exit(4)
    signal.signal(signal.SIGTERM, stop)
    print("waiting", flush=True)
    time.sleep(600)

def claim_and_hang():
    claim()
    hang()

def hang():
    print("waiting", flush=True)
    time.sleep(600)

def tell():
    print("after attempt", os.environ["RAYLIFT_NEWEST_ATTEMPT"], flush=True)
    sys.exit(1)

def wait_for_its_controller():
    for name in ("raylet", "gcs_server", "ray::TrainContr"):
        program = Path.cwd() / name
        shutil.copy(shutil.which("sleep"), program)
        started = subprocess.Popen([program, "600"])
    print("waiting", flush=True)
    started.wait()
    succeed()

def take_memory():
    bytearray(os.urandom(1 << 20) * 400)

count = Path(os.environ["TURNS"])
turn = len(count.read_text()) if count.exists() else 0
with count.open("a") as file:
    file.write("x")
todo = os.environ["TODO"].split()
action = todo[min(turn, len(todo) - 1)]
print(f"turn {turn}: {action}", flush=True)
globals()[action]() if not action.startswith("exit-") else sys.exit(int(action[5:]))
"""


class Driven:
    """A run on this machine whose driver does a list of things, one a start."""

    def __init__(self, folder: Path) -> None:
        self.provider = LocalProvider()
        self.turns = folder / "turns"
        self.run = Run(FileStorage(folder / "runs"), f"super-{secrets.token_hex(4)}")
        self.run.create(b"")
        self.scratch = scratch_folder(self.run.id)

    def launch(self, *todo: str, max_failures: int = 2) -> None:
        self.provider.launch(
            LaunchRequest(
                run_id=self.run.id,
                run_uri=self.run.uri,
                cluster=LocalCluster(workers=2),
                max_failures=max_failures,
                newest_attempt=max(self.run.attempts(), default=0),
                env={"TODO": " ".join(todo), "TURNS": str(self.turns)},
            )
        )

    def supervisor(self, *todo: str) -> Supervisor:
        """Return a supervisor that is to run in this process."""
        os.environ.update(TODO=" ".join(todo), TURNS=str(self.turns))  # the fixture takes them away again
        self.scratch.mkdir(mode=0o700)
        launch = {"run_uri": self.run.uri, "max_failures": 2, "newest_attempt": 0, "cluster": {"address": None}}
        (self.scratch / local.LAUNCH).write_text(json.dumps(launch))
        return Supervisor(self.scratch)

    def until_over(self) -> None:
        wait_for(lambda: not processes_of(self.scratch), "the run's processes to end", timeout=60)

    def until_waiting(self) -> None:
        log = self.scratch / "driver.log"
        wait_for(lambda: log.exists() and b"waiting" in log.read_bytes(), "the driver to wait", timeout=60)

    def starts(self) -> int:
        return len(self.turns.read_text())

    def rows(self, name: str) -> list[tuple[int, int]]:
        return [(row["attempt"], row["step"]) for row in self.run.rows("events") if row["event"] == name]

    def events(self, name: str) -> list[str]:
        return [str(row.get("reason")) for row in self.run.rows("events") if row["event"] == name]


@pytest.fixture
def driven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driven]:
    (tmp_path / "fake" / "trainers").mkdir(parents=True)
    (tmp_path / "fake" / "trainers" / "__init__.py").touch()
    (tmp_path / "fake" / "trainers" / "main.py").write_text(DRIVER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'fake'}:{ROOT}")
    for name in ("TODO", "TURNS"):
        monkeypatch.setenv(name, "")
    driven = Driven(tmp_path)
    yield driven
    driven.provider.teardown(driven.run.id)
    for supervisor in local._STARTED:
        supervisor.wait(timeout=10)


def test_a_driver_that_comes_to_its_end_is_not_started_again(driven: Driven) -> None:
    driven.launch("succeed", "die")
    driven.until_over()
    assert driven.starts() == 1
    assert driven.events("recovering") == []
    assert not driven.scratch.exists()
    assert not ray_folder(driven.scratch).exists()


def test_a_driver_whose_machine_is_taken_away_is_not_started_again_and_may_go_on_elsewhere(driven: Driven) -> None:
    driven.launch(f"exit-{local.PREEMPTED}", f"exit-{local.TAKEN_AWAY}", "succeed")
    driven.until_over()
    assert driven.starts() == 2
    assert driven.run.result() is None
    assert driven.events("recovering") == []


def test_a_driver_that_dies_is_started_again(driven: Driven) -> None:
    driven.launch("claim_and_die", "succeed")
    driven.until_over()
    result = driven.run.result()
    assert result is not None
    assert (driven.starts(), result.state) == (2, "SUCCEEDED")
    assert driven.events("recovering") == ["the driver died (signal SIGKILL)"]


def test_a_driver_that_dies_once_the_result_is_there_is_not_started_again(driven: Driven) -> None:
    driven.launch("succeed_and_die")
    driven.until_over()
    result = driven.run.result()
    assert result is not None
    assert (driven.starts(), result.state, driven.run.attempts()) == (1, "SUCCEEDED", [1])
    assert driven.events("recovering") == []


def test_what_a_rank_was_sending_as_the_run_failed_is_taken_away(driven: Driven) -> None:
    driven.launch("fail_in_a_save")
    driven.until_over()
    result = driven.run.result()
    assert result is not None
    assert (driven.starts(), result.state) == (1, "FAILED")
    assert driven.run.storage.sweep() == []


@pytest.mark.parametrize("action", ["die", "claim_and_die"])
def test_a_driver_is_started_again_so_often_and_no_more(driven: Driven, action: str) -> None:
    driven.launch(action, max_failures=2)
    driven.until_over()
    result = driven.run.result()
    assert result is not None
    assert driven.starts() == 3
    assert (result.state, result.exit_code) == ("FAILED", 3)
    assert result.message == "the driver died (signal SIGKILL), and no restart is left (train.max_failures)"
    assert driven.events("recovering") == ["the driver died (signal SIGKILL)"] * 2


def test_what_a_dead_driver_printed_is_kept_with_the_run(driven: Driven) -> None:
    driven.launch("claim_and_die", max_failures=0)
    driven.until_over()
    assert driven.run.output_of(1)["supervisor"] == b"turn 0: claim_and_die\n"


@pytest.mark.parametrize("code", [1, 2, 3])
def test_a_driver_that_ends_without_a_word_is_not_started_again_and_its_last_line_is_told(
    driven: Driven, code: int
) -> None:
    driven.launch(f"exit-{code}")
    driven.until_over()
    result = driven.run.result()
    assert result is not None
    assert driven.starts() == 1
    assert (result.state, result.exit_code) == ("FAILED", code)
    assert result.message == f"the driver died (exit code {code}: turn 0: exit-{code})"


def claim_elsewhere(run: Run, monkeypatch: pytest.MonkeyPatch, *, clock: float) -> Attempt:
    """Claim an attempt as a machine does that takes it to be so late."""
    with monkeypatch.context() as patch:
        patch.setattr("cluster.runs.time", SimpleNamespace(time=lambda: clock))
        return run.claim(launch="of another machine")


def test_the_result_before_a_resume_does_not_hide_that_the_new_driver_died(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = claim_elsewhere(driven.run, monkeypatch, clock=1e11)
    stopped.finish(Result(state="STOPPED", exit_code=4))
    driven.launch("die", max_failures=0)
    driven.until_over()
    result = driven.run.result()
    assert result is not None
    assert (result.state, driven.run.attempts()) == ("FAILED", [1, 2])


def test_where_another_machine_has_taken_over_nothing_is_claimed_whatever_its_clock_says(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven.launch("hang", "succeed", max_failures=2)
    driven.until_waiting()
    other = claim_elsewhere(driven.run, monkeypatch, clock=0.0)
    driver = next(process for process in processes_of(driven.scratch) if "trainers.main" in process.cmdline())
    driver.kill()
    driven.until_over()
    assert driven.starts() == 1
    assert driven.run.attempts() == [other.number]
    assert driven.run.result() is None


def test_a_driver_is_told_what_its_launch_began_with(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        assert claim_elsewhere(driven.run, monkeypatch, clock=0.0).number == number
    driven.launch("tell")
    driven.until_over()
    assert driven.run.output_of(3)["supervisor"] == b"turn 0: tell\nafter attempt 2\n"


def test_an_end_that_storage_does_not_take_is_kept_on_this_machine(driven: Driven) -> None:
    driven.launch("hang", max_failures=0)
    driven.until_waiting()
    runs = Path(driven.run.storage.uri)
    runs.rename(runs.with_name("moved"))
    runs.write_text("no folder any more")
    for process in processes_of(driven.scratch):
        if "trainers.main" in process.cmdline():
            process.kill()
    driven.until_over()
    told = driven.provider.describe(driven.run.id)
    assert told.state is State.FAILED
    assert told.reason.startswith("the driver died (signal SIGKILL); and that could not be saved: ")


def test_what_a_driver_leaves_behind_is_ended_wherever_it_works(driven: Driven) -> None:
    driven.launch("leave_processes_and_succeed")
    driven.until_over()
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert [command for command in commands if str(driven.turns) in command] == []


# -- launching, asking and ending


def test_a_launch_of_what_runs_already_starts_nothing(driven: Driven) -> None:
    driven.launch("wait")
    driven.until_waiting()
    before = {process.pid for process in processes_of(driven.scratch)}
    driven.launch("wait")
    assert {process.pid for process in processes_of(driven.scratch)} == before
    assert driven.starts() == 1


def test_a_run_of_the_same_id_in_another_storage_is_refused_while_this_one_runs(driven: Driven, tmp_path: Path) -> None:
    driven.launch("wait")
    driven.until_waiting()
    other = Driven(tmp_path / "other")
    other.run = Run(other.run.storage, driven.run.id)
    with pytest.raises(RunExistsError, match=f"is running on this machine: {driven.run.uri}"):
        other.launch("wait")
    assert driven.starts() == 1


def test_a_run_under_way_is_described_with_its_processes(driven: Driven) -> None:
    driven.launch("wait")
    driven.until_waiting()
    told = driven.provider.describe(driven.run.id)
    assert told.state is State.RUNNING
    commands = " ".join(resource.detail for resource in told.resources)
    assert "cluster.supervisor" in commands
    assert "trainers.main" in commands


def test_an_audit_finds_a_run_by_its_processes(driven: Driven) -> None:
    driven.launch("wait")
    driven.until_waiting()
    found = [resource for resource in driven.provider.audit() if resource.run_id == driven.run.id]
    assert {int(resource.name) for resource in found} == {process.pid for process in processes_of(driven.scratch)}


def test_stop_lets_the_driver_end_in_its_own_way(driven: Driven) -> None:
    driven.launch("wait", "wait")
    driven.until_waiting()
    driven.provider.stop(driven.run.id)
    driven.provider.stop(driven.run.id)
    driven.until_over()
    result = driven.run.result()
    assert result is not None
    assert (driven.starts(), result.state) == (1, "STOPPED")


def test_a_driver_that_cannot_stop_in_its_own_way_is_stopped_and_not_started_again(driven: Driven) -> None:
    driven.launch("hang")
    driven.until_waiting()
    driven.run.request_stop("a person asked for it")
    driven.provider.stop(driven.run.id)
    driven.until_over()
    result = driven.run.result()
    assert result is not None
    assert (driven.starts(), result.state, result.exit_code) == (1, "STOPPED", 4)


def test_a_driver_that_a_machine_ends_before_it_listens_leaves_a_run_that_can_go_on(driven: Driven) -> None:
    driven.launch("claim_and_hang")
    driven.until_waiting()
    driven.provider.stop(driven.run.id)
    driven.until_over()
    assert (driven.starts(), driven.run.result()) == (1, None)
    assert driven.rows("preempted") == [(1, 0)]


@pytest.mark.parametrize("during", ["logs/supervisor", "events/supervisor"])
def test_a_signal_between_two_drivers_is_not_lost(driven: Driven, monkeypatch: pytest.MonkeyPatch, during: str) -> None:
    supervisor = driven.supervisor("claim_and_die", "succeed")

    def signalled(call: str, path: str, *_: object) -> None:
        if call == "write" and during in path:
            supervisor.on_signal(signal.SIGTERM, None)

    run = Run(hooked(driven.run.storage, after=signalled), driven.run.id)
    monkeypatch.setattr(supervisor, "_open_run", lambda: run)
    supervisor.run()
    assert (driven.starts(), driven.run.result()) == (1, None)
    assert driven.rows("preempted") == [(1, 0)]


def test_a_signal_while_a_driver_starts_is_passed_on(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = driven.supervisor("wait")
    start = supervisor._start

    def start_and_be_told(environment: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        driver = start(environment, log)
        supervisor.on_signal(signal.SIGTERM, None)
        return driver

    monkeypatch.setattr(supervisor, "_start", start_and_be_told)
    assert supervisor.run() == -signal.SIGTERM
    assert driven.rows("preempted") == [(1, 0)]


def test_teardown_ends_every_process_and_says_which(driven: Driven) -> None:
    driven.launch("wait")
    driven.until_waiting()
    pids = {process.pid for process in processes_of(driven.scratch)}
    receipt = driven.provider.teardown(driven.run.id)
    assert {int(resource.name) for resource in receipt.removed} == pids
    assert receipt.leftovers == []
    assert len(pids) == 2
    assert not driven.scratch.exists()
    assert not driven.provider.teardown(driven.run.id).removed


@pytest.mark.root
def test_a_driver_that_the_system_kills_for_lack_of_memory_is_told_as_such(driven: Driven) -> None:
    with memory_limit(200_000_000) as limit:
        driven.launch("hang", "take_memory", "succeed")
        driven.until_waiting()
        for process in processes_of(driven.scratch):
            limit.add(process.pid)
        driver = find_process(driven.run.id, "driver")
        assert driver is not None
        driver.kill()  # the next one has the limit from its start
        driven.until_over()
    killed = "the driver died (signal SIGKILL)"
    assert driven.events("recovering") == [killed, f"{killed}{SHORT_OF_MEMORY}"]


def test_a_driver_that_freezes_is_ended_and_started_again(driven: Driven) -> None:
    driven.launch("hang", "succeed")
    driven.until_waiting()
    driver = wait_for(lambda: find_process(driven.run.id, "driver"), "the driver")
    driver.suspend()
    driven.until_over()
    assert driven.starts() == 2
    assert driven.events("recovering") == ["the driver froze, and was ended"]
    assert driven.run.results()[2].state == "SUCCEEDED"


def test_a_controller_of_ray_train_that_freezes_is_ended_and_left_to_the_driver(driven: Driven) -> None:
    driven.launch("wait_for_its_controller")
    driven.until_waiting()
    controller = wait_for(lambda: find_process(driven.run.id, "ray::TrainContr"), "the controller")
    controller.suspend()
    driven.until_over()
    assert driven.starts() == 1
    assert driven.run.results()[1].state == "SUCCEEDED"
    assert driven.events("recovering") == []


def test_a_driver_that_stands_still_for_a_moment_is_left_alone(driven: Driven) -> None:
    driven.launch("wait")
    driven.until_waiting()
    driver = wait_for(lambda: find_process(driven.run.id, "driver"), "the driver")
    driver.suspend()
    time.sleep(3)
    driver.resume()
    driven.provider.stop(driven.run.id)
    driven.until_over()
    assert driven.starts() == 1


def test_a_driver_goes_on_without_its_supervisor_and_is_found(driven: Driven) -> None:
    driven.launch("wait")
    driven.until_waiting()
    for process in processes_of(driven.scratch):
        if "cluster.supervisor" in process.cmdline():
            process.kill()
            wait_for(lambda: process.status() == psutil.STATUS_ZOMBIE, "the supervisor to die")  # noqa: B023
    assert driven.provider.is_running(driven.run.id)
    assert len(driven.provider.teardown(driven.run.id).removed) == 1
    assert not driven.provider.is_running(driven.run.id)


def test_only_its_user_can_read_a_runs_token_and_folder(driven: Driven) -> None:
    driven.launch("wait")
    driven.until_waiting()
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (driven.scratch.parent, driven.scratch)]
    assert modes == [0o700, 0o700]
    token = driven.scratch / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) == 64
    assert token.read_text() not in json.dumps(psutil.Process().as_dict(["cmdline"])) + str(
        [process.cmdline() for process in processes_of(driven.scratch)]
    )


def test_the_drivers_words_can_be_followed_from_any_byte(driven: Driven) -> None:
    driven.launch("wait")
    driven.until_waiting()
    assert b"".join(driven.provider.logs(driven.run.id, follow=False)) == b"turn 0: wait\nwaiting\n"
    assert b"".join(driven.provider.logs(driven.run.id, follow=False, offset=13)) == b"waiting\n"
    followed = driven.provider.logs(driven.run.id, follow=True)
    assert next(followed) == b"turn 0: wait\nwaiting\n"
    driven.provider.teardown(driven.run.id)
    assert list(followed) == []


def test_a_run_that_this_machine_never_had_is_not_found() -> None:
    with pytest.raises(RunNotFoundError, match="nothing of run never-here is on this machine"):
        LocalProvider().describe("never-here")
