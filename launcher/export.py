"""A checkpoint's model as a folder that stands for itself: plain files, no torch needed to make them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.bundles import EXPORTED, own_code
from cluster.errors import UsageError
from cluster.records import Checkpoint
from cluster.runs import Run
from cluster.selection import MODEL_PART, fetch_model
from launcher.card import model_card, own_card, tensor_shapes
from launcher.spec import JobSpec, frozen, load_frozen
from trainers.config import TrainJob

_FILES = frozenset({*MODEL_PART, "config.json", "README.md", EXPORTED})


def export_model(
    run: Run,
    target: Path,
    which: str,
    *,
    force: bool,
    warn: Callable[[str], None],
    job: bytes | None = None,
    by: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Write the chosen checkpoint's model into a folder, which appears only when complete.

    `which` is last, a step, or best, `by` a metric and mode or those of the job file; `warn` is told of damaged
    checkpoints that were passed over. `job` is the run's job file, where that has come to other values than it began
    with. Raises UsageError where the folder holds something already, unless `force` and all that it holds is an earlier
    export.
    """
    target = target.expanduser().absolute()
    _check_free(target, force=force)
    partial = target.with_name(f"{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            checkpoint = fetch_model(run, which, partial, warn, by=by)
            spec, meta = load_frozen(job or run.job()), json.loads((partial / "raylift.json").read_bytes())
            if spec.is_own:
                own_code(run).extract(partial / EXPORTED)
            config = _config(run, spec, checkpoint, meta)
            (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            card = (own_card if spec.is_own else model_card)(config, tensor_shapes(partial / "model.safetensors"))
            (partial / "README.md").write_text(card, encoding="utf-8")
            _put_in_place(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"{target}: {error.strerror}. Export to a folder that you may write") from error
    return checkpoint


def _check_free(target: Path, *, force: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file: name a folder that is new or empty")
    if target.samefile(Path.cwd()):
        raise UsageError(f"{target} is where you are: name a folder in it, such as model")
    held = sorted(entry.name for entry in target.iterdir())
    is_export = {"config.json", "model.safetensors"} <= {*held}
    others = [name for name in held if name not in _FILES or not is_export]
    if others:
        raise UsageError(f"{target} holds other things ({', '.join(others[:3])}): name a folder that is new or empty")
    if held and not force:
        raise UsageError(f"{target} holds an earlier export: replace it by --force, or name another folder")


def _put_in_place(partial: Path, target: Path) -> None:
    """Rename the finished folder; an earlier export steps aside first, and is removed last."""
    aside = target.with_name(f"{target.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        os.rename(target, aside)
    os.rename(partial, target)
    shutil.rmtree(aside, ignore_errors=True)


def _config(run: Run, spec: JobSpec, checkpoint: Checkpoint, meta: dict[str, Any]) -> dict[str, Any]:
    """Return what the model is and where it comes from, under Hugging Face's names where it has one.

    The keys task, model, data, train and checkpoint are those of the job file.
    """
    job = {key: value for key, value in frozen(spec).items() if key in TrainJob.model_fields}
    began = [row for row in run.rows("events") if row["event"] == "training" and row["step"] < checkpoint.step]
    of_model = {} if spec.is_own else _of_images(spec, meta)
    return {
        **of_model,
        "run": run.uri,
        "step": checkpoint.step,
        "metrics": dict(checkpoint.info.get("metrics", {})),
        "world_size": began[-1]["world_size"] if began else 1,
        **job,
    }


def _of_images(spec: JobSpec, meta: dict[str, Any]) -> dict[str, Any]:
    height, width, channels = meta["image"]
    return {
        "architectures": [spec.model.name.upper()],
        "model_type": spec.model.name,
        "id2label": {str(number): name for number, name in enumerate(meta["classes"])},
        "label2id": {name: number for number, name in enumerate(meta["classes"])},
        "image_size": [height, width],
        "num_channels": channels,
        "image_mean": meta["mean"],
        "image_std": meta["std"],
        "samples": {"train": meta["train"], "eval": meta["eval"]},
    }
