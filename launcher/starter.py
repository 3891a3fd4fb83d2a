"""A job file to start from: what a person must say, and every default as a comment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from launcher import blocks
from launcher.mistakes import Keys
from launcher.spec import JobSpec
from launcher.yaml_source import parse

_HEAD = """\
# A job file of raylift. Show what it would do: raylift plan {file}; run it: raylift run {file}
# A key after a # shows its default, and uses it; take the # away to change it.
# For an editor that completes and checks the keys, type: raylift schema > raylift.schema.json
# and make this the first line: # yaml-language-server: $schema=raylift.schema.json
"""
_GIVEN: dict[Keys, str] = {
    ("task",): "image-classification",
    ("data", "train"): "builtin:digits",
    ("data", "eval"): "{split: 0.2}",
    ("train", "epochs"): "5",
    ("train", "optimizer", "name"): "adam",
    ("train", "optimizer", "lr"): "1e-3",
    ("cluster", "provider"): "local",
    ("cluster", "workers"): "2",
}
_EXAMPLES: dict[Keys, str] = {("budget",): "{max_hours: 24}"}  # of blocks that have no default
_FIRST = (
    "name",
    "task",
    "params",
    "workdir",
    "model",
    "data",
    "train",
    "checkpoint",
    "cluster",
    "storage",
    "env",
    "secrets",
)
_COLUMN = 36  # where the explanations begin

Line = tuple[str, str]  # a key with its value, and what it means


def starter(file: str, name: str) -> str:
    """Return a job file that trains on the built-in digits; `file` and `name` are what it calls itself."""
    spec = JobSpec.model_validate({"task": "image-classification", "data": {"train": "builtin:digits"}, "name": name})
    defaults = spec.model_dump(mode="json")
    keys = sorted(defaults, key=lambda key: _FIRST.index(key) if key in _FIRST else len(_FIRST))
    text = _HEAD.format(file=file)
    for key in keys:
        lines = _key((key,), JobSpec.model_fields[key], defaults[key], commented=False)
        text += "\n" + "".join(f"{line:<{_COLUMN}}  # {says}\n" for line, says in lines)
    return text


def _key(path: Keys, field: FieldInfo, default: Any, *, commented: bool) -> Iterator[Line]:
    """Yield the lines of a key; `commented` says that the block around it is a comment already."""
    is_given = any(given[: len(path)] == path for given in _GIVEN)
    mark = "" if is_given or commented else "# "
    block = blocks.block_of(field.annotation)
    if path in _EXAMPLES:
        yield f"{mark}{path[-1]}: {_EXAMPLES[path]}", _explanation(field) + "; off unless given"
        return
    is_plain = not all(map(blocks.is_block, blocks.alternatives(field.annotation)))
    if path in _GIVEN or block is None or isinstance(default, str) or is_plain:
        yield f"{mark}{path[-1]}: {_GIVEN.get(path) or _plain(default)}", _explanation(field)
        return
    yield f"{mark}{path[-1]}:", _explanation(field) + ("; off unless given" if default is None else "")
    defaults = default or block().model_dump(mode="json")
    for key, inner in block.model_fields.items():
        for line, says in _key((*path, key), inner, defaults[key], commented=commented or not is_given):
            yield f"{mark}  {line}", says


def _explanation(field: FieldInfo) -> str:
    choices = blocks.choices(field.annotation)
    block = blocks.block_of(field.annotation)
    if block is not None and not field.description:
        return (block.__doc__ or "").split("\n", 1)[0].rstrip(".")
    offered = blocks.in_words(field.annotation) if len(choices) > 1 else ""
    if len(choices) == 1 and not field.description:
        offered = f"only {choices[0]} so far"
    return "; ".join(filter(None, (offered, field.description)))


def _plain(value: Any) -> str:
    """Write a default as YAML on one line."""
    return value if isinstance(value, str) and parse(value, "").value == value else json.dumps(value)
