"""Manifests as YAML for people and for kubectl."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString, SingleQuotedScalarString

from cluster.job_file import PLAIN


def to_yaml(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return documents as YAML that reads the same by the rules of 1.1 and of 1.2."""
    yaml = YAML()
    yaml.width = 2**31  # folded, a text with tabs may read as another (ruamel.yaml 0.19.1)
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.ignore_aliases = lambda _data: True
    stream = io.StringIO()
    yaml.dump_all([_quoted(each) for each in documents], stream)
    return stream.getvalue()


def _quoted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_quoted(key): _quoted(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_quoted(each) for each in value]
    if not isinstance(value, str) or PLAIN.fullmatch(value):
        return value
    if value.endswith("\n") and not value.startswith((" ", "\n")) and value.replace("\n", "").isprintable():
        return LiteralScalarString(value)
    return SingleQuotedScalarString(value) if '"' in value and value.isprintable() else DoubleQuotedScalarString(value)
