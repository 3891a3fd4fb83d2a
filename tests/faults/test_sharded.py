"""train.parallel: fsdp by the command line, on Ray: every fault, and what a person does with the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from cluster.runs import list_runs
from cluster.storage.open import open_storage
from tests.faults.screens import DIGITS, write_job
from tests.harness import ROOT, assert_clean, fresh_id, losses, open_run, raylift
from tests.trainers.training import cut_off

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]


def test_a_sharded_training_goes_through_every_fault_and_its_model_is_exported_and_measured(tmp_path: Path) -> None:
    job, runs = ROOT / "examples" / "digits.yaml", tmp_path / "runs"
    sharded = ("--set", "train.parallel=fsdp")
    done = raylift("rehearse", job, *sharded, "--storage", runs, "--keep", "--json", timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["verdict"]["equal"] is True
    assert len(told["faults"]) == 4  # the outage is for a bucket
    disturbed = next(run for run in list_runs(open_storage(str(runs))) if len(run.attempts()) > 1)
    names = disturbed.checkpoints()[-1].files
    assert {f"model-rank-{rank}-of-2.safetensors" for rank in range(2)} < set(names)
    assert raylift("verify", disturbed.uri).returncode == 0
    assert_clean(disturbed)
    assert raylift("export", disturbed.uri, tmp_path / "model").returncode == 0
    assert load_file(tmp_path / "model" / "model.safetensors")["conv1.weight"].shape == (32, 1, 3, 3)
    measured = [raylift("evaluate", model, "--json") for model in (disturbed.uri, tmp_path / "model")]
    assert [one.returncode for one in measured] == [0, 0], measured
    first, second = (json.loads(one.stdout)["metrics"] for one in measured)
    assert first == second


def test_parts_that_are_damaged_are_passed_over_by_all_ranks_for_a_checkpoint_that_is_not(tmp_path: Path) -> None:
    text = DIGITS.replace("seed: 5", "seed: 5, parallel: fsdp, max_failures: 0").replace("5 steps", "5 steps, keep: 9")
    whole = open_run(tmp_path / "runs", fresh_id("damaged"))
    done = raylift("run", write_job(tmp_path, text), "--id", whole.id, "--storage", tmp_path / "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    run = cut_off(whole, 45, tmp_path / "cut")
    for step, part in ((45, "model-rank-1-of-2"), (40, "optimizer-rank-0-of-2")):
        path = Path(run.uri, f"attempts/000001/checkpoints/{step:09d}/{part}.safetensors")
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    done = raylift("resume", run.uri)
    assert done.returncode == 0, done.stdout + done.stderr
    words = [f"warning: the checkpoint of step {step} is damaged and passed over" for step in (45, 40)]
    words += ["recovering: the checkpoint of step 45 cannot be restored", "goes on from the checkpoint of step 35"]
    assert [done.stdout.count(each) for each in words] == [1] * 4, done.stdout
    assert [claim.base and claim.base.step for claim in run.claims()] == [None, 45, 35]
    assert losses(run) == losses(whole)
