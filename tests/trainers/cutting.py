"""A training in a process of its own that is killed between two writes of one of its saves, or gets no reply to any."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import pytest
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import ProtocolError

from cluster.runs import Run
from cluster.storage.base import Storage

CUT = 2  # the step whose save it is
_PRELOADED = (
    "boto3",
    "google.cloud.storage",
    "tests.trainers.training",
    "torch._dynamo",
    "trainers.checkpoint",
    "trainers.loop",
)
_HANGS = 240  # seconds
_SEND = HTTPConnectionPool.urlopen


def open_in_parts(uri: str, part_size: int) -> Storage:
    """Return the storage at a bucket's URI, which sends what is larger than a part in parts of this size."""
    scheme, _, place = uri.partition("://")
    bucket, _, prefix = place.partition("/")
    if scheme == "s3":
        from cluster.storage.s3 import S3Storage

        return S3Storage(bucket, prefix, part_size=part_size)
    from cluster.storage.gcs import GCSStorage

    return GCSStorage(bucket, prefix, part_size=part_size)


def train_and_kill(run: Run, part_size: int, env: Mapping[str, str], *, after: int) -> list[str] | None:
    """Train in a process that is killed at once when so many writes of its save are answered.

    Returns all of the save's writes where it has no more than that, so that the training came to its end.
    """
    return _in_a_process(run, part_size, env, after)


def train_without_replies(run: Run, part_size: int, env: Mapping[str, str]) -> list[str]:
    """Train in a process whose every write of its save is done, gets no reply, and is done again; return them."""
    writes = _in_a_process(run, part_size, env, None)
    assert writes is not None
    return writes


def _in_a_process(run: Run, part_size: int, env: Mapping[str, str], after: int | None) -> list[str] | None:
    """Fork it from a process that has imported everything, which is quick, and wait for its end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOADED])
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(run.storage.uri, run.id, part_size, dict(env), after, tell))
    process.start()
    tell.close()
    process.join(_HANGS)
    with told:
        if process.exitcode == -signal.SIGKILL:
            return None
        assert process.exitcode == 0, f"it ended with {process.exitcode}"
        return list(told.recv())


def _train(uri: str, run_id: str, part_size: int, env: Mapping[str, str], after: int | None, tell: Connection) -> None:
    os.environ.update(env)
    import torch

    from tests.trainers.training import train
    from trainers.checkpoint import Checkpointer, Snapshot

    torch.set_num_threads(1)
    requests, write = _Requests(after), Checkpointer._write

    def watched_write(checkpointer: Checkpointer, snapshot: Snapshot) -> None:
        requests.are_watched = snapshot.step == CUT
        write(checkpointer, snapshot)
        requests.are_watched = False

    patch = pytest.MonkeyPatch()
    patch.setattr(Checkpointer, "_write", watched_write)
    patch.setattr(HTTPConnectionPool, "urlopen", lambda pool, *args, **options: requests.send(pool, *args, **options))
    patch.setattr("trainers.control._POLL", 60.0)  # nothing comes between the requests of a save
    patch.setattr("cluster.segments._FIRST_INTERVAL", 60.0)
    patch.setattr("cluster.storage.s3_retries.backoff", lambda _: 0.01)
    patch.setattr("cluster.storage.gcs_retries.backoff", lambda _: 0.01)
    train(Run(open_in_parts(uri, part_size), run_id))
    tell.send(requests.writes)


class _Requests:
    """All requests of this process: the clients of both clouds send them through urllib3."""

    def __init__(self, after: int | None) -> None:
        """Kill this process after so many writes, or else have each write lose its reply once."""
        self._after = after
        self._counting = threading.Lock()
        self._thread = threading.local()  # what comes next in a thread that got no reply is the same write again
        self.are_watched = False
        self.writes: list[str] = []

    def send(self, pool: Any, method: str, url: str, *arguments: Any, **options: Any) -> Any:
        if not self.are_watched or method in ("GET", "HEAD"):
            return _SEND(pool, method, url, *arguments, **options)
        self._die_if_over()
        reply = _SEND(pool, method, url, *arguments, **options)
        with self._counting:
            self.writes.append(f"{method} {url}")
            self._die_if_over()
        self._thread.is_lost = self._after is None and not getattr(self._thread, "is_lost", False)
        if self._thread.is_lost:
            reply.close()
            raise ProtocolError("Connection aborted.", ConnectionResetError())
        return reply

    def _die_if_over(self) -> None:
        if len(self.writes) == self._after:
            os.kill(os.getpid(), signal.SIGKILL)
