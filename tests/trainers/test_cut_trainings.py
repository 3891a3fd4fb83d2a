"""A training that is killed between any two writes of a save to S3 or GCS, in parts or not, goes on as if it had not.

Between two writes nothing changes in storage: whether the process dies after one was answered, or before the next one
is sent, is the same to whoever goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cluster.runs import Run
from cluster.storage.base import Storage
from cluster.verification import Verdict, survey, sweep, verify
from tests.harness import losses
from tests.real.fake_gcs import GCSServer
from tests.real.seaweedfs import SeaweedFS
from tests.trainers.cutting import CUT, open_in_parts, train_and_kill, train_without_replies
from tests.trainers.training import Change, start, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("one_thread")]
Server = SeaweedFS | GCSServer
SMALL: Change = {
    "data": {"eval": {"split": 0.05}},
    "train": {"max_steps": CUT + 1, "batch_size": 4},
    "checkpoint": {"every": "1 step", "keep": 1},
}
LARGE: Change = {"data": {"image_size": 68}}  # the state of the optimizer is larger than the smallest part of S3
CASES = {  # the server, what is sent in one request at most, and the job
    "s3-in-parts": ("s3_env", 5 << 20, LARGE),
    "gcs-at-once": ("gcs_env", 1 << 20, {}),
    "gcs-in-parts": ("gcs_env", 200_000, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_save_that_is_cut_between_any_two_writes_is_whole_or_invisible_and_its_rest_is_swept(
    tmp_path: Path, request: pytest.FixtureRequest, case: str
) -> None:
    server, part_size, whole = _begin(tmp_path, request, case)
    job = whole.job()
    run = _new_run(server, part_size, job)
    writes = train_and_kill(run, part_size, server.env, after=1000)
    assert writes is not None
    _assert_whole(run, whole, server)
    acknowledged = max(number for number, write in enumerate(writes, 1) if not write.startswith("DELETE"))
    for after in _unlike(writes):
        run = _new_run(server, part_size, job)
        assert train_and_kill(run, part_size, server.env, after=after) is None
        for checkpoint in run.checkpoints():
            run.verify(checkpoint)
        newest = CUT if after >= acknowledged else CUT - 1
        assert run.checkpoints()[-1].step == newest
        train(run)
        assert [claim.base.step if claim.base else None for claim in run.claims()] == [None, newest]
        _assert_whole(run, whole, server)


@pytest.mark.parametrize("case", CASES)
def test_a_save_whose_every_write_loses_its_reply_is_done_all_the_same(
    tmp_path: Path, request: pytest.FixtureRequest, case: str
) -> None:
    server, part_size, whole = _begin(tmp_path, request, case)
    run = _new_run(server, part_size, whole.job())
    writes = train_without_replies(run, part_size, server.env)
    assert min(map(writes.count, writes)) > 1, "each was done again"
    assert len(run.attempts()) == 1
    _assert_whole(run, whole, server)


def _begin(folder: Path, request: pytest.FixtureRequest, case: str) -> tuple[Server, int, Run]:
    """Return a case's server, what it is sent at once, and a run in a folder that met no fault."""
    fixture, part_size, change = CASES[case]
    whole = start(folder, SMALL, change)
    train(whole)
    return request.getfixturevalue(fixture), part_size, whole


def _new_run(server: Server, part_size: int, job: bytes) -> Run:
    run = Run(open_in_parts(server.fresh_uri(), part_size), "cut")
    run.create(job)
    return run


def _unlike(writes: Sequence[str]) -> Iterator[int]:
    """Yield how many writes are done before a cut: any number, but of a row of alike ones those at its ends alone.

    Alike are deletions, and in S3 files that are sent at once; in GCS, where a request does not tell, these are not.
    """
    kinds = [write.partition(" ")[0] if "?" not in write or write.startswith("DELETE") else write for write in writes]
    for number in range(len(writes)):
        if number < 2 or len({*kinds[number - 2 : number + 1]}) > 1 or "?" in kinds[number]:
            yield number
    yield len(writes) - 1


def _assert_whole(run: Run, whole: Run, server: Server) -> None:
    """Fail where a run that was swept is not as the other, or has more than it needs."""
    sweep(run, verify(run, survey(run)))
    assert losses(run) == losses(whole)
    assert run.checkpoints()[-1].files == whole.checkpoints()[-1].files
    assert {finding.verdict for finding in verify(run, survey(run)).findings} == {Verdict.INTACT}
    known = {run.path(f"{one.folder}/{name}") for one in run.checkpoints() for name in (*one.files, "manifest.json")}
    assert [path for path in _stored(run.storage, server) if "/checkpoints/" in path and path not in known] == []


def _stored(storage: Storage, server: Server) -> list[str]:
    """Return all that there is in a storage, and all that was begun, as the server has it."""
    bucket, _, prefix = storage.uri.partition("://")[2].partition("/")
    if isinstance(server, GCSServer):
        names = [blob.name for blob in server.client.list_blobs(bucket, prefix=prefix)]
    else:
        found = server.client.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
        begun = server.client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", [])
        names = [one["Key"] for one in found] + [f"{one['Key']} in parts" for one in begun]
    return [name.removeprefix(f"{prefix}/") for name in names]
