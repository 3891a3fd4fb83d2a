"""What the quick commands ask of a bucket: no more requests than a listing takes, whatever it holds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.records import Result
from cluster.runs import Run
from cluster.storage.open import open_storage
from launcher.cli.ps import ps_command
from launcher.cli.status import status_command
from tests.finished import DIGITS
from tests.real.proxy import Proxy, proxy
from tests.real.seaweedfs import SeaweedFS
from tests.sweeps import searched

_PAGE = 1000  # names that S3 lists at once


def asked(standing: Proxy) -> tuple[int, int]:
    """Return how many listings went over folders, and how many other requests there were; forget them."""
    listings = sum("delimiter" in head.splitlines()[0] for head in standing.heads)
    others = len(standing.heads) - listings
    standing.heads.clear()
    return listings, others


@pytest.mark.slow
def test_ps_asks_once_a_thousand_runs_and_a_few_times_a_run_that_it_shows(
    s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = s3_env.fresh_uri()
    storage = open_storage(uri)
    prefix = uri.partition("//")[2].partition("/")[2]
    ids = [f"digits-2501{number:08d}-{number % 65536:04x}" for number in range(2 * _PAGE + 50)]
    with ThreadPoolExecutor(16) as pool:
        put = s3_env.client.put_object
        list(pool.map(lambda name: put(Bucket=s3_env.bucket, Key=f"{prefix}/{name}/job.yaml", Body=b"x"), ids[:-30]))
    for name in ids[-30:]:
        run = Run(storage, name)
        run.create(DIGITS.encode())
        run.claim().finish(Result(state="SUCCEEDED", step=7))
    with proxy(s3_env.port) as standing:
        monkeypatch.setenv("AWS_ENDPOINT_URL", standing.endpoint)
        ps_command(uri, limit=20)
        listings, others = asked(standing)
    out = capsys.readouterr().out
    assert out.count("SUCCEEDED") == 20
    assert f"… and {len(ids) - 20} older" in out
    of_the_bucket, a_run = -(-len(ids) // _PAGE), 1  # the attempts of each that is shown
    assert listings == of_the_bucket + 20 * a_run
    assert others <= 20 * 5


def test_the_status_of_a_sweep_asks_little_more_for_many_more_trials(
    tmp_path: Path, s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for count in (10, 400):
        local, _ = searched(tmp_path / str(count), count, each=True)
        storage = open_storage(s3_env.fresh_uri())
        for entry in local.storage.list(local.path("")):
            storage.write(entry.path, local.storage.read(entry.path))
        with proxy(s3_env.port) as standing, monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", standing.endpoint)
            status_command(Run(open_storage(storage.uri), local.id).uri)
            found.append(sum(asked(standing)))
        assert f"{count - 3} of 400 trials done" in capsys.readouterr().out
    assert found[1] < found[0] + 99  # what is not merged yet
    assert found[0] < 50
