"""Errors of S3, botocore and s3transfer in words."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import (
    BucketMissingError,
    CorruptObjectError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageDeniedError,
    StorageError,
    StorageFullError,
)
from cluster.storage.network import reason

_DENIED = {
    "SignatureDoesNotMatch": "the secret does not belong to the key: check AWS_SECRET_ACCESS_KEY or AWS_PROFILE",
    "InvalidAccessKeyId": "no such key is known there: check AWS_ACCESS_KEY_ID, AWS_PROFILE and AWS_ENDPOINT_URL",
    "InvalidToken": "the session token does not belong to the key: check AWS_SESSION_TOKEN",
    "ExpiredToken": "the session has expired: sign in again, for example by aws sso login",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it",
}
_SIGN_IN = {  # by class of botocore's, the last of which older versions lack
    "SSOError": "aws sso login",
    "TokenRetrievalError": "aws sso login",
    "LoginError": "aws login",
}
_ASK_FOR = "ask for s3:ListBucket, s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on"
_FULL = {"QuotaExceeded", "ServiceQuotaExceeded", "XMinioStorageFull", "InsufficientStorage"}
_DAMAGED = {"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch"}


@dataclass(frozen=True)
class Place:
    """Where a request went, and as whom."""

    bucket: str
    endpoint: str
    key_id: str | None  # of the access key; the secret has no business here

    @property
    def custom(self) -> bool:
        return ".amazonaws.com" not in self.endpoint


def explain(error: Exception, place: Place, uri: str) -> StorageError:
    """Return what a person should read instead of `error`, which a request about `uri` raised."""
    from botocore import exceptions as aws
    from s3transfer.exceptions import RetriesExceededError

    if isinstance(error, RetriesExceededError):
        return explain(error.last_exception, place, uri)
    if isinstance(error, aws.ClientError):
        return _explain_reply(error, place, uri)
    if isinstance(error, aws.FlexibleChecksumError):
        return CorruptObjectError(f"{uri} is damaged: its bytes do not have the checksum that the server keeps")
    if isinstance(error, aws.SSLError):
        return StorageError(f"{place.endpoint} has no valid certificate ({reason(error)}): check AWS_CA_BUNDLE")
    if isinstance(error, aws.ConnectionError | aws.HTTPClientError | aws.IncompleteReadError):
        hint = "check AWS_ENDPOINT_URL and the network" if place.custom else "check AWS_REGION and the network"
        return StorageError(f"{place.endpoint} does not answer ({reason(error)}): {hint}")
    if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError):
        return StorageDeniedError(
            f"no credentials for {uri}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    command = next((_SIGN_IN[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _SIGN_IN), None)
    if command is not None:
        return StorageDeniedError(f"no valid credentials for {uri} ({error}): sign in again by {command}")
    return StorageError(f"{uri}: {error}")


def _explain_reply(error: Exception, place: Place, uri: str) -> StorageError:
    reply = error.response  # type: ignore[attr-defined]
    code = reply.get("Error", {}).get("Code", "")
    status = reply.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "NoSuchBucket":
        where = f" --endpoint-url {place.endpoint}" if place.custom else ""
        return BucketMissingError(
            f"bucket {place.bucket} does not exist at {place.endpoint}; create it with: "
            f"aws s3 mb s3://{place.bucket}{where}"
        )
    if code in ("NoSuchKey", "404"):
        return ObjectNotFoundError(f"there is no {uri}")
    if status == 412 and error.operation_name == "PutObject":  # type: ignore[attr-defined]
        return ObjectExistsError(f"{uri} exists already: another writer was first")
    if status in (401, 403) or code in _DENIED:
        hint = _DENIED.get(code, f"{_ASK_FOR} {place.bucket}")
        return StorageDeniedError(f"{place.endpoint} refuses {uri} to access key {place.key_id} ({code}): {hint}")
    if code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
        return StorageError(f"bucket {place.bucket} is not in this region: set AWS_REGION to the bucket's ({error})")
    if status == 507 or code in _FULL:
        return StorageFullError(f"no space for {uri} at {place.endpoint} ({code}): free some or choose another place")
    if code in _DAMAGED:
        return CorruptObjectError(f"{uri} was damaged on its way to {place.endpoint}, each time ({code})")
    return StorageError(f"{uri}: {error}")
