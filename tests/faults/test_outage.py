"""Storage that is away for longer than anybody retries: training goes on, and what it did is saved when it is back.

RAYLIFT_TEST_OUTAGE=600 makes it ten minutes, and the training as much longer.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from cluster.local import LocalProvider
from cluster.runs import Run
from cluster.storage.open import open_storage
from tests.faults.checker import assert_as_it_must_be
from tests.faults.screens import long_job, wait_for_nothing_left, write_job
from tests.harness import assert_clean, environment, find_process, fresh_id, kill, losses, open_run, raylift, wait_for
from tests.real.fake_gcs import GCSServer
from tests.real.proxy import Proxy, proxy
from tests.real.seaweedfs import SeaweedFS
from tests.trainers.training import EVERYTHING, Change, start

AWAY = float(
    os.environ.get("RAYLIFT_TEST_OUTAGE", "75")
)  # seconds; a client's requests are repeated for about a minute
EPOCHS = int(60 * AWAY / 90)
LONG: Change = {
    "train": {"epochs": EPOCHS, "early_stopping": None},
    "checkpoint": {"every": "20 steps", "keep": 3},
}
KILLED_AWAY = 15.0  # seconds; a process that storage has never answered tries for no more than two
pytestmark = [pytest.mark.slow, pytest.mark.timeout(510 + AWAY)]


def test_servers_that_are_gone_for_long_cost_no_step_and_no_checkpoint(
    tmp_path: Path, own_s3_env: SeaweedFS, gcs_env: GCSServer
) -> None:
    """One of S3 is killed and started again, one of GCS no longer answers: two runs, at the same time."""
    whole = start(tmp_path, EVERYTHING, LONG, run_id="whole")
    runs = [Run(open_storage(server.fresh_uri()), "outage") for server in (own_s3_env, gcs_env)]
    with proxy(gcs_env.port) as link, ExitStack() as processes:
        for run in runs:
            run.create(whole.job())
        started = [processes.enter_context(_train(run, STORAGE_EMULATOR_HOST=link.endpoint)) for run in runs]
        for process in started:
            processes.callback(process.kill)
        with ThreadPoolExecutor(2) as pool:
            gone = list(pool.map(_lose, runs, (own_s3_env.stop, partial(_silence, link))))
        _train(whole).communicate(timeout=180 + AWAY)
        time.sleep(max(0.0, max(gone) + AWAY - time.time()))
        back = time.time()
        own_s3_env.start_again()
        link.outage = None
        link.cut()
        for process in started:
            _, errors = process.communicate(timeout=240 + AWAY)
            assert process.returncode == 0, errors
    for run, since in zip(runs, gone, strict=True):
        assert losses(run) == losses(whole)
        steps = [row["step"] for row in run.rows("metrics") if row["kind"] == "step" and since < row["time"] < back]
        assert len(steps) > 20, "training went on"
        assert run.checkpoints()[-1].step == 4 * EPOCHS
        assert_clean(run)
        result = run.result()
        assert result is not None
        assert result.state == "SUCCEEDED"


def _lose(run: Run, away: Callable[[], object]) -> float:
    """Have a run's storage go away at its first checkpoint; return when that was."""
    wait_for(run.checkpoints, "the first checkpoint")
    away()
    return time.time()


@pytest.mark.waiting
@pytest.mark.ray
def test_a_rank_and_a_driver_that_die_while_storage_is_away_are_replaced_when_it_is_back(
    tmp_path: Path, own_s3_env: SeaweedFS, gcs_env: GCSServer, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of S3 is stopped, one of GCS no longer answers: two runs, at the same time."""
    job = write_job(tmp_path, long_job("7 steps", max_failures=2))
    runs = [open_run(server.fresh_uri(), fresh_id("outage")) for server in (own_s3_env, gcs_env)]
    with proxy(gcs_env.port) as link, ExitStack() as ends:
        with monkeypatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", link.endpoint)
            for run in runs:
                arguments = ("--id", run.id, "--storage", run.storage.uri)
                done = raylift("run", job, *arguments, "--detach")  # who follows it may lose sight of it
                ends.callback(LocalProvider().teardown, run.id)
                assert done.returncode == 0, done.stdout + done.stderr
        for run in runs:
            wait_for(run.attempts, "the first attempt")
            wait_for(run.checkpoints, "the first checkpoint")
        own_s3_env.stop()
        _silence(link)
        for what in ("worker", "driver"):
            time.sleep(2)
            for run in runs:
                victim = find_process(run.id, what)
                assert victim is not None, f"there is no {what} to kill"
                kill(victim)
        time.sleep(KILLED_AWAY)
        own_s3_env.start_again()
        link.outage = None
        for run in runs:
            wait_for(run.result, "the end", timeout=200)
            assert {number: result.state for number, result in run.results().items()} == {2: "SUCCEEDED"}
            assert losses(run) == losses(undisturbed)
            wait_for_nothing_left(run.id)
            assert_as_it_must_be(run, undisturbed, faults=2)
            assert_clean(run)


def _silence(link: Proxy) -> None:
    link.outage = "silent"
    link.cut()


def _train(run: Run, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "trainers.worker", run.uri]
    one_thread = {**environment(), "OMP_NUM_THREADS": "1", **env}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=one_thread)
