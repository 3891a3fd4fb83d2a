"""State <-> files <-> storage. The loop waits for a copy of the state; hashing and uploading go on behind it."""

from __future__ import annotations

import json
import platform
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cluster.errors import StorageFullError
from cluster.runs import Attempt
from trainers import state

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainers.loop import Trainer
    from trainers.record import Recorder

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
TRAINER_FILE = "trainer.json"
META_FILE = "raylift.json"  # what evaluation and prediction need beside the weights


@dataclass(frozen=True)
class Snapshot:
    """A copy of the whole state on the host, safe from the next step."""

    step: int
    model: dict[str, torch.Tensor]
    optimizer: tuple[dict[str, torch.Tensor], dict[str, Any]]
    trainer: dict[str, Any]
    meta: dict[str, Any]
    evaluation: dict[str, float]


class Checkpointer:
    """Saves on rank 0, at most one save behind; restores on every rank."""

    def __init__(self, attempt: Attempt, rank: int, *, keep: int, recorder: Recorder, meta: Mapping[str, Any]) -> None:
        self._attempt = attempt
        self._rank = rank
        self._keep = keep
        self._recorder = recorder
        self._meta = meta
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._behind: Future[None] | None = None
        self._unproven: tuple[Snapshot, float] | None = None
        self.newest_step = 0

    def restore(self, trainer: Trainer) -> None:
        """Load the attempt's base into the trainer; without one, leave it as initialised."""
        checkpoint = self._attempt.start_from()
        if checkpoint is None:
            return
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="raylift-restore-") as folder:
            files = Path(folder)
            self._attempt.run.fetch(checkpoint, files)
            trainer.model.load_state_dict(load_file(files / MODEL_FILE))
            state.load_optimizer(trainer.optimizer, files / OPTIMIZER_FILE)
            trainer.load_state(json.loads((files / TRAINER_FILE).read_text()))
        self.newest_step = checkpoint.step
        self._recorder.event("restored", step=checkpoint.step, seconds=round(time.monotonic() - started, 3))

    def save(self, trainer: Trainer) -> None:
        """Copy the state, for `confirm` to write; waits first for the save before. Raises what that one met."""
        if self._rank != 0:
            return
        started = time.monotonic()
        self.wait()
        optimizer, rest = state.flatten(trainer.optimizer)
        snapshot = Snapshot(
            step=trainer.progress.step,
            model={name: _copy(tensor) for name, tensor in trainer.model.state_dict().items()},
            optimizer=({name: _copy(tensor) for name, tensor in optimizer.items()}, deepcopy(rest)),
            trainer=trainer.state(),
            meta={**self._meta, "precision": trainer.precision},
            evaluation=dict(trainer.progress.evaluation),
        )
        blocked = time.monotonic() - started
        self._unproven = snapshot, blocked

    def confirm(self) -> None:
        """Begin to write the copy: the next step's loss, or the run's end, shows that its weights are good.

        Were it written before, a checkpoint of weights that have diverged could push the last good one out.
        """
        if self._unproven is not None:
            self._behind = self._pool.submit(self._write, *self._unproven)
            self._unproven = None

    def wait(self) -> None:
        """Block until the save behind is committed. Raises StorageError."""
        if self._behind is not None:
            behind, self._behind = self._behind, None
            behind.result()

    def close(self) -> None:
        """Write what is confirmed by the end of the training, and finish it. Raises StorageError."""
        self.confirm()
        self.wait()
        self._pool.shutdown()

    def _write(self, snapshot: Snapshot, blocked: float) -> None:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="raylift-save-") as folder:
            files = Path(folder)
            try:
                save_file(snapshot.model, files / MODEL_FILE, metadata={"format": "pt"})
                state.write(*snapshot.optimizer, files / OPTIMIZER_FILE)
                (files / TRAINER_FILE).write_text(json.dumps(snapshot.trainer))
                (files / META_FILE).write_text(json.dumps(snapshot.meta, indent=1))
            except (OSError, SafetensorError) as error:
                raise StorageFullError(
                    f"could not write the checkpoint of step {snapshot.step}: {error}. Free some space there, or set "
                    "TMPDIR to another folder"
                ) from error
            self._recorder.flush()  # a checkpoint vouches for the rows up to its step
            info = {"metrics": snapshot.evaluation, "torch": torch.__version__, "python": platform.python_version()}
            checkpoint = self._attempt.commit(snapshot.step, sorted(files.iterdir()), info)
        self.newest_step = snapshot.step
        seconds = time.monotonic() - started
        self._recorder.event(
            "checkpoint",
            step=snapshot.step,
            bytes=checkpoint.size,
            seconds=round(seconds, 3),
            blocked=round(blocked, 3),
            metrics=snapshot.evaluation,
        )
        self._attempt.retain(self._keep)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to the host, contiguous in memory as its file wants it."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
