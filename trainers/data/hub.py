"""Images of Hugging Face data sets, by name from the hub or from a folder where one was saved."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cluster.errors import InfrastructureError, MissingExtraError, TrainingError
from trainers.data.labelled import Labelled
from trainers.data.tables import Columns, read_dataset

_SPLITS = {"train": ("train",), "eval": ("validation", "valid", "val", "dev", "eval", "test")}


def read_named(source: str, role: str, columns: Columns, scratch: ExitStack) -> Labelled:
    """Return the images of `hf:NAME` or `hf:NAME:SPLIT`; NAME is on the hub or a folder.

    Without a split, train is for training, and the first of validation and test for evaluation. Raises
    InfrastructureError where the hub does not answer, TrainingError where it knows no such data set or split.
    """
    datasets = _import_datasets()
    name, _, split = source.removeprefix("hf:").partition(":")
    try:
        data = datasets.load_dataset(name, split=split or None)
    except ConnectionError as error:
        raise InfrastructureError(f"{source}: the hub does not answer: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingError(f"{source} does not load: {error}") from error
    return read_dataset(_pick(data, source, role), source, columns, scratch)


def is_saved(folder: Path) -> bool:
    """True where `save_to_disk` of Hugging Face's datasets wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def read_saved(folder: Path, source: str, role: str, columns: Columns, scratch: ExitStack) -> Labelled:
    """Return the images of a data set that `save_to_disk` wrote."""
    try:
        data = _import_datasets().load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{source} does not load: {error}") from error
    return read_dataset(_pick(data, source, role), source, columns, scratch)


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("Hugging Face data needs the package datasets: pip install 'raylift[train]'") from error
    datasets.disable_progress_bars()
    return datasets


def _pick(data: Any, source: str, role: str) -> Any:
    if not isinstance(data, dict):  # one split; a DatasetDict is a dict of them
        return data
    for split in _SPLITS[role]:
        if split in data:
            return data[split]
    raise TrainingError(
        f"{source} has the splits {', '.join(data)}, none of them to {role}: name one, as in "
        f"data.{role}: {source}:{next(iter(data))}"
    )
