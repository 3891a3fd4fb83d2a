"""State <-> files <-> storage. The loop waits for a copy of the state; hashing and uploading go on behind it."""

from __future__ import annotations

import json
import platform
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.errors import CorruptObjectError, ObjectExistsError, StorageDeniedError, StorageError, StorageFullError
from cluster.runs import Attempt, Checkpoint, SupersededError
from cluster.selection import best_of
from trainers import state

if TYPE_CHECKING:
    from trainers.loop import Trainer
    from trainers.record import Recorder

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
TRAINER_FILE = "trainer.json"
META_FILE = "raylift.json"  # what evaluation and prediction need beside the weights
PATIENCE = 30 * 60.0  # seconds that storage may be away, until a run gives up
_LONGEST_WAIT = 30.0  # seconds that the loop stands still for the save before
_PAUSE = 5.0  # seconds between tries, beside those that storage takes by itself
_FINAL = (CorruptObjectError, ObjectExistsError, StorageDeniedError, StorageFullError, SupersededError)  # no outage


@dataclass(frozen=True)
class Snapshot:
    """A copy of the whole state on the host, safe from the next step."""

    step: int
    model: dict[str, Tensor]
    optimizer: tuple[dict[str, Tensor], dict[str, Any]]
    trainer: dict[str, Any]
    meta: dict[str, Any]
    evaluation: dict[str, float]
    blocked: float  # seconds that the loop stood still for it


class HostMemory:
    """Memory that copies of the state go into, the same one for every save: to get new pages takes as long again.

    What comes from an accelerator goes into pinned memory, and behind the loop's back: `wait` for it.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def copy(self, part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies, contiguous in memory as their file wants them."""
        copies = {name: self._copy(f"{part}/{name}", tensor.detach()) for name, tensor in tensors.items()}
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._copied = torch.cuda.Event()
            self._copied.record()  # a later one holds for those before: all go through one stream
        return copies

    def wait(self) -> None:
        """Block until what was copied is there."""
        if self._copied is not None:
            self._copied.synchronize()

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[name] = buffer
        return buffer.copy_(tensor, non_blocking=tensor.is_cuda)


class Checkpointer:
    """Saves on rank 0; restores on every rank.

    One save is on its way at most: the next one waits for it, half a minute at most, and tells how long. While storage
    is away nobody waits: the copy in memory is replaced by the next, and the newest goes out when storage is back.
    """

    def __init__(
        self,
        attempt: Attempt,
        rank: int,
        *,
        keep: int,
        keep_best: bool,
        recorder: Recorder,
        meta: Mapping[str, Any],
    ) -> None:
        self._attempt = attempt
        self._rank = rank
        self._keep = keep
        self._keep_best = keep_best
        self._recorder = recorder
        self._meta = meta
        self._memory = HostMemory()
        self._unproven: Snapshot | None = None
        self._committed: list[Checkpoint] = []
        self._changed = threading.Condition()  # guards all that follows
        self._waiting: Snapshot | None = None  # to be written next
        self._busy = False
        self._away_since: float | None = None  # when storage ceased to answer
        self._error: BaseException | None = None
        self._closed = False
        self._thread: threading.Thread | None = None
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
        self._committed = [checkpoint]
        self._recorder.event("restored", step=checkpoint.step, seconds=round(time.monotonic() - started, 3))

    def save(self, trainer: Trainer) -> None:
        """Copy the state, for `confirm` to write; waits first for the save before. Raises what that one met."""
        if self._rank != 0:
            return
        started = time.monotonic()
        with self._memory_free():
            optimizer, rest = state.flatten(trainer.optimizer)
            snapshot = Snapshot(
                step=trainer.progress.step,
                model=self._memory.copy("model", trainer.model.state_dict()),
                optimizer=(self._memory.copy("optimizer", optimizer), deepcopy(rest)),
                trainer=trainer.state(),
                meta={**self._meta, "precision": trainer.precision},
                evaluation=dict(trainer.progress.evaluation),
                blocked=time.monotonic() - started,
            )
            self._unproven = snapshot

    def confirm(self) -> None:
        """Begin to write the copy: the next step's loss, or the run's end, shows that its weights are good.

        Were it written before, a checkpoint of weights that have diverged could push the last good one out.
        """
        if self._unproven is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="checkpoint", daemon=True)
            self._thread.start()
        with self._changed:
            self._waiting, self._unproven = self._unproven, None
            self._changed.notify_all()

    def wait(self) -> None:
        """Block until all that is confirmed is committed. Raises StorageError."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or not (self._busy or self._waiting))
            self._raise()

    def close(self) -> None:
        """Write what is confirmed by the end of the training, and finish it. Raises StorageError."""
        self.confirm()
        try:
            self.wait()
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()

    @contextmanager
    def _memory_free(self) -> Iterator[None]:
        """Wait until the save before is committed; where storage is away, or slow, not for long.

        A copy that waits still is given up for the next one, which goes into its memory.
        """
        with self._changed:
            free = lambda: self._error or self._away_since or not (self._busy or self._waiting)  # noqa: E731
            self._changed.wait_for(free, timeout=_LONGEST_WAIT)
            self._raise()
            if self._waiting is not None:
                self._recorder.event("checkpoint.skipped", step=self._waiting.step)
                self._waiting = None
            yield

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    # -- behind the loop

    def _work(self) -> None:
        while (snapshot := self._next()) is not None:
            try:
                self._write(snapshot)
            except BaseException as error:  # told to the loop, at its next save or its end
                with self._changed:
                    self._error, self._busy = error, False
                    self._changed.notify_all()
                return

    def _next(self) -> Snapshot | None:
        """Return what is to be written, once there is something; None when all is over."""
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._closed)
            snapshot, self._waiting = self._waiting, None
            self._busy = snapshot is not None
            return snapshot

    def _write(self, snapshot: Snapshot) -> None:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="raylift-save-") as folder:
            files = Path(folder)
            with self._changed:  # while storage is away, the loop may want the copy's memory for the next one
                self._write_files(snapshot, files)
            info = {"metrics": snapshot.evaluation, "torch": torch.__version__, "python": platform.python_version()}
            checkpoint = self._commit(snapshot.step, sorted(files.iterdir()), info)
        if checkpoint is None:
            self._recorder.event("checkpoint.skipped", step=snapshot.step)
            return
        seconds = time.monotonic() - started
        self._recorder.event(
            "checkpoint",
            step=snapshot.step,
            bytes=checkpoint.size,
            seconds=round(seconds, 3),
            blocked=round(snapshot.blocked, 3),
            mb_per_s=round(checkpoint.size / 1e6 / max(seconds, 1e-3), 1),
            metrics=snapshot.evaluation,
        )
        self._committed.append(checkpoint)
        best = best_of(self._committed) if self._keep_best else None
        try:
            self._attempt.retain(self._keep, best.step if best is not None else None)
        except StorageError as error:
            if isinstance(error, _FINAL):
                raise
            return  # the next save takes them away

    def _write_files(self, snapshot: Snapshot, files: Path) -> None:
        self._memory.wait()
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

    def _commit(self, step: int, files: list[Path], info: Mapping[str, Any]) -> Checkpoint | None:
        """Upload, over and over while storage is away; return None where a newer save has come meanwhile."""
        while True:
            try:
                self._recorder.flush()  # a checkpoint vouches for the rows up to its step
                checkpoint = self._attempt.commit(step, files, info)
            except StorageError as error:
                now = time.monotonic()
                self._away_since = self._away_since or now
                if isinstance(error, _FINAL) or now - self._away_since > PATIENCE:
                    raise
                if self._newer_waits():
                    return None
                continue
            if self._away_since is not None:
                self._recorder.event("storage.back", seconds=round(time.monotonic() - self._away_since, 1))
            with self._changed:
                self._away_since = None
            self.newest_step = step
            return checkpoint

    def _newer_waits(self) -> bool:
        """Let the loop go on without us, and wait a little; return whether it has brought a newer save."""
        with self._changed:
            self._changed.notify_all()
            return bool(self._changed.wait_for(lambda: self._waiting is not None, timeout=_PAUSE))
