"""SeaweedFS, a real S3 server out of the package registry, on free ports of this machine."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

REGION = "us-east-1"
OTHER_SETTINGS = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE")
_PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
_S3_PORTS = ("s3.port", "s3.port.grpc")
_START_S = 30


def find_weed() -> str | None:
    """Return the server's binary: beside this Python, or on the path."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


class SeaweedFS:
    """A running server; `stop` ends it. It also ends by itself when this process dies, however it dies."""

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", within: Sequence[str] = ()) -> None:
        """Start it, at an address of this machine; `within` goes before its command, as what enters a namespace."""
        self._host = host
        self._within = within
        self.admin = ("admin-" + uuid.uuid4().hex[:8], uuid.uuid4().hex)
        self.reader = ("reader-" + uuid.uuid4().hex[:8], uuid.uuid4().hex)
        self._temporary: list[tuple[str, str]] = []
        self._folder = folder
        for _ in range(3):  # a free port may be taken before the server listens on it
            self._start()
            if self._wait_until_ready():
                break
            self.stop()
            self.__dict__.pop("client", None)
        else:
            raise RuntimeError(f"SeaweedFS did not start; its log is {folder / 'log.txt'}")

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def start_again(self) -> None:
        """Start it after a stop, with the same data at the same address; return once it serves them."""
        from botocore.exceptions import BotoCoreError, ClientError

        self._launch()
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            try:
                self.client.get_object(Bucket=self.bucket, Key="ready")
                return
            except (BotoCoreError, ClientError):
                time.sleep(0.1)
        raise RuntimeError(f"SeaweedFS did not start again; its log is {self._folder / 'log.txt'}")

    def let_in(self, *users: tuple[str, str]) -> None:
        """Know these keys and their secrets beside its own, and no others; return once it does."""
        gone = [user for user in self._temporary if user not in users]
        self._temporary = list(users)
        self._config(self._home / "s3.json")
        server = next(child for child in psutil.Process(self._process.pid).children() if child.name() == "weed")
        server.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + _START_S
        while [*map(self._knows, users), *map(self._knows, gone)] != [True] * len(users) + [False] * len(gone):
            assert time.monotonic() < deadline, "SeaweedFS did not read its users again"
            time.sleep(0.05)

    @property
    def endpoint(self) -> str:
        return f"http://{self._host}:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to work as the administrator, whatever this machine's own settings are."""
        return self.env_of(self.admin)

    def env_of(self, user: tuple[str, str], endpoint: str | None = None) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": user[0],
            "AWS_SECRET_ACCESS_KEY": user[1],
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(self._folder / "no-config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(self._folder / "no-credentials"),
        }

    @cached_property
    def client(self) -> Any:
        """A plain boto3 client of the administrator, to look at what is really stored."""
        return _client(self.endpoint, self.admin)

    def fresh_bucket(self) -> str:
        """Make an empty bucket. Each takes disk volumes of its own: prefer a fresh prefix in `bucket`."""
        name = "raylift-" + uuid.uuid4().hex[:12]
        self.client.create_bucket(Bucket=name)
        return name

    def fresh_uri(self) -> str:
        return f"s3://{self.bucket}/{uuid.uuid4().hex[:12]}"

    def _start(self) -> None:
        weed = find_weed()
        assert weed is not None
        names = [*_PORTS, *_S3_PORTS]
        ports = dict(zip(names, _free_ports(len(names)), strict=True))
        self.port = ports["s3.port"]
        data = self._folder / uuid.uuid4().hex[:8]
        data.mkdir(parents=True)
        self._config(data / "s3.json")
        command = [*self._within, weed, "server", f"-dir={data}", "-filer", "-s3"]
        command += [f"-ip={self._host}", f"-ip.bind={self._host}"]
        command += ["-master.telemetry=false", "-volume.max=400", "-master.volumeSizeLimitMB=256"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        command += [f"-filer.localSocket={data / 'filer.sock'}", f"-s3.localSocket={data / 's3.sock'}"]
        command += [f"-s3.config={data / 's3.json'}", *(f"-{name}={port}" for name, port in ports.items())]
        # The shell outlives us by a moment: when our end of its stdin closes, it kills the server.
        sockets = " ".join(f"/tmp/seaweedfs-*-grpc-{port}.sock" for port in ports.values())
        guard = f'"$@" & pid=$!; cat >/dev/null; kill -9 $pid; wait $pid; rm -f {sockets}'
        self._command, self._home = ["sh", "-c", guard, "sh", *command], data
        self._launch()

    def _launch(self) -> None:
        with (self._folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the tests alone
                stdout=log,
                stderr=log,
                env={"WEED_S3_SSE_KEY": "any", "HOME": str(self._home), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            )

    def _knows(self, user: tuple[str, str]) -> bool:
        from botocore.exceptions import ClientError

        try:
            _client(self.endpoint, user).list_objects_v2(Bucket=self.bucket, MaxKeys=1)
        except ClientError:
            return False
        return True

    def _config(self, path: Path) -> None:
        everything = ["Admin", "Read", "Write", "List", "Tagging"]
        users = [("admin", [self.admin], everything), ("reader", [self.reader], ["Read", "List"])]
        users += [("temporary", self._temporary, everything)]  # one that is missing later would be known still
        identities = [
            {
                "name": name,
                "credentials": [{"accessKey": key, "secretKey": secret} for key, secret in keys],
                "actions": actions,
            }
            for name, keys, actions in users
        ]
        path.write_text(json.dumps({"identities": identities}))

    def _wait_until_ready(self) -> bool:
        """Make the shared bucket and use it: the first requests after a start can fail with 500."""
        from botocore.exceptions import BotoCoreError, ClientError

        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=2):
                    pass
                self.bucket = self.fresh_bucket()
                self.client.put_object(Bucket=self.bucket, Key="ready", Body=b"ready")
                return bool(self.client.get_object(Bucket=self.bucket, Key="ready")["Body"].read() == b"ready")
            except (OSError, urllib.error.URLError, BotoCoreError, ClientError):
                time.sleep(0.1)
        return False


def _client(endpoint: str, user: tuple[str, str]) -> Any:
    import boto3

    return boto3.session.Session(*user, region_name=REGION).client("s3", endpoint_url=endpoint)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
