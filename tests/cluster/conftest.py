"""Runs to write to, in a folder and in real S3."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.runs import Attempt, Checkpoint, Run
from cluster.storage.base import Storage
from cluster.storage.file import FileStorage
from cluster.storage.open import open_storage
from tests.cluster.saves import Commit, make_files
from tests.real.seaweedfs import SeaweedFS


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "file":
        return FileStorage(tmp_path / "storage")
    server: SeaweedFS = request.getfixturevalue("s3_env")
    return open_storage(server.fresh_uri())


@pytest.fixture
def run(storage: Storage) -> Run:
    run = Run(storage, "digits")
    run.create(b"task: image-classification\n")
    return run


@pytest.fixture
def commit(tmp_path: Path) -> Commit:
    """Commit a checkpoint of two small files."""

    def commit(attempt: Attempt, step: int) -> Checkpoint:
        return attempt.commit(step, make_files(tmp_path, step), {"step": step})

    return commit
