"""What is measured afterwards is what training measured."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support

from cluster.errors import CorruptObjectError, UsageError
from cluster.runs import Run
from tests.finished import DIGITS, train
from tests.harness import command, environment, raylift
from trainers.evaluate import Evaluation, evaluate
from trainers.saved import load_saved


@pytest.fixture(scope="module")
def found(trained: Run) -> Evaluation:
    return evaluate(load_saved(trained.uri))


def last_evaluation(run: Run) -> dict[str, Any]:
    row = [row for row in run.rows("metrics") if row["kind"] == "eval"][-1]
    return {key.removeprefix("eval_"): value for key, value in row.items() if key.startswith("eval_")}


def test_a_run_measures_exactly_what_its_training_measured(trained: Run, found: Evaluation) -> None:
    assert found.metrics == last_evaluation(trained)


def test_an_export_measures_exactly_what_its_training_measured(trained: Run, exported: Path) -> None:
    assert evaluate(load_saved(str(exported))).metrics == last_evaluation(trained)


@pytest.mark.slow
def test_a_run_of_three_ranks_measures_exactly_what_its_training_measured(tmp_path: Path) -> None:
    run = train(tmp_path, ranks=3)
    assert evaluate(load_saved(run.uri)).metrics == last_evaluation(run)


def test_the_table_of_classes_is_that_of_scikit_learn(found: Evaluation) -> None:
    true, predicted = (
        np.repeat(np.indices((10, 10))[axis].ravel(), np.array(found.confusion).ravel()) for axis in (0, 1)
    )
    expected = precision_recall_fscore_support(true, predicted, zero_division=0)
    rows = found.per_class()
    for values, name in zip(expected, ("precision", "recall", "f1", "samples"), strict=True):
        np.testing.assert_allclose([row[name] for row in rows], values)


def test_another_source_is_measured_by_its_own_labels(exported: Path, tmp_path: Path) -> None:
    for label in ("3", "7"):
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.new("L", (20, 20), 5 * int(label)).save(tmp_path / "data" / label / "one.png")
    found = evaluate(load_saved(str(exported)), str(tmp_path / "data"))
    assert found.samples == 2
    assert [row["class"] for row in found.per_class() if row["samples"]] == ["3", "7"]


def test_a_job_that_evaluates_on_nothing_asks_for_data(tmp_path: Path) -> None:
    run = train(tmp_path, DIGITS.replace(", eval: {split: 0.2}", "").replace("epochs: 1", "max_steps: 1"))
    with pytest.raises(UsageError, match="--data"):
        evaluate(load_saved(run.uri))


def test_weights_that_are_not_the_models_own_are_refused(exported: Path, tmp_path: Path) -> None:
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    meta = json.loads((tmp_path / "raylift.json").read_text())
    (tmp_path / "raylift.json").write_text(json.dumps({**meta, "classes": meta["classes"][:5]}))
    with pytest.raises(CorruptObjectError, match="is not the model"):
        load_saved(str(tmp_path))


def test_the_command_prints_a_table_of_the_classes(exported: Path, found: Evaluation) -> None:
    done = raylift("evaluate", exported)
    assert done.returncode == 0, done.stderr
    assert f"accuracy {found.metrics['accuracy']:.4f}" in done.stdout
    assert len([line for line in done.stdout.splitlines() if line[:1].isdigit()]) == 10


def test_the_command_prints_json_for_programs(trained: Run, found: Evaluation) -> None:
    done = raylift("evaluate", trained.uri, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"] == found.metrics


def test_a_reader_that_goes_away_is_no_error(exported: Path) -> None:
    piped = ["sh", "-c", '"$@" | head -c 1', "sh", *command("evaluate", exported, "--json")]
    done = subprocess.run(piped, capture_output=True, text=True, timeout=120, env=environment())
    assert (done.stdout, done.stderr) == ("{", "")


def test_the_command_passes_on_what_is_wrong_and_its_exit_code(exported: Path, tmp_path: Path) -> None:
    done = raylift("evaluate", exported, "--data", tmp_path / "nothing")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "nothing" in done.stderr
    assert "Traceback" not in done.stderr
