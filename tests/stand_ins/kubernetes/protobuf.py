"""What kubectl sends as protobuf, which it does of Kubernetes' own kinds where it makes one from its command line.

https://protobuf.dev/programming-guides/encoding, in the envelope of
https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding; the numbers of fields are those of
Kubernetes' generated.proto, of what `kubectl create secret`, `kubectl create token` and `kubectl auth can-i` fill in.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Object = dict[str, Any]
Field = tuple[str, Callable[[bytes], Any]]

TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"


def read(body: bytes) -> Object:
    """Return the object in a body. Raises KeyError for a kind or a field that is not known here."""
    assert body.startswith(_MAGIC)
    whole = _message(body[len(_MAGIC) :], _ENVELOPE)
    return {**whole["typeMeta"], **_message(whole.get("raw", b""), _KINDS[whole["typeMeta"]["kind"]])}


def _message(data: bytes, fields: Mapping[int, Field]) -> Object:
    """Return the fields of a message; what is repeated is a map."""
    found: Object = {}
    for number, value in _wire(data):
        if value in (b"", 0):
            continue  # Go writes what is empty too
        name, read_ = fields[number]
        value = read_(value) if isinstance(value, bytes) else value
        found[name] = {**found.get(name, {}), **value} if isinstance(value, dict) else value
    return found


def _wire(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield the fields of a message by their numbers; there are numbers and texts alone."""
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            value, shift, place = value | (byte & 0x7F) << shift, shift + 7, place + 1
            if byte < 0x80:
                return value

    while place < len(data):
        key = number()
        if key & 7 == 0:
            yield key >> 3, number()
        else:
            assert key & 7 == 2, f"wire type {key & 7}"
            size = number()
            yield key >> 3, data[place : place + size]
            place += size


def _entry(read_: Callable[[bytes], Any]) -> Callable[[bytes], Object]:
    """Return what reads one entry of a map."""

    def read_entry(data: bytes) -> Object:
        entry = dict(_wire(data))
        value = entry.get(2, b"")
        assert isinstance(value, bytes)
        return {_text(entry[1]): read_(value)}

    return read_entry


def _text(data: bytes | int) -> str:
    assert isinstance(data, bytes)
    return data.decode()


def _of(fields: Mapping[int, Field]) -> Callable[[bytes], Object]:
    return lambda data: _message(data, fields)


_TYPE_META = {1: ("apiVersion", _text), 2: ("kind", _text)}
_ENVELOPE: Mapping[int, Field] = {1: ("typeMeta", _of(_TYPE_META)), 2: ("raw", bytes)}
_METADATA = {1: ("name", _text), 3: ("namespace", _text), 8: ("creationTimestamp", _of({}))}
_METADATA |= {11: ("labels", _entry(_text)), 12: ("annotations", _entry(_text))}
_SECRET = {
    1: ("metadata", _of(_METADATA)),
    2: ("data", _entry(lambda data: base64.b64encode(data).decode())),
    3: ("type", _text),
}
_ATTRIBUTES = ("namespace", "verb", "group", "version", "resource", "subresource", "name")
_ASKED = {number: (name, _text) for number, name in enumerate(_ATTRIBUTES, 1)}
_UNSAID = ("status", _of({}))  # of what the server fills in nothing is there yet
_REVIEW = {1: ("metadata", _of(_METADATA)), 2: ("spec", _of({1: ("resourceAttributes", _of(_ASKED))})), 3: _UNSAID}
_RULES = {1: ("metadata", _of(_METADATA)), 2: ("spec", _of({1: ("namespace", _text)})), 3: _UNSAID}
_LASTING = {4: ("expirationSeconds", _text)}
_TOKEN = {1: ("metadata", _of(_METADATA)), 2: ("spec", _of(_LASTING)), 3: ("status", _of({2: ("expires", _of({}))}))}
_KINDS: Mapping[str, Mapping[int, Field]] = {
    "Secret": _SECRET,
    "SelfSubjectAccessReview": _REVIEW,
    "SelfSubjectRulesReview": _RULES,
    "TokenRequest": _TOKEN,
}
