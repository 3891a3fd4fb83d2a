"""A rank that the system kills for lack of memory: said as such, and not tried for ever."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.faults.screens import DIGITS, assert_ended, write_job
from tests.harness import ROOT, fresh_id, open_run, start_raylift
from tests.real.memory_limit import memory_limit

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.root, pytest.mark.timeout(600)]

LARGE = DIGITS.replace("split: 0.2}}", "split: 0.2}, image_size: 128}").replace("batch_size: 64", "batch_size: 1438")
# beside Diabetes of examples/diabetes.py
GREEDY = """

class Greedy(Diabetes):
    steps = 0

    def loss(self, model, batch):
        self.steps += model.training
        begun = Path("MARKER")
        if torch.distributed.get_rank() == 0 and self.steps == (10 if begun.exists() else 50):
            begun.touch()
            self.hoard = np.ones(500_000_000)
        return super().loss(model, batch)
"""
LIMIT = 3_000_000_000  # bytes, of which Ray, the driver and two ranks that have not begun take half


def test_a_run_without_enough_memory_says_so_and_gives_up_after_three_tries(tmp_path: Path) -> None:
    run = open_run(tmp_path / "runs", fresh_id("memory"))
    job = write_job(tmp_path, LARGE)
    with memory_limit(LIMIT) as limit:  # noqa: SIM117 - its processes end before it does
        with start_raylift("run", job, "--id", run.id, "--storage", run.storage.uri) as process:
            limit.add(process.pid)
            output, _ = process.communicate(timeout=400)
            words = ("GB at most); the system killed a process for lack of memory", "third time in a row after step 0")
            status = [row["reason"] for row in run.rows("events") if row["event"] == "recovering"]
            assert len(run.attempts()) == 3, output
            named = r"rank \d died\b.*; the system killed a process for lack of memory"
            assert all(re.match(named, reason) for reason in status), status
            assert_ended(output[output.index("FAILED in") :], process.returncode, run, 1, "FAILED", *words)


def test_a_run_whose_memory_runs_out_at_a_later_step_says_at_which_and_keeps_what_it_had_saved(tmp_path: Path) -> None:
    task = (ROOT / "examples" / "diabetes.py").read_text() + GREEDY.replace("MARKER", str(tmp_path / "begun"))
    (tmp_path / "diabetes.py").write_text(f"from pathlib import Path\n{task}")
    job = (ROOT / "examples" / "diabetes.yaml").read_text().replace("diabetes:Diabetes", "diabetes:Greedy")
    path = write_job(tmp_path, job.replace("5 epochs", "20 steps"))
    run = open_run(tmp_path / "runs", fresh_id("greedy"))
    with memory_limit(LIMIT) as limit:
        patient = ("--set", "train.step_timeout=60")  # a busy machine needs longer to run out than a step may take
        where = ("--id", run.id, "--storage", run.storage.uri)
        with start_raylift("run", path, *where, *patient, cwd=tmp_path) as process:
            limit.add(process.pid)
            output, _ = process.communicate(timeout=400)
    assert len(run.attempts()) == 3, output
    words = ("the system killed a process for lack of memory", "third time in a row after step 49")
    assert_ended(output[output.index("FAILED in") :], process.returncode, run, 1, "FAILED", *words)
    restored = [row["step"] for row in run.rows("events") if row["event"] == "restored"]
    assert restored == [40, 40]
    assert [checkpoint.step for checkpoint in run.checkpoints()][-1] == 40
