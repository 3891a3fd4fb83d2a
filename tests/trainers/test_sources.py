from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import MissingExtraError, TrainingError
from tests.trainers.pictures import digits, png, write_folder, write_idx, write_parquet
from trainers.data.decode import decode_all
from trainers.data.labelled import NO_LABEL, Labelled
from trainers.data.sources import open_source
from trainers.data.tables import Columns

PIXELS, LABELS = digits(60)
BOTH = Columns("image", "label")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLIFT_CACHE", str(tmp_path / "cache"))


def read(source: Path | str, role: str = "train", columns: Columns = BOTH) -> tuple[Labelled, list[str], np.ndarray]:
    """Return a source, the class of each image, and all pixels, read before scratch files go."""
    with ExitStack() as scratch:
        found = open_source(str(source), role, columns, scratch)
        decoded = decode_all(found, (8, 8, 1), (), keep=True)
    assert decoded.problems == {}
    assert decoded.pixels is not None
    return found, [found.classes[label] if label != NO_LABEL else "" for label in found.labels], decoded.pixels


def names(labels: np.ndarray) -> list[str]:
    return [str(label) for label in labels]


def test_builtin_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    real = load_digits()
    pixels, labels = digits()
    np.testing.assert_array_equal(labels, real.target)
    np.testing.assert_array_equal(pixels[..., 0], np.round(real.images / 16 * 255))


def test_builtin_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match="pip install scikit-learn"):
        digits()


def test_an_unknown_builtin_is_refused_with_what_there_is() -> None:
    with pytest.raises(TrainingError, match="builtin:digits"):
        read("builtin:faces")


@pytest.mark.parametrize("pack", [False, True])
def test_a_folder_of_idx_files_gives_train_and_t10k_by_role(tmp_path: Path, pack: bool) -> None:
    write_idx(tmp_path, "train", PIXELS[:40], LABELS[:40], pack=pack)
    write_idx(tmp_path, "t10k", PIXELS[40:], LABELS[40:], pack=pack)
    _, train, pixels = read(tmp_path, "train")
    _, held, held_pixels = read(tmp_path, "eval")
    assert (train, held) == (names(LABELS[:40]), names(LABELS[40:]))
    np.testing.assert_array_equal(np.concatenate([pixels, held_pixels]), PIXELS)


def test_one_idx_file_may_be_named_itself(tmp_path: Path) -> None:
    path = write_idx(tmp_path, "anything", PIXELS, LABELS)
    assert read(path, "eval")[1] == names(LABELS)


def test_a_cut_off_idx_file_is_refused_with_both_sizes(tmp_path: Path) -> None:
    path = write_idx(tmp_path, "train", PIXELS, LABELS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TrainingError, match=r"3756 bytes, its header says 3856"):
        read(tmp_path)


def test_a_cut_off_packed_idx_file_is_refused(tmp_path: Path) -> None:
    path = write_idx(tmp_path, "train", PIXELS, LABELS, pack=True)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TrainingError, match="does not unpack"):
        read(tmp_path)


def test_idx_labels_must_be_as_many_as_images(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", PIXELS, LABELS[:50])
    with pytest.raises(TrainingError, match=r"60 images, but train-labels-idx1-ubyte 50 labels"):
        read(tmp_path)


def test_idx_images_without_labels_say_which_file_is_missing(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", PIXELS, LABELS)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(TrainingError, match=r"neither train-labels-idx1-ubyte nor train-labels-idx1-ubyte[.]gz"):
        read(tmp_path)


def test_a_folder_names_the_class_of_the_images_below_it(tmp_path: Path) -> None:
    write_folder(tmp_path, PIXELS, LABELS)
    (tmp_path / "3" / "deeper").mkdir()
    (tmp_path / "3" / "deeper" / "one.png").write_bytes(png(PIXELS[0]))
    (tmp_path / "3" / ".hidden.png").write_bytes(b"")
    (tmp_path / "3" / "notes.txt").write_text("no image")
    found, classes, _ = read(tmp_path)
    assert sorted(classes) == sorted([*names(LABELS), "3"])
    assert found.item(classes.index("3")) == "3/0003.png"


def test_train_and_val_folders_are_chosen_by_role(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", PIXELS[:40], LABELS[:40])
    write_folder(tmp_path / "val", PIXELS[40:], LABELS[40:])
    assert sorted(read(tmp_path, "train")[1]) == sorted(names(LABELS[:40]))
    assert sorted(read(tmp_path, "eval")[1]) == sorted(names(LABELS[40:]))


def test_images_outside_of_class_folders_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, PIXELS, LABELS)
    (tmp_path / "stray.png").write_bytes(png(PIXELS[0]))
    with pytest.raises(TrainingError, match=r"1 images lie in no class folder \(stray.png\)"):
        read(tmp_path)


def test_classes_that_are_numbers_are_ordered_as_numbers(tmp_path: Path) -> None:
    write_folder(tmp_path, PIXELS[:3], np.array([2, 10, 1]))
    assert read(tmp_path)[0].classes == ("1", "2", "10")


def test_a_folder_without_images_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(TrainingError, match=r"holds no images \(files ending in .bmp"):
        read(tmp_path)


def test_a_missing_path_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"nowhere: no such file or folder \(looked in /"):
        read(tmp_path / "nowhere")


def as_parquet(kind: str, folder: Path) -> list[object]:
    encoded = [png(image) for image in PIXELS]
    if kind == "bytes":
        return list(encoded)
    if kind == "structs of bytes":
        return [{"bytes": data, "path": None} for data in encoded]
    for number, data in enumerate(encoded):
        (folder / f"{number}.png").write_bytes(data)
    if kind == "paths":
        return [f"{number}.png" for number in range(len(encoded))]
    return [{"bytes": None if n % 2 else data, "path": f"{n}.png"} for n, data in enumerate(encoded)]


@pytest.mark.parametrize("kind", ["bytes", "structs of bytes", "paths", "structs of either"])
def test_parquet_images_may_be_bytes_or_paths(tmp_path: Path, kind: str) -> None:
    path = write_parquet(tmp_path / "digits.parquet", as_parquet(kind, tmp_path), LABELS.tolist())
    found, classes, pixels = read(path)
    assert classes == names(LABELS)
    assert found.item(7) == "digits.parquet[7]"
    np.testing.assert_array_equal(pixels, PIXELS)


def test_parquet_labels_may_be_names_or_missing(tmp_path: Path) -> None:
    labels = ["even" if label % 2 == 0 else "odd" for label in LABELS[:-1]]
    path = write_parquet(tmp_path / "digits.parquet", [png(image) for image in PIXELS], [*labels, None])
    assert read(path)[1] == [*labels, ""]


def test_parquet_keeps_the_class_names_that_hugging_face_stores(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=[f"digit {label}" for label in range(10)])
    )
    rows = {"image": [{"bytes": png(image), "path": None} for image in PIXELS], "label": LABELS.tolist()}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "digits.parquet")
    assert read(tmp_path / "digits.parquet")[1] == [f"digit {label}" for label in LABELS]


@pytest.mark.parametrize("rows", [1, 7, 60])
def test_parquet_row_groups_and_files_are_read_in_order(tmp_path: Path, rows: int) -> None:
    for number in (0, 1):
        half = slice(30 * number, 30 * number + 30)
        table = pa.table({"image": [png(image) for image in PIXELS[half]], "label": LABELS[half].tolist()})
        pq.write_table(table, tmp_path / f"part-{number}.parquet", row_group_size=rows)
    for source in (tmp_path, tmp_path / "part-*.parquet"):
        found, classes, pixels = read(source)
        assert classes == names(LABELS)
        assert found.item(31) == "part-1.parquet[1]"
        np.testing.assert_array_equal(pixels, PIXELS)


def test_parquet_files_named_train_and_test_are_chosen_by_role(tmp_path: Path) -> None:
    encoded = [png(image) for image in PIXELS]
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", encoded[:40], LABELS[:40].tolist())
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", encoded[40:], LABELS[40:].tolist())
    assert read(tmp_path, "train")[1] == names(LABELS[:40])
    assert read(tmp_path, "eval")[1] == names(LABELS[40:])


def test_a_missing_column_is_answered_with_those_that_are_there(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "digits.parquet", [png(PIXELS[0])], [0], columns=("img", "digit"))
    with pytest.raises(TrainingError, match=r"no column 'image'; its columns are img, digit. Set data.image_column"):
        read(path)
    with pytest.raises(TrainingError, match=r"no column 'label'; its columns are img, digit. Set data.label_column"):
        read(path, columns=Columns("img", "label"))
    assert read(path, columns=Columns("img", "digit"))[1] == ["0"]


def test_fractions_are_no_labels(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "digits.parquet", [png(PIXELS[0])], [0.5])
    with pytest.raises(TrainingError, match="'label' holds double"):
        read(path)


def test_numbers_are_no_images(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "digits.parquet", [[1, 2, 3]], [0])
    with pytest.raises(TrainingError, match="'image' holds list"):
        read(path)


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "digits.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(TrainingError, match="does not read as parquet"):
        read(tmp_path / "digits.parquet")


def test_scratch_files_are_gone_when_the_images_are_read(tmp_path: Path) -> None:
    read(write_parquet(tmp_path / "digits.parquet", [png(image) for image in PIXELS], LABELS.tolist()))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_data_set_saved_by_hugging_face_gives_its_splits_by_role(tmp_path: Path) -> None:
    import datasets

    def part(rows: slice) -> datasets.Dataset:
        images = [{"bytes": png(image), "path": None} for image in PIXELS[rows]]
        features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
        return datasets.Dataset.from_dict({"image": images, "label": LABELS[rows].tolist()}, features=features)

    splits = datasets.DatasetDict(train=part(slice(40)), test=part(slice(40, 60)))
    splits.save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved", "train")[1] == names(LABELS[:40])
    assert read(tmp_path / "saved", "eval")[1] == names(LABELS[40:])


def test_hugging_face_names_load_with_and_without_a_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    write_folder(tmp_path / "repository" / "train", PIXELS[:40], LABELS[:40])
    write_folder(tmp_path / "repository" / "test", PIXELS[40:], LABELS[40:])
    assert sorted(read(f"hf:{tmp_path}/repository", "train")[1]) == sorted(names(LABELS[:40]))
    assert sorted(read(f"hf:{tmp_path}/repository", "eval")[1]) == sorted(names(LABELS[40:]))
    assert sorted(read(f"hf:{tmp_path}/repository:test", "train")[1]) == sorted(names(LABELS[40:]))


def test_an_unknown_hugging_face_split_is_refused_with_those_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    write_folder(tmp_path / "repository" / "train", PIXELS, LABELS)
    with pytest.raises(TrainingError, match=r"splits train, none of them to eval"):
        read(f"hf:{tmp_path}/repository", "eval")
    with pytest.raises(TrainingError, match="does not load"):
        read(f"hf:{tmp_path}/repository:holdout")
