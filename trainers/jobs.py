"""A run's frozen job file, as the trainers read it and write that of a trial."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from cluster.errors import UsageError
from cluster.runs import Run
from trainers.config import TrainJob

_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")  # to YAML, which JSON does not escape


def load_job(run: Run) -> tuple[TrainJob, dict[str, Any]]:
    """Return the trainers' part of a run's job file, and all of it. Raises UsageError, RunNotFoundError."""
    data: dict[str, Any] = YAML(typ="safe", pure=True).load(run.job())
    try:
        return TrainJob.from_job(data), data
    except ValidationError as error:
        raise UsageError(f"{run.uri}/job.yaml was made for another version of raylift: {error}") from error


def freeze(document: Mapping[str, Any]) -> bytes:
    """Return the text of a job file: YAML's blocks, and in them values in JSON, which is YAML 1.2 too.

    ruamel.yaml would take 10 ms of every trial for it.
    """
    return "".join(_lines(document, "")).encode()


def _lines(block: Mapping[str, Any], indent: str) -> list[str]:
    found = []
    for key, value in block.items():
        if isinstance(value, Mapping) and value:
            found += [f"{indent}{_as_json(key)}:\n", *_lines(value, f"{indent}  ")]
        else:
            found.append(f"{indent}{_as_json(key)}: {_as_json(value)}\n")
    return found


def _as_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
