"""The machine of a run is a spot one, and its cloud takes it away."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from tests.faults.screens import wait_for_nothing_left
from tests.harness import ROOT, assert_clean, fresh_id, losses, open_run, raylift, start_raylift, wait_for
from tests.real.proxy import proxy
from tests.real.seaweedfs import SeaweedFS
from tests.stand_ins.metadata import Metadata, in_seconds

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

SLOW = """

class Slow(Diabetes):
    def loss(self, model, batch):
        time.sleep(self.params["pause"])
        return super().loss(model, batch)
"""
PAUSE = 0.03  # seconds a step, of which there are 440: time for a notice, which is looked for every second
LEFT = 20  # seconds
HANGS = 60.0
SLACK = 10.0  # of a busy machine, which saves once faster and once slower


def write_slow_job(folder: Path, every: str) -> Path:
    (folder / "diabetes.py").write_text("import time\n" + (ROOT / "examples" / "diabetes.py").read_text() + SLOW)
    job = (ROOT / "examples" / "diabetes.yaml").read_text().replace("diabetes:Diabetes", "diabetes:Slow")
    job = job.replace("dropout: 0.2", f"dropout: 0.2, pause: {PAUSE}").replace("5 epochs", every)
    (folder / "job.yaml").write_text(job)
    return folder / "job.yaml"


def test_a_notice_of_the_cloud_has_a_run_save_and_end_and_another_machine_goes_on_with_it(
    tmp_path: Path, metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in metadata.env("gcp").items():
        monkeypatch.setenv(name, value)
    write_slow_job(tmp_path, "1000 epochs")
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


def test_where_a_save_hangs_the_last_one_is_there_before_the_machine_goes(
    tmp_path: Path, metadata: Metadata, s3_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in metadata.env("aws").items():
        monkeypatch.setenv(name, value)
    job, run = write_slow_job(tmp_path, "2 epochs"), open_run(uri := s3_env.fresh_uri(), fresh_id("spot"))
    hangs = threading.Event()
    with proxy(s3_env.port) as link:

        def hang(head: str) -> float:
            """Hold up a file of a checkpoint, once some are there, for longer than the machine is there."""
            is_save = head.startswith("PUT") and "model.safetensors" in head
            if hangs.is_set() or not is_save or len(run.checkpoints()) <= 2:
                return 0.0
            hangs.set()
            return HANGS

        link.hold = hang
        monkeypatch.setenv("AWS_ENDPOINT_URL", link.endpoint)
        with start_raylift("run", job, "--id", run.id, "--storage", uri, cwd=tmp_path) as process:
            assert hangs.wait(240)
            metadata.time, metadata.preempted = in_seconds(LEFT), True
            gone = time.time() + LEFT
            output, _ = process.communicate(timeout=120)
    assert process.returncode == 3, output
    rows = {row["event"]: row for row in run.rows_of(1, "events")}
    assert rows["preempted"]["step"] == run.checkpoints()[-1].step
    assert rows["preempted"]["time"] < gone + SLACK, list(run.rows_of(1, "events"))
    assert rows["checkpoint.skipped"]["step"] < rows["preempted"]["step"]
    wait_for_nothing_left(run.id)
