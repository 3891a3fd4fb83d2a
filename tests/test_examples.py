"""The job files under examples/, as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness import ROOT, assert_nothing_left, fresh_id, open_run, raylift
from tests.real.fake_gcs import GCSServer
from tests.real.seaweedfs import SeaweedFS

pytestmark = [pytest.mark.slow, pytest.mark.ray]

DIGITS = ROOT / "examples" / "digits.yaml"


def test_the_digits_example_reads_97_of_100_held_out_digits(tmp_path: Path) -> None:
    check_digits(str(tmp_path / "runs"))


def test_the_digits_example_does_so_with_its_run_in_s3(s3_env: SeaweedFS) -> None:
    check_digits(s3_env.fresh_uri())


def test_the_digits_example_does_so_with_its_run_in_gcs(gcs_env: GCSServer) -> None:
    check_digits(gcs_env.fresh_uri())


def check_digits(storage: str) -> None:
    run_id = fresh_id("digits")
    done = raylift("run", DIGITS, "--id", run_id, "--set", f"storage={storage}")
    assert done.returncode == 0, done.stdout + done.stderr
    status = json.loads(raylift("status", f"{storage}/{run_id}", "--json").stdout)
    assert status["state"] == "SUCCEEDED"
    assert status["metrics"]["eval_accuracy"] >= 0.97
    assert status["checkpoints"] == [115, 230, 345]
    for checkpoint in (run := open_run(storage, run_id)).checkpoints():
        run.verify(checkpoint)
    assert_nothing_left(run_id)
