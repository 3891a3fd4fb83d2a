"""train.parallel: fsdp by the command line, on Ray: every fault, and what a person does with the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from cluster.runs import list_runs
from cluster.storage.open import open_storage
from tests.harness import ROOT, raylift

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
    assert raylift("export", disturbed.uri, tmp_path / "model").returncode == 0
    assert load_file(tmp_path / "model" / "model.safetensors")["conv1.weight"].shape == (32, 1, 3, 3)
    measured = [raylift("evaluate", model, "--json") for model in (disturbed.uri, tmp_path / "model")]
    assert [one.returncode for one in measured] == [0, 0], measured
    first, second = (json.loads(one.stdout)["metrics"] for one in measured)
    assert first == second
