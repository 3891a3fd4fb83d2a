"""A task of the user's own, as a person runs it: killed and resumed, swept, exported, and where it fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT, assert_nothing_left, fresh_id, open_run, raylift

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture
def diabetes(tmp_path: Path) -> Path:
    """Return the example's job file, in a folder of its own."""
    for name in ("diabetes.yaml", "diabetes.py"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    return tmp_path / "diabetes.yaml"


def test_the_example_of_a_task_of_ones_own_is_resumed_exactly_evaluated_and_exported(diabetes: Path) -> None:
    options = ["--kill-worker", "--steps", "60", "--keep", "--json", "--set", "train.parallel=fsdp"]
    rehearsed = raylift("rehearse", diabetes, *options, cwd=diabetes.parent)
    assert rehearsed.returncode == 0, rehearsed.stdout + rehearsed.stderr
    verdict = json.loads(rehearsed.stdout)
    assert verdict["passed"]
    run = verdict["disturbed"]
    # a run stays with the code that it began with
    (diabetes.parent / "diabetes.py").write_text("class Diabetes: ...\n")
    evaluated = raylift("evaluate", run, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    metrics = json.loads(evaluated.stdout)["metrics"]
    assert json.loads(raylift("status", run, "--json").stdout)["metrics"]["eval_loss"] == pytest.approx(metrics["loss"])
    model = diabetes.parent / "model"
    assert raylift("export", run, model).returncode == 0
    assert json.loads(raylift("evaluate", model, "--json").stdout)["metrics"] == metrics
    code = (model / "README.md").read_text().split("```python\n")[1].split("```")[0]
    loaded = subprocess.run([sys.executable, "-c", f"{code}\nprint(model)"], cwd=model, capture_output=True, text=True)
    assert "Linear(in_features=10, out_features=64" in loaded.stdout, loaded.stderr


def test_params_are_searched(diabetes: Path) -> None:
    run_id = fresh_id("own-sweep")
    space = "tune={trials: 4, scheduler: none, search: grid, space: {params.width: [4, 64], params.dropout: [0, 0.2]}}"
    options = ["--id", run_id, "--set", space, "--set", "train.epochs=5"]
    done = raylift("run", diabetes, *options, cwd=diabetes.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    trials = json.loads(raylift("trials", run_id, "--json", cwd=diabetes.parent).stdout)["trials"]
    assert {(one["point"]["params.width"], one["point"]["params.dropout"]) for one in trials} == {
        (4, 0),
        (4, 0.2),
        (64, 0),
        (64, 0.2),
    }
    assert raylift("evaluate", f"{run_id}/trials/1", cwd=diabetes.parent).returncode == 0
    assert_nothing_left(run_id)


def test_a_gpu_that_fails_each_trial_costs_a_sweep_none(diabetes: Path) -> None:
    """What torch says of one that fails is raised here where a file says so."""
    source, broken = (diabetes.parent / "diabetes.py").read_text(), diabetes.parent / "broken"
    fails = "if __import__('pathlib').Path(model.where).exists(): raise RuntimeError('CUDA error: unspecified failure')"
    source = source.replace(
        "    def loss(self, model, batch):\n", f"    def loss(self, model, batch):\n        {fails}\n"
    )
    source = source.replace("model.where", repr(str(broken)))
    (diabetes.parent / "diabetes.py").write_text(source)
    broken.touch()
    run_id = fresh_id("own-sweep")
    space = "tune={scheduler: none, search: grid, space: {params.width: [4, 8, 16, 32, 64]}}"
    options = ["--id", run_id, "--set", space, "--set", "train.epochs=2", "--set", "train.max_failures=1"]
    done = raylift("run", diabetes, *options, "--set", "cluster.workers=1", cwd=diabetes.parent)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "accelerators have failed 3 trials; the last, 00002: rank 0's GPU on " in done.stdout, done.stdout
    assert f"raylift resume {diabetes.parent / 'runs' / run_id}" in done.stdout
    assert {*states(run_id, diabetes.parent)} == {"STOPPED"}  # also one that was begun ahead
    broken.unlink()
    resumed = raylift("resume", run_id, cwd=diabetes.parent)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert states(run_id, diabetes.parent) == ["SUCCEEDED"] * 5
    assert_nothing_left(run_id)


def states(run_id: str, where: Path) -> list[str]:
    trials = json.loads(raylift("trials", run_id, "--json", cwd=where).stdout)["trials"]
    return [trial["state"] for trial in sorted(trials, key=lambda trial: trial["trial"])]


def test_an_exception_of_theirs_is_shown_with_their_lines_alone_and_not_tried_again(diabetes: Path) -> None:
    source = (diabetes.parent / "diabetes.py").read_text()
    broken = source.replace(
        "    def loss(self, model, batch):\n", "    def loss(self, model, batch):\n        self.count()\n"
    )
    broken += (
        "\n    def count(self):\n        self.steps = getattr(self, 'steps', 0) + 1\n        1 / (self.steps < 20)\n"
    )
    (diabetes.parent / "diabetes.py").write_text(broken)
    run_id = fresh_id("own-fails")
    done = raylift("run", diabetes, "--id", run_id, cwd=diabetes.parent)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = broken.splitlines()
    inner, outer = lines.index("        1 / (self.steps < 20)") + 1, lines.index("        self.count()") + 1
    message = f"ZeroDivisionError: division by zero, in diabetes.py, line {inner}, in count (rank "
    for said in (done.stdout, raylift("status", run_id, cwd=diabetes.parent).stdout):
        assert message in said
        assert f'File "diabetes.py", line {outer}, in loss\n    self.count()\n' in said
        assert f'File "diabetes.py", line {inner}, in count\n' in said
        assert str(ROOT / "trainers") not in said
    run = open_run(diabetes.parent / "runs", run_id)
    assert run.attempts() == [1]
    assert_nothing_left(run_id)
