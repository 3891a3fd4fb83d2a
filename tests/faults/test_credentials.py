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
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cluster.runs import Run
from cluster.storage.open import open_storage
from tests.faults.screens import DIGITS, wait_for_nothing_left, write_job
from tests.harness import (
    Started,
    assert_clean,
    environment,
    fresh_id,
    losses,
    open_run,
    raylift,
    start_raylift,
    wait_for,
)
from tests.real.fake_gcs import GCSServer
from tests.real.proxy import Proxy, proxy
from tests.real.seaweedfs import SeaweedFS
from tests.trainers.training import EVERYTHING, Change, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LONG: Change = {"train": {"epochs": 300}, "checkpoint": {"every": "10 steps", "keep": 3}}
OVERLAP = 4.0  # seconds in which the old key and the new one are valid, for requests that are on their way
INVALID = json.dumps({"error": {"code": 401, "message": "Invalid Credentials"}})
REVOKED = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
EXPIRED = "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"


class Issuer:
    """Gives out credentials to whoever asks on loopback."""

    def __init__(self) -> None:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with suppress(BrokenPipeError):  # who asked has waited too long
                    self.answer()

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def answer(self) -> None:
                status, credentials = issuer.credentials()
                body = json.dumps(credentials).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}/credentials"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def credentials(self) -> tuple[int, dict[str, Any]]:
        """Return a status and what is given out."""
        raise NotImplementedError

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Machine(Issuer):
    """A machine of AWS, which gives keys to what runs on it."""

    def __init__(self) -> None:
        self.user = self.new_user()
        super().__init__()

    def credentials(self) -> tuple[int, dict[str, Any]]:
        expires = datetime.now(UTC) + timedelta(minutes=5)  # boto3 asks for new ones ten minutes before
        key, secret = self.user
        return 200, {
            "AccessKeyId": key,
            "SecretAccessKey": secret,
            "Token": "",
            "Expiration": f"{expires:%Y-%m-%dT%H:%M:%SZ}",
        }

    def new_user(self) -> tuple[str, str]:
        return f"temporary{uuid.uuid4().hex[:8]}", uuid.uuid4().hex


class SignIn(Issuer):
    """Google's sign-in, which gives tokens for the key of a service account."""

    def __init__(self) -> None:
        self.refusal: tuple[int, dict[str, Any]] | None = None
        self.token = ""
        self.expire()
        super().__init__()

    def credentials(self) -> tuple[int, dict[str, Any]]:
        return self.refusal or (200, {"access_token": self.token, "expires_in": 3600, "token_type": "Bearer"})

    def expire(self) -> bytes:
        """Give out another token from now on; return how requests with the one before begin."""
        old, self.token = self.token, f"token-{uuid.uuid4().hex}"
        return f"Bearer {old}".encode()

    def write_key(self, path: Path) -> Path:
        """Write a key for which this gives tokens."""
        secret = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        account = {"type": "service_account", "client_email": "run@project.iam.gserviceaccount.com"}
        path.write_text(json.dumps({**account, "private_key": secret.decode(), "token_uri": self.uri}))
        return path


@pytest.fixture
def issuer(s3_env: SeaweedFS) -> Iterator[Machine]:
    issuer = Machine()
    s3_env.let_in(issuer.user)
    yield issuer
    issuer.close()
    s3_env.let_in()


@pytest.fixture
def sign_in() -> Iterator[SignIn]:
    sign_in = SignIn()
    yield sign_in
    sign_in.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run that met no fault; tests leave it as it is."""
    run = start(tmp_path_factory.mktemp("whole"), EVERYTHING, LONG, run_id="whole")
    with _train(run, environment()) as process:
        assert process.wait(timeout=280) == 0
    return run


def test_credentials_that_expire_are_refreshed_and_the_run_goes_on(
    s3_env: SeaweedFS, issuer: Machine, whole: Run
) -> None:
    run = Run(open_storage(s3_env.fresh_uri()), "refreshed")
    run.create(whole.job())
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
    assert_clean(run)


def test_tokens_of_google_are_refreshed_until_their_key_is_revoked_and_another_start_goes_on(
    tmp_path: Path, gcs_env: GCSServer, sign_in: SignIn, whole: Run
) -> None:
    run = Run(open_storage(gcs_env.fresh_uri()), "refreshed")
    run.create(whole.job().replace(b"10 steps", b"40 steps"))  # which takes less time, and changes no loss
    settings = {name: value for name, value in environment().items() if name != "STORAGE_EMULATOR_HOST"}
    settings |= {"GOOGLE_APPLICATION_CREDENTIALS": str(sign_in.write_key(tmp_path / "key.json"))}
    with proxy(gcs_env.port, refusal=(401, INVALID)) as link:
        settings |= {"API_ENDPOINT_OVERRIDE": link.endpoint}
        with _train(run, settings) as process:
            wait_for(run.checkpoints, "the first checkpoint")
            for refusal in (None, (503, {"error": "unavailable"})):  # the sign-in may be away meanwhile
                seen = len(link.heads)
                link.reject, sign_in.refusal = sign_in.expire(), refusal
                _wait_for_refusal(link, seen)
                sign_in.refusal = None
                _wait_for_save(run)
            link.reject, sign_in.refusal = sign_in.expire(), (400, REVOKED)
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 3, errors
            assert errors.count("error: no valid credentials for gs://") == 1, errors
            assert "type gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS" in errors
        saved = run.checkpoints()[-1].step
        sign_in.refusal = None
        with _train(run, settings) as process:
            _, errors = process.communicate(timeout=280)
            assert process.returncode == 0, errors
    assert [claim.base.step if claim.base else None for claim in run.claims()] == [None, saved]
    assert losses(run) == losses(whole)
    assert_clean(run)


def _wait_for_refusal(link: Proxy, seen: int) -> None:
    """Wait until a request has come with a token that is refused, after those that were `seen`."""
    assert link.reject is not None
    refused = link.reject.decode()
    wait_for(lambda: any(refused in head for head in link.heads[seen:]), "a request with the old token")


def _wait_for_save(run: Run) -> None:
    before = run.checkpoints()[-1].step
    wait_for(lambda: run.checkpoints()[-1].step > before, "another checkpoint")


@pytest.mark.waiting
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
            told = wait_for(lambda: _failed(run), "the end of the run")  # refused saves are tried for a minute
            assert "(ExpiredToken): the session has expired: sign in again, for example by aws sso login" in told
            base = run.newest_intact(read=True)
            assert base is not None
            assert base.step >= saved
            resumed = raylift("resume", run.uri)
            assert resumed.returncode == 0, resumed.stdout + resumed.stderr
            steps = [row["step"] for row in run.rows("metrics") if row["kind"] == "step"]
            assert steps == list(range(1, 12 * 23 + 1))
            wait_for_nothing_left(run.id)
            assert_clean(run, output + resumed.stdout + resumed.stderr)


def _failed(run: Run) -> str:
    told = raylift("status", run.uri).stdout
    return told if "FAILED: " in told else ""


def _train(run: Run, settings: dict[str, str]) -> Started:
    command = [sys.executable, "-P", "-m", "trainers.worker", run.uri]
    return Started(command, stderr=subprocess.PIPE, text=True, env={**settings, "OMP_NUM_THREADS": "1"})
