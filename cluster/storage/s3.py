"""A storage in a bucket of S3, or of any server that speaks its protocol."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cluster.errors import MissingExtraError, ObjectExistsError, StorageError
from cluster.storage.base import Digest, Entry
from cluster.storage.disk import arriving
from cluster.storage.network import FIRST_ATTEMPTS, backoff
from cluster.storage.parts import fetch, fill
from cluster.storage.rehearsed import rehearse_s3
from cluster.storage.rules import check_folder, check_path, check_prefix, holds
from cluster.storage.s3_body import pour
from cluster.storage.s3_errors import Place, explain
from cluster.storage.s3_retries import Retries, is_transient
from cluster.storage.s3_transfer import Transfers
from cluster.storage.sources import Source, digest_of, opened
from cluster.storage.targets import Target

PART = 16 << 20
_COPY_AT_ONCE = 1 << 30  # S3 copies 5 GB at once, but slowly
_CONNECT_S = 5
_READ_S = 60
_CONNECTIONS = 8
Taken = TypeVar("Taken")


class S3Storage:
    """Objects below a prefix of a bucket. One client, built here, serves all threads."""

    def __init__(self, bucket: str, prefix: str = "", *, part_size: int = PART) -> None:
        self._bucket = bucket
        self._root = f"{prefix}/" if prefix else ""
        self._part_size = part_size
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._place = Place(bucket, "S3", None)
        _require_boto3()
        with self._errors():
            self._session = _session()
            retries = Retries()
            self._client = _connect(self._session, retries)
        self._place = Place(bucket, self._client.meta.endpoint_url, _key_id(self._session))
        # What is in a part is not signed, which takes longer than the SHA-256 of the whole, and which botocore leaves
        # out over https by itself: its checksum is, and so is the manifest, which has that SHA-256.
        unsigned = partial(_connect, self._session, retries, s3={"payload_signing_enabled": False})
        self._transfers = Transfers(self._session, self._client, part_size, unsigned)

    def read(self, path: str, *, start: int = 0, end: int | None = None) -> bytes:
        key = self._key(path)
        with self._errors(path):
            if end is not None and end <= start:
                self._client.head_object(Bucket=self._bucket, Key=key)
                return b""
            return self._get(key, _ranged(start, end), lambda body: bytes(body.read()))

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        try:
            self._put(path, data, Digest.of_bytes(data), {"IfNoneMatch": "*"} if if_absent else {})
        except ObjectExistsError:
            if not holds(self, path, data):
                raise

    def upload(self, source: Path | Source, path: str) -> Digest:
        with opened(source) as data:
            if data.size <= self._part_size:
                whole = data.read(0, data.size)
                digest = Digest.of_bytes(whole)
                self._put(path, whole, digest, {})
            else:
                with self._errors(path), ThreadPoolExecutor(1) as aside:
                    hashed = aside.submit(digest_of, data)
                    self._transfers.upload(data, self._bucket, self._key(path))
                    digest = hashed.result()
            data.check_unchanged()
        return digest

    def download(self, path: str, target: Path | Target, *, expect: Digest) -> None:
        if not isinstance(target, Path):
            fill(
                partial(self._read_into, path),
                target,
                self._name(path),
                expect=expect,
                part_size=self._part_size,
                connections=_CONNECTIONS,
            )
            return
        with arriving(target, expect, self._name(path)) as arrival:
            large = expect.size > self._part_size
            if not large or not self._transfers.download(self._bucket, self._key(path), arrival.path):
                arrival.found = fetch(
                    lambda start, end: self.read(path, start=start, end=end),
                    arrival.path,
                    size=expect.size,
                    part_size=self._part_size,
                    connections=_CONNECTIONS,
                )

    def copy(self, source: str, target: str) -> None:
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(multipart_threshold=_COPY_AT_ONCE, multipart_chunksize=_COPY_AT_ONCE // 4)
        goal, origin = self._key(target), {"Bucket": self._bucket, "Key": self._key(source)}
        with self._errors(source):
            self._client.copy(origin, self._bucket, goal, Config=config)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        found = [
            Entry(item["Key"].removeprefix(self._root), item["Size"], item["LastModified"].timestamp())
            for item in self._pages("list_objects_v2", "Contents", check_prefix(prefix))
            if not item["Key"].endswith("/")  # a folder that a web console made
        ]
        return iter(sorted(found, key=lambda entry: entry.path))  # S3 Express and SeaweedFS have orders of their own

    def folders(self, prefix: str = "", *, quick: bool = False) -> Iterator[str]:
        items = self._pages("list_objects_v2", "CommonPrefixes", check_folder(prefix), Delimiter="/")
        found = sorted(item["Prefix"] for item in items)
        if self._place.custom and not quick:  # SeaweedFS names a folder for a while after the last object left it
            with ThreadPoolExecutor(_CONNECTIONS) as pool:
                found = [
                    folder for folder, filled in zip(found, pool.map(self._is_filled, found), strict=True) if filled
                ]
        return iter([folder.removeprefix(self._root + prefix)[:-1] for folder in found])

    def delete(self, path: str) -> None:
        with self._errors(path):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(path))

    def sweep(self, prefix: str = "") -> Sequence[str]:
        swept = []
        for upload in self._pages("list_multipart_uploads", "Uploads", check_prefix(prefix)):
            path = upload["Key"].removeprefix(self._root)
            with self._errors(path):
                self._abort(upload)
            swept.append(path)
        return sorted(swept)

    def _put(self, path: str, data: bytes, digest: Digest, condition: dict[str, str]) -> None:
        checksum = base64.b64encode(bytes.fromhex(digest.sha256)).decode()
        with self._errors(path):
            self._client.put_object(
                Bucket=self._bucket, Key=self._key(path), Body=data, ChecksumSHA256=checksum, **condition
            )

    def _read_into(self, path: str, start: int, end: int | None, room: Sequence[memoryview]) -> int:
        with self._errors(path):
            return self._get(self._key(path), _ranged(start, end), partial(pour, room=room))

    def _get(self, key: str, ranged: dict[str, str], take: Callable[[Any], Taken]) -> Taken:
        from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError

        attempts = 0
        while True:
            attempts += 1
            try:
                body = self._client.get_object(Bucket=self._bucket, Key=key, **ranged)["Body"]
            except ClientError as error:
                if error.response["Error"]["Code"] == "InvalidRange":  # it begins behind the end
                    return take(io.BytesIO())
                raise
            try:
                return take(body)
            except FlexibleChecksumError:  # it may have been damaged on its way alone
                if attempts > 1:
                    raise
            except BotoCoreError as error:  # it broke off: only the request itself has retries of botocore's
                if attempts >= FIRST_ATTEMPTS or not is_transient(error):
                    raise
                time.sleep(backoff(attempts))

    def _abort(self, upload: dict[str, Any]) -> None:
        from botocore.exceptions import ClientError

        try:
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchUpload":  # its owner was faster, or a reply was lost
                raise

    def _pages(self, operation: str, field: str, prefix: str, **options: str) -> Sequence[dict[str, Any]]:
        pages = self._client.get_paginator(operation)
        with self._errors(prefix):
            found = pages.paginate(Bucket=self._bucket, Prefix=self._root + prefix, **options)
            return [item for page in found for item in page.get(field, [])]

    def _is_filled(self, folder: str) -> bool:
        with self._errors(folder.removeprefix(self._root)):
            return bool(self._client.list_objects_v2(Bucket=self._bucket, Prefix=folder, MaxKeys=1).get("Contents"))

    def _key(self, path: str) -> str:
        return self._root + check_path(path)

    def _name(self, path: str) -> str:
        return f"{self.uri}/{path}"

    @contextmanager
    def _errors(self, path: str = "") -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from s3transfer.exceptions import RetriesExceededError

        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error, RetriesExceededError) as error:
            raise explain(error, self._place, self._name(path) if path else self.uri) from error


def _ranged(start: int, end: int | None) -> dict[str, str]:
    return {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if start or end is not None else {}


def _require_boto3() -> None:
    try:
        import boto3  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("storage in s3:// needs boto3: pip install 'raylift[aws]'") from error


def _session() -> Any:
    import boto3

    return boto3.session.Session()


def _connect(session: Any, retries: Retries, **options: Any) -> Any:
    """Return a client, built with these options more. Raises StorageError where the endpoint is no URL."""
    from botocore.config import Config

    config = Config(
        connect_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        max_pool_connections=4 * _CONNECTIONS,
        tcp_keepalive=True,
        retries={"mode": "standard", "total_max_attempts": 1},  # Retries decides
        user_agent_extra="raylift",
        **options,
    )
    try:
        client = session.client("s3", config=config)  # any other endpoint than AWS's is addressed by path
    except ValueError as error:
        raise StorageError(f"{error}. Set AWS_ENDPOINT_URL to a URL, for example http://localhost:9000") from error
    client.meta.events.register("needs-retry.s3", retries)
    rehearse_s3(client)
    return client


def _key_id(session: Any) -> str | None:
    credentials = session.get_credentials()
    return credentials.access_key if credentials else None
