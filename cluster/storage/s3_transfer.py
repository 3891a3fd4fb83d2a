"""Large objects to and from S3, in parallel parts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

from cluster.storage.sources import Source, Stream

_CONNECTIONS = 10
_MOST_PARTS = 10_000  # that S3 makes an object of

_log = logging.getLogger(__name__)


class Transfers:
    """Moves objects by boto3's threads, or by the AWS common runtime (CRT) where that is faster.

    Measured against SeaweedFS on 2 cores (512 MB, parts of 8 and 16 MB): the CRT takes a third to half of the
    processor time, and is up to 1.3 (up) and 1.8 times (down) as fast on an idle machine and no faster on a
    busy one, but holds 0.3 to 0.9 GB of memory where boto3's threads hold 0.1. So it is used where awscrt
    says that the network is fast enough for it to matter (`is_optimized_for_system`), by one process of a
    machine; RAYLIFT_S3_TRANSFER=crt or =classic decides otherwise. What is read into memory (`Target`) needs
    neither: threads of ours fill it.
    boto3's own switch (`preferred_transfer_client`) is of no use here: it does not speak http, nor take a
    bundle of certificates.
    """

    def __init__(self, session: Any, client: Any, part_size: int, connect_unsigned: Callable[[], Any]) -> None:
        self._session = session
        self._client = client
        self._connect_unsigned = connect_unsigned
        self._unsigned: Any = None
        self._connecting = Lock()
        self._part_size = part_size
        self._checked = _checksum(client)
        # they send all objects, as each part on its way is in memory once more
        self._threads = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="s3")

    def upload(self, source: Source, bucket: str, key: str) -> None:
        """Send a source; a failed upload is aborted."""
        if not self._try_crt(lambda manager: manager.upload(Stream(source), bucket, key)):
            self._upload(source, {"Bucket": bucket, "Key": key})

    def _upload(self, source: Source, place: dict[str, str]) -> None:
        """Send parts as the bytes that they are: boto3's own transfer has a file sent, in pieces of 16 KB."""
        from botocore.exceptions import BotoCoreError, ClientError

        sender = self._sender()
        begun = self._client.create_multipart_upload(**place, **self._checked)
        upload = {**place, "UploadId": begun["UploadId"]}
        part_size = max(self._part_size, -(-source.size // _MOST_PARTS))

        def send(number: int) -> dict[str, Any]:
            start = (number - 1) * part_size
            data = source.read(start, min(start + part_size, source.size))
            sent = sender.upload_part(**upload, PartNumber=number, Body=data, **self._checked)
            proof = f"Checksum{self._checked.get('ChecksumAlgorithm')}"
            proofs = {proof: sent[proof]} if proof in sent else {}
            return {"PartNumber": number, "ETag": sent["ETag"], **proofs}

        parts = [self._threads.submit(send, number) for number in range(1, -(-source.size // part_size) + 1)]
        try:
            sent = [part.result() for part in parts]
            self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": sent})
        except BaseException:
            for part in parts:
                part.cancel()
            wait(parts)  # one that comes after the end would stay
            with suppress(BotoCoreError, ClientError):  # the first error is the one to tell
                self._client.abort_multipart_upload(**upload)
            raise

    def _sender(self) -> Any:
        """Return the client that sends parts: without a checksum, their signature is what tells of a changed byte."""
        if not self._checked or self._client.meta.endpoint_url.startswith("https:"):  # there none are signed
            return self._client
        with self._connecting:  # boto3 makes one client at a time
            if self._unsigned is None:
                self._unsigned = self._connect_unsigned()
            return self._unsigned

    def download(self, bucket: str, key: str, target: Path) -> bool:
        """Fetch an object by the CRT; return whether that was possible."""
        return self._try_crt(lambda manager: manager.download(bucket, key, str(target)))

    def _try_crt(self, submit: Callable[[Any], Any]) -> bool:
        if self._crt is None:
            return False
        try:
            with self._crt() as manager:
                submit(manager).result()
        except Exception:  # its errors are its own; those of the next try are botocore's
            _log.debug("the CRT gave up, boto3 takes over", exc_info=True)
            return False
        return True

    @cached_property
    def _crt(self) -> Callable[[], Any] | None:
        choice = os.environ.get("RAYLIFT_S3_TRANSFER", "auto")
        try:
            from awscrt import s3
            from s3transfer import crt
        except ImportError:
            return None
        if choice == "classic" or (choice == "auto" and not s3.is_optimized_for_system()):
            return None
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(
            multipart_threshold=self._part_size,
            multipart_chunksize=self._part_size,
            preferred_transfer_client="classic",
        )
        lock = crt.acquire_crt_s3_process_lock("raylift")
        if lock is None:
            return None
        endpoint, region = self._client.meta.endpoint_url, self._client.meta.region_name
        keys = crt.BotocoreCRTCredentialsWrapper(self._session.get_credentials())
        client = crt.create_s3_crt_client(
            region,
            keys.to_crt_credentials_provider(),
            use_ssl=endpoint.startswith("https:"),
            verify=self._session._session.get_config_variable("ca_bundle"),
        )
        options = {"region_name": region, "endpoint_url": None if ".amazonaws.com" in endpoint else endpoint}
        serializer = crt.BotocoreCRTRequestSerializer(self._session._session, options)

        def manager() -> Any:
            _ = lock  # held as long as this client lives
            return crt.CRTTransferManager(client, serializer, config=config)

        return manager


def _checksum(client: Any) -> dict[str, str]:
    """Return what S3 is to compare each part with: none where the user's settings say so, for a server without.

    A processor has an instruction for CRC-32C, which takes 0.02 s of it a GB; boto3's own choice, CRC-32, takes 0.5 s.
    """
    from botocore.compat import HAS_CRT

    if client.meta.config.request_checksum_calculation != "when_supported":
        return {}
    return {"ChecksumAlgorithm": "CRC32C" if HAS_CRT else "CRC32"}
