"""The words in which an API server refuses, and what it asks of names.

After https://github.com/kubernetes/kubernetes, apimachinery/pkg/util/validation. Where versions differ, as over names
of variables, the stricter one holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
POSITIVE = "must be greater than zero"


def required(path: str, said: str = "") -> str:
    return f"{path}: Required value: {said}".removesuffix(": ")


def invalid(path: str, value: Any, said: str) -> str:
    return f"{path}: Invalid value: {shown(value)}: {said}"


def duplicate(path: str, value: str) -> str:
    return f"{path}: Duplicate value: {shown(value)}"


def among(known: Sequence[str], value: str, path: str) -> Iterator[str]:
    """Yield what is said of a value that is none of those that are known."""
    if value not in known:
        yield f"{path}: Unsupported value: {shown(value)}: supported values: {', '.join(map(shown, known))}"


def too_long(path: str, most: int) -> str:
    return f"{path}: Too long: may not be more than {most} bytes"


def shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def size(text: str) -> int:
    return len(text.encode())


def each_of(value: Object, key: str, path: str) -> Iterator[tuple[Object, str]]:
    """Yield what a list of an object has in it, and where that is."""
    for index, each in enumerate(value.get(key, [])):
        yield each, f"{path}.{key}[{index}]"


def without_nulls(value: Any) -> Any:
    """Return an object without the fields that are null, which are none to an API server."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


# Names


@dataclass(frozen=True)
class Form:
    """What a name has to look like, and what is said of one that does not."""

    pattern: str
    said: str
    examples: tuple[str, ...]
    longest: int | None = None  # in bytes

    def mistakes(self, value: str, path: str) -> Iterator[str]:
        yield from (invalid(path, value, said) for said in self.said_of(value))

    def said_of(self, value: str) -> Iterator[str]:
        if self.longest is not None and size(value) > self.longest:
            yield f"must be no more than {self.longest} bytes"
        if not re.fullmatch(self.pattern, value):
            examples = " or ".join(f"'{each}', " for each in self.examples)
            yield f"{self.said} (e.g. {examples}regex used for validation is '{self.pattern}')"


_ENDS = "and must start and end with an alphanumeric character"
_PART = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
LABEL = Form(
    _PART,
    f"a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', {_ENDS}",
    ("my-name", "123-abc"),
    63,
)
SUBDOMAIN = Form(
    rf"{_PART}(\.{_PART})*",
    f"a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', {_ENDS}",
    ("example.com",),
    253,
)
_KEY = Form(
    "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]",
    f"must consist of alphanumeric characters, '-', '_' or '.', {_ENDS}",
    ("MyName", "my.name", "123-abc"),
    63,
)
LABEL_VALUE = Form(
    f"({_KEY.pattern})?",
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', " + _ENDS,
    ("MyValue", "my_value", "12345"),
    63,
)
VARIABLE = Form(
    "[-._a-zA-Z][-._a-zA-Z0-9]*",
    "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', "
    "and must not start with a digit",
    ("my.env-name", "MY_ENV.NAME", "MyEnvName1"),
)
DATA_KEY = Form(
    "[-._a-zA-Z0-9]+",
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
    ("key.name", "KEY_NAME", "key-name"),
    253,
)


def of_key(key: str, path: str) -> Iterator[str]:
    """Yield what is wrong with a name that may have a domain before it, as the keys of labels may."""
    domain, slash, name = key.rpartition("/")
    if slash:
        yield from (invalid(path, key, f"prefix part {said}") for said in SUBDOMAIN.said_of(domain))
    yield from (invalid(path, key, f"name part {said}") for said in _KEY.said_of(name))


def of_labels(labels: Object, path: str) -> Iterator[str]:
    """Yield what is wrong with labels."""
    for key, value in labels.items():
        yield from of_key(key, path)
        yield from LABEL_VALUE.mistakes(value, path)
