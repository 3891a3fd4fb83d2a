"""Images in the columns of parquet files and of Hugging Face data sets."""

from __future__ import annotations

import bisect
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import StorageFullError, TrainingError
from trainers.data.labelled import NO_LABEL, Encoded, Labelled, in_order, some
from trainers.data.remote import cache_folder

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_AT_ONCE = 1000
_SPLIT_WORDS = {"train": ("train",), "eval": ("val", "eval", "dev", "test")}


@dataclass(frozen=True)
class Columns:
    """The columns to read; `label` is None where labels are not asked for."""

    image: str
    label: str | None


def pick_parquet(files: Sequence[Path], role: str) -> list[Path]:
    """Keep the files of a role where names tell (train-00000-of-00001.parquet), else all of them."""
    if not any("train" in path.name for path in files):
        return list(files)
    for word in _SPLIT_WORDS[role]:
        chosen = [path for path in files if word in path.name]
        if chosen:
            return chosen
    raise TrainingError(
        f"{files[0].parent}: no parquet file is there to evaluate on: looked for {', '.join(_SPLIT_WORDS['eval'])} "
        f"in {some([path.name for path in files])}"
    )


def read_parquet(files: Sequence[Path], name: str, columns: Columns, scratch: ExitStack) -> Labelled:
    """Return the images of parquet files.

    The image column holds encoded bytes, paths, or structs of both as Hugging Face writes them; the label column
    whole numbers or names. Encoded bytes are unpacked into a scratch file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        tables = [pq.ParquetFile(path) for path in files]
    except (pa.ArrowInvalid, OSError) as error:
        raise TrainingError(f"{name} does not read as parquet: {error}") from error
    unpacked = _Unpacked(name, columns, scratch)
    for path, table in zip(files, tables, strict=True):
        schema = table.schema_arrow
        unpacked.check(schema)
        batches = table.iter_batches(_ROWS_AT_ONCE, columns=unpacked.wanted)
        unpacked.add(path.name, path.parent, batches, _class_names(schema, columns.label))
    return unpacked.finish()


def read_dataset(data: Any, name: str, columns: Columns, scratch: ExitStack) -> Labelled:
    """Return the images of a `datasets.Dataset`."""
    import datasets

    unpacked = _Unpacked(name, columns, scratch)
    unpacked.check(data.features.arrow_schema)
    names = getattr(data.features[columns.label], "names", None) if columns.label else None
    data = data.select_columns(unpacked.wanted)
    if isinstance(data.features[columns.image], datasets.Image):
        data = data.cast_column(columns.image, datasets.Image(decode=False))
    tables = data.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE)
    batches = (batch for table in tables for batch in table.to_batches())
    unpacked.add(name, Path.cwd(), batches, names)
    return unpacked.finish()


def _class_names(schema: pa.Schema, label: str | None) -> list[str] | None:
    """Return the names that Hugging Face stores beside numbered labels."""
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is None or label is None:
        return None
    feature = json.loads(stored).get("info", {}).get("features", {}).get(label, {})
    names = feature.get("names") if isinstance(feature, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else None


@dataclass
class _Unpacked:
    """Columns of images on their way into a scratch file."""

    name: str
    columns: Columns
    scratch: ExitStack
    paths: list[bytes] = field(default_factory=list)
    spans: list[NDArray[np.int64]] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    parts: list[tuple[int, str]] = field(default_factory=list)  # the first image of each file, and its name
    names: list[str] | None = None
    images: int = 0

    @property
    def wanted(self) -> list[str]:
        return [self.columns.image, *([self.columns.label] if self.columns.label else [])]

    def check(self, schema: pa.Schema) -> None:
        for key, column in (("image_column", self.columns.image), ("label_column", self.columns.label)):
            if column is not None and column not in schema.names:
                raise TrainingError(
                    f"{self.name} has no column {column!r}; its columns are {', '.join(schema.names)}. Set data.{key}."
                )

    def add(self, name: str, folder: Path, batches: Iterable[pa.RecordBatch], class_names: list[str] | None) -> None:
        self.parts.append((self.images, name))
        self.names = self.names or class_names
        with self._spill() as file:
            for batch in batches:
                data, beside = _bytes_and_paths(self.name, self.columns.image, batch.column(self.columns.image))
                spans = _write(file, len(self.paths) - 1, data, batch.num_rows)
                self._point_to_files(spans, data, beside, folder)
                self.spans.append(spans)
                self.images += batch.num_rows
                if self.columns.label:
                    self.labels.append(batch.column(self.columns.label))

    def _spill(self) -> Any:
        handle, path = tempfile.mkstemp(prefix="unpacked-", dir=cache_folder())
        self.scratch.callback(Path(path).unlink, missing_ok=True)
        self.paths.append(os.fsencode(path))
        return open(handle, "wb")

    def _point_to_files(self, spans: NDArray[np.int64], data: Any, beside: Any, folder: Path) -> None:
        """Where there are no bytes but a path, as `path` beside null bytes, the image is that file."""
        if beside is None:
            return
        has_bytes = np.zeros(len(spans), bool) if data is None else np.asarray(data.is_valid())
        for row in np.flatnonzero(~has_bytes & np.asarray(beside.is_valid())):
            spans[row] = (len(self.paths), 0, -1)
            self.paths.append(os.fsencode(folder / beside[int(row)].as_py()))

    def finish(self) -> Labelled:
        labels, classes = self._labels()
        starts = [start for start, _ in self.parts]
        parts = self.parts

        def item(row: int) -> str:
            start, name = parts[bisect.bisect_right(starts, row) - 1]
            return f"{name}[{row - start}]"

        spans = np.concatenate(self.spans) if self.spans else np.empty((0, 3), np.int64)
        encoded = Encoded(paths=np.array(self.paths), spans=spans)
        return Labelled(name=self.name, labels=labels, classes=classes, item=item, encoded=encoded)

    def _labels(self) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        import pyarrow as pa
        import pyarrow.types as kinds

        if not self.labels:
            return np.full(self.images, NO_LABEL, dtype=np.int64), ()
        column = pa.chunked_array(self.labels).combine_chunks()
        if kinds.is_dictionary(column.type):
            column = column.dictionary_decode()
        if kinds.is_integer(column.type) and self.names is not None:
            codes = np.asarray(column.cast(pa.int64()).fill_null(NO_LABEL))
            return np.where((codes >= 0) & (codes < len(self.names)), codes, NO_LABEL), tuple(self.names)
        if not (kinds.is_integer(column.type) or kinds.is_boolean(column.type) or _is_text(column.type)):
            raise TrainingError(
                f"{self.name}: the label column {self.columns.label!r} holds {column.type}; classes are names or "
                "whole numbers. Set data.label_column."
            )
        encoded = column.cast(pa.string()).dictionary_encode()
        found = encoded.dictionary.to_pylist()
        classes = in_order(found)
        table = np.array([*(classes.index(name) for name in found), NO_LABEL], dtype=np.int64)
        return table[np.asarray(encoded.indices.fill_null(NO_LABEL))], classes


def _is_text(kind: Any) -> bool:
    import pyarrow.types as kinds

    return bool(kinds.is_string(kind) or kinds.is_large_string(kind))


def _bytes_and_paths(name: str, column: str, values: Any) -> tuple[Any, Any]:
    """Split an image column into encoded bytes and paths; either may be missing."""
    import pyarrow.types as kinds

    kind = values.type
    if kinds.is_struct(kind) and {field.name for field in kind} & {"bytes", "path"}:
        parts = dict(zip((field.name for field in kind), values.flatten(), strict=True))
        return parts.get("bytes"), parts.get("path")
    if kinds.is_binary(kind) or kinds.is_large_binary(kind):
        return values, None
    if _is_text(kind):
        return None, values
    raise TrainingError(
        f"{name}: the image column {column!r} holds {kind}; images are encoded bytes, paths, or structs of both. "
        "Set data.image_column."
    )


def _write(file: Any, path: int, data: Any, rows: int) -> NDArray[np.int64]:
    """Append a column of bytes to a file as it lies in memory; return the [rows, 3] spans of its values."""
    import pyarrow as pa

    spans = np.zeros((rows, 3), dtype=np.int64)
    spans[:, 0] = path
    if data is None or rows == 0:
        return spans
    data = data.cast(pa.large_binary())
    _, offsets, values = data.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[data.offset : data.offset + rows + 1]
    position = file.tell()
    try:
        file.write(memoryview(values)[ends[0] : ends[-1]] if values is not None else b"")
        file.flush()
    except OSError as error:
        raise StorageFullError(
            f"{file.name}: {error.strerror} while unpacking images. Free some space there, or set RAYLIFT_CACHE to "
            "another folder."
        ) from error
    spans[:, 1] = position + ends[:-1] - ends[0]
    spans[:, 2] = np.diff(ends)
    return spans
