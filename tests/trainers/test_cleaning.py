from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import TrainingError
from tests.trainers.pictures import digits, job, png, write_folder, write_idx
from trainers.data.cleaning import find_label_errors, split_off, thumbnails
from trainers.data.images import prepare
from trainers.tasks.base import Prepared

PIXELS, LABELS = digits(200)


def cleaned(prepared: Prepared, reason: str, split: str = "train") -> dict[str, Any]:
    """Return the one event about a reason."""
    (event,) = [
        dict(note)
        for note in prepared.notes
        if note["event"] == "data.cleaned" and (note["reason"], note["split"]) == (reason, split)
    ]
    return event


def with_flipped_labels(share: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all digits, their labels with a share of them wrong, and which those are."""
    pixels, labels = digits()
    random = np.random.default_rng(seed)
    wrong = random.random(len(labels)) < share
    return pixels, np.where(wrong, (labels + random.integers(1, 10, len(labels))) % 10, labels), wrong


def test_identical_images_are_dropped_but_for_the_first(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", np.concatenate([PIXELS, PIXELS[:3]]), np.concatenate([LABELS, LABELS[:3]]))
    prepared = prepare(job(tmp_path))
    assert prepared.meta["train"] == 200
    event = cleaned(prepared, "duplicate")
    assert event["count"] == 3
    name = "train-images-idx3-ubyte"
    assert event["items"] == [f"{name}[{200 + row}]: the same as {name}[{row}]" for row in range(3)]


def test_identical_images_with_other_labels_are_told_apart_in_the_list(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", np.concatenate([PIXELS, PIXELS[:1]]), np.append(LABELS, LABELS[0] + 1))
    assert cleaned(prepare(job(tmp_path)), "duplicate with another label")["count"] == 1


def test_the_same_picture_in_another_format_is_a_duplicate(tmp_path: Path) -> None:
    write_folder(tmp_path, PIXELS[:20], LABELS[:20])
    (tmp_path / "0" / "again.bmp").write_bytes(png(PIXELS[0], "bmp"))
    assert cleaned(prepare(job(tmp_path)), "duplicate")["items"] == ["0/again.bmp: the same as 0/0000.png"]


def test_training_images_that_stand_in_eval_leave_train(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", PIXELS[:150], LABELS[:150])
    write_idx(tmp_path, "t10k", PIXELS[140:], LABELS[140:])
    prepared = prepare(job(tmp_path, eval=tmp_path))
    assert (prepared.meta["train"], prepared.meta["eval"]) == (140, 60)
    assert cleaned(prepared, "also in eval")["count"] == 10


def test_duplicates_stay_when_asked_to(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", np.concatenate([PIXELS, PIXELS[:3]]), np.concatenate([LABELS, LABELS[:3]]))
    prepared = prepare(job(tmp_path, clean={"drop_duplicates": False}))
    assert prepared.meta["train"] == 203
    assert [note["event"] for note in prepared.notes] == ["data.ready"]


def test_duplicates_that_stay_never_stand_on_both_sides_of_a_split(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", np.concatenate([PIXELS, PIXELS]), np.concatenate([LABELS, LABELS]))
    arrays = prepare(job(tmp_path, eval={"split": 0.3}, clean={"drop_duplicates": False})).arrays
    train, held = ({arrays["images"][row].tobytes() for row in arrays[f"{side}_rows"]} for side in ("train", "eval"))
    assert len(train) + len(held) == 200
    assert not train & held


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no image"),
        (b"no image at all", "no image"),
        (png(PIXELS[0])[:-40], "truncated"),
        (png(PIXELS[0])[:60], "truncated"),
    ],
)
def test_unreadable_files_are_dropped_and_listed(tmp_path: Path, content: bytes, problem: str) -> None:
    write_folder(tmp_path, PIXELS, LABELS)
    (tmp_path / "5" / "bad.png").write_bytes(content)
    event = cleaned(prepare(job(tmp_path)), "unreadable")
    assert event["count"] == 1
    assert event["items"][0].startswith("5/bad.png: ")
    assert problem in event["items"][0]


def test_a_cut_off_jpeg_is_unreadable(tmp_path: Path) -> None:
    write_folder(tmp_path, PIXELS, LABELS)
    (tmp_path / "5" / "bad.jpg").write_bytes(png(np.tile(PIXELS[0], (8, 8, 1)), "jpeg")[:-500])
    assert cleaned(prepare(job(tmp_path)), "unreadable")["items"][0].startswith("5/bad.jpg: ")


def test_unreadable_files_are_an_error_when_asked_for(tmp_path: Path) -> None:
    write_folder(tmp_path, PIXELS, LABELS)
    (tmp_path / "5" / "bad.png").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"1 images cannot be read: 5/bad.png \(no image\)"):
        prepare(job(tmp_path, clean={"drop_unreadable": False}))


def test_too_small_images_are_dropped_with_their_size(tmp_path: Path) -> None:
    write_folder(tmp_path, PIXELS, LABELS)
    (tmp_path / "5" / "tiny.png").write_bytes(png(PIXELS[0][:5]))
    event = cleaned(prepare(job(tmp_path, clean={"min_size": 6})), "too small")
    assert event["items"] == ["5/tiny.png: 8×5 pixels"]


def test_at_most_a_hundred_items_are_listed_but_all_are_counted(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", np.concatenate([PIXELS, PIXELS[:150]]), np.concatenate([LABELS, LABELS[:150]]))
    event = cleaned(prepare(job(tmp_path)), "duplicate")
    assert event["count"] == 150
    assert len(event["items"]) == 100


@pytest.mark.parametrize("seed", range(4))
def test_most_wrong_labels_are_found_and_few_right_ones_suspected(seed: int) -> None:
    """With 3 % of the digits' labels wrong, recall is above 0.7 and precision above 0.9."""
    pixels, labels, wrong = with_flipped_labels(0.03, seed)
    errors, agreement = find_label_errors(thumbnails(pixels), labels, 10, seed=0)
    found = np.isin(np.arange(len(labels)), list(errors))
    assert (found & wrong).sum() / wrong.sum() > 0.7
    assert (found & wrong).sum() / found.sum() > 0.9
    assert agreement > 0.9


def test_the_suggested_label_of_a_wrong_one_is_mostly_the_true_one() -> None:
    _, truth = digits()
    pixels, labels, wrong = with_flipped_labels(0.03, 0)
    errors, _ = find_label_errors(thumbnails(pixels), labels, 10, seed=0)
    right = [suggested == truth[row] for row, suggested in errors.items() if wrong[row]]
    assert np.mean(right) > 0.95


def test_labels_that_pixels_tell_nothing_about_are_left_alone() -> None:
    pixels, labels = digits()
    errors, agreement = find_label_errors(thumbnails(pixels), np.random.default_rng(0).permutation(labels), 10, seed=0)
    assert errors == {}
    assert agreement < 0.3


def test_label_errors_leave_training_but_never_what_is_held_out(tmp_path: Path) -> None:
    pixels, labels, _ = with_flipped_labels(0.03, 0)
    write_idx(tmp_path, "train", pixels, labels)
    plain = prepare(job(tmp_path, eval={"split": 0.2}))
    clean = prepare(job(tmp_path, eval={"split": 0.2}, clean={"drop_label_errors": True}))
    event = cleaned(clean, "label error")
    assert clean.meta["train"] == plain.meta["train"] - event["count"]
    assert event["count"] > 20
    assert ": labelled " in event["items"][0]
    np.testing.assert_array_equal(clean.arrays["eval_rows"], plain.arrays["eval_rows"])


def test_thumbnails_are_the_averages_of_blocks() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 50, 37, 3), dtype=np.uint8)
    found = thumbnails(images, 5).reshape(3, 5, 5, 3)
    np.testing.assert_allclose(found[1, 2, 0], images[1, 20:30, 0:7].mean(axis=(0, 1)) / 255, rtol=1e-5)
    assert thumbnails(images[:, :4, :4], 16).shape == (3, 4 * 4 * 3)


def split(labels: np.ndarray, seed: int = 0, every: int = 1) -> tuple[set[int], set[int]]:
    """Hold out a fifth of different images, of which every so many are there."""
    digests = [int(row).to_bytes(16, "little") for row in range(len(labels))]
    train, held = split_off(np.arange(0, len(labels), every), labels, digests, 0.2, seed)
    return set(train.tolist()), set(held.tolist())


def test_a_split_takes_its_share_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [1000, 100, 10])
    _, held = split(labels)
    assert np.bincount(labels[list(held)]).tolist() == [200, 20, 2]


def test_a_class_of_one_image_is_trained_on() -> None:
    train, held = split(np.array([0, 1, 1]))
    assert 0 in train
    assert len(held) == 1


def test_a_split_is_another_with_another_seed() -> None:
    labels = np.repeat([0, 1], 500)
    assert split(labels, seed=1) == split(labels, seed=1)
    assert split(labels, seed=1) != split(labels, seed=2)


def test_taking_images_out_moves_hardly_any_other_across_the_split() -> None:
    labels = np.repeat([0, 1], 500)
    train, held = split(labels)
    fewer_train, fewer_held = split(labels, every=2)
    assert len(fewer_train & held) + len(fewer_held & train) < 30
