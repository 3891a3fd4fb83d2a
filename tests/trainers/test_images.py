from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.errors import TrainingError
from tests.trainers.pictures import digits, in_colour, job, png, write_folder, write_idx, write_parquet
from trainers.data import geometry
from trainers.data.images import load_images, prepare
from trainers.data.store import unpack
from trainers.tasks.base import Prepared

PIXELS, LABELS = digits(200)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLIFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "digits", PIXELS, LABELS)


def all_pixels(prepared: Prepared, side: str = "train") -> np.ndarray:
    part = unpack(prepared.arrays, side, tuple(prepared.meta["image"]))
    assert part is not None
    return part.pixels.take(part.rows)


def test_preparing_imports_neither_torch_nor_scikit_learn() -> None:
    code = (
        "import sys; from trainers.config import TrainJob; from trainers.data.images import prepare;"
        "job = {'task': 'image-classification', 'data': {'train': 'builtin:digits', 'eval': {'split': 0.2}}};"
        "prepare(TrainJob.from_job(job));"
        "print([name for name in ('torch', 'ray', 'sklearn', 'pandas', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_digits_are_prepared_as_they_are() -> None:
    prepared = prepare(job("builtin:digits", eval={"split": 0.2}))
    assert prepared.meta["image"] == [8, 8, 1]
    assert prepared.meta["classes"] == list("0123456789")
    assert prepared.meta["train"] + prepared.meta["eval"] == 1797
    assert prepared.meta["eval"] == pytest.approx(359, abs=3)


def test_meta_and_notes_are_plain_json(folder: Path) -> None:
    prepared = prepare(job(folder, eval={"split": 0.2}))
    assert json.loads(json.dumps(dict(prepared.meta))) == prepared.meta
    assert json.loads(json.dumps([dict(note) for note in prepared.notes])) == list(prepared.notes)


def test_arrays_are_read_only(folder: Path) -> None:
    assert not any(array.flags.writeable for array in prepare(job(folder, eval={"split": 0.2})).arrays.values())


def test_mean_and_deviation_are_those_of_the_training_split_alone(tmp_path: Path) -> None:
    write_folder(tmp_path, in_colour(PIXELS), LABELS)
    prepared = prepare(job(tmp_path, eval={"split": 0.3}))
    values = all_pixels(prepared).astype(np.float64) / 255
    np.testing.assert_allclose(prepared.meta["mean"], values.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(prepared.meta["std"], values.std(axis=(0, 1, 2)), rtol=1e-12)


def test_a_channel_of_one_value_is_not_divided_by_nothing(tmp_path: Path) -> None:
    flat = np.concatenate([PIXELS, np.full_like(PIXELS, 9), PIXELS], axis=-1)
    assert prepare(job(write_folder(tmp_path, flat, LABELS))).meta["std"][1] == 1.0


def test_normalisation_may_be_given_or_off(folder: Path) -> None:
    given = prepare(job(folder, normalize={"mean": [0.1], "std": [0.2]})).meta
    assert (given["mean"], given["std"]) == ([0.1], [0.2])
    off = prepare(job(folder, normalize="none")).meta
    assert (off["mean"], off["std"]) == ([0.0], [1.0])


def test_normalisation_for_other_channels_is_refused(folder: Path) -> None:
    with pytest.raises(TrainingError, match=r"normalize has 3 channels, the images have 1.*data.channels: 3"):
        prepare(job(folder, normalize={"mean": [0.1] * 3, "std": [0.2] * 3}))


def test_images_are_resized_as_pillow_does_it(folder: Path) -> None:
    found = all_pixels(prepare(job(folder, image_size=20, clean={"drop_duplicates": False})))
    first = sorted(folder.rglob("*.png"))[0]
    expected = Image.open(first).resize((20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found[0, :, :, 0], np.asarray(expected))


def test_images_of_many_sizes_become_squares_of_the_median_side(tmp_path: Path) -> None:
    for number, (height, width) in enumerate([(10, 12), (20, 22), (30, 34)]):
        picture = np.resize(PIXELS[number], (height, width, 1))
        write_folder(tmp_path / "data", picture[None], np.array([number]))
    prepared = prepare(job(tmp_path / "data"))
    assert prepared.meta["image"] == [21, 21, 1]
    (note,) = [note for note in prepared.notes if note["event"] == "data.image_size"]
    assert (note["smallest"], note["largest"]) == ([10, 12], [30, 34])


def test_images_of_one_oblong_size_keep_it(tmp_path: Path) -> None:
    write_folder(tmp_path, PIXELS[:, :6], LABELS)
    assert prepare(job(tmp_path)).meta["image"] == [6, 8, 1]


def test_large_images_of_many_sizes_become_224_pixels(tmp_path: Path) -> None:
    for number, side in enumerate([500, 600]):
        write_folder(tmp_path, np.resize(PIXELS[number], (1, side, side, 1)), np.array([number]))
    assert prepare(job(tmp_path)).meta["image"] == [224, 224, 1]


def test_one_coloured_image_makes_all_of_them_coloured(folder: Path) -> None:
    (folder / "3" / "red.png").write_bytes(png(in_colour(PIXELS[0])))
    prepared = prepare(job(folder, clean={"drop_duplicates": False}))
    assert prepared.meta["image"] == [8, 8, 3]
    grey = all_pixels(prepared)[0]
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])


def test_coloured_images_may_be_taken_as_grey(tmp_path: Path) -> None:
    write_folder(tmp_path, in_colour(PIXELS), LABELS)
    assert prepare(job(tmp_path, channels=1)).meta["image"] == [8, 8, 1]


def test_photographs_are_turned_as_their_camera_says(tmp_path: Path) -> None:
    upright = np.zeros((16, 32, 1), np.uint8)
    upright[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn to the right
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        Image.fromarray(np.rot90(upright[..., 0], 1)).save(tmp_path / label / "one.jpg", exif=exif, quality=95)
    prepared = prepare(job(tmp_path, clean={"drop_duplicates": False}))
    assert prepared.meta["image"] == [16, 32, 1]
    assert np.abs(all_pixels(prepared)[0].astype(int) - upright).max() < 8


def test_sixteen_bits_a_pixel_keep_their_upper_half(tmp_path: Path) -> None:
    for label in (0, 1):
        (tmp_path / str(label)).mkdir()
        deep = PIXELS[label, :, :, 0].astype(np.uint16) * 256 + 77
        Image.fromarray(deep).save(tmp_path / str(label) / "one.png")
    np.testing.assert_array_equal(all_pixels(prepare(job(tmp_path))), PIXELS[:2])


@pytest.mark.parametrize("kind", ["folder", "parquet", "idx"])
def test_images_that_do_not_fit_into_memory_have_the_same_values(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / kind
    if kind == "folder":
        write_folder(source, PIXELS, LABELS)
    elif kind == "idx":
        write_idx(source, "train", PIXELS, LABELS)
    else:
        write_parquet(source / "digits.parquet", [png(image) for image in PIXELS], LABELS.tolist())
    wanted = job(source, eval={"split": 0.2}, image_size=20)
    roomy = prepare(wanted)
    monkeypatch.setattr(geometry, "_MOST_MEMORY", 1000)
    tight = prepare(wanted)
    assert tight.meta == roomy.meta
    assert sum(array.nbytes for array in tight.arrays.values()) < sum(array.nbytes for array in roomy.arrays.values())
    for side in ("train", "eval"):
        np.testing.assert_array_equal(all_pixels(tight, side), all_pixels(roomy, side))


def test_a_file_that_vanishes_while_training_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "_MOST_MEMORY", 1000)
    prepared = prepare(job(folder))
    (folder / "0" / "0000.png").unlink()
    with pytest.raises(TrainingError, match=r"0/0000.png could be read when the run began, but not now"):
        all_pixels(prepared)


def test_pictures_with_a_transparent_palette_are_read(tmp_path: Path) -> None:
    for label in (0, 1):
        (tmp_path / str(label)).mkdir()
        picture = Image.fromarray(in_colour(PIXELS)[label]).quantize(16)
        picture.save(tmp_path / str(label) / "one.png", transparency=bytes(range(16)))
    prepared = prepare(job(tmp_path))
    assert prepared.meta["image"] == [8, 8, 3]
    assert np.abs(all_pixels(prepared).astype(int) - in_colour(PIXELS[:2])).mean() < 10


def test_classes_of_one_image_leave_nothing_to_hold_out(tmp_path: Path) -> None:
    write_folder(tmp_path, PIXELS[:2], LABELS[:2])
    with pytest.raises(TrainingError, match="nothing is left to evaluate on"):
        prepare(job(tmp_path, eval={"split": 0.2}))


def test_eval_labels_that_training_has_not_are_listed(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", PIXELS[LABELS < 8], LABELS[LABELS < 8])
    write_folder(tmp_path / "val", 255 - PIXELS, LABELS)
    with pytest.raises(TrainingError, match=r"has labels that training has no samples of: 8, 9\. Training knows 0, 1"):
        prepare(job(tmp_path, eval=tmp_path))


def test_eval_may_lack_classes_and_order_them_otherwise(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", PIXELS, LABELS)
    write_folder(tmp_path / "val", 255 - PIXELS[LABELS > 5], LABELS[LABELS > 5])
    prepared = prepare(job(tmp_path, eval=tmp_path))
    part = unpack(prepared.arrays, "eval", (8, 8, 1))
    assert part is not None
    assert set(part.labels.tolist()) == {6, 7, 8, 9}


def test_one_class_is_nothing_to_learn(tmp_path: Path) -> None:
    write_folder(tmp_path, PIXELS[LABELS == 3], LABELS[LABELS == 3])
    with pytest.raises(TrainingError, match=r"belong to one class, 3\. .* add images of another class"):
        prepare(job(tmp_path))


def test_nothing_readable_is_an_error_that_shows_an_example(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "one.png").write_bytes(b"broken")
    with pytest.raises(TrainingError, match=r"none of the 2 images is left to train: 2 unreadable \(such as a/one.png"):
        prepare(job(tmp_path))


def test_evaluating_on_all_of_the_training_data_is_refused_with_a_way_out() -> None:
    with pytest.raises(TrainingError, match=r"1797 also in eval .* eval: \{split: 0.2\}"):
        prepare(job("builtin:digits", eval="builtin:digits"))


def test_an_empty_parquet_file_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "empty.parquet", [], [])
    with pytest.raises(TrainingError):
        prepare(job(path))


def test_images_too_small_for_the_network_are_refused_with_the_limit(tmp_path: Path) -> None:
    write_folder(tmp_path, PIXELS[:, :3, :3], LABELS)
    with pytest.raises(TrainingError, match=r"3×3 pixels are too small: a side needs at least 4. Set data.image_size"):
        prepare(job(tmp_path, clean={"drop_duplicates": False}))


def test_colour_changes_of_grey_images_are_refused(folder: Path) -> None:
    with pytest.raises(TrainingError, match=r"the images are grey: take saturation and hue out of data\.augment"):
        prepare(job(folder, augment={"saturation": 0.1, "hue": 0.1, "contrast": 0.1}))


def test_the_split_does_not_depend_on_the_order_of_the_files(tmp_path: Path) -> None:
    held = []
    for name, order in (("a", slice(None)), ("b", slice(None, None, -1))):
        source = write_idx(tmp_path / name, "train", PIXELS[order], LABELS[order])
        held.append({image.tobytes() for image in all_pixels(prepare(job(source, eval={"split": 0.25})), "eval")})
    assert held[0] == held[1]


def test_sixty_thousand_images_are_prepared_in_little_time(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (60_000, 28, 28, 1), dtype=np.uint8)
    labels = random.integers(0, 10, 60_000)
    source = write_idx(tmp_path, "train", pixels, labels)
    started = time.process_time()
    prepare(job(source, eval={"split": 0.1}))
    assert time.process_time() - started < 1.5


def test_new_images_are_read_as_training_saw_theirs(folder: Path, tmp_path: Path) -> None:
    meta = prepare(job(folder, image_size=12)).meta
    new = load_images(str(write_folder(tmp_path / "new", in_colour(PIXELS[:5]), LABELS[:5])), meta)
    part = unpack(new.arrays, "eval", (12, 12, 1))
    assert part is not None
    assert part.pixels.take(part.rows).shape == (5, 12, 12, 1)
    assert [meta["classes"][label] for label in part.labels] == [name.split("/")[0] for name in new.names]


def test_new_images_need_no_labels(folder: Path, tmp_path: Path) -> None:
    meta = prepare(job(folder)).meta
    (tmp_path / "loose").mkdir()
    for number in range(3):
        (tmp_path / "loose" / f"{number}.png").write_bytes(png(PIXELS[number]))
    (tmp_path / "loose" / "bad.png").write_bytes(b"")
    new = load_images(str(tmp_path / "loose"), meta, label_column=None)
    assert new.names == ["0.png", "1.png", "2.png"]
    assert [note["items"] for note in new.notes] == [["bad.png: no image"]]
    assert load_images(str(tmp_path / "loose" / "1.png"), meta, label_column=None).names == ["1.png"]


def test_new_images_with_unknown_labels_are_refused(folder: Path, tmp_path: Path) -> None:
    meta = prepare(job(folder)).meta
    with pytest.raises(TrainingError, match="no samples of: 77"):
        load_images(str(write_folder(tmp_path / "new", PIXELS[:2], np.array([1, 77]))), meta)
