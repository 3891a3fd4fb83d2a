"""Sharded state <-> the files of each rank, by the planners of torch.distributed.checkpoint (DCP).

DCP's own writer pickles what is where. Here that goes into JSON (cluster.shards), and into the headers of the files
as DCP's HuggingFaceStorageReader wants it. Reading is DCP's: each rank fetches the files that hold parts of its own,
whatever the number of ranks that wrote them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from cluster.errors import CorruptObjectError
from cluster.records import Checkpoint
from cluster.runs import Run
from cluster.shards import INDEX_FILE, Index, Part, TensorLayout, shard_name
from cluster.storage.sources import Source
from trainers import state
from trainers.host_memory import HostMemory
from trainers.sharding import own_part
from trainers.tensor_file import tensor_file
from trainers.whole import State

if TYPE_CHECKING:
    from trainers.loop import Trainer

_PARALLEL = 4  # downloads


class ShardFiles:
    """A rank's parts of model and optimizer in one file each."""

    def __init__(self, rank: int, ranks: int) -> None:
        self._rank = rank
        self._ranks = ranks

    def copy(self, trainer: Trainer, memory: HostMemory) -> State:
        optimizer, rest = state.flatten(trainer.optimizer)
        copies, layout = {}, {}
        for file, tensors in (("model", trainer.model.state_dict()), ("optimizer", optimizer)):
            layout[file] = own_layout(tensors, self._rank)
            copies[file] = memory.copy(file, {name: own_part(tensors[name]) for name in layout[file]})
        return State(copies["model"], copies["optimizer"], deepcopy(rest), layout)

    def files(self, copied: State) -> dict[str, Source]:
        found: dict[str, Source] = {}
        for file, tensors in (("model", copied.model), ("optimizer", copied.optimizer)):
            offsets = {name: {"saved_offsets": one.parts[0].offsets} for name, one in copied.layout[file].items()}
            for_torch = {"DCP_SHARDING_INFO": json.dumps(offsets)}
            found[shard_name(file, self._rank, self._ranks)] = tensor_file(tensors, for_torch)
        return found

    def restore(self, trainer: Trainer, run: Run, checkpoint: Checkpoint, folder: Path) -> None:
        """Load this rank's parts. Collective. Of files in parts it fetches those alone that hold some of them."""
        parts = [name for name in checkpoint.files if name.endswith(".safetensors")]
        run.fetch(checkpoint, folder, [name for name in checkpoint.files if name not in parts])
        if INDEX_FILE in checkpoint.files:
            index = Index.read(folder / INDEX_FILE)
        else:
            run.fetch(checkpoint, folder, parts, on_file=trainer.pulse.goes_on)
            index = index_of_whole(folder, ("model", "optimizer"))

        def fetch(name: str) -> Path:
            if not (folder / name).exists():
                run.fetch(checkpoint, folder, [name], on_file=trainer.pulse.goes_on)
            return folder / name

        rest = state.rest_in(index.metadata["optimizer"], checkpoint.folder)
        saved = {name: (_dtype_of(one), one.shape) for name, one in index.tensors["optimizer"].items()}
        optimizer = state.empty_state(trainer.optimizer, saved, rest)
        load({"model": trainer.model.state_dict(), "optimizer": optimizer}, index, fetch)
        state.set_state(trainer.optimizer, optimizer, rest)


def own_layout(tensors: Mapping[str, torch.Tensor], rank: int) -> dict[str, TensorLayout]:
    """Return which parts of some tensors are a rank's, as DCP plans it.

    What is not sharded is the same on every rank, and counts as the first one's.
    """
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(tensors), is_coordinator=rank == 0)
    layout: dict[str, TensorLayout] = {}
    for item in planner.create_local_plan().items:
        data = item.tensor_data
        assert data is not None, f"{item.index.fqn} is no tensor"
        if (item.type is WriteItemType.TENSOR and rank != 0) or 0 in data.chunk.sizes:
            continue
        dtype = str(data.properties.dtype).removeprefix("torch.")
        part = Part(rank, tuple(data.chunk.offsets), tuple(data.chunk.sizes))
        layout[item.index.fqn] = TensorLayout(dtype, tuple(data.size), (part,))
    return layout


def load(wanted: Mapping[str, Mapping[str, torch.Tensor]], index: Index, fetch: Callable[[str], Path]) -> None:
    """Fill tensors, by the names of their file and their own, with what a checkpoint holds of them. Collective.

    `fetch` brings a file of the checkpoint to this machine. Raises on every rank what one of them met.
    """
    flat = {f"{file}/{name}": tensor for file, named in wanted.items() for name, tensor in named.items()}
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        load_parts(flat, storage_reader=_Reader(index, fetch), planner=planner)
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        raise cause from error


def index_of_whole(folder: Path, files: tuple[str, ...]) -> Index:
    """Return the index of files that hold whole tensors. Raises CorruptObjectError where one does not read."""
    tensors: dict[str, dict[str, TensorLayout]] = {}
    metadata: dict[str, dict[str, str]] = {}
    for name in files:
        path = folder / f"{name}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                metadata[name] = file.metadata() or {}
                tensors[name] = {key: _whole(file, key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CorruptObjectError(f"{path} does not read: {error}") from error
    return Index(0, tensors, metadata)


def _whole(file: Any, name: str) -> TensorLayout:
    shape = tuple(file.get_slice(name).get_shape())
    sample = file.get_slice(name)[:0] if shape else file.get_tensor(name)
    return TensorLayout(str(sample.dtype).removeprefix("torch."), shape, (Part(0, (0,) * len(shape), shape),))


class _Reader(StorageReader):
    """Reads the parts that a rank needs from the files of the ranks that wrote them, or from whole files."""

    def __init__(self, index: Index, fetch: Callable[[str], Path]) -> None:
        self._index = index
        self._fetch = fetch
        self._files: dict[MetadataIndex, str] = {}

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        tensors: dict[str, Any] = {}
        for file, named in self._index.tensors.items():
            for name, tensor in named.items():
                parts = [ChunkStorageMetadata(torch.Size(one.offsets), torch.Size(one.sizes)) for one in tensor.parts]
                properties = TensorProperties(dtype=_dtype_of(tensor))
                tensors[f"{file}/{name}"] = TensorStorageMetadata(properties, torch.Size(tensor.shape), parts)
                for one in tensor.parts:
                    self._files[MetadataIndex(f"{file}/{name}", one.offsets)] = self._file(file, one.rank)
        return Metadata(tensors)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        wanted: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            wanted.setdefault(self._files[item.storage_index], []).append(item)
        with ThreadPoolExecutor(_PARALLEL) as pool:
            paths = dict(zip(wanted, pool.map(self._fetch, wanted), strict=True))
        for name, items in wanted.items():
            with safe_open(paths[name], framework="pt") as file:
                for item in items:
                    _read(file, item, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def reset(self, checkpoint_id: Any = None) -> None: ...

    def set_up_storage_reader(self, *_: Any, **__: Any) -> None: ...

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return checkpoint_id is None

    def _file(self, file: str, rank: int) -> str:
        return shard_name(file, rank, self._index.ranks) if self._index.ranks else f"{file}.safetensors"


def _read(file: Any, item: ReadItem, planner: LoadPlanner) -> None:
    name = item.storage_index.fqn.partition("/")[2]
    box = tuple(slice(start, start + length) for start, length in zip(item.storage_offsets, item.lengths, strict=True))
    part = file.get_slice(name)[box] if box else file.get_tensor(name)
    target = planner.resolve_tensor(item).detach()
    target.copy_(part)
    planner.commit_tensor(item, target)


def _dtype_of(tensor: TensorLayout) -> torch.dtype:
    dtype = getattr(torch, tensor.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise CorruptObjectError(f"{tensor.dtype!r} is no type of numbers that torch has")
    return dtype
