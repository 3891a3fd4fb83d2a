"""A process that is killed at any one of the requests of its save to S3: the save is whole, or invisible."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from cluster.records import Result
from cluster.runs import Run
from cluster.storage.open import open_storage
from cluster.verification import Verdict, survey, sweep, verify
from tests.cluster.saves import make_files, steps
from tests.harness import environment
from tests.real.proxy import proxy
from tests.real.seaweedfs import SeaweedFS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SAVE = """
import sys
from pathlib import Path
from cluster.attempts import Attempt
from cluster.runs import Run
attempt = Attempt.reopen(Run.at(sys.argv[1]), 1)
print("ready", flush=True)
sys.stdin.readline()
attempt.commit(20, sorted(Path(sys.argv[2]).iterdir()), {})
attempt.retain(1)
"""
LARGE = 17 << 20  # bytes: sent in parts


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_save_that_is_cut_at_any_request_is_whole_or_invisible_and_its_rest_is_swept(
    tmp_path: Path, s3_env: SeaweedFS, when: Literal["before", "after"]
) -> None:
    """The request that the kill comes with is either lost or done: then its reply is."""
    files = tmp_path / "files"
    files.mkdir()
    make_files(files, 20)
    (files / "large.bin").write_bytes(bytes(LARGE))
    for cut in itertools.count(1):
        run = Run(open_storage(s3_env.fresh_uri()), "cut")
        run.create(b"")
        run.claim().commit(10, make_files(tmp_path, 10), {})
        killed = _save_and_kill(run, files, s3_env, cut, lost=when == "before")
        assert steps(run) in ([10], [20], [10, 20])
        for checkpoint in run.checkpoints():
            run.verify(checkpoint)
        newest = run.newest_intact(read=True)
        assert newest is not None
        if not killed:
            assert steps(run) == [20]
            break
        _go_on_and_sweep(run, newest.step, tmp_path)
        left = s3_env.client.list_multipart_uploads(Bucket=s3_env.bucket).get("Uploads", [])
        assert [upload for upload in left if upload["Key"].startswith(run.storage.uri.rpartition("/")[2])] == []
        assert {finding.verdict for finding in verify(run, survey(run)).findings} == {Verdict.INTACT}
    assert cut > 10, "a save has many requests"


def _save_and_kill(run: Run, files: Path, server: SeaweedFS, cut: int, *, lost: bool) -> bool:
    """Save in a process that is killed at its request number `cut`; return whether it was."""
    with proxy(server.port) as link:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", SAVE, run.uri, str(files)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environment(), "AWS_ENDPOINT_URL": link.endpoint},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"

        def before(number: int) -> bool:
            if number < cut:
                return False
            process.kill()
            return lost or number > cut

        link.heads.clear()
        link.before = before
        process.communicate(b"go\n", timeout=60)
    return process.returncode != 0


def _go_on_and_sweep(run: Run, base: int, folder: Path) -> None:
    attempt = run.claim()
    assert attempt.claim.base is not None
    assert attempt.claim.base.step == base
    attempt.commit(30, make_files(folder, 30), {})
    attempt.finish(Result(state="SUCCEEDED", step=30))
    sweep(run, verify(run, survey(run)))
