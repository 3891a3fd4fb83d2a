"""The state of a training <-> files; here the whole of it, as one rank holds it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors.torch import load_file
from torch import Tensor

from cluster.records import Checkpoint
from cluster.runs import Run
from cluster.shards import INDEX_FILE, Index, Layout, consolidate
from cluster.storage.sources import Source
from cluster.tensor_file import Header
from trainers import state
from trainers.host_memory import HostMemory
from trainers.tensor_file import dtype_of, load_tensors, tensor_file

if TYPE_CHECKING:
    from trainers.loop import Trainer

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
_MODEL_METADATA = {"format": "pt"}


@dataclass(frozen=True)
class State:
    """A copy of model and optimizer, or of one rank's parts of them."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    rest: dict[str, Any]  # of the optimizer, plain JSON
    layout: Layout = field(default_factory=dict)  # what parts are parts of

    @property
    def metadata(self) -> dict[str, dict[str, str]]:
        """What the files of the whole model and optimizer carry beside their tensors."""
        return {"model": _MODEL_METADATA, "optimizer": state.metadata_of(self.rest)}


class StateFiles(Protocol):
    """How a rank's state goes into files, and comes out of them."""

    def copy(self, trainer: Trainer, memory: HostMemory) -> State: ...

    def files(self, copied: State) -> dict[str, Source]:
        """Return the files of a copy, by name. They are in its memory, and good as long as that is."""
        ...

    def restore(self, trainer: Trainer, run: Run, checkpoint: Checkpoint, folder: Path) -> None:
        """Load model and optimizer from a checkpoint of either kind; its other files are in the folder then."""
        ...


class WholeFiles:
    """Model and optimizer in one file each."""

    def copy(self, trainer: Trainer, memory: HostMemory) -> State:
        optimizer, rest = state.flatten(trainer.optimizer)
        model = memory.copy("model", trainer.model.state_dict())
        return State(model, memory.copy("optimizer", optimizer), deepcopy(rest))

    def files(self, copied: State) -> dict[str, Source]:
        return {
            MODEL_FILE: tensor_file(copied.model, copied.metadata["model"]),
            OPTIMIZER_FILE: tensor_file(copied.optimizer, copied.metadata["optimizer"]),
        }

    def restore(self, trainer: Trainer, run: Run, checkpoint: Checkpoint, folder: Path) -> None:
        if INDEX_FILE in checkpoint.files:
            run.fetch(checkpoint, folder, on_file=trainer.pulse.goes_on)
            index = Index.read(folder / INDEX_FILE)
            for part in index.tensors:
                consolidate(folder, index, part)
            trainer.model.load_state_dict(load_file(folder / MODEL_FILE))
            state.load_optimizer(trainer.optimizer, folder / OPTIMIZER_FILE)
            return
        others = [name for name in checkpoint.files if name not in (MODEL_FILE, OPTIMIZER_FILE)]
        with ThreadPoolExecutor(2) as pool:
            beside = pool.submit(run.fetch, checkpoint, folder, others)
            optimizer = pool.submit(_restore_optimizer, trainer, run, checkpoint)
            _restore_model(trainer, run, checkpoint)
            optimizer.result()
            beside.result()


def _restore_model(trainer: Trainer, run: Run, checkpoint: Checkpoint) -> None:
    place = lambda _: trainer.model.state_dict()  # noqa: E731
    tensors, _ = load_tensors(run, checkpoint, MODEL_FILE, place, trainer.pulse.goes_on)
    # most are in their place: it knows those that lack or do not fit, and a model may have more to do
    trainer.model.load_state_dict(tensors)


def _restore_optimizer(trainer: Trainer, run: Run, checkpoint: Checkpoint) -> None:
    name = f"{checkpoint.folder}/{OPTIMIZER_FILE}"

    def place(header: Header) -> dict[str, Tensor]:
        saved = {key: (dtype_of(stored, name), stored.shape) for key, stored in header.tensors.items()}
        return state.empty_state(trainer.optimizer, saved, state.rest_in(header.metadata, name))

    tensors, metadata = load_tensors(run, checkpoint, OPTIMIZER_FILE, place, trainer.pulse.goes_on)
    state.set_state(trainer.optimizer, tensors, state.rest_in(metadata, name))
