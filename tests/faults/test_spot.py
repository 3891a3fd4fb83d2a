"""The machine of a run is a spot one, and its cloud takes it away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.screens import wait_for_nothing_left
from tests.harness import ROOT, assert_clean, fresh_id, losses, open_run, raylift, start_raylift, wait_for
from tests.stand_ins.metadata import Metadata

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

SLOW = """

class Slow(Diabetes):
    def loss(self, model, batch):
        time.sleep(self.params["pause"])
        return super().loss(model, batch)
"""
PAUSE = 0.03  # seconds a step, of which there are 440: time for a notice, which is looked for every five seconds


def test_a_notice_of_the_cloud_has_a_run_save_and_end_and_another_machine_goes_on_with_it(
    tmp_path: Path, metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in metadata.env("aws").items():
        monkeypatch.setenv(name, value)
    (tmp_path / "diabetes.py").write_text("import time\n" + (ROOT / "examples" / "diabetes.py").read_text() + SLOW)
    job = (ROOT / "examples" / "diabetes.yaml").read_text().replace("diabetes:Diabetes", "diabetes:Slow")
    job = job.replace("dropout: 0.2", f"dropout: 0.2, pause: {PAUSE}").replace("5 epochs", "1000 epochs")
    (tmp_path / "job.yaml").write_text(job)
    run, whole = (open_run(tmp_path / "runs", fresh_id(name)) for name in ("spot", "whole"))
    with start_raylift("run", tmp_path / "job.yaml", "--id", run.id, cwd=tmp_path) as process:
        wait_for(lambda: run.attempts() and run.rows_of(1, "metrics"), "the first steps")
        metadata.preempted = True
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 3, output
    (saved,) = [row["step"] for row in run.rows_of(1, "events") if row["event"] == "preempted"]
    told = json.loads(raylift("status", run.uri, "--json").stdout)
    reason = f"preempted: its machine was taken away, all up to step {saved} is saved"
    assert (told["state"], told["reason"]) == ("RECOVERING", reason)
    wait_for_nothing_left(run.id)
    metadata.preempted = False  # this is another machine
    resumed = raylift("resume", run.uri)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert [claim.base.step if claim.base else None for claim in run.claims()] == [None, saved]
    assert max(row["step"] for row in run.rows_of(1, "metrics")) == saved, "no step is done twice"
    assert_clean(run)
    fast = ("--set", "params.pause=0")
    assert raylift("run", tmp_path / "job.yaml", "--id", whole.id, *fast, cwd=tmp_path).returncode == 0
    assert losses(run) == losses(whole)
