"""What every storage promises, on a folder and on real servers of S3 and GCS."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.errors import CorruptObjectError, ObjectExistsError, ObjectNotFoundError, StorageError
from cluster.storage.base import Digest, Storage
from cluster.storage.file import FileStorage
from cluster.storage.open import check_storage
from tests.cluster.memory import Memory
from tests.real.fake_gcs import GCSServer
from tests.real.seaweedfs import SeaweedFS

MIB = 1 << 20
PART = 5 * MIB  # the smallest that S3 takes
ROOT = Path(__file__).parents[3]

KILLED_WRITER = """
import os, sys
from pathlib import Path
from cluster.storage.disk import new_file
with new_file(Path(sys.argv[1])) as file:
    file.write(b"half of it")
    file.flush()
    os.kill(os.getpid(), 9)
"""

KILLED_UPLOADER = """
import os, sys
from pathlib import Path
from cluster.storage.gcs import GCSStorage
from cluster.storage.gcs_parts import Parts
Parts.compose = lambda *_: os.kill(os.getpid(), 9)
bucket, prefix, path, source = sys.argv[1:]
GCSStorage(bucket, prefix, part_size=1000).upload(Path(source), path)
"""

RACER = """
import sys, uuid
from concurrent.futures import ThreadPoolExecutor
from cluster.errors import ObjectExistsError
from cluster.storage.open import open_storage
storage = open_storage(sys.argv[1])
def claim(nonce):
    try:
        storage.write("claim.json", nonce.encode(), if_absent=True)
    except ObjectExistsError:
        return None
    return nonce
nonces = [uuid.uuid4().hex for _ in range(4)]
with ThreadPoolExecutor(4) as pool:
    print("ready", flush=True)
    sys.stdin.readline()
    print(*filter(None, pool.map(claim, nonces)), flush=True)
"""


@dataclass
class Case:
    storage: Storage
    overwrite: Callable[[str, bytes], None]  # behind the storage's back
    abandon: Callable[[str], None]  # begin to write an object, and die


def file_case(root: Path) -> Case:
    def abandon(path: str) -> None:
        command = [sys.executable, "-c", KILLED_WRITER, str(root / path)]
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9

    return Case(FileStorage(root), lambda path, data: void((root / path).write_bytes(data)), abandon)


def s3_case(server: SeaweedFS) -> Case:
    from cluster.storage.s3 import S3Storage

    client, bucket, prefix = server.client, *server.fresh_uri().removeprefix("s3://").split("/")

    def abandon(path: str) -> None:
        upload = client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/{path}")
        client.upload_part(
            Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"], PartNumber=1, Body=b"half of it"
        )

    return Case(
        S3Storage(bucket, prefix, part_size=PART),
        lambda path, data: void(client.put_object(Bucket=bucket, Key=f"{prefix}/{path}", Body=data)),
        abandon,
    )


def gcs_case(server: GCSServer) -> Case:
    from cluster.storage.gcs import GCSStorage

    bucket, prefix = server.fresh_uri().removeprefix("gs://").split("/")
    plain = server.client.bucket(bucket)

    def abandon(path: str) -> None:
        command = [sys.executable, "-c", KILLED_UPLOADER, bucket, prefix, path, __file__]
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9

    return Case(
        GCSStorage(bucket, prefix, part_size=PART),
        lambda path, data: void(plain.blob(f"{prefix}/{path}").upload_from_string(data)),
        abandon,
    )


def void(_: object) -> None:
    """Drop a result."""


@pytest.fixture(params=["file", "s3", "gcs"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    if request.param == "file":
        return file_case(tmp_path / "storage")
    if request.param == "s3":
        return s3_case(request.getfixturevalue("s3_env"))
    return gcs_case(request.getfixturevalue("gcs_env"))


@pytest.fixture
def storage(case: Case) -> Storage:
    return case.storage


def paths(storage: Storage, prefix: str = "") -> list[str]:
    return [entry.path for entry in storage.list(prefix)]


def make_file(path: Path, size: int) -> bytes:
    data = os.urandom(size)
    path.write_bytes(data)
    return data


def test_an_object_reads_back_as_it_was_written(storage: Storage) -> None:
    storage.write("a/b.json", b"{}")
    assert storage.read("a/b.json") == b"{}"


def test_an_empty_object_is_an_object(storage: Storage) -> None:
    storage.write("empty", b"")
    assert (storage.read("empty"), paths(storage)) == (b"", ["empty"])


def test_a_second_write_replaces_the_first(storage: Storage) -> None:
    storage.write("a", b"a longer first")
    storage.write("a", b"second")
    assert storage.read("a") == b"second"


def test_any_printable_name_is_kept(storage: Storage) -> None:
    names = sorted(["a b", "100%25", "a+b", "é/ü", "?q#f", "a'\"b", "$(x);"])
    for name in names:
        storage.write(name, name.encode())
    assert [storage.read(name).decode() for name in names] == paths(storage) == names


def test_a_range_is_a_slice(storage: Storage) -> None:
    storage.write("a", b"0123456789")
    ranges: list[tuple[int, int | None]] = [(0, 3), (2, None), (3, 3), (5, 2), (4, 100), (10, None), (12, 20)]
    for start, end in ranges:
        assert (start, end, storage.read("a", start=start, end=end)) == (start, end, b"0123456789"[start:end])


def test_a_range_of_an_empty_object_is_empty(storage: Storage) -> None:
    storage.write("a", b"")
    assert storage.read("a", start=0, end=10) == b""


def test_what_is_not_there_is_not_found(storage: Storage, tmp_path: Path) -> None:
    storage.write("folder/a", b"1")
    for act in (
        lambda: storage.read("none"),
        lambda: storage.read("none", start=3, end=3),
        lambda: storage.read("folder"),
        lambda: storage.copy("none", "b"),
        lambda: storage.download("none", tmp_path / "target", expect=Digest(1, "")),
        lambda: storage.download("none", tmp_path / "target", expect=Digest(2 * PART, "")),
        lambda: storage.download("none", Memory(2 * PART), expect=Digest(2 * PART, "")),
    ):
        with pytest.raises(ObjectNotFoundError, match="there is no "):
            act()


@pytest.mark.parametrize("size", [0, 1000, PART, 24 * MIB])
def test_a_file_comes_back_byte_for_byte(storage: Storage, tmp_path: Path, size: int) -> None:
    data = make_file(tmp_path / "source", size)
    digest = storage.upload(tmp_path / "source", "model/weights")
    storage.download("model/weights", tmp_path / "new" / "target", expect=digest)
    assert digest == Digest.of_bytes(data)
    assert (tmp_path / "new" / "target").read_bytes() == data
    memory = Memory(size)
    storage.download("model/weights", memory, expect=digest)
    assert memory.data == data
    assert memory.ends == sorted(memory.ends)
    assert memory.ends[-1] == size


def test_of_sixteen_racing_threads_one_wins(storage: Storage) -> None:
    def claim(number: int) -> bool:
        try:
            storage.write("claim", f"claim of {number}".encode(), if_absent=True)
        except ObjectExistsError:
            return False
        return storage.read("claim") == f"claim of {number}".encode()

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(claim, range(16))) == 1


def test_of_racing_processes_one_wins(storage: Storage) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, storage.uri],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    winners = [nonce for racer in racers for nonce in racer.communicate("go\n", timeout=60)[0].split()]
    assert [storage.read("claim.json").decode()] == winners


def test_a_create_that_finds_its_own_bytes_succeeded(storage: Storage) -> None:
    storage.write("claim", b"my nonce", if_absent=True)
    storage.write("claim", b"my nonce", if_absent=True)
    with pytest.raises(ObjectExistsError, match="another writer was first"):
        storage.write("claim", b"another nonce", if_absent=True)


def test_a_listing_is_in_the_order_of_paths(storage: Storage) -> None:
    names = ["A", "a-b", "a.b", "a/b", "a/b-c", "a/b/c", "a0", "é"]
    for name in reversed([name for name in names if name != "a/b"]):
        storage.write(name, b"1")
    assert paths(storage) == [name for name in names if name != "a/b"]


def test_a_listing_is_of_one_prefix(storage: Storage) -> None:
    for name in ("run/1", "run/12/a", "run/2", "runs/1", "other"):
        storage.write(name, b"1")
    listings = {prefix: paths(storage, prefix) for prefix in ("run/1", "run/", "run", "none/", "run/1/")}
    assert listings == {
        "run/1": ["run/1", "run/12/a"],
        "run/": ["run/1", "run/12/a", "run/2"],
        "run": ["run/1", "run/12/a", "run/2", "runs/1"],
        "none/": [],
        "run/1/": [],
    }


def test_a_listing_has_sizes_and_times(storage: Storage) -> None:
    storage.write("first", b"123")
    entry = next(iter(storage.list()))
    storage.write("second", b"")
    assert entry.size == 3
    assert abs(next(iter(storage.list("second"))).modified - entry.modified) < 60


def test_folders_are_named_once_and_files_are_not(storage: Storage) -> None:
    for name in ("b/1", "a/1/x", "a/2", "file"):
        storage.write(name, b"1")
    assert (list(storage.folders()), list(storage.folders("a/")), list(storage.folders("none/"))) == (
        ["a", "b"],
        ["1"],
        [],
    )
    assert list(storage.folders(quick=True)) == ["a", "b"]


def test_deleting_twice_is_no_error_and_leaves_no_folder(storage: Storage) -> None:
    storage.write("a/b/c", b"1")
    storage.write("a/d", b"1")
    storage.delete("a/b/c")
    storage.delete("a/b/c")
    storage.delete("never/there")
    assert (paths(storage), list(storage.folders("a/"))) == (["a/d"], [])


def test_deleting_a_folder_by_its_name_deletes_nothing(storage: Storage) -> None:
    storage.write("a/b", b"1")
    storage.delete("a")
    assert paths(storage) == ["a/b"]


def test_a_copy_stays_when_its_source_goes(storage: Storage) -> None:
    storage.write("a", b"data")
    storage.write("b/c", b"what was there before")
    storage.copy("a", "b/c")
    storage.delete("a")
    assert storage.read("b/c") == b"data"


@pytest.mark.parametrize("size", [1000, 6 * MIB])
@pytest.mark.parametrize("damage", ["flipped", "cut", "longer"])
def test_damage_is_found_and_the_target_stays_as_it_was(case: Case, tmp_path: Path, size: int, damage: str) -> None:
    data = make_file(tmp_path / "source", size)
    digest = case.storage.upload(tmp_path / "source", "a")
    flipped = data[:500] + bytes([data[500] ^ 1]) + data[501:]
    case.overwrite("a", {"flipped": flipped, "cut": data[:-1], "longer": data + b"1"}[damage])
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "target"
    target.write_bytes(b"before")
    with pytest.raises(CorruptObjectError, match=r"a is damaged: \d+ bytes with SHA-256"):
        case.storage.download("a", target, expect=digest)
    assert [(file.name, file.read_bytes()) for file in target.parent.iterdir()] == [("target", b"before")]
    for known in (digest, Digest(digest.size, digest.sha256)):  # as it was sent, and as older manifests have it
        with pytest.raises(CorruptObjectError, match=r"a is damaged: \d+ bytes with (SHA-256|CRC-64)"):
            case.storage.download("a", Memory(size), expect=known)


def test_an_upload_that_died_is_never_listed_and_can_be_swept(case: Case) -> None:
    case.abandon("run/a/dead")
    case.abandon("other/dead")
    case.storage.write("run/alive", b"1")
    assert paths(case.storage) == ["run/alive"]
    assert list(case.storage.folders("run/")) == []
    assert case.storage.sweep("run/") == ["run/a/dead"]
    assert (case.storage.sweep("run/"), case.storage.sweep()) == ([], ["other/dead"])
    assert case.storage.read("run/alive") == b"1"


def test_a_path_that_leaves_the_root_is_refused(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"1")
    storage.write("a", b"1")
    acts: list[Callable[[str], object]] = [
        storage.read,
        lambda path: storage.write(path, b"1"),
        lambda path: storage.upload(tmp_path / "source", path),
        lambda path: storage.download(path, tmp_path / "target", expect=Digest(0, "")),
        lambda path: storage.download(path, Memory(0), expect=Digest(0, "")),
        lambda path: storage.copy("a", path),
        lambda path: storage.copy(path, "b"),
        storage.delete,
    ]
    for path in ("../x", "a/../../x", "/etc/x", "a//b", "./a", "a/", ".", "", "a\0b"):
        for act in acts:
            with pytest.raises(StorageError, match="no path within a storage"):
                act(path)


def test_a_prefix_that_leaves_the_root_is_refused(storage: Storage) -> None:
    for prefix in ("../", "a/../../b", "/", "a//"):
        for act in (storage.list, storage.sweep):
            with pytest.raises(StorageError, match="no path within a storage"):
                act(prefix)


def test_threads_share_a_storage(storage: Storage) -> None:
    def work(number: int) -> bytes:
        storage.write(f"{number}/a", str(number).encode())
        storage.copy(f"{number}/a", f"{number}/b")
        storage.delete(f"{number}/a")
        return storage.read(f"{number}/b")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(24))) == [str(number).encode() for number in range(24)]


def test_a_check_passes_and_leaves_nothing(storage: Storage) -> None:
    check_storage(storage)
    assert paths(storage) == []
