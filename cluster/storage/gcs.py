"""A storage in a bucket of Google Cloud Storage."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from cluster.errors import CorruptObjectError, MissingExtraError, ObjectExistsError, ObjectNotFoundError, StorageError
from cluster.storage.base import Digest, Entry
from cluster.storage.disk import arriving
from cluster.storage.gcs_errors import Place, explain, failures
from cluster.storage.gcs_parts import CONNECTIONS, FOLDER, Parts, crc32c, digests
from cluster.storage.gcs_retries import Retries
from cluster.storage.parts import fetch, fill
from cluster.storage.rules import check_folder, check_path, check_prefix, holds
from cluster.storage.sources import Source, opened
from cluster.storage.targets import Target, scatter

PART = 8 << 20  # the most that google-cloud-storage sends in one request
_PAGE = 1000  # the most that a listing returns at once
_CONNECT_S = 5
_READ_S = 60
_PIECE = 128 << 10  # bytes


class GCSStorage:
    """Objects below a prefix of a bucket. One client, built here, serves all threads.

    What is larger than a part is sent in parts below `.raylift-parts/`, which no listing shows.
    """

    def __init__(self, bucket: str, prefix: str = "", *, part_size: int = PART) -> None:
        assert part_size <= PART, f"google-cloud-storage sends {part_size} bytes by a resumable session"
        self._root = f"{prefix}/" if prefix else ""
        self._part_size = part_size
        self._calls = {"timeout": (_CONNECT_S, _READ_S), "retry": Retries()}
        self.uri = f"gs://{bucket}/{prefix}".rstrip("/")
        self._place = Place(bucket, "Google Cloud Storage", None)
        _require_client_library()
        with self._errors():
            self._client, account = _connect()
        self._place = Place(bucket, self._client.api_endpoint, account)
        self._bucket = self._client.bucket(bucket)

    def read(self, path: str, *, start: int = 0, end: int | None = None) -> bytes:
        from google.api_core.exceptions import RequestRangeNotSatisfiable

        blob = self._blob(path)
        with self._errors(path):
            if end is not None and end <= start:
                blob.reload(**self._calls)
                return b""
            whole = start == 0 and end is None
            ranged = {} if whole else {"start": start, "end": None if end is None else end - 1}
            try:
                # the whole is verified, and read again where it broke off; a range has no checksum, and is resumed
                data = blob.download_as_bytes(
                    raw_download=True, checksum="crc32c", single_shot_download=whole, **ranged, **self._calls
                )
            except RequestRangeNotSatisfiable:  # it begins behind the end
                return b""
            return bytes(data)

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        blob, conditions = self._blob(path), {"if_generation_match": 0} if if_absent else {}
        try:
            with self._errors(path, of_bucket=True):
                if len(data) <= self._part_size:
                    blob.upload_from_string(
                        data, "application/octet-stream", checksum="crc32c", **conditions, **self._calls
                    )
                    return
                with self._parts(path) as parts:
                    parts.send(len(data), self._part_size, lambda start, end: data[start:end])
                    parts.compose(blob, **conditions)
                self._check(blob, path, crc32c(data))
        except ObjectExistsError:
            if not holds(self, path, data):
                raise

    def upload(self, source: Path | Source, path: str) -> Digest:
        with opened(source) as data:
            if data.size <= self._part_size:
                whole = data.read(0, data.size)
                self.write(path, whole)
                data.check_unchanged()
                return Digest.of_bytes(whole)
            blob = self._blob(path)
            with self._errors(path, of_bucket=True), ThreadPoolExecutor(1) as aside:
                hashed = aside.submit(digests, data)
                with self._parts(path) as parts:
                    parts.send(data.size, self._part_size, data.read)
                    digest, checksum = hashed.result()
                    data.check_unchanged()
                    parts.compose(blob)
                self._check(blob, path, checksum)
        return digest

    def download(self, path: str, target: Path | Target, *, expect: Digest) -> None:
        if not isinstance(target, Path):
            fill(
                partial(self._read_into, path),
                target,
                self._name(path),
                expect=expect,
                part_size=self._part_size,
                connections=CONNECTIONS,
            )
            return
        with arriving(target, expect, self._name(path)) as arrival:
            arrival.found = fetch(
                lambda start, end: self.read(path, start=start, end=end),
                arrival.path,
                size=expect.size,
                part_size=self._part_size,
                connections=CONNECTIONS,
            )

    def copy(self, source: str, target: str) -> None:
        origin, goal, token = self._blob(source), self._blob(target), None
        with self._errors(source):
            while True:  # a large object takes several requests where its place or class changes
                token, _, _ = goal.rewrite(origin, token=token, **self._calls)
                if token is None:
                    return

    def list(self, prefix: str = "") -> Iterator[Entry]:
        found = [
            Entry(item.name.removeprefix(self._root), item.size, item.updated.timestamp())
            for item in self._items(self._root + check_prefix(prefix))
            if not item.name.endswith("/")  # a folder that a web console made
        ]
        shown = [entry for entry in found if not entry.path.startswith(f"{FOLDER}/")]
        return iter(sorted(shown, key=lambda entry: entry.path))  # an emulator may have an order of its own

    def folders(self, prefix: str = "", *, quick: bool = False) -> Iterator[str]:  # noqa: ARG002  # a listing is all
        folder = self._root + check_folder(prefix)
        with self._errors(prefix, of_bucket=True):
            fields = "prefixes,nextPageToken"
            listing = self._client.list_blobs(
                self._bucket, prefix=folder, delimiter="/", page_size=_PAGE, fields=fields, **self._calls
            )
            for _ in listing.pages:
                pass
        names = [found.removeprefix(folder)[:-1] for found in listing.prefixes]
        return iter(sorted(name for name in names if prefix or name != FOLDER))

    def delete(self, path: str) -> None:
        self._delete(self._key(path))

    def sweep(self, prefix: str = "") -> Sequence[str]:
        """Remove the parts of uploads that died. We leave no sessions behind, which could not be listed."""
        folder = f"{self._root}{FOLDER}/"
        parts = [item.name for item in self._items(folder + check_prefix(prefix))]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(self._delete, parts))
        uploads = {part.rpartition("/")[0] for part in parts}
        return sorted(upload.removeprefix(folder).rpartition("/")[0] for upload in uploads)

    def _read_into(self, path: str, start: int, end: int | None, room: Sequence[memoryview]) -> int:
        data = self.read(path, start=start, end=end)
        scatter(data, room)
        return len(data)

    def _parts(self, path: str) -> Parts:
        return Parts(self._bucket, f"{self._root}{FOLDER}/{path}", self._calls)

    def _check(self, blob: Any, path: str, checksum: str) -> None:
        """Remove what was composed, and raise CorruptObjectError, where it is not what was sent."""
        if blob.crc32c != checksum:
            blob.delete(if_generation_match=blob.generation, **self._calls)
            where = self._place.endpoint
            raise CorruptObjectError(f"{self._name(path)} was damaged on its way to {where}: send it again")

    def _items(self, prefix: str) -> Sequence[Any]:
        with self._errors(prefix.removeprefix(self._root), of_bucket=True):
            fields = "items(name,size,updated),nextPageToken"
            return [
                *self._client.list_blobs(self._bucket, prefix=prefix, page_size=_PAGE, fields=fields, **self._calls)
            ]

    def _delete(self, name: str) -> None:
        with suppress(ObjectNotFoundError), self._errors(name.removeprefix(self._root)):
            self._bucket.blob(name).delete(**self._calls)

    def _blob(self, path: str) -> Any:
        return self._bucket.blob(self._key(path))

    def _key(self, path: str) -> str:
        if check_path(path).partition("/")[0] == FOLDER:
            raise StorageError(f"{path!r}: names below {FOLDER}/ are taken by the parts of files that are being sent")
        return self._root + path

    def _name(self, path: str) -> str:
        return f"{self.uri}/{path}"

    @contextmanager
    def _errors(self, path: str = "", *, of_bucket: bool = False) -> Iterator[None]:
        try:
            yield
        except failures() as error:
            name = self._name(path) if path else self.uri
            raise explain(error, self._place, name, of_bucket=of_bucket) from error


def _require_client_library() -> None:
    try:
        import google.cloud.storage  # noqa: F401
    except ImportError as error:  # `google` and `google.cloud` may be there without it
        raise MissingExtraError("storage in gs:// needs google-cloud-storage: pip install 'raylift[gcp]'") from error


def _connect() -> tuple[Any, str | None]:
    """Return a client, and the e-mail address of its account where the credentials tell it."""
    import google.auth
    from google.api_core.client_info import ClientInfo
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client

    # the library asks for the bucket's settings beside every first request, for traces: it takes a right that a run
    # need not have, and a connection
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    # both are about a project, which objects do not need
    logging.getLogger("google.auth._default").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "Your application has authenticated using end user credentials", UserWarning)
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        credentials: Any = AnonymousCredentials()
    else:
        credentials, _ = google.auth.default(scopes=Client.SCOPE)
    client = Client(project=None, credentials=credentials, client_info=ClientInfo(user_agent="raylift"))
    if not client._http.is_mtls:  # then the adapter is the one with the certificate
        for scheme in ("http://", "https://"):
            client._http.mount(scheme, _adapter())
    accounts = (getattr(credentials, name, None) or "" for name in ("service_account_email", "account"))
    return client, next((account for account in accounts if "@" in account), None)  # a machine's own is "default"


def _adapter() -> Any:
    """Return what sends the requests of a client, a small piece at a time.

    While urllib3 sends, a connection has as long as it had to be made, for each call: bytes would go out in one, and
    none but small ones in time where the link is slow.
    """
    from requests import PreparedRequest, Response
    from requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
            super().init_poolmanager(*arguments, blocksize=_PIECE, **options)

        def send(self, request: PreparedRequest, *arguments: Any, **options: Any) -> Response:
            if isinstance(request.body, bytes):
                body, request = io.BytesIO(request.body), request.copy()  # a redirect repeats the original
                request.body = body
            return super().send(request, *arguments, **options)

    return Adapter(pool_maxsize=4 * CONNECTIONS)
