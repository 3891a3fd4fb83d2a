"""GCS: missing credentials and buckets, bad networks, damage, and large files, on real servers of its protocol.

Not tested, because no server here does it: a refusal by Google itself, preconditions of anything but an upload in
one request, and the time that Google's sign-in takes.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.api_core.exceptions import from_http_response
from google.auth.compute_engine import Credentials
from google.auth.exceptions import RefreshError
from requests import PreparedRequest, Response
from requests.exceptions import ConnectionError as NoConnection

from cluster.errors import (
    BucketMissingError,
    CorruptObjectError,
    ObjectExistsError,
    StorageDeniedError,
    StorageError,
    is_outage,
)
from cluster.storage import gcs
from cluster.storage.base import Digest
from cluster.storage.gcs import GCSStorage
from cluster.storage.gcs_errors import Place, _make_bucket, explain
from cluster.storage.gcs_parts import FOLDER
from cluster.storage.gcs_retries import Retries
from cluster.storage.network import ATTEMPTS, FIRST_ATTEMPTS, backoff
from cluster.storage.open import check_storage, open_storage
from cluster.storage.sources import Source
from tests.real.fake_gcs import GCSServer
from tests.real.proxy import Fault, Proxy, narrow_listener, proxy

KIB, MIB = 1 << 10, 1 << 20
PART = MIB
NO_ACCESS = "me@example.org does not have storage.objects.get access to the object."


@pytest.fixture
def storage(gcs_storage_uri: str) -> GCSStorage:
    return open_small_parts(gcs_storage_uri)


def open_small_parts(uri: str, part_size: int = PART) -> GCSStorage:
    bucket, _, prefix = uri.removeprefix("gs://").partition("/")
    return GCSStorage(bucket, prefix, part_size=part_size)


@contextmanager
def behind_proxy(
    server: GCSServer,
    monkeypatch: pytest.MonkeyPatch,
    *faults: Fault,
    reject: bytes | None = None,
    refusal: tuple[int, str] | None = None,
    delay: float = 0.0,
    uri: str | None = None,
) -> Iterator[tuple[GCSStorage, Proxy]]:
    with proxy(server.port, *faults, reject=reject, refusal=refusal, delay=delay) as standing:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", standing.endpoint)
        yield open_small_parts(uri or server.fresh_uri()), standing


def stored(server: GCSServer, storage: GCSStorage) -> list[str]:
    """Return the names of all objects in a storage's bucket, parts included."""
    return [blob.name for blob in server.client.list_blobs(storage.uri.split("/")[2])]


def put(server: GCSServer, storage: GCSStorage, path: str, data: bytes) -> None:
    """Store an object by another way than ours."""
    bucket, _, prefix = storage.uri.removeprefix("gs://").partition("/")
    server.client.bucket(bucket).blob(f"{prefix}/{path}").upload_from_string(data)


def sent_parts(standing: Proxy) -> int:
    return sum("/upload/storage/" in head for head in standing.heads)


def make_file(folder: Path, size: int) -> Path:
    source = folder / "source"
    source.write_bytes(os.urandom(size))
    return source


def google_says(status: int, message: str, reason: str = "forbidden") -> tuple[int, str]:
    """Return a reply in the form that Google's documentation gives."""
    errors = [{"domain": "global", "reason": reason, "message": message}]
    return status, json.dumps({"error": {"code": status, "message": message, "errors": errors}})


def error_of(status: int, body: str) -> Exception:
    """Return what the library raises on a reply."""
    reply = Response()
    reply.status_code, reply._content, reply.request = status, body.encode(), PreparedRequest()
    error: Exception = from_http_response(reply)
    return error


def check_message(uri: str) -> str:
    with pytest.raises(StorageError) as caught:
        check_storage(open_storage(uri))
    assert caught.value.exit_code == 3
    return str(caught.value)


# -- credentials, buckets and endpoints


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of gcloud's settings of somebody who has none."""
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    return tmp_path


@pytest.mark.usefixtures("stranger")
def test_no_credentials_say_how_to_get_some() -> None:
    with pytest.raises(StorageDeniedError, match="no valid credentials for gs://bucket/x") as caught:
        open_storage("gs://bucket/x")
    assert "gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS" in str(caught.value)


@pytest.mark.parametrize("text", [None, "no json", "{}"])
def test_a_key_file_that_cannot_be_used_is_named(
    stranger: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    key = stranger / "key.json"
    if text is not None:
        key.write_text(text)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    with pytest.raises(StorageDeniedError, match=re.escape(str(key))):
        open_storage("gs://bucket")


def test_the_credentials_of_gcloud_are_taken_without_a_word_about_projects(
    stranger: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gcloud = "764086051850-6qr4p6gpi6hn506pt8ejuq83di341hur.apps.googleusercontent.com"  # its public client id
    user = {"type": "authorized_user", "client_id": gcloud, "client_secret": "x", "refresh_token": "x"}
    (stranger / "application_default_credentials.json").write_text(json.dumps(user | {"account": "me@example.org"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        storage = open_storage("gs://bucket/x")
    assert isinstance(storage, GCSStorage)
    assert storage._place == Place("bucket", "https://storage.googleapis.com", "me@example.org")
    assert caplog.text == ""


def test_a_sign_in_that_does_not_answer_is_asked_again_and_told_from_the_bucket(
    stranger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("cluster.storage.gcs_retries.time.sleep", waited.append)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    secret = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    account = {"type": "service_account", "client_email": "run@project.iam.gserviceaccount.com"}
    key = account | {"private_key": secret.decode(), "token_uri": f"http://127.0.0.1:{port}/token"}
    (stranger / "key.json").write_text(json.dumps(key))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(stranger / "key.json"))
    with pytest.raises(StorageError, match=r"Google's sign-in does not answer \(connection refused\)"):
        open_storage("gs://bucket/x").read("a")
    assert len(waited) == FIRST_ATTEMPTS - 1


@pytest.mark.parametrize(("status", "is_away"), [(503, True), (502, True), (404, False)])
def test_a_metadata_server_that_fails_for_a_moment_is_an_outage_and_one_that_refuses_is_none(
    monkeypatch: pytest.MonkeyPatch, status: int, is_away: bool
) -> None:
    monkeypatch.setattr("google.auth._exponential_backoff.time.sleep", lambda _: None)
    with pytest.raises(RefreshError) as caught:
        Credentials().refresh(lambda **_: SimpleNamespace(status=status, headers={}, data=b"said so"))
    assert_is_away(caught.value, is_away)


def test_a_sign_in_that_asks_to_be_tried_again_is_an_outage() -> None:
    assert_is_away(RefreshError("internal_failure", retryable=True), True)
    assert_is_away(RefreshError("invalid_grant: Bad Request"), False)


def assert_is_away(error: Exception, is_away: bool) -> None:
    told = explain(error, Place("bucket", "https://storage.googleapis.com", None), "gs://bucket/a")
    assert (Retries().wait(error, 1) is not None) == is_away
    assert is_outage(told) == is_away
    assert str(error.args[0]).split("\n")[0] in str(told)


def test_a_key_that_is_revoked_is_told_from_none_at_whatever_endpoint() -> None:
    place = Place("bucket", "http://127.0.0.1:4443", "run@project.iam.gserviceaccount.com")  # as API_ENDPOINT_OVERRIDE
    told = explain(RefreshError("invalid_grant: Bad Request"), place, "gs://bucket/a")
    assert "no valid credentials for gs://bucket/a (invalid_grant: Bad Request): type gcloud auth" in str(told)


def test_a_missing_bucket_is_named_and_not_made(gcs_env: GCSServer) -> None:
    message = check_message("gs://no-such-bucket/prefix")
    assert "bucket no-such-bucket does not exist" in message
    assert f"curl {gcs_env.endpoint}/storage/v1/b --json" in message
    assert "no-such-bucket" not in [bucket.name for bucket in gcs_env.client.list_buckets()]


@pytest.mark.usefixtures("gcs_env")
def test_a_missing_bucket_is_named_when_it_is_listed() -> None:
    storage = open_storage("gs://no-such-bucket")
    for act in (storage.list, storage.folders, storage.sweep):
        with pytest.raises(BucketMissingError, match="bucket no-such-bucket does not exist") as caught:
            act("")
        assert not is_outage(caught.value)


@pytest.mark.usefixtures("gcs_env")
def test_a_missing_bucket_is_named_when_it_is_written_to() -> None:
    with pytest.raises(BucketMissingError, match="bucket no-such-bucket does not exist"):
        open_storage("gs://no-such-bucket").write("a", b"a")


def test_credentials_that_another_universe_refuses_have_nothing_to_do_with_an_emulator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = Place("bucket", "https://storage.example.org", None)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    told = str(explain(RefreshError("invalid_grant: Bad Request"), place, "gs://bucket/a"))
    assert "type gcloud auth application-default login" in told
    assert "curl" not in _make_bucket(place)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", place.endpoint)
    assert "curl" in _make_bucket(place)


@pytest.mark.parametrize(
    ("account", "member"),
    [
        ("run@project.iam.gserviceaccount.com", "serviceAccount:run@project.iam.gserviceaccount.com"),
        ("me@example.org", "user:me@example.org"),
        (None, "user:EMAIL"),
    ],
)
def test_google_is_answered_with_commands_of_gcloud(account: str | None, member: str) -> None:
    place = Place("my-bucket", "https://storage.googleapis.com", account)

    def said(status: int, message: str) -> str:
        return str(explain(error_of(*google_says(status, message)), place, "gs://my-bucket/a"))

    assert said(404, "The specified bucket does not exist.").endswith("gcloud storage buckets create gs://my-bucket")
    assert said(404, "No such object: my-bucket/a") == "there is no gs://my-bucket/a"
    assert f"add-iam-policy-binding gs://my-bucket --member={member} --role=roles/storage" in said(403, NO_ACCESS)
    assert f"of {account or 'this machine'} (Invalid Credentials): sign in again by gcloud auth" in said(
        401, "Invalid Credentials"
    )


def test_a_refusal_is_told_in_the_servers_words(gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = google_says(403, NO_ACCESS)
    with behind_proxy(gcs_env, monkeypatch, reject=b"GET /", refusal=refusal) as (storage, standing):
        for act in (lambda: storage.read("a"), lambda: storage.list("a")):
            with pytest.raises(StorageDeniedError, match=re.escape(NO_ACCESS)):
                act()
    assert sum("runs%2Fa?" in head for head in standing.heads) == 1  # it would be the same again


def test_a_server_that_wants_credentials_gets_none_of_googles(
    gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        behind_proxy(gcs_env, monkeypatch, reject=b"GET /", refusal=google_says(401, "Login Required")) as (storage, _),
        pytest.raises(StorageDeniedError, match="with STORAGE_EMULATOR_HOST none are sent"),
    ):
        storage.read("a")


@pytest.mark.usefixtures("gcs_env")
def test_an_endpoint_that_refuses_is_named_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    started = time.monotonic()
    message = check_message("gs://bucket/x")
    assert f"http://127.0.0.1:{port} does not answer (connection refused): check STORAGE_EMULATOR_HOST" in message
    assert time.monotonic() - started < 10


@pytest.mark.slow
@pytest.mark.usefixtures("gcs_env")
def test_an_endpoint_that_is_silent_is_named_within_twenty_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # with its queue full, the kernel drops what else would connect
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{full.getsockname()[1]}")
        started = time.monotonic()
        assert "does not answer" in check_message("gs://bucket/x")
        assert time.monotonic() - started < 20


@pytest.mark.usefixtures("gcs_env")
def test_an_endpoint_that_is_no_url_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "localhost:9000")
    assert "STORAGE_EMULATOR_HOST=localhost:9000 is no URL" in check_message("gs://bucket/x")


def test_a_server_without_conditional_create_is_refused(checking_gcs_env: GCSServer) -> None:
    assert "overwrites an object that should only be created" in check_message(uri := checking_gcs_env.fresh_uri())
    assert list(open_storage(uri).list()) == []


def test_google_cloud_storage_that_is_missing_is_named_with_its_extra() -> None:
    code = "import sys; sys.modules['google.cloud.storage'] = None\nfrom cluster.storage.open import open_storage\n"
    code += "try: open_storage('gs://bucket')\nexcept Exception as error: print(type(error).__name__, error)"
    root = Path(__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    wanted = "storage in gs:// needs google-cloud-storage: pip install 'raylift[gcp]'"
    assert found == f"MissingExtraError {wanted}\n"


# -- bad networks


def test_a_busy_server_is_asked_again(gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with behind_proxy(gcs_env, monkeypatch, "busy", "busy", "busy") as (storage, standing):
        storage.write("a", b"1")
        assert (storage.read("a"), standing.connections) == (b"1", 4)


def test_a_claim_whose_reply_was_lost_is_ours(gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with behind_proxy(gcs_env, monkeypatch, "lose-reply") as (storage, standing):
        storage.write("claim", b"my nonce", if_absent=True)
        assert (storage.read("claim"), standing.connections) == (b"my nonce", 2)


def test_a_claim_of_another_stays_lost_when_a_reply_is(gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with behind_proxy(gcs_env, monkeypatch, "lose-reply") as (storage, _):
        put(gcs_env, storage, "claim", b"theirs")
        with pytest.raises(ObjectExistsError, match="another writer was first"):
            storage.write("claim", b"my nonce", if_absent=True)


def test_an_object_that_breaks_off_is_read_again(gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(100_000)
    with behind_proxy(gcs_env, monkeypatch, "cut-reply") as (storage, standing):
        put(gcs_env, storage, "a", data)
        assert (storage.read("a"), standing.connections) == (data, 2)


def test_a_range_that_breaks_off_is_resumed_where_it_did(gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(100_000)
    with behind_proxy(gcs_env, monkeypatch, "cut-reply") as (storage, standing):
        put(gcs_env, storage, "a", data)
        assert storage.read("a", start=7, end=90_000) == data[7:90_000]
    asked = [re.search(r"range: bytes=(\d+)-89999", head, re.IGNORECASE) for head in standing.heads]
    first, second = [int(found[1]) for found in asked if found]
    assert first == 7
    assert 10_000 < second < 20_007


def test_a_part_that_breaks_off_is_the_only_one_sent_again(
    gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = make_file(tmp_path, 12 * PART)
    with behind_proxy(gcs_env, monkeypatch, "cut-request") as (storage, standing):
        digest = storage.upload(source, "a")
        assert sent_parts(standing) == 13
    assert Digest.of_bytes(storage_of(storage.uri, gcs_env, monkeypatch).read("a")) == digest


def test_parts_that_leave_slowly_are_sent_once(
    gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cluster.storage.gcs._CONNECT_S", 1.0)
    source = make_file(tmp_path, 2 * gcs.PART)
    with proxy(gcs_env.port, delay=0.03, listener=narrow_listener()) as standing:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", standing.endpoint)
        storage = open_small_parts(gcs_env.fresh_uri(), gcs.PART)
        digest = storage.upload(source, "a")
        assert sent_parts(standing) == 2
    assert Digest.of_bytes(storage_of(storage.uri, gcs_env, monkeypatch).read("a")) == digest


def storage_of(uri: str, server: GCSServer, monkeypatch: pytest.MonkeyPatch) -> GCSStorage:
    """Return a storage again, past any proxy."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
    return open_small_parts(uri)


def test_a_large_file_gets_through_bad_connections(
    gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = make_file(tmp_path, 12 * PART + 1)
    faults: list[Fault] = ["busy", "lose-reply", "cut-request", "busy", "lose-reply", "cut-request"]
    with behind_proxy(gcs_env, monkeypatch, *faults) as (storage, _):
        digest = storage.upload(source, "a")
    with behind_proxy(gcs_env, monkeypatch, "busy", "cut-reply", "cut-reply", uri=storage.uri) as (other, _):
        other.download("a", tmp_path / "target", expect=digest)
    assert Digest.of_file(tmp_path / "target") == digest
    assert stored(gcs_env, storage) == ["runs/a"]


def test_a_composition_whose_reply_was_lost_is_repeated(gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(2 * PART)
    with behind_proxy(gcs_env, monkeypatch) as (storage, standing):
        with storage._parts("a") as parts:
            parts.send(len(data), PART, lambda start, end: data[start:end])
            standing.faults += ["lose-reply", "lose-reply"]
            storage._client.close()  # its connections, so that the next ones meet the faults
            parts.compose(storage._blob("a"))
        assert storage.read("a") == data
        assert sum("/compose" in head for head in standing.heads) == 3


def test_a_copy_whose_reply_was_lost_is_repeated(gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with behind_proxy(gcs_env, monkeypatch, "lose-reply") as (storage, standing):
        put(gcs_env, storage, "a", b"data")
        storage.copy("a", "b")
        assert (storage.read("b"), standing.connections) == (b"data", 2)


def test_a_deletion_whose_reply_was_lost_is_done(gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with behind_proxy(gcs_env, monkeypatch, "lose-reply") as (storage, standing):
        put(gcs_env, storage, "a", b"data")
        storage.delete("a")
        assert ([*storage.list()], standing.connections) == ([], 2)


def test_nothing_is_asked_but_what_is_needed(gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with behind_proxy(gcs_env, monkeypatch) as (storage, standing):
        storage.write("a", b"data")
        storage.read("a")
        list(storage.list())
        storage.delete("a")
        time.sleep(0.1)  # what the library does aside
        assert [head.split()[0] for head in standing.heads] == ["POST", "GET", "GET", "DELETE"]


def test_threads_keep_their_connections(gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with behind_proxy(gcs_env, monkeypatch, delay=0.05) as (storage, standing):
        put(gcs_env, storage, "a", b"data")
        with ThreadPoolExecutor(24) as pool:
            for _ in range(4):
                assert set(pool.map(storage.read, ["a"] * 24)) == {b"data"}
        assert standing.connections <= 24


# -- damage


def test_bytes_that_change_on_their_way_are_sent_again(
    checking_gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small, large = os.urandom(100_000), make_file(tmp_path, 4 * PART)
    with behind_proxy(checking_gcs_env, monkeypatch, "flip-request") as (storage, standing):
        storage.write("small", small)
        assert (storage.read("small"), sent_parts(standing)) == (small, 2)
    with behind_proxy(checking_gcs_env, monkeypatch, "flip-request") as (storage, standing):
        digest = storage.upload(large, "large")
        assert (Digest.of_bytes(storage.read("large")), sent_parts(standing)) == (digest, 5)


def test_bytes_that_change_each_time_end_in_an_error(
    checking_gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.storage.gcs_retries.ATTEMPTS", 2)
    with behind_proxy(checking_gcs_env, monkeypatch, "flip-request", "flip-request") as (storage, _):
        with pytest.raises(CorruptObjectError, match=r"was damaged on its way to .* each time"):
            storage.write("a", os.urandom(100_000))
        assert [*storage.list()] == []


def test_a_server_that_does_not_verify_is_found_out_by_the_whole(
    gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = make_file(tmp_path, 4 * PART)
    with behind_proxy(gcs_env, monkeypatch, "flip-request") as (storage, _):
        with pytest.raises(CorruptObjectError, match="was damaged on its way to"):
            storage.upload(source, "a")
        assert stored(gcs_env, storage) == []


def test_an_object_that_was_damaged_in_its_place_is_not_read(storage: GCSStorage, gcs_env: GCSServer) -> None:
    storage.write("a", b"0123456789")
    bucket, prefix = storage.uri.removeprefix("gs://").split("/")
    (gcs_env.data / bucket / prefix / "a").write_bytes(b"0123456780")
    with pytest.raises(CorruptObjectError, match="its bytes do not have the checksum that the server keeps"):
        storage.read("a")


def test_what_stands_behind_the_last_part_is_damage_too(
    storage: GCSStorage, gcs_env: GCSServer, tmp_path: Path
) -> None:
    source = make_file(tmp_path, 2 * PART)
    digest = storage.upload(source, "a")
    put(gcs_env, storage, "a", source.read_bytes() + b"1")
    with pytest.raises(CorruptObjectError, match=f"{2 * PART + 1} bytes with SHA-256"):
        storage.download("a", tmp_path / "target", expect=digest)


def test_a_file_that_is_written_to_while_it_is_sent_is_not_stored(
    storage: GCSStorage, gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = make_file(tmp_path, 4 * PART)

    def hash_late(_: Source) -> tuple[Digest, str]:
        with source.open("ab") as file:
            file.write(b"more")
        return Digest.of_file(source), ""

    monkeypatch.setattr("cluster.storage.gcs.digests", hash_late)
    with pytest.raises(CorruptObjectError, match="was written to while it was sent"):
        storage.upload(source, "a")
    assert stored(gcs_env, storage) == []


# -- large files


def test_a_large_file_travels_in_parts_of_which_nothing_stays(
    gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = make_file(tmp_path, 12 * PART + 1)
    with behind_proxy(gcs_env, monkeypatch) as (storage, standing):
        digest = storage.upload(source, "model/weights")
        assert (sent_parts(standing), stored(gcs_env, storage)) == (13, ["runs/model/weights"])
        assert standing.connections > 4
        storage.download("model/weights", tmp_path / "target", expect=digest)
    assert Digest.of_file(tmp_path / "target") == digest


@pytest.mark.parametrize("at_once", [32, 3])  # as many as the server takes, and few, for more rounds
def test_more_parts_than_are_composed_at_once_are_composed_in_rounds(
    gcs_env: GCSServer, gcs_storage_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, at_once: int
) -> None:
    monkeypatch.setattr("cluster.storage.gcs_parts._AT_ONCE", at_once)
    storage = open_small_parts(gcs_storage_uri, part_size=16 * KIB)
    source = make_file(tmp_path, 33 * 16 * KIB)
    digest = storage.upload(source, "a")
    assert Digest.of_bytes(storage.read("a")) == digest
    assert stored(gcs_env, storage) == ["runs/a"]


def test_what_is_written_at_once_may_be_large(storage: GCSStorage, gcs_env: GCSServer) -> None:
    data = os.urandom(3 * PART + 1)
    storage.write("a", data, if_absent=True)
    assert storage.read("a") == data
    assert stored(gcs_env, storage) == ["runs/a"]


def test_a_large_upload_that_fails_leaves_nothing(
    gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = make_file(tmp_path, 12 * PART)
    with behind_proxy(gcs_env, monkeypatch, reject=b"/compose", refusal=google_says(400, "Not today.")) as (storage, _):
        with pytest.raises(StorageError, match=r"answers 400 \(Not today\.\)"):
            storage.upload(source, "a")
        assert stored(gcs_env, storage) == []


def test_parts_that_a_sweep_took_are_told_of(checking_gcs_env: GCSServer) -> None:
    storage = open_small_parts(checking_gcs_env.fresh_uri())
    data = os.urandom(2 * PART)
    with storage._parts("run/a") as parts:
        parts.send(len(data), PART, lambda start, end: data[start:end])
        assert storage.sweep() == ["run/a"]
        with pytest.raises(StorageError, match=r"a sweep removed parts of gs://.*/runs/run/a while it was sent"):
            parts.compose(storage._blob("run/a"))


def test_parts_are_nobodys_objects(storage: GCSStorage) -> None:
    with storage._parts("run/a") as parts:
        parts.send(3, PART, lambda start, end: b"123"[start:end])
        assert ([*storage.list()], [*storage.list(".ray")], [*storage.folders()]) == ([], [], [])
        with pytest.raises(StorageError, match="taken by the parts of files"):
            storage.read(f"{FOLDER}/run/a")


def test_a_listing_of_more_than_a_page_is_whole_and_in_order(
    gcs_env: GCSServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(f"{number % 7}{'/-.'[number % 3]}{number:04}" for number in range(1100))
    with behind_proxy(gcs_env, monkeypatch, "busy") as (storage, standing):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: put(gcs_env, storage, name, b""), names))
        assert [entry.path for entry in storage.list()] == names
        assert sum("pageToken=" in head for head in standing.heads) == 1


# -- when a request is tried again


def test_an_endpoint_that_answered_once_is_given_a_minute() -> None:
    def gives_up_after(retries: Retries) -> int:
        return next(n for n in count(1) if retries.wait(NoConnection(), n) is None)

    retries = Retries()
    assert gives_up_after(retries) == FIRST_ATTEMPTS
    retries.wait(error_of(404, ""), 1)
    assert gives_up_after(retries) == ATTEMPTS
    assert 30 < sum(backoff(n) for n in range(1, ATTEMPTS)) < 90


@pytest.mark.parametrize(
    ("status", "reason", "message", "again"),
    [
        (400, "invalid", "Invalid argument.", False),
        (400, "invalid", 'Provided CRC32C "a" doesn\'t match calculated CRC32C "b".', True),
        (401, "authError", "Invalid Credentials", False),
        (403, "forbidden", NO_ACCESS, False),
        (403, "rateLimitExceeded", "Too fast.", True),
        (404, "notFound", "No such object: a/b", False),
        (408, "timeout", "Request Timeout", True),
        (412, "conditionNotMet", "Precondition failed", False),
        (429, "rateLimitExceeded", "Too fast.", True),
        (500, "backendError", "Sorry.", True),
        (501, "notImplemented", "Never.", False),
        (503, "backendError", "Sorry.", True),
    ],
)
def test_only_what_may_pass_is_tried_again(status: int, reason: str, message: str, again: bool) -> None:
    error = error_of(*google_says(status, message, reason))
    assert (Retries().wait(error, 1) is not None) == again
