"""The text of a job file as raylift writes it: frozen with a run, of a trial, and to be read by people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

# what neither YAML 1.2 nor 1.1, which kubectl reads, takes for anything but text without quotes
PLAIN = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null)\Z)[A-Za-z/][A-Za-z0-9_./:@-]*(?<!:)", re.IGNORECASE)
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")  # to YAML, which JSON does not escape


def freeze(document: Mapping[str, Any]) -> bytes:
    """Return the text of a job file: YAML's blocks, and in them what is JSON but for words, and so YAML 1.2 too.

    ruamel.yaml would take 10 ms of every trial for it, does not quote `:0` and `?a` in a list, which it cannot read
    then, and where it folds a long text with tabs it may add a space (0.19.1). Raises ValueError where a number is not
    finite.
    """
    return "".join(_lines(document, "")).encode()


def in_order(value: Any) -> Any:
    """Return a document with its keys sorted.

    What follows from their order, as the points of a search do, is then the same however a person wrote them.
    """
    if isinstance(value, Mapping):
        return {key: in_order(value[key]) for key in sorted(value, key=str)}
    return [in_order(each) for each in value] if isinstance(value, list) else value


def _lines(block: Mapping[str, Any], indent: str) -> list[str]:
    found = []
    for key, value in block.items():
        if isinstance(value, Mapping) and value:
            found += [f"{indent}{_in_a_line(key)}:\n", *_lines(value, f"{indent}  ")]
        else:
            found.append(f"{indent}{_in_a_line(key)}: {_in_a_line(value)}\n")
    return found


def _in_a_line(value: Any) -> str:
    if isinstance(value, str):
        return _as_text(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_in_a_line(key)}: {_in_a_line(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(_in_a_line, value)) + "]"
    return json.dumps(value, allow_nan=False)


def _as_text(value: str) -> str:
    if PLAIN.fullmatch(value):
        return value
    text = json.dumps(value, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
