"""From a storage URI to a storage."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from cluster.errors import ObjectExistsError, ObjectNotFoundError, StorageError, UsageError
from cluster.storage.base import Storage
from cluster.storage.rules import check_path

_POSSIBLE = "a folder (./runs or file:///home/me/runs) or a bucket (s3://BUCKET/PREFIX or gs://BUCKET/PREFIX)"
_BUCKETS = {"s3": r"[A-Za-z0-9._-]{3,63}", "gs": r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"}
_SECRETS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS to a key file",
}


def open_storage(uri: str) -> Storage:
    """Return the storage at a folder, a `file://`, `s3://` or `gs://` URI; nothing is made or asked there yet.

    Raises UsageError for any other, MissingExtraError where the cloud's client library is not installed, and
    StorageError where this machine has no credentials for gs://, or a broken AWS configuration.
    """
    scheme, place = _parse(uri)
    bucket, _, prefix = place.partition("/")
    if scheme == "s3":
        from cluster.storage.s3 import S3Storage

        return S3Storage(bucket, prefix)
    if scheme == "gs":
        from cluster.storage.gcs import GCSStorage

        return GCSStorage(bucket, prefix)
    from cluster.storage.file import FileStorage

    return FileStorage(Path(place))


def split_run_uri(uri: str) -> tuple[str, str]:
    """Split the URI of a run into that of its storage, as `Storage.uri` writes it, and the run's id."""
    scheme, place = _parse(uri)
    root, _, run_id = place.rpartition("/")
    if not run_id or (scheme != "file" and not root):
        raise UsageError(f"{uri} is a storage, not a run: add the run's id, as in {uri.rstrip('/')}/RUN-ID")
    return (root or "/" if scheme == "file" else f"{scheme}://{root}"), run_id


def check_storage(storage: Storage) -> None:
    """Do once with a small object all that a run will need; nothing of it stays.

    Raises a StorageError that says what is wrong: credentials, bucket, folder, endpoint.
    """
    nonce = secrets.token_hex(8)
    path, data = f".raylift-check/{nonce}", nonce.encode()
    with suppress(ObjectNotFoundError):
        storage.read(path)  # before any write, because some servers make a bucket that is not there
    try:
        storage.write(path, data, if_absent=True)
        if storage.read(path) != data or [entry.path for entry in storage.list(path)] != [path]:
            raise StorageError(f"{storage.uri} does not return what was written a moment ago: choose another storage")
        _check_conditional_create(storage, path)
    finally:
        with suppress(StorageError):
            storage.delete(path)
    storage.delete(path)


def _check_conditional_create(storage: Storage, path: str) -> None:
    try:
        storage.write(path, b"of another writer", if_absent=True)
    except ObjectExistsError:
        return
    raise StorageError(
        f"{storage.uri} overwrites an object that should only be created (it ignores If-None-Match of S3, or "
        "ifGenerationMatch of GCS), so two writers could ruin a run: update the server or choose another storage"
    )


def _parse(uri: str) -> tuple[str, str]:
    """Return "file" and an absolute path, or "s3" or "gs" and a bucket with its prefix."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", uri)
    if not uri:
        raise UsageError(f"storage is empty: write {_POSSIBLE}")
    if match is None:
        return "file", os.path.abspath(os.path.expanduser(uri))
    scheme, rest = match[1].lower(), uri[match.end() :]
    if not rest.startswith("/"):
        raise UsageError(f"storage {uri!r}: a / is missing after {match[0]}")
    if scheme == "file":
        return scheme, _parse_file(uri, rest)
    if scheme in _BUCKETS:
        return scheme, _parse_bucket(uri, scheme, rest[1:].rstrip("/"))
    if scheme == "gcs":
        raise UsageError(f"storage {uri!r}: write gs:// for Google Cloud Storage, as in gs://BUCKET/PREFIX")
    raise UsageError(f"storage {uri!r}: {scheme}:// is not supported; write {_POSSIBLE}")


def _parse_file(uri: str, rest: str) -> str:
    host, slash, path = rest[1:].partition("/")
    if host not in ("", "localhost") or not slash:
        raise UsageError(f"storage {uri!r} names the machine {host!r}: write file:/// and a path of this machine")
    return os.path.abspath("/" + unquote(path))


def _parse_bucket(uri: str, scheme: str, place: str) -> str:
    bucket, _, prefix = place.partition("/")
    if "@" in bucket:
        raise UsageError(f"a storage URI holds no credentials: set {_SECRETS[scheme]}")
    if not re.fullmatch(_BUCKETS[scheme], bucket):
        raise UsageError(f"storage {uri!r}: {bucket!r} is no bucket's name; write {scheme}://BUCKET/PREFIX")
    try:
        return f"{bucket}/{check_path(prefix)}" if prefix else bucket
    except StorageError as error:
        raise UsageError(f"storage {uri!r}: {error}") from error
