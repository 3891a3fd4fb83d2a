"""Images made ready for training: read, cleaned, split, measured. Imports no torch: the driver runs it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import TrainingError
from trainers.config import Clean, Data, MeanStd, Split, TrainJob
from trainers.data.cleaning import Dropped, drop_duplicates, find_label_errors, split_off, thumbnails
from trainers.data.decode import Decoded, Shape, decode_all, read_headers
from trainers.data.geometry import check_shape, choose_shape, fits_memory
from trainers.data.labelled import NO_LABEL, Labelled, recode, some
from trainers.data.sources import open_source
from trainers.data.store import Arrays, pack, unpack
from trainers.data.tables import Columns
from trainers.tasks.base import Prepared

Event = Mapping[str, Any]


@dataclass
class _Side:
    """One source on its way, and what left it."""

    source: Labelled
    sizes: NDArray[np.int64]  # [images, 3]: height, width, channels before resizing
    dropped: Dropped
    decoded: Decoded | None = None

    @property
    def rows(self) -> NDArray[np.int64]:
        return self.dropped.left(len(self.source))

    @property
    def digests(self) -> list[bytes]:
        assert self.decoded is not None
        return self.decoded.digests


def prepare(job: TrainJob) -> Prepared:
    """Read, clean, split and measure the images of a job.

    The arrays are read-only: `images` [images, height, width, channels] uint8 (or `paths` and `spans` where they
    would take more than a quarter of the machine's memory or 4 GiB), `labels`, `train_rows`, `eval_rows`, and the
    first two again with the prefix `eval_` where evaluation has a source of its own. Raises TrainingError for
    whatever a person must mend before training can start.
    """
    started = time.perf_counter()
    with ExitStack() as scratch:
        train, held = _survey_both(job.data, scratch)
        shape, notes = choose_shape(train.sizes[train.rows], job.data)
        check_shape(job, shape)
        _decode([train, *([held] if held else [])], shape, job.data.clean)
        if job.data.clean.drop_duplicates:
            drop_duplicates(train.dropped, train.digests, train.source.labels, _digests_left(held))
        classes = _classes(train)
        arrays = _arrays(job, train, held, classes)
    if job.data.clean.drop_label_errors:
        notes.append(_drop_label_errors(job, train, arrays, classes, shape))
    assert train.decoded is not None
    mean, std = _normalisation(job.data, train.decoded.moments[arrays["train_rows"]], shape)
    for array in arrays.values():
        array.setflags(write=False)
    labels, pixels = _fingerprints(arrays, train, held)
    found = {
        "train": len(arrays["train_rows"]),
        "eval": len(arrays.get("eval_rows", ())),
        "classes": list(classes),
        "image": list(shape),
    }
    notes += [*train.dropped.events(), *(held.dropped.events() if held else [])]
    notes.append({"event": "data.ready", **found, "seconds": round(time.perf_counter() - started, 3)})
    meta = {**found, "mean": mean, "std": std, "labels": labels, "pixels": pixels}
    return Prepared(arrays=arrays, meta=meta, notes=tuple(notes))


def _survey_both(data: Data, scratch: ExitStack) -> tuple[_Side, _Side | None]:
    columns = Columns(data.image_column, data.label_column)
    train = _survey(open_source(data.train, "train", columns, scratch), "train", data.clean)
    if not isinstance(data.eval, str):
        return train, None
    return train, _survey(open_source(data.eval, "eval", columns, scratch), "eval", data.clean)


def _survey(source: Labelled, split: str, clean: Clean, *, labelled: bool = True) -> _Side:
    """Read what kind of image each file is, and drop what cannot take part."""
    sizes, problems = read_headers(source)
    side = _Side(source, sizes, Dropped(split, source.item))
    _drop_unreadable(side, problems, clean)
    for row in np.flatnonzero(source.labels == NO_LABEL) if labelled else ():
        side.dropped.add(int(row), "no label")
    if clean.min_size is not None:
        shorter = sizes[:, :2].min(axis=1)
        for row in np.flatnonzero(shorter < clean.min_size):
            side.dropped.add(int(row), "too small", f"{sizes[row, 1]}×{sizes[row, 0]} pixels")
    _check_left(side)
    return side


def _drop_unreadable(side: _Side, problems: Mapping[int, str], clean: Clean) -> None:
    if problems and not clean.drop_unreadable:
        listed = [f"{side.source.item(row)} ({problem})" for row, problem in sorted(problems.items())]
        raise TrainingError(
            f"{side.source.name}: {len(problems)} of {len(side.source)} images cannot be read: {some(listed, 5)}. "
            "Mend or remove them, or set data.clean.drop_unreadable: true."
        )
    for row, problem in problems.items():
        side.dropped.add(row, "unreadable", problem)


def _check_left(side: _Side) -> None:
    if len(side.rows):
        return
    counts = [f"{event['count']} {event['reason']} (such as {event['items'][0]})" for event in side.dropped.events()]
    hint = ""
    if any(reason == "also in eval" for reason, _ in side.dropped.rows.values()):
        hint = " Where data.eval is the same data, hold out a part instead: eval: {split: 0.2}."
    raise TrainingError(
        f"{side.source.name}: none of the {len(side.source)} images is left to {side.dropped.split}: "
        f"{'; '.join(counts)}.{hint}"
    )


def _decode(sides: list[_Side], shape: Shape, clean: Clean) -> None:
    keep = fits_memory(sum(len(side.source) for side in sides), shape)
    for side in sides:
        side.decoded = decode_all(side.source, shape, side.dropped.rows, keep=keep)
        _drop_unreadable(side, side.decoded.problems, clean)
        _check_left(side)


def _digests_left(held: _Side | None) -> Iterable[bytes]:
    return [held.digests[row] for row in held.rows] if held else ()


def _classes(train: _Side) -> tuple[str, ...]:
    """Return the classes that training has samples of."""
    _check_left(train)
    used = np.unique(train.source.labels[train.rows])
    classes = tuple(train.source.classes[label] for label in used)
    if len(classes) < 2:
        raise TrainingError(
            f"{train.source.name}: all {len(train.rows)} images belong to one class, {classes[0]}. There is nothing "
            "to tell apart: add images of another class."
        )
    return classes


def _arrays(job: TrainJob, train: _Side, held: _Side | None, classes: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    assert train.decoded is not None
    rows = train.rows
    arrays = pack(train.source, train.decoded, recode(train.source, classes, rows))
    if held is not None and held.decoded is not None:
        arrays |= pack(held.source, held.decoded, recode(held.source, classes, held.rows), "eval_")
        arrays["eval_rows"] = held.rows
    elif isinstance(job.data.eval, Split):
        rows, out = split_off(rows, arrays["labels"], train.digests, job.data.eval.split, job.train.seed)
        if not len(out):
            raise TrainingError(
                f"{train.source.name}: nothing is left to evaluate on, because every class has one image, to train on. "
                "Add images, or take out data.eval."
            )
        arrays["eval_rows"] = out
    arrays["train_rows"] = rows
    return arrays


def _drop_label_errors(
    job: TrainJob, train: _Side, arrays: dict[str, NDArray[Any]], classes: tuple[str, ...], shape: Shape
) -> Event:
    """Drop training samples whose label the others contradict; what is held out keeps its labels."""
    part = unpack(arrays, "train", shape)
    assert part is not None
    chunks = np.array_split(part.rows, max(len(part.rows) // 1024, 1))
    features = np.concatenate([thumbnails(part.pixels.take(chunk)) for chunk in chunks])
    errors, agreement = find_label_errors(features, part.labels, len(classes), job.train.seed)
    for sample, suggested in errors.items():
        detail = f"labelled {classes[part.labels[sample]]}, looks like {classes[suggested]}"
        train.dropped.add(int(part.rows[sample]), "label error", detail)
    arrays["train_rows"] = np.delete(part.rows, list(errors))
    return {"event": "data.label_errors", "found": len(errors), "agreement": round(agreement, 4)}


def _fingerprints(arrays: Arrays, train: _Side, held: _Side | None) -> tuple[str, str]:
    """Return what tells the samples from others: of their labels in order, and of their pixels."""
    labels, pixels = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    own = ("eval_labels", held) if held is not None else ("labels", train)
    for name, key, side in (("train_rows", "labels", train), ("eval_rows", *own)):
        rows = arrays.get(name, np.empty(0, dtype=np.int64))
        labels.update(f"{name} {len(rows)}".encode())
        labels.update(arrays[key][rows].astype("<i8").tobytes())
        for row in rows.tolist():
            pixels.update(side.digests[row])
    return labels.hexdigest(), pixels.hexdigest()


def _normalisation(data: Data, moments: NDArray[np.float64], shape: Shape) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation a channel, on the scale from 0 (black) to 1 (white)."""
    if isinstance(data.normalize, MeanStd):
        return data.normalize.mean, data.normalize.std
    if data.normalize == "none":
        return [0.0] * shape[2], [1.0] * shape[2]
    total, squares = moments.sum(axis=0) / (len(moments) * shape[0] * shape[1])
    std = np.sqrt(np.maximum(squares - total**2, 0)) / 255
    return (total / 255).tolist(), np.where(std > 0, std, 1.0).tolist()


@dataclass(frozen=True)
class NewImages:
    """Images to evaluate or predict on: `arrays` for `ImageClassification.dataset`, and a name for each sample."""

    arrays: Arrays
    names: list[str]
    notes: tuple[Event, ...]


def load_images(
    source: str, meta: Mapping[str, Any], *, image_column: str = "image", label_column: str | None = "label"
) -> NewImages:
    """Read images as a trained model takes them; `meta` is what `prepare` stored with it.

    `source` is anything that data.eval may be; without a label column (None) also one image, or a folder of images
    in no class folders. Images that cannot be read are left out and stand in the notes. Raises TrainingError where
    nothing is left, or where labels are unknown to the model.
    """
    height, width, channels = meta["image"]
    labelled = label_column is not None
    with ExitStack() as scratch:
        found = open_source(source, "eval", Columns(image_column, label_column), scratch)
        side = _survey(found, "eval", Clean(), labelled=labelled)
        _decode([side], (height, width, channels), Clean())
        assert side.decoded is not None
        labels = np.full(len(found), NO_LABEL, dtype=np.int64)
        if labelled:
            labels = recode(found, tuple(meta["classes"]), side.rows)
        arrays = pack(found, side.decoded, labels, "eval_") | {"eval_rows": side.rows}
    return NewImages(arrays, [found.item(row) for row in side.rows.tolist()], tuple(side.dropped.events()))
