"""Temporary credentials that expire while a run goes on: refreshed, or told with what to do."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from cluster.runs import Run
from cluster.storage.open import open_storage
from tests.faults.screens import DIGITS, wait_for_nothing_left, write_job
from tests.harness import Started, environment, fresh_id, losses, open_run, raylift, start_raylift, wait_for
from tests.real.proxy import proxy
from tests.real.seaweedfs import SeaweedFS
from tests.trainers.training import EVERYTHING, Change, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LONG: Change = {"train": {"epochs": 300}, "checkpoint": {"every": "10 steps", "keep": 3}}
OVERLAP = 4.0  # seconds in which the old key and the new one are valid, for requests that are on their way
EXPIRED = "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"


class Issuer:
    """Gives out credentials as the machine of a cloud does, to whoever asks on loopback."""

    def __init__(self) -> None:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with suppress(BrokenPipeError):  # who asked has waited too long
                    self.answer()

            def answer(self) -> None:
                body = json.dumps(issuer.credentials()).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.user = self.new_user()
        self.asked = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}/credentials"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def credentials(self) -> dict[str, str]:
        self.asked += 1
        expires = datetime.now(UTC) + timedelta(minutes=5)  # boto3 asks for new ones ten minutes before
        key, secret = self.user
        return {
            "AccessKeyId": key,
            "SecretAccessKey": secret,
            "Token": "",
            "Expiration": f"{expires:%Y-%m-%dT%H:%M:%SZ}",
        }

    def new_user(self) -> tuple[str, str]:
        return f"temporary{uuid.uuid4().hex[:8]}", uuid.uuid4().hex

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def issuer(s3_env: SeaweedFS) -> Iterator[Issuer]:
    issuer = Issuer()
    s3_env.let_in(issuer.user)
    yield issuer
    issuer.close()
    s3_env.let_in()


def test_credentials_that_expire_are_refreshed_and_the_run_goes_on(
    tmp_path: Path, s3_env: SeaweedFS, issuer: Issuer
) -> None:
    whole = start(tmp_path, EVERYTHING, LONG, run_id="whole")
    run = Run(open_storage(s3_env.fresh_uri()), "refreshed")
    run.create(whole.job())
    with _train(whole, environment()) as process:
        assert process.wait(timeout=280) == 0
    settings = {name: value for name, value in environment().items() if not name.startswith("AWS_")}
    settings |= {name: value for name, value in s3_env.env.items() if "KEY" not in name}
    settings |= {"AWS_CONTAINER_CREDENTIALS_FULL_URI": issuer.uri}
    with _train(run, settings) as process:
        wait_for(run.checkpoints, "the first checkpoint")
        for _ in range(2):
            old, new = issuer.user, issuer.new_user()
            s3_env.let_in(old, new)
            issuer.user = new  # known by now: a key is good from the moment that it is given out
            time.sleep(OVERLAP)
            s3_env.let_in(issuer.user)  # which returns only once the old one is refused
        assert process.poll() is None, "it ended before its first keys were refused"
        _, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors
    assert losses(run) == losses(whole)
    assert run.newest_intact(read=True) is not None


@pytest.mark.ray
def test_a_session_that_expires_ends_the_run_with_what_to_do_and_a_resume_goes_on(
    tmp_path: Path, s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3_env.fresh_uri()
    run = open_run(uri, fresh_id("expired"))
    job = write_job(tmp_path, DIGITS.replace("epochs: 3", "epochs: 12"))
    with proxy(s3_env.port, refusal=(400, EXPIRED)) as link:
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", link.endpoint)
            process = start_raylift("run", job, "--id", run.id, "--storage", uri)
        with process:
            wait_for(run.checkpoints, "the first checkpoint")
            saved = run.checkpoints()[-1].step
            link.reject = b"HTTP/1.1\r\n"
            output, _ = process.communicate(timeout=120)
            assert "Traceback" not in output
            assert output.count("(ExpiredToken): the session has expired: sign in again") == 1, output
            assert process.returncode in (3, 5)
            told = wait_for(lambda: _failed(run), "the end of the run", timeout=60)
            assert "(ExpiredToken): the session has expired: sign in again, for example by aws sso login" in told
            base = run.newest_intact(read=True)
            assert base is not None
            assert base.step >= saved
            resumed = raylift("resume", run.uri)
            assert resumed.returncode == 0, resumed.stdout + resumed.stderr
            steps = [row["step"] for row in run.rows("metrics") if row["kind"] == "step"]
            assert steps == list(range(1, 12 * 23 + 1))
            wait_for_nothing_left(run.id)


def _failed(run: Run) -> str:
    told = raylift("status", run.uri).stdout
    return told if "FAILED: " in told else ""


def _train(run: Run, settings: dict[str, str]) -> Started:
    command = [sys.executable, "-P", "-m", "trainers.worker", run.uri]
    return Started(command, stderr=subprocess.PIPE, text=True, env={**settings, "OMP_NUM_THREADS": "1"})
