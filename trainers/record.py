"""What is written down while the run trains, by rank 0 above all: rows of metrics and events."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from cluster.attempts import Attempt
from cluster.records import Checkpoint
from cluster.segments import SegmentWriter

if TYPE_CHECKING:
    from trainers.loop import Progress, Trainer
    from trainers.parallel import StepSums


FINGERPRINTS = 2**53  # numbers that JSON readers keep exactly


def passed_over(checkpoint: Checkpoint, why: str) -> dict[str, Any]:
    """Return the event that a claim has passed a checkpoint over."""
    return {"event": "checkpoint.corrupt", "step": checkpoint.step, "reason": why}


class Recorder:
    """Writes rows on rank 0; on the other ranks it only counts."""

    def __init__(self, attempt: Attempt, rank: int, *, log_every: int) -> None:
        self._log_every = log_every
        self._metrics = SegmentWriter(attempt.run, attempt.number, "metrics", "rank-0") if rank == 0 else None
        self._events = SegmentWriter(attempt.run, attempt.number, "events", "rank-0") if rank == 0 else None
        self._since = time.monotonic()
        self._samples = 0

    def event(self, name: str, **values: Any) -> None:
        if self._events is not None:
            self._events.append({"event": name, **values})

    def started(self, trainer: Trainer) -> None:
        self.event(
            "training",
            step=trainer.progress.step,
            last_step=trainer.last_step,
            steps_per_epoch=trainer.order.steps_per_epoch,
            world_size=trainer.context.world_size,
            device=str(trainer.device),
            precision=trainer.precision,
            parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
        )
        self._since = time.monotonic()

    def step(self, sums: StepSums, loss: float, *, epoch: int, samples: int, seen: int) -> bool:
        """Take a step in; return whether a row ends with it, whose steps saw the samples of the fingerprint `seen`."""
        self._samples += samples
        if sums.step % self._log_every:
            return False
        if self._metrics is None:
            return True
        now = time.monotonic()
        rate = self._samples / max(now - self._since, 1e-9)
        self._since, self._samples = now, 0
        self._metrics.append(
            {
                "kind": "step",
                "step": sums.step,
                "epoch": epoch,
                "seen": seen,
                "loss": loss,
                "lr": sums.lr,
                "grad_norm": sums.norm,
                "samples_per_s": round(rate, 1),
            }
        )
        return True

    def evaluation(self, progress: Progress, seconds: float, *, epoch: int, late: bool = False) -> None:
        """Write down an evaluation; `late` where it comes after the checkpoint of its step, which owed it."""
        if self._metrics is not None:
            row = {"kind": "eval", "step": progress.step, "epoch": epoch, "seconds": round(seconds, 3)}
            self._metrics.append({**row, **progress.evaluation, **({"late": True} if late else {})})
        self._since += seconds  # not training time

    def epoch(self, progress: Progress, steps_per_epoch: int) -> None:
        if self._metrics is not None:
            loss = progress.loss_sum / max(progress.target_count, 1.0)
            epoch = progress.step // steps_per_epoch
            self._metrics.append({"kind": "epoch", "step": progress.step, "epoch": epoch, "train_loss": loss})

    def flush(self) -> None:
        """Write all rows so far to storage. Raises StorageError."""
        if self._metrics is not None and self._events is not None:
            self._metrics.flush()
            self._events.flush()

    def close(self) -> None:
        if self._metrics is not None and self._events is not None:
            self._metrics.close()
            self._events.close()
