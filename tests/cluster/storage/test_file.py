"""The folder: what a disk does that a bucket does not."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from typing import BinaryIO

import pytest

from cluster.errors import StorageDeniedError, StorageError, StorageFullError
from cluster.storage.base import Digest
from cluster.storage.disk import PARTIAL, new_file
from cluster.storage.file import FileStorage
from cluster.storage.open import check_storage


def names(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*"))


def test_looking_makes_no_folder(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "runs")
    assert (list(storage.list()), list(storage.folders()), list(storage.sweep())) == ([], [], [])
    assert not (tmp_path / "runs").exists()


def test_a_check_of_a_new_folder_makes_it_and_leaves_it_empty(tmp_path: Path) -> None:
    check_storage(FileStorage(tmp_path / "new" / "runs"))
    assert names(tmp_path) == ["new", "new/runs"]


@pytest.mark.root
def test_a_full_disk_is_named_and_nothing_half_written_stays(small_disk: Path, tmp_path: Path) -> None:
    storage = FileStorage(small_disk)
    storage.write("kept", b"before")
    (tmp_path / "source").write_bytes(os.urandom(3_000_000))
    for act in (
        lambda: storage.write("kept", os.urandom(3_000_000)),
        lambda: storage.upload(tmp_path / "source", "a/b"),
    ):
        with pytest.raises(StorageFullError, match=rf"no space for {small_disk}.*: no space left on device, \d\.\d MB"):
            act()
    storage.delete("a/none")
    assert (storage.read("kept"), names(small_disk)) == (b"before", ["kept"])


@pytest.mark.root
def test_a_download_to_a_full_disk_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "storage")
    data = os.urandom(3_000_000)
    storage.write("a", data)
    with pytest.raises(StorageFullError, match="no space for"):
        storage.download("a", small_disk / "target", expect=Digest.of_bytes(data))
    assert names(small_disk) == []


@pytest.mark.root
def test_a_folder_that_cannot_be_written_is_named(read_only_disk: Path) -> None:
    with pytest.raises(StorageDeniedError, match=f"{read_only_disk}/runs/.* is out of bounds: read-only file system"):
        check_storage(FileStorage(read_only_disk / "runs"))


def test_a_folder_of_another_person_is_named(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o500)
    if os.access(tmp_path / "theirs", os.W_OK):
        pytest.skip("root may write to every folder")
    with pytest.raises(StorageDeniedError, match=r"theirs/.* is out of bounds: permission denied"):
        check_storage(FileStorage(tmp_path / "theirs"))


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(StorageError, match=r"runs/.*a file and a folder cannot share a name"):
        check_storage(FileStorage(tmp_path / "runs"))


def test_a_folder_is_not_written_over_by_a_file(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    storage.write("a/b", b"1")
    for if_absent in (False, True):
        with pytest.raises(StorageError):
            storage.write("a", b"2", if_absent=if_absent)
    assert names(tmp_path) == ["a", "a/b"]


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="none: no such file"):
        FileStorage(tmp_path / "storage").upload(tmp_path / "none", "a")


def test_a_file_in_the_way_of_a_download_is_named(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    storage.write("a", b"1")
    with pytest.raises(StorageError, match="a/target cannot be used"):
        storage.download("a", tmp_path / "a" / "target", expect=Digest.of_bytes(b"1"))


def test_a_sweep_leaves_the_living_alone(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    with new_file(tmp_path / "a" / "b") as file:
        assert storage.sweep() == []
        assert Path(file.name).exists()


def test_a_file_that_is_swept_before_its_writer_locks_it_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let a sweep run between the two calls, where no test would hit by chance."""
    storage, lock, swept = FileStorage(tmp_path), fcntl.flock, list[str]()

    def sweep_then_lock(file: BinaryIO, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        swept.extend(storage.sweep())
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", sweep_then_lock)
    storage.write("a/b", b"1")
    assert (swept, storage.read("a/b")) == (["a/b"], b"1")


def test_a_folder_that_is_pruned_before_its_writer_fills_it_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let a delete run between the two calls: the name of the new file is drawn there."""
    storage, draw = FileStorage(tmp_path), secrets.token_hex

    def delete_then_draw(size: int) -> str:
        monkeypatch.setattr(secrets, "token_hex", draw)
        assert (tmp_path / "a" / "b").is_dir()
        storage.delete("a/b/none")
        assert not (tmp_path / "a").exists()
        return draw(size)

    monkeypatch.setattr(secrets, "token_hex", delete_then_draw)
    storage.write("a/b/c", b"1")
    assert storage.read("a/b/c") == b"1"


def test_names_of_hidden_files_are_taken(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="are taken by files that are being written"):
        FileStorage(tmp_path).write(f"a/{PARTIAL}x", b"1")


def test_a_loop_of_links_is_not_followed(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    storage.write("a/b", b"1")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert [entry.path for entry in storage.list()] == ["a/b"]


def test_files_get_the_mode_that_the_person_asked_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        FileStorage(tmp_path).write("a", b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
