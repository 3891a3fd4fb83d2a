"""A storage folder full of finished runs, as months of work leave it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks.cache import ROOT
from cluster.records import Result
from cluster.runs import Run
from cluster.storage.open import open_storage

_STEP = 120


def fill(folder: Path, count: int) -> None:
    """Write `count` runs with a job file, a claim, a checkpoint of one small file, and a result each."""
    folder.mkdir()
    storage = open_storage(str(folder))
    job = (ROOT / "examples" / "digits.yaml").read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "trainer.json"
        file.write_text(json.dumps({"step": _STEP}))
        for number in range(count):
            run = Run(storage, f"digits-2501{number // 24 % 28 + 1:02d}{number % 24:02d}0000-{number:04x}")
            run.create(job)
            attempt = run.claim()
            attempt.commit(_STEP, [file], {"epoch": 5})
            attempt.finish(Result(state="SUCCEEDED", step=_STEP, metrics={"eval_accuracy": 0.97}))
