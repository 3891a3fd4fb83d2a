"""S3: wrong credentials, bad networks, and large files, on a real server."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from botocore import exceptions as aws
from botocore.exceptions import EndpointConnectionError

from cluster.errors import (
    BucketMissingError,
    CorruptObjectError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageDeniedError,
    StorageError,
    is_outage,
)
from cluster.storage import s3
from cluster.storage.base import Digest
from cluster.storage.network import ATTEMPTS, FIRST_ATTEMPTS, backoff
from cluster.storage.open import check_storage, open_storage
from cluster.storage.s3 import S3Storage
from cluster.storage.s3_errors import Place, explain
from cluster.storage.s3_retries import Retries
from tests.cluster.memory import Memory
from tests.real.proxy import Fault, Proxy, narrow_listener, proxy
from tests.real.seaweedfs import SeaweedFS

MIB = 1 << 20
PART = 5 * MIB
CONNECTION_LOST: Exception = EndpointConnectionError(endpoint_url="http://127.0.0.1:1")


@pytest.fixture
def storage(s3_storage_uri: str) -> S3Storage:
    return open_small_parts(s3_storage_uri)


def open_small_parts(uri: str) -> S3Storage:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return S3Storage(bucket, prefix, part_size=PART)


@contextmanager
def behind_proxy(
    server: SeaweedFS,
    monkeypatch: pytest.MonkeyPatch,
    *faults: Fault,
    reject: bytes | None = None,
    uri: str | None = None,
) -> Iterator[tuple[S3Storage, Proxy]]:
    with proxy(server.port, *faults, reject=reject) as standing:
        monkeypatch.setenv("AWS_ENDPOINT_URL", standing.endpoint)
        yield open_small_parts(uri or server.fresh_uri()), standing


def key(server: SeaweedFS, storage: S3Storage, path: str) -> str:
    return f"{storage.uri}/{path}".removeprefix(f"s3://{server.bucket}/")


def put(server: SeaweedFS, storage: S3Storage, path: str, data: bytes) -> None:
    """Store an object by another way than ours."""
    server.client.put_object(Bucket=server.bucket, Key=key(server, storage, path), Body=data)


def uploads_in_progress(server: SeaweedFS, storage: S3Storage) -> list[str]:
    prefix = key(server, storage, "")
    found = server.client.list_multipart_uploads(Bucket=server.bucket, Prefix=prefix).get("Uploads", [])
    return [upload["Key"] for upload in found]


def check_message(uri: str) -> str:
    with pytest.raises(StorageError) as caught:
        check_storage(open_storage(uri))
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_a_wrong_secret_is_one_clear_message(s3_storage_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-value")
    message = check_message(s3_storage_uri)
    assert "AWS_SECRET_ACCESS_KEY" in message
    assert os.environ["AWS_ACCESS_KEY_ID"] in message
    assert "wrong-secret-value" not in message


def test_an_unknown_key_is_named(s3_storage_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NOBODYKNOWSME")
    message = check_message(s3_storage_uri)
    assert "NOBODYKNOWSME (InvalidAccessKeyId)" in message
    assert "check AWS_ACCESS_KEY_ID" in message


def test_a_reader_is_told_which_rights_to_ask_for(s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_env.env_of(s3_env.reader).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageDeniedError, match=rf"s3:PutObject.* on {s3_env.bucket}"):
        check_storage(open_storage(s3_env.fresh_uri()))


def test_no_credentials_say_which_variables_to_set(s3_storage_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in check_message(s3_storage_uri)


def test_an_unknown_profile_is_named(s3_storage_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "(nobody)" in check_message(s3_storage_uri)


@pytest.mark.parametrize(
    ("error", "command"),
    [
        (aws.UnauthorizedSSOTokenError(), "aws sso login"),
        (aws.SSOTokenLoadError(error_msg="Token for me does not exist"), "aws sso login"),
        (aws.TokenRetrievalError(provider="sso", error_msg="Token has expired and refresh failed"), "aws sso login"),
        (aws.LoginRefreshRequired(), "aws login"),
    ],
)
def test_a_session_that_has_expired_is_no_outage_and_says_how_to_sign_in(error: Exception, command: str) -> None:
    told = explain(error, Place("bucket", "https://s3.amazonaws.com", None), "s3://bucket/a")
    assert isinstance(told, StorageDeniedError)
    assert not is_outage(told)
    assert str(told) == f"no valid credentials for s3://bucket/a ({error}): sign in again by {command}"


def test_a_bucket_that_is_deleted_is_no_outage(s3_env: SeaweedFS) -> None:
    storage = open_storage("s3://no-such-bucket/prefix")
    for act in (lambda: list(storage.list("")), lambda: storage.read("a")):  # to write would make it, on this server
        with pytest.raises(BucketMissingError, match=f"create it with: .*{s3_env.endpoint}") as caught:
            act()
        assert not is_outage(caught.value)


def test_a_missing_bucket_is_named_and_not_made(s3_env: SeaweedFS) -> None:
    message = check_message("s3://no-such-bucket/prefix")
    assert f"aws s3 mb s3://no-such-bucket --endpoint-url {s3_env.endpoint}" in message
    assert "no-such-bucket" not in [bucket["Name"] for bucket in s3_env.client.list_buckets()["Buckets"]]


def test_an_endpoint_that_refuses_is_named_within_seconds(s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    started = time.monotonic()
    message = check_message(s3_env.fresh_uri())
    assert f"http://127.0.0.1:{port} does not answer (connection refused): check AWS_ENDPOINT_URL" in message
    assert time.monotonic() - started < 10


@pytest.mark.slow
def test_an_endpoint_that_is_silent_is_named_within_twenty_seconds(
    s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # with its queue full, the kernel drops what else would connect
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{full.getsockname()[1]}")
        started = time.monotonic()
        assert "does not answer" in check_message(s3_env.fresh_uri())
        assert time.monotonic() - started < 20


def test_an_endpoint_that_is_no_url_is_an_error_in_words(s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    assert "localhost:9000" in check_message(s3_env.fresh_uri())


def test_a_busy_server_is_asked_again(s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    with behind_proxy(s3_env, monkeypatch, "busy", "busy", "busy") as (storage, standing):
        storage.write("a", b"1")
        assert (storage.read("a"), standing.connections) == (b"1", 4)


def test_a_claim_whose_reply_was_lost_is_ours(s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    with behind_proxy(s3_env, monkeypatch, "lose-reply") as (storage, standing):
        storage.write("claim", b"my nonce", if_absent=True)
        assert (storage.read("claim"), standing.connections) == (b"my nonce", 2)


def test_a_claim_of_another_stays_lost_when_a_reply_is(s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    with behind_proxy(s3_env, monkeypatch, "lose-reply") as (storage, _):
        put(s3_env, storage, "claim", b"theirs")
        with pytest.raises(ObjectExistsError, match="another writer was first"):
            storage.write("claim", b"my nonce", if_absent=True)


def test_a_body_that_breaks_off_is_read_again(s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(100_000)
    with behind_proxy(s3_env, monkeypatch, "cut-reply") as (storage, standing):
        put(s3_env, storage, "a", data)
        assert (storage.read("a"), standing.connections) == (data, 2)


def test_a_large_file_gets_through_bad_connections(
    s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "source").write_bytes(os.urandom(24 * MIB))
    faults: list[Fault] = ["busy", "lose-reply", "busy", "lose-reply"]
    with behind_proxy(s3_env, monkeypatch, *faults) as (storage, _):
        digest = storage.upload(tmp_path / "source", "a")
    with behind_proxy(s3_env, monkeypatch, "busy", "cut-reply", "cut-reply", uri=storage.uri) as (other, _):
        other.download("a", tmp_path / "target", expect=digest)
    assert Digest.of_file(tmp_path / "target") == digest
    with behind_proxy(s3_env, monkeypatch, "busy", "cut-reply", "cut-reply", uri=storage.uri) as (other, _):
        other.download("a", Memory(digest.size), expect=digest)


def test_what_is_read_into_memory_goes_there_from_the_socket_and_leaves_the_connection_to_the_next(
    s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrapped(*_: object) -> int:
        raise AssertionError("it goes through new memory, and is copied once more")

    data = os.urandom(3 * PART)
    with behind_proxy(s3_env, monkeypatch) as (storage, standing):
        put(s3_env, storage, "a", data)
        before = standing.connections
        monkeypatch.setattr("cluster.storage.s3_body._read_by_chunks", wrapped)
        for _ in range(3):
            memory = Memory(len(data))
            storage.download("a", memory, expect=Digest.of_bytes(data))
            assert bytes(memory.data) == data
        assert standing.connections <= before + 3


@pytest.mark.parametrize("length", [MIB, 3 * MIB])
def test_an_object_of_another_length_than_there_is_room_for_is_damaged(
    s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    data = os.urandom(2 * MIB)
    with behind_proxy(s3_env, monkeypatch) as (storage, _):
        put(s3_env, storage, "a", os.urandom(length))
        put(s3_env, storage, "b", data)
        with pytest.raises(CorruptObjectError):
            storage.download("a", Memory(len(data)), expect=Digest.of_bytes(data))
        memory = Memory(len(data))
        storage.download("b", memory, expect=Digest.of_bytes(data))
        assert bytes(memory.data) == data


@pytest.mark.parametrize("fault", ["cut-request", "flip-request"])
def test_a_part_that_is_cut_or_damaged_on_its_way_is_sent_again(
    s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Fault
) -> None:
    (tmp_path / "source").write_bytes(os.urandom(4 * PART))
    with behind_proxy(s3_env, monkeypatch) as (storage, standing):
        storage.write("a", b"by the connection that the first request takes then")
        standing.faults.append(fault)
        digest = storage.upload(tmp_path / "source", "a")
        parts = [head for head in standing.heads if "partNumber=" in head]
        assert (standing.faults, len(parts)) == ([], 5)
        storage.download("a", tmp_path / "target", expect=digest)
    assert Digest.of_file(tmp_path / "target") == digest


def test_parts_that_leave_slowly_are_sent_once(
    s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cluster.storage.s3._CONNECT_S", 1.0)
    (tmp_path / "source").write_bytes(os.urandom(2 * s3.PART))
    with proxy(s3_env.port, delay=0.015, listener=narrow_listener()) as standing:
        monkeypatch.setenv("AWS_ENDPOINT_URL", standing.endpoint)
        storage = open_storage(s3_env.fresh_uri())
        digest = storage.upload(tmp_path / "source", "a")
        assert sum("partNumber=" in head for head in standing.heads) == 2
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_env.endpoint)
    assert Digest.of_bytes(open_small_parts(storage.uri).read("a")) == digest


def test_a_large_file_travels_in_parts(storage: S3Storage, s3_env: SeaweedFS, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(os.urandom(24 * MIB))
    storage.upload(tmp_path / "source", "a")
    assert s3_env.client.head_object(Bucket=s3_env.bucket, Key=key(s3_env, storage, "a"))["ETag"].endswith('-5"')


@pytest.mark.parametrize("calculation", ["when_supported", "when_required"])
def test_a_part_is_signed_where_it_has_no_checksum_and_all_else_always(
    s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, calculation: str
) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", calculation)
    (tmp_path / "source").write_bytes(os.urandom(3 * PART))
    with behind_proxy(s3_env, monkeypatch) as (storage, standing):
        storage.write("manifest", b"signed")
        storage.upload(tmp_path / "source", "a")
    parts = [head.lower() for head in standing.heads if "partNumber=" in head]
    others = [head.lower() for head in standing.heads if "partNumber=" not in head]
    unsigned = ["x-amz-content-sha256: unsigned-payload" in head for head in parts]
    assert unsigned == [calculation == "when_supported"] * 3
    assert ["x-amz-checksum-crc32" in head for head in parts] == unsigned
    assert not any("unsigned-payload" in head for head in others)


def test_a_large_upload_that_fails_is_aborted(
    s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "source").write_bytes(os.urandom(24 * MIB))
    with behind_proxy(s3_env, monkeypatch, reject=b"partNumber=3") as (storage, _):
        with pytest.raises(StorageError, match="InvalidRequest"):
            storage.upload(tmp_path / "source", "a")
        assert (uploads_in_progress(s3_env, storage), list(storage.list())) == ([], [])


def test_a_listing_of_more_than_a_page_is_whole_and_in_order(s3_env: SeaweedFS) -> None:
    storage = open_small_parts(s3_env.fresh_uri())
    names = sorted(f"{number % 7}{'/-.'[number % 3]}{number:04}" for number in range(1100))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: put(s3_env, storage, name, b""), names))
    assert [entry.path for entry in storage.list()] == names


@pytest.fixture
def crt_storage(s3_storage_uri: str, monkeypatch: pytest.MonkeyPatch) -> S3Storage:
    monkeypatch.setenv("RAYLIFT_S3_TRANSFER", "crt")
    storage = open_small_parts(s3_storage_uri)
    if storage._transfers._crt is None:
        pytest.skip("awscrt is not installed, or another process of this machine holds its lock")
    return storage


def test_the_common_runtime_moves_the_same_bytes(
    crt_storage: S3Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "cluster")
    (tmp_path / "source").write_bytes(os.urandom(12 * MIB))
    digest = crt_storage.upload(tmp_path / "source", "a")
    crt_storage.download("a", tmp_path / "target", expect=digest)
    assert Digest.of_file(tmp_path / "target") == digest
    assert "gave up" not in caplog.text


def test_what_the_common_runtime_cannot_do_ends_in_our_errors(crt_storage: S3Storage, tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFoundError, match="there is no "):
        crt_storage.download("none", tmp_path / "target", expect=Digest(2 * PART, ""))


def test_boto3_that_is_missing_is_named_with_its_extra() -> None:
    code = "import sys; sys.modules['boto3'] = None\nfrom cluster.storage.open import open_storage\n"
    code += "try: open_storage('s3://bucket')\nexcept Exception as error: print(type(error).__name__, error)"
    root = Path(__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert found == "MissingExtraError storage in s3:// needs boto3: pip install 'raylift[aws]'\n"


def test_an_endpoint_that_answered_once_is_given_a_minute() -> None:
    def gives_up_after(retries: Retries) -> int:
        return next(n for n in count(1) if retries(response=None, attempts=n, caught_exception=CONNECTION_LOST) is None)

    retries = Retries()
    assert gives_up_after(retries) == FIRST_ATTEMPTS
    retries(response=(None, {}), attempts=1, caught_exception=None)
    assert gives_up_after(retries) == ATTEMPTS
    assert 30 < sum(backoff(n) for n in range(1, ATTEMPTS)) < 90


@pytest.mark.parametrize(
    ("status", "code", "again"),
    [
        (200, None, False),
        (200, "InternalError", True),  # an error in the body, as CopyObject has them
        (400, "RequestTimeout", True),
        (400, "InvalidArgument", False),
        (403, "AccessDenied", False),
        (404, "NoSuchKey", False),
        (409, "ConditionalRequestConflict", True),
        (412, "PreconditionFailed", False),
        (429, "TooManyRequests", True),
        (501, "NotImplemented", False),
        (503, "SlowDown", True),
        (507, "InsufficientStorage", False),
    ],
)
def test_only_what_may_pass_is_tried_again(status: int, code: str | None, again: bool) -> None:
    reply = {"ResponseMetadata": {"HTTPStatusCode": status}} | ({"Error": {"Code": code}} if code else {})
    assert (Retries()(response=(None, reply), attempts=1, caught_exception=None) is not None) == again


# -- what somebody else has done, or the way has damaged


def test_a_partial_upload_that_another_has_aborted_meanwhile_is_swept_all_the_same(
    storage: S3Storage, s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = storage._key("dead")
    storage._client.create_multipart_upload(Bucket=s3_env.bucket, Key=key)
    abort = storage._client.abort_multipart_upload

    def reply_lost(**upload: str) -> None:
        abort(**upload)
        answer = {"Error": {"Code": "NoSuchUpload", "Message": "The upload does not exist"}}
        raise aws.ClientError(answer, "AbortMultipartUpload")

    monkeypatch.setattr(storage._client, "abort_multipart_upload", reply_lost)
    assert storage.sweep() == ["dead"]
    assert storage.sweep() == []


@pytest.mark.parametrize(("times", "is_read"), [(1, True), (2, False)])
def test_an_object_that_was_damaged_on_its_way_is_read_once_more(
    storage: S3Storage, monkeypatch: pytest.MonkeyPatch, times: int, is_read: bool
) -> None:
    storage.write("a", b"whole")
    faults, get = iter(range(times)), storage._client.get_object

    class Damaged:
        def read(self, *_: int) -> bytes:
            raise aws.FlexibleChecksumError(error_msg="Expected checksum x did not match calculated checksum y")

    def damaged(**request: str) -> Any:
        return {"Body": Damaged()} if next(faults, None) is not None else get(**request)

    monkeypatch.setattr(storage._client, "get_object", damaged)
    if is_read:
        assert storage.read("a") == b"whole"
    else:
        with pytest.raises(CorruptObjectError, match="its bytes do not have the checksum that the server keeps"):
            storage.read("a")
