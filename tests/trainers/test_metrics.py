"""Metrics of evaluations, beside those of scikit-learn."""

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from trainers.metrics import ClassMetrics


@pytest.mark.parametrize("seed", range(5))
def test_metrics_over_batches_are_those_of_scikit_learn_over_all(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(90, 7, generator=generator)
    targets = torch.randint(0, 5, (90,), generator=generator)  # two classes are guessed, and never there
    output[:, 6] = -9.0  # one of them not even guessed
    metrics = ClassMetrics(7)
    for batch in (slice(0, 64), slice(64, 90)):
        metrics.update(output[batch], targets[batch])
    found = {name: float(value) for name, value in metrics.compute().items()}
    guesses = output.argmax(1)
    assert found["accuracy"] == pytest.approx(accuracy_score(targets, guesses))
    assert found["f1"] == pytest.approx(f1_score(targets, guesses, average="macro"))


def test_metrics_of_nothing_are_zero() -> None:
    assert {name: float(value) for name, value in ClassMetrics(3).compute().items()} == {"accuracy": 0.0, "f1": 0.0}
