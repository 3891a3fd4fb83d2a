from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.errors import StorageFullError, TrainingError
from cluster.storage.open import open_storage
from tests.real.seaweedfs import SeaweedFS
from tests.trainers.pictures import digits, job, png, write_folder, write_parquet
from trainers.data.images import prepare
from trainers.data.remote import fetch

PIXELS, LABELS = digits(60)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLIFT_CACHE", str(tmp_path / "cache"))


def upload(folder: Path, uri: str, below: str = "data/") -> str:
    """Store a folder's files; return the URI where they are."""
    storage = open_storage(uri)
    for path in folder.rglob("*"):
        if path.is_file():
            storage.upload(path, f"{below}{path.relative_to(folder)}")
    return f"{uri}/{below}".rstrip("/")


@pytest.fixture
def parquet(tmp_path: Path, s3_storage_uri: str) -> str:
    """Return a folder in S3 of two parquet files and what does not belong to them."""
    encoded = [png(image) for image in PIXELS]
    write_parquet(tmp_path / "up" / "part-0.parquet", encoded[:30], LABELS[:30].tolist())
    write_parquet(tmp_path / "up" / "part-1.parquet", encoded[30:], LABELS[30:].tolist())
    open_storage(s3_storage_uri).write("data-of-others/x.parquet", b"broken")
    return upload(tmp_path / "up", s3_storage_uri)


@pytest.mark.parametrize(("end", "count"), [("", 60), ("/", 60), ("/*.parquet", 60), ("/part-1.parquet", 30)])
def test_parquet_in_s3_is_a_file_a_folder_or_a_pattern(parquet: str, end: str, count: int) -> None:
    prepared = prepare(job(f"{parquet}{end}"))
    assert prepared.meta["train"] == count
    np.testing.assert_array_equal(prepared.arrays["images"], PIXELS[-count:])


def test_a_folder_of_images_in_s3_is_one_here(tmp_path: Path, s3_storage_uri: str) -> None:
    write_folder(tmp_path / "up" / "train", PIXELS, LABELS)
    write_folder(tmp_path / "up" / "val", 255 - PIXELS[:20], LABELS[:20])
    uri = upload(tmp_path / "up", s3_storage_uri)
    prepared = prepare(job(uri, eval=uri))
    assert (prepared.meta["train"], prepared.meta["eval"]) == (60, 20)


def test_a_folder_of_images_in_gcs_is_one_here(tmp_path: Path, gcs_storage_uri: str) -> None:
    uri = upload(write_folder(tmp_path / "up", PIXELS, LABELS), gcs_storage_uri)
    assert prepare(job(uri)).meta["train"] == 60
    with pytest.raises(TrainingError, match=f"Look for it with: gcloud storage ls {gcs_storage_uri}/"):
        prepare(job(f"{gcs_storage_uri}/nowhere"))


def test_a_whole_bucket_may_be_the_data(tmp_path: Path, s3_env: SeaweedFS) -> None:
    bucket = f"s3://{s3_env.fresh_bucket()}"
    upload(write_folder(tmp_path / "up", PIXELS, LABELS), bucket, below="")
    assert prepare(job(bucket)).meta["classes"] == list("0123456789")


def test_what_was_fetched_is_not_fetched_again(parquet: str) -> None:
    first = fetch(f"{parquet}/part-0.parquet")
    fetched_at = first.stat().st_mtime_ns
    assert fetch(f"{parquet}/part-0.parquet") == first
    assert first.stat().st_mtime_ns == fetched_at


def test_objects_that_changed_are_fetched_anew_and_those_that_left_are_gone(parquet: str) -> None:
    assert prepare(job(parquet)).meta["train"] == 60
    root, name = parquet.rsplit("/", 1)
    open_storage(root).delete(f"{name}/part-0.parquet")
    assert prepare(job(parquet)).meta["train"] == 30


def test_nothing_there_is_an_error_with_the_uri(s3_storage_uri: str) -> None:
    with pytest.raises(TrainingError, match=f"{s3_storage_uri}/nowhere: nothing is there"):
        prepare(job(f"{s3_storage_uri}/nowhere"))


def test_a_uri_of_this_machine_is_read_in_place(tmp_path: Path) -> None:
    write_folder(tmp_path / "my digits", PIXELS, LABELS)
    assert prepare(job((tmp_path / "my digits").as_uri())).meta["train"] == 60
    assert not (tmp_path / "cache").exists()


@pytest.mark.root
def test_a_full_disk_says_where_and_what_to_do(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLIFT_CACHE", str(small_disk))
    noise = np.random.default_rng(0).integers(0, 256, (10, 600, 600, 1), dtype=np.uint8)
    path = write_parquet(tmp_path / "large.parquet", [png(image) for image in noise], [0, 1] * 5)
    with pytest.raises(StorageFullError, match=r"No space left.* set RAYLIFT_CACHE to another folder"):
        prepare(job(path))
    assert list(small_disk.iterdir()) == []
