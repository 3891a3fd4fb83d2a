"""Storage that is away for longer than anybody retries: training goes on, and what it did is saved when it is back.

RAYLIFT_TEST_OUTAGE=600 makes it ten minutes, and the training as much longer.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.runs import Run
from cluster.storage.open import open_storage
from tests.harness import environment, losses, wait_for
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
pytestmark = [pytest.mark.slow, pytest.mark.timeout(510 + AWAY)]


def test_a_server_that_is_killed_and_started_again_costs_no_step_and_no_checkpoint(
    tmp_path: Path, own_s3_env: SeaweedFS
) -> None:
    whole = start(tmp_path, EVERYTHING, LONG, run_id="whole")
    run = Run(open_storage(own_s3_env.fresh_uri()), "outage")
    run.create(whole.job())
    _, errors = _train(whole).communicate(timeout=120 + AWAY)
    process = _train(run)
    wait_for(run.checkpoints, "the first checkpoint")
    own_s3_env.stop()
    gone = time.time()
    time.sleep(AWAY)
    back = time.time()
    own_s3_env.start_again()
    _, errors = process.communicate(timeout=240 + AWAY)
    assert process.returncode == 0, errors
    assert losses(run) == losses(whole)
    steps = [row["step"] for row in run.rows("metrics") if row["kind"] == "step" and gone < row["time"] < back]
    assert len(steps) > 20, "training went on"
    assert run.checkpoints()[-1].step == 4 * EPOCHS
    assert run.newest_intact() is not None
    result = run.result()
    assert result is not None
    assert result.state == "SUCCEEDED"


def _train(run: Run) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "trainers.worker", run.uri]
    one_thread = {**environment(), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=one_thread)
