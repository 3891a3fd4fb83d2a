"""Which checkpoint of a run a person means: the last, the best, or that of a step."""

from __future__ import annotations

import math
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cluster.errors import CorruptObjectError, ObjectNotFoundError, TrainingError, UsageError
from cluster.records import Checkpoint
from cluster.runs import Run
from cluster.shards import INDEX_FILE, Index, consolidate, model_shards

MODEL_PART = ("model.safetensors", "raylift.json")  # what a checkpoint holds beside the state of the training


def best_of(checkpoints: Sequence[Checkpoint], by: Mapping[str, str] | None = None) -> Checkpoint | None:
    """Return the best of a run, `by` a metric and mode, or those that its job file names; None where none has it.

    Without one, that is the one of the highest eval_accuracy, else of the lowest eval_loss. One whose own weights were
    not evaluated stands for the newest evaluation before it. Of equal evaluations the lower loss wins, then the later
    one; of the checkpoints of one evaluation, that which is nearest to it.
    """
    newest = max(checkpoints, key=lambda one: (one.attempt, one.step), default=None)
    if newest is None:
        return None
    named = by or newest.info.get("best")
    metric = named["metric"] if named else "eval_accuracy"
    sign = -1 if named and named["mode"] == "min" else 1

    def rank(checkpoint: Checkpoint) -> tuple[float, float, int, int]:
        step, metrics = _evaluation_of(checkpoint)
        value = sign * metrics.get(metric, math.nan)
        loss = metrics.get("eval_loss", math.inf)
        return value if math.isfinite(value) else -math.inf, -loss, step, -checkpoint.step

    counts = {metric} if named else {metric, "eval_loss"}
    measured = [one for one in checkpoints if counts & set(_evaluation_of(one)[1])]
    return max(measured, key=rank, default=None)


def _evaluation_of(checkpoint: Checkpoint) -> tuple[int, Mapping[str, float]]:
    """Return the step and the metrics of the newest evaluation up to a checkpoint."""
    if (newest := checkpoint.info.get("evaluation")) is not None:
        return newest["step"], newest["metrics"]
    return checkpoint.step, checkpoint.info.get("metrics", {})  # an older manifest


def choose(run: Run, which: str, by: Mapping[str, str] | None = None) -> list[Checkpoint]:
    """Return the checkpoints that `last`, `best` or a step's number means, the first choice first.

    Only `last` has others to fall back to. Raises UsageError where there is none such.
    """
    kept = run.checkpoints()
    if not kept:
        raise UsageError(f"{run.uri} has no checkpoint yet. See where it stands: raylift status {shlex.quote(run.uri)}")
    if which == "last":
        return kept[::-1]
    if which == "best":
        best = best_of(kept, by)
        if best is None:
            raise UsageError(f"no checkpoint of {run.uri} was evaluated, so none is best: --checkpoint last")
        return [best]
    found = [one for one in kept if str(one.step) == which]
    if not found:
        steps = ", ".join(str(one.step) for one in kept)
        raise UsageError(f"--checkpoint {which}: {run.uri} has no such checkpoint; write last, best, or one of {steps}")
    return found


def fetch_model(
    run: Run, which: str, target: Path, warn: Callable[[str], None], *, by: Mapping[str, str] | None = None
) -> Checkpoint:
    """Download the chosen checkpoint's weights and what goes with them, verified; return it.

    A damaged last checkpoint is passed over for the one before, which `warn` is told. Raises UsageError where there
    is no such checkpoint, TrainingError where none that is meant is intact.
    """
    for checkpoint in choose(run, which, by):
        try:
            _fetch_model(run, checkpoint, target)
        except (CorruptObjectError, ObjectNotFoundError) as error:
            warn(f"the checkpoint of step {checkpoint.step} is damaged and passed over: {error}")
            continue
        return checkpoint
    raise TrainingError(
        f"no checkpoint of {run.uri} that --checkpoint {which} means is intact. Choose: "
        f"raylift status {shlex.quote(run.uri)}"
    )


def _fetch_model(run: Run, checkpoint: Checkpoint, target: Path) -> None:
    shards = model_shards(checkpoint.files)
    if not shards:
        run.fetch(checkpoint, target, MODEL_PART)
        return
    with tempfile.TemporaryDirectory(dir=target, prefix=".shards-") as name:
        parts = Path(name)
        run.fetch(checkpoint, parts, [*shards, INDEX_FILE])
        consolidate(parts, Index.read(parts / INDEX_FILE), "model")
        (parts / MODEL_PART[0]).rename(target / MODEL_PART[0])
    run.fetch(checkpoint, target, MODEL_PART[1:])
