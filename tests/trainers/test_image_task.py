from __future__ import annotations

import subprocess
import sys
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainers.pictures import digits, in_colour, job, write_folder
from trainers.data.images import prepare
from trainers.data.order import share
from trainers.tasks.base import Draw, Prepared
from trainers.tasks.images import ImageClassification

EVERYTHING = {"flip": True, "rotate": 15, "crop": 0.2, "contrast": 0.2, "noise": 0.05, "mixup": 0.4, "cutmix": 1.0}
BATCH = np.random.default_rng(0).permutation(1400)[:24]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # as a rank; more of them wait for each other where the machine is busy


def task(**data: Any) -> ImageClassification:
    wanted = job("builtin:digits", eval={"split": 0.2}, image_size=12, **data)
    return ImageClassification(wanted, prepare(wanted))


def draw(batch: np.ndarray = BATCH, epoch: int = 0) -> Draw:
    return Draw(seed=5, epoch=epoch, batch=batch)


def test_batches_are_normalised_pixels_in_channels_last() -> None:
    wanted = job("builtin:digits", eval={"split": 0.2})
    prepared = prepare(wanted)
    train, held = ImageClassification(wanted, prepared).datasets()
    assert held is not None
    for data, rows in ((train, prepared.arrays["train_rows"]), (held, prepared.arrays["eval_rows"])):
        batch = data.batch(np.array([3, 1]), None)
        assert batch["inputs"].dtype == torch.float32
        assert batch["inputs"].is_contiguous(memory_format=torch.channels_last)
        pixels = prepared.arrays["images"][rows[[3, 1]]].transpose(0, 3, 1, 2) / 255
        expected = (pixels - prepared.meta["mean"][0]) / prepared.meta["std"][0]
        np.testing.assert_allclose(batch["inputs"].numpy(), expected, rtol=1e-4, atol=1e-6)
        assert batch["targets"].dtype == torch.int64
        assert batch["targets"].tolist() == prepared.arrays["labels"][rows[[3, 1]]].tolist()


def test_each_channel_has_its_own_normalisation(tmp_path: Any) -> None:
    pixels, labels = digits(200)
    wanted = job(write_folder(tmp_path, in_colour(pixels), labels))
    train, held = ImageClassification(wanted, prepare(wanted)).datasets()
    assert held is None
    inputs = train.batch(np.arange(len(train)), None)["inputs"]
    torch.testing.assert_close(inputs.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(inputs.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_augmentation_that_does_nothing_visible_agrees_with_the_plain_path() -> None:
    plain, still = task().datasets()[0], task(augment={"noise": 1e-9}).datasets()[0]
    torch.testing.assert_close(still.batch(BATCH, draw())["inputs"], plain.batch(BATCH, draw())["inputs"])


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("augment", [{}, EVERYTHING, {"rotate": 15}, {"mixup": 0.4}], ids=str)
def test_any_number_of_ranks_sees_the_same_rows(augment: dict[str, Any], ranks: int) -> None:
    train, _ = task(augment=augment).datasets()
    whole = train.batch(BATCH, draw())
    parts = [train.batch(share(BATCH, rank, ranks), draw()) for rank in range(ranks)]
    for name, tensor in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), tensor, rtol=0, atol=0)


@pytest.mark.parametrize("augment", [{}, EVERYTHING], ids=str)
def test_a_sample_by_itself_is_the_sample_in_its_batch(augment: dict[str, Any]) -> None:
    train, _ = task(augment=augment).datasets()
    whole = train.batch(BATCH, draw())
    for position, sample in enumerate(BATCH):
        alone = train.batch(np.array([sample]), draw())
        assert torch.equal(alone["inputs"][0], whole["inputs"][position])
        assert torch.equal(alone["targets"][0], whole["targets"][position])


def test_a_sample_is_changed_otherwise_in_every_epoch() -> None:
    train, _ = task(augment={"rotate": 15}).datasets()
    epochs = [train.batch(BATCH, draw(epoch=epoch))["inputs"] for epoch in range(3)]
    assert all(not torch.equal(before, after) for before, after in pairwise(epochs))


def test_evaluation_is_never_augmented() -> None:
    rows = np.arange(20)
    plain, changed = task().datasets()[1], task(augment=EVERYTHING).datasets()[1]
    assert plain is not None
    assert changed is not None
    assert torch.equal(plain.batch(rows, None)["inputs"], changed.batch(rows, draw(rows))["inputs"])
    assert changed.batch(rows, None)["targets"].dtype == torch.int64


@pytest.mark.parametrize("augment", [{}, EVERYTHING], ids=str)
def test_an_empty_share_is_an_empty_batch(augment: dict[str, Any]) -> None:
    batch = task(augment=augment).datasets()[0].batch(BATCH[:0], draw())
    assert batch["inputs"].shape == (0, 1, 12, 12)
    assert batch["targets"].shape == ((0, 10) if augment else (0,))


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixed_targets_are_the_labels_of_a_sample_and_its_partner(name: str) -> None:
    train, _ = task(augment={name: 1.0}).datasets()
    targets = train.batch(BATCH, draw())["targets"]
    labels = train.batch(BATCH, None)["targets"]
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(len(BATCH)))
    assert (targets.gather(1, labels[:, None]) > 0).all()
    # every image is the partner of one other, so that all labels together weigh about what they did
    assert ((targets > 0).sum(dim=1) <= 2).all()
    assert (targets.sum(dim=0) > 0).sum() == len(labels.unique())


def test_mixup_blends_the_very_images_that_training_sees_otherwise() -> None:
    augment = {"rotate": 15, "noise": 0.05}
    single = task(augment=augment).datasets()[0].batch(BATCH, draw())["inputs"]
    blended = task(augment={**augment, "mixup": 1.0}).datasets()[0].batch(BATCH, draw())["inputs"]
    # each blend lies in the plane of its own image and one other: solve for the weights and look at what is left
    pairs = [[(single[i], single[j]) for j in range(len(BATCH)) if j != i] for i in range(len(BATCH))]
    left = [
        min(_distance_to_plane(image, own, other) for own, other in candidates)
        for image, candidates in zip(blended, pairs, strict=True)
    ]
    assert max(left) < 1e-6


def _distance_to_plane(image: torch.Tensor, own: torch.Tensor, other: torch.Tensor) -> float:
    plane = torch.stack([own.flatten(), other.flatten()], dim=1)
    return float(torch.linalg.lstsq(plane, image.flatten()[:, None]).residuals.sum())


def test_a_batch_of_one_is_mixed_with_itself() -> None:
    train, _ = task(augment={"mixup": 1.0}).datasets()
    one = BATCH[:1]
    torch.testing.assert_close(train.batch(one, draw(one))["inputs"], train.batch(one, None)["inputs"])


def test_the_model_gives_one_output_a_class_and_the_loss_counts_targets() -> None:
    subject = task(augment=EVERYTHING)
    model = subject.build_model()
    train, _ = subject.datasets()
    for batch in (train.batch(BATCH, draw()), train.batch(BATCH, None), train.batch(BATCH[:0], draw())):
        total, count, output = subject.loss(model, batch)
        assert output.shape == (len(batch["inputs"]), 10)
        assert count.item() == len(batch["inputs"])
        assert total.shape == ()
        total.backward()


def test_metrics_are_accuracy_and_macro_f1() -> None:
    metrics = task().metrics()
    output = torch.eye(10)[[0, 0, 1, 2]]
    metrics.update(output, torch.tensor([0, 1, 1, 2]))
    found = {name: value.item() for name, value in metrics.compute().items()}
    assert found["accuracy"] == pytest.approx(3 / 4)
    assert found["f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_a_few_steps_on_real_digits_learn_something() -> None:
    torch.manual_seed(0)
    subject = task(augment={"rotate": 10, "translate": 0.05})
    model, (train, held) = subject.build_model(), subject.datasets()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(60):
        batch = np.random.default_rng(step).permutation(len(train))[:64]
        total, count, _ = subject.loss(model, train.batch(batch, draw(batch, epoch=step)))
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    metrics = subject.metrics()
    assert held is not None
    evaluation = held.batch(np.arange(len(held)), None)
    with torch.no_grad():
        metrics.update(model(evaluation["inputs"]), evaluation["targets"])
    assert metrics.compute()["accuracy"] > 0.8


def test_a_task_from_stored_meta_takes_images_it_never_saw() -> None:
    wanted = job("builtin:digits", eval={"split": 0.2})
    prepared = prepare(wanted)
    subject = ImageClassification(wanted, Prepared(arrays={}, meta=prepared.meta))
    arrays = {
        "eval_images": prepared.arrays["images"][:5],
        "eval_labels": np.arange(5),
        "eval_rows": np.array([4, 0]),
    }
    data = subject.dataset(arrays)
    assert len(data) == 2
    assert data.batch(np.arange(2), None)["targets"].tolist() == [4, 0]
    assert subject.build_model()(data.batch(np.arange(2), None)["inputs"]).shape == (2, 10)


def test_plain_batches_cost_a_small_part_of_a_training_step() -> None:
    """A rank computes about 6,000 small images a second; loading may take 5 % of that, 8 µs an image."""
    images = np.zeros((20_000, 28, 28, 1), np.uint8)
    images.setflags(write=False)
    meta = {"classes": ["a", "b"], "image": [28, 28, 1], "mean": [0.1], "std": [0.3]}
    arrays: dict[str, np.ndarray] = {
        "images": images,
        "labels": np.zeros(20_000, np.int64),
        "train_rows": np.arange(20_000),
    }
    train, _ = ImageClassification(job("x"), Prepared(arrays=arrays, meta=meta)).datasets()
    samples = np.random.default_rng(0).permutation(20_000)[:32]
    fastest = min(_seconds(lambda: train.batch(samples, draw(samples))) for _ in range(100))
    assert fastest / 32 < 8e-6


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def test_kornia_is_imported_only_for_colour() -> None:
    code = (
        "import sys, numpy as np; from trainers.config import TrainJob; from trainers.data.images import prepare;"
        "from trainers.tasks.base import Draw; from trainers.tasks.images import ImageClassification as Task;"
        "data = {'train': 'builtin:digits', 'augment': {'rotate': 5, 'noise': 0.1, 'mixup': 1.0}};"
        "job = TrainJob.from_job({'task': 'image-classification', 'data': data}); s = np.arange(4);"
        "Task(job, prepare(job)).datasets()[0].batch(s, Draw(0, 0, s)); print('kornia' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
