"""Which checkpoint a person means, and that it is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.attempts import Attempt
from cluster.errors import TrainingError, UsageError
from cluster.runs import Run
from cluster.selection import MODEL_PART, best_of, choose, fetch_model
from cluster.storage.open import open_storage


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(open_storage(str(tmp_path / "runs")), "a-run")
    run.create(b"name: a\n")
    return run


@pytest.fixture
def attempt(run: Run) -> Attempt:
    return run.claim()


def save(attempt: Attempt, tmp_path: Path, step: int, **metrics: float) -> None:
    files = [tmp_path / name for name in MODEL_PART]
    for file in files:
        file.write_bytes(f"{file.name} of step {step}".encode())
    attempt.commit(step, files, {"metrics": metrics})


def damage(run: Run, step: int) -> None:
    folder = next(one.folder for one in run.checkpoints() if one.step == step)
    run.storage.write(run.path(f"{folder}/model.safetensors"), b"not what was written")


def test_the_best_checkpoint_is_that_of_the_highest_accuracy(attempt: Attempt, run: Run, tmp_path: Path) -> None:
    for step, accuracy in ((10, 0.7), (20, 0.9), (30, 0.8)):
        save(attempt, tmp_path, step, eval_accuracy=accuracy, eval_loss=1.0)
    assert [one.step for one in choose(run, "best")] == [20]


def test_without_accuracy_the_best_checkpoint_is_that_of_the_lowest_loss(
    attempt: Attempt, run: Run, tmp_path: Path
) -> None:
    for step, loss in ((10, 0.7), (20, 0.2), (30, 0.8)):
        save(attempt, tmp_path, step, eval_loss=loss)
    assert [one.step for one in choose(run, "best")] == [20]


def test_of_equal_accuracies_the_lower_loss_is_best(attempt: Attempt, run: Run, tmp_path: Path) -> None:
    for step, loss in ((10, 0.7), (20, 0.2), (30, 0.8)):
        save(attempt, tmp_path, step, eval_accuracy=0.9, eval_loss=loss)
    assert [one.step for one in choose(run, "best")] == [20]


def test_a_checkpoint_that_was_never_evaluated_is_not_best(attempt: Attempt, run: Run, tmp_path: Path) -> None:
    save(attempt, tmp_path, 10, eval_accuracy=0.1)
    save(attempt, tmp_path, 20)
    best = best_of(run.checkpoints())
    assert best is not None
    assert best.step == 10


def test_the_best_evaluation_means_the_checkpoint_that_is_nearest_to_it(
    attempt: Attempt, run: Run, tmp_path: Path
) -> None:
    for step, evaluated, accuracy in ((10, 0, 0.0), (20, 12, 0.9), (30, 12, 0.9), (40, 40, 0.8), (50, 40, 0.8)):
        save(attempt, tmp_path, step)
        info = {"metrics": {}, "evaluation": {"step": evaluated, "metrics": {"eval_accuracy": accuracy}}}
        attempt.seal(step, run.checkpoint_at(1, step).files, info)
    assert [one.step for one in choose(run, "best")] == [20]
    assert [best.step for best in [best_of(run.checkpoints()[3:])] if best is not None] == [40]


@pytest.mark.parametrize(("mode", "step"), [("max", 20), ("min", 30)])
def test_the_best_checkpoint_is_by_the_metric_that_the_job_file_names(
    attempt: Attempt, run: Run, tmp_path: Path, mode: str, step: int
) -> None:
    for number, bleu in ((10, 0.7), (20, 0.9), (30, 0.2)):
        save(attempt, tmp_path, number, eval_accuracy=number / 100, eval_bleu=bleu)
    save(attempt, tmp_path, 40, eval_accuracy=0.5)
    info = {**run.checkpoint_at(1, 40).info, "best": {"metric": "eval_bleu", "mode": mode}}
    attempt.seal(40, run.checkpoint_at(1, 40).files, info)
    assert [one.step for one in choose(run, "best")] == [step]


def test_a_checkpoint_whose_metric_is_no_number_is_not_best(attempt: Attempt, run: Run, tmp_path: Path) -> None:
    for step, bleu in ((10, float("nan")), (20, 0.2), (30, 0.1)):
        save(attempt, tmp_path, step, eval_bleu=bleu)
        info = {**run.checkpoint_at(1, step).info, "best": {"metric": "eval_bleu", "mode": "max"}}
        attempt.seal(step, run.checkpoint_at(1, step).files, info)
    assert [one.step for one in choose(run, "best")] == [20]


def test_best_says_so_where_nothing_was_evaluated(attempt: Attempt, run: Run, tmp_path: Path) -> None:
    save(attempt, tmp_path, 10)
    with pytest.raises(UsageError, match="--checkpoint last"):
        choose(run, "best")


def test_a_step_that_is_not_there_is_answered_with_those_that_are(attempt: Attempt, run: Run, tmp_path: Path) -> None:
    save(attempt, tmp_path, 10)
    save(attempt, tmp_path, 20)
    with pytest.raises(UsageError, match="one of 10, 20"):
        choose(run, "15")


@pytest.mark.usefixtures("attempt")
def test_a_run_without_checkpoints_says_so(run: Run) -> None:
    with pytest.raises(UsageError, match="no checkpoint yet"):
        choose(run, "last")


def test_fetching_brings_the_model_part_of_the_last_checkpoint(attempt: Attempt, run: Run, tmp_path: Path) -> None:
    save(attempt, tmp_path, 10)
    save(attempt, tmp_path, 20)
    target = tmp_path / "target"
    target.mkdir()
    assert fetch_model(run, "last", target, pytest.fail).step == 20
    assert {file.name: file.read_text() for file in target.iterdir()} == {
        name: f"{name} of step 20" for name in MODEL_PART
    }


def test_a_damaged_last_checkpoint_is_passed_over_aloud(attempt: Attempt, run: Run, tmp_path: Path) -> None:
    save(attempt, tmp_path, 10)
    save(attempt, tmp_path, 20)
    damage(run, 20)
    target = tmp_path / "target"
    target.mkdir()
    warnings: list[str] = []
    assert fetch_model(run, "last", target, warnings.append).step == 10
    assert (target / "model.safetensors").read_text() == "model.safetensors of step 10"
    assert "step 20 is damaged" in warnings[0]


def test_a_damaged_checkpoint_that_was_asked_for_by_its_step_is_an_error(
    attempt: Attempt, run: Run, tmp_path: Path
) -> None:
    save(attempt, tmp_path, 10)
    save(attempt, tmp_path, 20)
    damage(run, 20)
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(TrainingError, match="--checkpoint 20"):
        fetch_model(run, "20", target, lambda _: None)
