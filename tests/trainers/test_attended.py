"""The driver of a run on a cluster that others use too, and what ends that cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import RunNotFoundError
from cluster.kubernetes.named import KEEPER
from cluster.ticket import Ticket
from tests.harness import environment, open_run, wait_for
from trainers import attended, keeper, leaving
from trainers.attended import attend
from trainers.keeper import is_busy, keep

PROGRAM = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(os.environ["FOLDER"])
count = len(list(folder.glob("start-*")))
(folder / f"start-{count}").write_text(f"{os.environ['RAYLIFT_VARIABLES']} {os.environ['LEVEL']}")
if sys.argv[1] == "waits":
    time.sleep(60)
sys.exit(int(sys.argv[1].split()[count]))
"""


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Have a small driver in the place of the real one; it ends with each of some exit codes in turn."""
    before = signal.getsignal(signal.SIGTERM)

    def ends_with(codes: str) -> None:
        monkeypatch.setattr(attended, "_DRIVER", (sys.executable, "-c", PROGRAM, codes))

    yield ends_with
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLIFT_RUN_URI", "")  # which a ticket sets: taken away after a test


def ticket(folder: Path, **more: Any) -> Ticket:
    """Return that of a run in `folder`, whose job file has an environment."""
    run = open_run(str(folder), "digits-1")
    run.storage.write(run.path("job.yaml"), f'env: {{FOLDER: "{folder}", LEVEL: "$(of) \'it\'"}}\n'.encode())
    return Ticket(variables={"RAYLIFT_RUN_URI": run.uri}, max_failures=2, **more)


def starts(folder: Path) -> int:
    return len(list(folder.glob("start-*")))


@pytest.mark.parametrize(
    ("codes", "ended_with", "count"),
    [("0", 0, 1), ("3 1 0", 0, 3), ("3 3 3 0", 3, 3), ("75", 75, 1)],
)
def test_a_driver_that_is_lost_is_started_again_as_often_as_the_run_allows(
    driver: Any, tmp_path: Path, codes: str, ended_with: int, count: int
) -> None:
    driver(codes)
    assert attend(ticket(tmp_path)) == ended_with
    assert starts(tmp_path) == count
    assert (tmp_path / "start-0").read_text() == "RAYLIFT_RUN_URI,FOLDER,LEVEL $(of) 'it'"


def test_a_driver_whose_job_file_is_not_there_is_not_started(driver: Any, tmp_path: Path) -> None:
    driver("0")
    told = ticket(tmp_path)
    (tmp_path / "digits-1" / "job.yaml").unlink()
    with pytest.raises(RunNotFoundError):
        attend(told)
    assert starts(tmp_path) == 0


def test_a_driver_that_outlasts_its_deadline_is_ended_and_not_started_again(
    driver: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    driver("waits")
    assert attend(ticket(tmp_path, deadline=1)) == 128 + signal.SIGTERM
    assert starts(tmp_path) == 1
    assert "it took longer than its budget allows" in capfd.readouterr().err


def test_one_that_is_told_to_end_tells_the_driver_and_starts_no_other(driver: Any, tmp_path: Path) -> None:
    driver("waits")
    timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    assert attend(ticket(tmp_path)) == 128 + signal.SIGTERM
    assert starts(tmp_path) == 1


class _Jobs(BaseHTTPRequestHandler):
    jobs: list[dict[str, Any]] = []  # noqa: RUF012
    tokens: list[str | None] = []  # noqa: RUF012

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.tokens.append(self.headers.get("Authorization"))
        self.send_response(200 if self.path == "/api/jobs/" else 404)
        self.end_headers()
        self.wfile.write(json.dumps(self.jobs).encode())


@contextmanager
def ray_with(jobs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    _Jobs.jobs = jobs
    with HTTPServer(("127.0.0.1", 0), _Jobs) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", f"127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "t0ken")
        yield
        server.shutdown()


@pytest.mark.parametrize(
    ("job", "busy"),
    [
        ({"submission_id": "run", "status": "RUNNING"}, True),
        ({"submission_id": "run", "status": "PENDING"}, True),
        ({"submission_id": None, "status": "RUNNING"}, True),  # a person's own
        ({"submission_id": "run", "status": "SUCCEEDED"}, False),
        ({"submission_id": "run", "status": "STOPPED"}, False),
    ],
)
def test_a_cluster_is_busy_while_a_job_but_the_keeper_runs(
    monkeypatch: pytest.MonkeyPatch, job: dict[str, Any], busy: bool
) -> None:
    with ray_with([{"submission_id": KEEPER, "status": "RUNNING"}, job], monkeypatch):
        assert is_busy() is busy
    assert _Jobs.tokens[-1] == "Bearer t0ken"


def test_a_ray_that_does_not_answer_is_not_taken_for_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", "127.0.0.1:1")
    assert is_busy()


def test_a_cluster_is_kept_until_it_was_idle_for_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([True, False, True, False, False, False, False, False, False])
    asked: list[bool] = []
    monkeypatch.setattr(keeper, "is_busy", lambda: asked.append(next(answers)) or asked[-1])  # type: ignore[func-returns-value]
    began = time.monotonic()
    keep(0.4, poll=0.2)
    assert asked[:4] == [True, False, True, False]
    assert 1.0 <= time.monotonic() - began < 5


def test_a_pod_that_runs_share_knows_which_have_a_process_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAYLIFT_RUN_URI", raising=False)
    left: list[tuple[str, str]] = []
    monkeypatch.setattr(leaving, "_leave", lambda uri, role: left.append((uri, role)))
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    homes = {"first": str(tmp_path), "second": str(tmp_path), "elsewhere": "/tmp"}
    others = []
    try:
        for name, home in homes.items():
            env = {**environment(), "RAYLIFT_RUN_URI": f"s3://bucket/{name}", "HOME": home}
            others.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL))
        wait_for(lambda: len(leaving.runs_here()) == 2, "the processes", timeout=30)
        leaving.main("worker")
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert sorted(left) == [("s3://bucket/first", "worker"), ("s3://bucket/second", "worker")]
