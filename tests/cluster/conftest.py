"""Runs to write to, in a folder, in S3 and in GCS, on real servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.attempts import Attempt
from cluster.records import Checkpoint
from cluster.runs import Run
from cluster.storage.base import Storage
from cluster.storage.file import FileStorage
from cluster.storage.open import open_storage
from tests.cluster.saves import Commit, make_files


@pytest.fixture(params=["file", "s3", "gcs"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "file":
        return FileStorage(tmp_path / "storage")
    return open_storage(request.getfixturevalue(f"{request.param}_storage_uri"))


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
