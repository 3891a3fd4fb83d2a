"""What is sent: files, and pieces of memory."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from cluster.errors import CorruptObjectError, StorageError
from cluster.storage.base import Digest
from cluster.storage.checksums import crc64
from cluster.storage.sources import InMemory, Stream, digest_of, opened

WHOLE = bytes(range(250))
PIECES = (WHOLE[:1], b"", WHOLE[1:100], memoryview(WHOLE)[100:103], WHOLE[103:])


@pytest.mark.parametrize("start", [0, 1, 50, 99, 100, 102, 249, 250])
@pytest.mark.parametrize("end", [0, 1, 51, 100, 101, 103, 250])
def test_any_range_of_pieces_is_that_of_the_whole(start: int, end: int) -> None:
    assert InMemory(*PIECES).read(start, end) == WHOLE[start:end]


def test_pieces_are_one_source(tmp_path: Path) -> None:
    source = InMemory(*PIECES)
    assert source.size == len(WHOLE)
    assert b"".join(source.pieces()) == WHOLE
    assert digest_of(source) == Digest.of_bytes(WHOLE)
    assert digest_of(InMemory()) == Digest.of_bytes(b"")
    (tmp_path / "file").write_bytes(WHOLE * 9000)
    with opened(tmp_path / "file") as file:
        assert digest_of(file) == Digest.of_bytes(WHOLE * 9000)
        assert file.read(300, 900) == (WHOLE * 4)[300:900]


def test_a_stream_reads_and_seeks_as_a_file_does() -> None:
    stream, file = Stream(InMemory(*PIECES)), io.BytesIO(WHOLE)
    for size in (10, 0, 200, 100, 5, -1):
        assert stream.read(size) == file.read(size)
        assert stream.tell() == file.tell()
    for offset, whence in ((20, os.SEEK_SET), (-5, os.SEEK_END), (-3, os.SEEK_CUR)):
        assert stream.seek(offset, whence) == file.seek(offset, whence)
    ours, theirs = bytearray(20), bytearray(20)
    assert stream.readinto(ours) == file.readinto(theirs)
    assert ours == theirs


def test_a_file_that_is_not_there_is_an_error_of_storage(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="none: no such file"), opened(tmp_path / "none"):
        pass


def test_a_file_that_is_written_to_meanwhile_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(WHOLE)
    with opened(tmp_path / "file") as source:
        source.check_unchanged()
        with (tmp_path / "file").open("ab") as file:
            file.write(b"1")
        with pytest.raises(CorruptObjectError, match="file was written to while it was sent"):
            source.check_unchanged()


def test_the_quick_checksum_is_that_of_nvme_however_its_bytes_come() -> None:
    pytest.importorskip("awscrt")
    whole, by_pieces = crc64(), crc64()
    assert whole is not None
    assert by_pieces is not None
    whole.update(b"123456789")
    for piece in (b"1", b"", memoryview(b"2345678"), b"9"):
        by_pieces.update(piece)
    assert whole.hexdigest() == by_pieces.hexdigest() == "ae8b14860a799888"  # of the NVM Express specification
    assert digest_of(InMemory(b"1234", b"56789")).crc64 == whole.hexdigest()
    large = os.urandom(3 << 20)
    assert digest_of(InMemory(large)).crc64 == digest_of(InMemory(large[:1000], large[1000:])).crc64
