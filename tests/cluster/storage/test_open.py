"""Storage URIs, and what a check finds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import StorageError, UsageError
from cluster.storage.file import FileStorage
from cluster.storage.open import check_storage, open_storage, split_run_uri


@pytest.mark.parametrize(
    ("uri", "root"),
    [("./runs", "{cwd}/runs"), ("runs/", "{cwd}/runs"), ("a/../b", "{cwd}/b"), ("/x/y", "/x/y"),
     ("~/runs", "{home}/runs"), ("file:///x/y/", "/x/y"), ("file://localhost/x%20y", "/x y"),
     ("FILE:///x", "/x"), ("c:d", "{cwd}/c:d")],
)  # fmt: skip
def test_a_folder_is_written_as_its_whole_path(
    uri: str, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert open_storage(uri).uri == root.format(cwd=tmp_path, home="/home/me")


@pytest.mark.parametrize(
    ("uri", "root"),
    [("s3://bucket", "s3://bucket"), ("S3://bucket/a/b/", "s3://bucket/a/b"),
     ("gs://bucket", "gs://bucket"), ("GS://my.long.bucket/a/b/", "gs://my.long.bucket/a/b")],
)  # fmt: skip
def test_a_bucket_is_written_without_a_slash_at_its_end(
    uri: str, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://localhost:4443")  # which is not asked
    assert open_storage(uri).uri == root


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("", "storage is empty: write a folder"),
        ("gcs://bucket", "write gs:// for Google Cloud Storage"),
        ("ftp://host/x", "ftp:// is not supported; write a folder .* or a bucket"),
        ("s3:/bucket/x", "a / is missing after s3:/"),
        ("s3://", "'' is no bucket's name"),
        ("s3:///prefix", "'' is no bucket's name"),
        ("s3://a bucket/x", "'a bucket' is no bucket's name"),
        ("s3://bucket/a/../b", "no path within a storage"),
        ("s3://bucket/a//b", "no path within a storage"),
        ("gs:/bucket/x", "a / is missing after gs:/"),
        ("gs://", "'' is no bucket's name; write gs://BUCKET/PREFIX"),
        ("gs://Bucket", "'Bucket' is no bucket's name"),
        ("gs://-bucket", "'-bucket' is no bucket's name"),
        ("gs://bucket/a/../b", "no path within a storage"),
        ("file://host/x", "names the machine 'host'"),
    ],
)
def test_what_is_no_storage_is_a_mistake_with_its_cure(uri: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_storage(uri)


@pytest.mark.parametrize(("scheme", "cure"), [("s3", "AWS_ACCESS_KEY_ID"), ("gs", "GOOGLE_APPLICATION_CREDENTIALS")])
def test_a_secret_in_a_uri_is_not_repeated(scheme: str, cure: str) -> None:
    with pytest.raises(UsageError, match=f"holds no credentials: set {cure}") as caught:
        open_storage(f"{scheme}://key:topsecret@bucket/x")
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "parts"),
    [("s3://bucket/run-1", ("s3://bucket", "run-1")), ("s3://bucket/a/b/run-1/", ("s3://bucket/a/b", "run-1")),
     ("gs://bucket/run-1", ("gs://bucket", "run-1")), ("gs://bucket/a/run-1/", ("gs://bucket/a", "run-1")),
     ("/x/y/run-1", ("/x/y", "run-1")), ("/run-1", ("/", "run-1")), ("file:///x/run-1", ("/x", "run-1"))],
)  # fmt: skip
def test_a_run_uri_is_a_storage_and_an_id(uri: str, parts: tuple[str, str]) -> None:
    assert split_run_uri(uri) == parts


def test_a_relative_run_uri_stands_in_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_run_uri("runs/run-1") == (open_storage("runs").uri, "run-1")


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "gs://bucket", "/"])
def test_a_storage_alone_is_no_run(uri: str) -> None:
    with pytest.raises(UsageError, match="is a storage, not a run: add the run's id"):
        split_run_uri(uri)


def test_a_folder_needs_no_cloud_library(tmp_path: Path) -> None:
    code = "import sys; from cluster.storage.open import *; check_storage(open_storage(sys.argv[1]))\n"
    code += (
        "print({'boto3', 'botocore', 's3transfer', 'awscrt', 'google.auth', 'google.cloud.storage'} & {*sys.modules})"
    )
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout == "set()\n"


class Forgetful(FileStorage):
    """A server that ignores If-None-Match, as some do."""

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        super().write(path, data, if_absent=if_absent and not data)


def test_a_server_without_conditional_create_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="it ignores If-None-Match"):
        check_storage(Forgetful(tmp_path))
    assert os.listdir(tmp_path) == []
