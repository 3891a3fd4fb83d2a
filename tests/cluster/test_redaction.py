"""Secrets in what a run prints and stores: never, wherever a chunk ends."""

from __future__ import annotations

import itertools
import random

import pytest

from cluster import redaction
from cluster.redaction import Redactor

SECRETS = ["hunter2!", "hunter2!-and-more", "er2!x", 'with "quotes"\nand a line']


def through(data: bytes, cuts: list[int], values: list[str] = SECRETS) -> bytes:
    """Send data through a redactor in pieces."""
    redactor = Redactor(values)
    ends = [0, *sorted(cuts), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(ends)]
    return b"".join(map(redactor.feed, pieces)) + redactor.rest()


def test_every_secret_goes_and_all_else_stays() -> None:
    text = b"a hunter2! b hunter2!-and-more c hunter2!- d hunte e"
    assert through(text, []) == b"a [secret] b [secret] c [secret]- d hunte e"


def test_a_secret_goes_as_json_writes_it_too() -> None:
    assert through(b'{"x":"with \\"quotes\\"\\nand a line"}', []) == b'{"x":"[secret]"}'


def test_where_chunks_end_makes_no_difference() -> None:
    draw = random.Random(0)
    parts = [*(each.encode() for each in SECRETS), b"hunter", b"2!", b"x", b"-and-more", b" ", b"\n"]
    for _ in range(300):
        data = b"".join(draw.choices(parts, k=20))
        cuts = draw.choices(range(len(data)), k=12)
        found = through(data, cuts)
        assert not any(each.encode() in found for each in SECRETS), (data, cuts)
        assert found == through(data, []), (data, cuts)


def test_what_cannot_be_a_secret_does_not_wait() -> None:
    redactor = Redactor(SECRETS)
    assert redactor.feed(b"epoch 1\n") == b"epoch 1\n"
    assert redactor.feed(b"hunt") == b""
    assert redactor.feed(b"ing\n") == b"hunting\n"


def test_without_secrets_nothing_changes_and_nothing_waits() -> None:
    redactor = Redactor([])
    assert redactor.feed(b"hunt") == b"hunt"
    assert redactor.rest() == b""


def test_the_secrets_of_a_process_are_those_that_it_was_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "hunter2!")
    assert redaction.hide(b"hunter2!") == b"hunter2!"
    monkeypatch.setenv(redaction.NAMES, "TOKEN,ABSENT")
    assert redaction.hide(b"hunter2!") == b"[secret]"
