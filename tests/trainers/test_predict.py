"""What a model says of images in files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.harness import raylift
from trainers.data.images import prepare
from trainers.evaluate import evaluate
from trainers.predict import Prediction, find_images, predict
from trainers.saved import Saved, load_saved


@pytest.fixture(scope="module")
def saved(exported: Path) -> Saved:
    return load_saved(str(exported))


@pytest.fixture(scope="module")
def held_out(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str]]:
    """Return the images that training held out, as files, each with its label."""
    folder = tmp_path_factory.mktemp("held-out")
    prepared = prepare(saved.job)
    found = []
    for row in prepared.arrays["eval_rows"]:
        path = folder / f"{row}.png"
        Image.fromarray(prepared.arrays["images"][row, :, :, 0]).save(path)
        found.append((path, prepared.meta["classes"][prepared.arrays["labels"][row]]))
    return found


@pytest.fixture
def mixed(tmp_path: Path, held_out: list[tuple[Path, str]]) -> Path:
    """Return a folder of two images and one file that is none."""
    folder = tmp_path / "mixed"
    (folder / "deeper").mkdir(parents=True)
    (folder / "a.png").write_bytes(held_out[0][0].read_bytes())
    (folder / "broken.png").write_bytes(held_out[0][0].read_bytes()[:40])
    (folder / "deeper" / "c.PNG").write_bytes(held_out[1][0].read_bytes())
    (folder / "notes.txt").write_text("no image")
    return folder


def test_files_are_judged_as_evaluation_judges_the_same_images(saved: Saved, held_out: list[tuple[Path, str]]) -> None:
    found = predict(saved, [path for path, _ in held_out], top=1)
    right = [one.guesses[0].label == label for one, (_, label) in zip(found, held_out, strict=True)]
    assert np.float32(np.mean(right)) == np.float32(evaluate(saved).metrics["accuracy"])


def test_the_probabilities_of_all_classes_add_up_to_one(saved: Saved, held_out: list[tuple[Path, str]]) -> None:
    (found,) = predict(saved, [held_out[0][0]], top=99)
    assert len(found.guesses) == 10
    assert sum(guess.probability for guess in found.guesses) == pytest.approx(1)


def test_the_likeliest_label_comes_first(saved: Saved, held_out: list[tuple[Path, str]]) -> None:
    (found,) = predict(saved, [held_out[0][0]], top=3)
    chances = [guess.probability for guess in found.guesses]
    assert chances == sorted(chances, reverse=True)


def test_a_coloured_image_of_another_size_is_brought_into_the_models_shape(
    saved: Saved, held_out: list[tuple[Path, str]], tmp_path: Path
) -> None:
    with Image.open(held_out[0][0]) as image:
        image.convert("RGB").resize((80, 80), Image.Resampling.NEAREST).save(tmp_path / "large.bmp")
    small, large = predict(saved, [held_out[0][0], tmp_path / "large.bmp"], top=1)
    assert small.guesses[0].label == large.guesses[0].label


def test_an_image_that_cannot_be_read_says_so_and_the_others_go_on(saved: Saved, mixed: Path) -> None:
    found = list(predict(saved, find_images([str(mixed)]), top=1))
    assert [Path(one.image).name for one in found] == ["a.png", "broken.png", "c.PNG"]
    assert [bool(one.error) for one in found] == [False, True, False]
    assert [len(one.guesses) for one in found] == [1, 0, 1]


def test_a_file_that_is_not_there_says_so(saved: Saved) -> None:
    assert list(predict(saved, [Path("nowhere.png")], top=1)) == [
        Prediction("nowhere.png", error="No such file or directory")
    ]


def test_more_images_than_fit_into_one_batch_keep_their_order(saved: Saved, held_out: list[tuple[Path, str]]) -> None:
    paths = [path for path, _ in held_out]
    assert len(paths) > 256
    assert [one.image for one in predict(saved, paths, top=1)] == [str(path) for path in paths]


def test_the_command_names_what_it_could_not_read_and_exits_with_1(exported: Path, mixed: Path) -> None:
    done = raylift("predict", exported, mixed, "--top", "2")
    assert done.returncode == 1
    assert "broken.png" in done.stderr
    assert "1 of 3 images could not be read" in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        str(mixed / "a.png"),
        str(mixed / "deeper" / "c.PNG"),
    ]


def test_the_command_prints_json_for_programs(exported: Path, held_out: list[tuple[Path, str]]) -> None:
    done = raylift("predict", exported, held_out[0][0], "--json", "--top", "1")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["image"], row["error"], len(row["guesses"])) == (str(held_out[0][0]), "", 1)


def test_the_command_prints_a_table_for_spreadsheets(exported: Path, held_out: list[tuple[Path, str]]) -> None:
    done = raylift("predict", exported, held_out[0][0], held_out[1][0], "--csv", "--top", "2")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(row["image"], row["rank"]) for row in rows] == [
        (str(path), rank) for path, _ in held_out[:2] for rank in ("1", "2")
    ]


def test_a_folder_without_images_is_a_mistake_of_the_command_line(exported: Path, tmp_path: Path) -> None:
    done = raylift("predict", exported, tmp_path)
    assert done.returncode == 2
    assert "no images" in done.stderr
