"""Errors of Google Cloud Storage and its client in words."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from cluster.errors import (
    BucketMissingError,
    CorruptObjectError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageDeniedError,
    StorageError,
)
from cluster.storage.gcs_retries import is_damaged, is_sign_in_away, reply_to
from cluster.storage.network import reason

_SIGN_IN = "gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS to a key file"


@dataclass(frozen=True)
class Place:
    """Where a request went, and as whom."""

    bucket: str
    endpoint: str
    account: str | None  # its e-mail address, where the credentials tell it

    @property
    def emulated(self) -> bool:
        # the domain tells nothing: Google has others, for universes
        return bool(os.environ.get("STORAGE_EMULATOR_HOST"))


def failures() -> tuple[type[Exception], ...]:
    """Return what google-cloud-storage and the packages below it raise."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    return (
        GoogleAPIError,
        GoogleAuthError,
        DataCorruption,
        InvalidResponse,
        RequestException,
        HTTPError,
        ConnectionError,
    )


def explain(error: Exception, place: Place, uri: str, *, of_bucket: bool = False) -> StorageError:
    """Return what a person should read instead of `error`, which a request about `uri` raised.

    `of_bucket` says that a 404 can only mean the bucket.
    """
    from google.auth import exceptions as auth
    from google.cloud.storage.exceptions import DataCorruption
    from requests import exceptions as http
    from urllib3.exceptions import HTTPError

    reply = reply_to(error)
    if reply is not None:
        return _explain_reply(reply, place, uri, of_bucket)
    if isinstance(error, DataCorruption):
        return CorruptObjectError(f"{uri} is damaged: its bytes do not have the checksum that the server keeps")
    if isinstance(error, http.InvalidSchema | http.MissingSchema | http.InvalidURL):
        return StorageError(
            f"STORAGE_EMULATOR_HOST={place.endpoint} is no URL: write one, for example http://localhost:4443"
        )
    if isinstance(error, http.SSLError):
        return StorageError(f"{place.endpoint} has no valid certificate ({reason(error)}): check REQUESTS_CA_BUNDLE")
    if isinstance(error, http.RequestException | HTTPError | ConnectionError):
        hint = "check STORAGE_EMULATOR_HOST and the network" if place.emulated else "check the network"
        return StorageError(f"{place.endpoint} does not answer ({reason(error)}): {hint}")
    if is_sign_in_away(error):
        return StorageError(f"Google's sign-in does not answer ({reason(error, _line(error))}): check the network")
    if isinstance(error, auth.InvalidOperation):  # of credentials that are none
        return StorageDeniedError(
            f"{place.endpoint} wants credentials for {uri}, but with STORAGE_EMULATOR_HOST none are sent: "
            "unset it where this is Google's own service"
        )
    if isinstance(error, auth.GoogleAuthError):
        return StorageDeniedError(f"no valid credentials for {uri} ({_line(error.args[0])}): type {_SIGN_IN}")
    return StorageError(f"{uri}: {error}")


def _explain_reply(reply: Any, place: Place, uri: str, of_bucket: bool) -> StorageError:
    status, said = reply.status_code, _words(reply)
    if status == 404 and (of_bucket or "bucket does not exist" in said):
        return BucketMissingError(
            f"bucket {place.bucket} does not exist at {place.endpoint}; create it with: {_make_bucket(place)}"
        )
    if status == 404:
        return ObjectNotFoundError(f"there is no {uri}")
    if status == 412:
        return ObjectExistsError(f"{uri} exists already: another writer was first")
    if status == 401:
        return StorageDeniedError(
            f"{place.endpoint} does not accept the credentials of {place.account or 'this machine'} ({said}): "
            f"sign in again by {_SIGN_IN}"
        )
    if status == 403:
        return StorageDeniedError(
            f"{place.endpoint} refuses {uri} to {place.account or 'these credentials'} ({said}); allow it with: "
            f"gcloud storage buckets add-iam-policy-binding gs://{place.bucket} --member={_member(place.account)} "
            "--role=roles/storage.objectUser"
        )
    if is_damaged(reply):
        return CorruptObjectError(f"{uri} was damaged on its way to {place.endpoint}, each time ({said})")
    return StorageError(f"{uri}: {place.endpoint} answers {status} ({said})")


def _words(reply: Any) -> str:
    """Return what the server says about its refusal, on one line."""
    try:
        said = reply.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = reply.text
    return _line(said) or str(reply.reason)


def _line(text: object) -> str:
    return " ".join(str(text).split())[:300]


def _make_bucket(place: Place) -> str:
    if not place.emulated:
        return f"gcloud storage buckets create gs://{place.bucket}"
    return f"""curl {place.endpoint}/storage/v1/b --json '{{"name": "{place.bucket}"}}'"""


def _member(account: str | None) -> str:
    if account is None:
        return "user:EMAIL"
    return f"serviceAccount:{account}" if account.endswith(".gserviceaccount.com") else f"user:{account}"
