"""The text of frozen job files."""

import random
from typing import Any

import pytest
from ruamel.yaml import YAML

from cluster.job_file import freeze


def test_a_frozen_job_file_reads_as_what_it_was_made_of() -> None:
    document: dict[str, Any] = {
        "train": {"epochs": 3, "optimizer": {"name": "adam", "lr": 1e-05, "momentum": None}, "clip_norm": 1.5},
        "model": {},
        "data": {"augment": {"flip": True, "rotate": -10}, "train": ["a", {"b": [1, {"c": 2}]}], "eval": []},
        "env": {"null": "null", "1e-3": "1e-3", "yes": "on", "empty": "", "date": "2026-01-31", "colon": "a: b # c"},
        "params": {
            "text": 'two\nlines\t"quoted" \\ ',
            "far": "\u00e9 \u4f60 \U0001f600",
            "odd": "\x7f\x85\u2028\ufeff\x00",
        },
    }
    assert YAML(typ="safe", pure=True).load(freeze(document)) == document


@pytest.mark.parametrize(
    "text", [":0", "?a", ":/opt/lib", "a:", "a: b", "Null", "0x1", "1e5", "-", "", " a", "a ", "<<"]
)
def test_a_text_reads_as_a_text_wherever_it_stands(text: str) -> None:
    document = {"env": {"X": text, text: "x"}, "choice": [text, {text: [text]}], "when": {}}
    assert YAML(typ="safe", pure=True).load(freeze(document)) == document


def test_a_long_text_stays_what_it_is() -> None:
    words = ["date", "species", "petal length", "\t", "\n", "é", "\\d+", '"', "a: b", "# c"]
    generator = random.Random(0)
    for count in range(200):
        document = {"params": {"prompt": "\t".join(generator.choices(words, k=count))}}
        assert YAML(typ="safe", pure=True).load(freeze(document)) == document


def test_a_job_file_is_read_by_people_too() -> None:
    document = {"data": {"train": "builtin:digits", "eval": {"split": 0.2}}, "tune": {"space": {"a.b": ["sgd", "on"]}}}
    assert freeze(document).decode() == (
        'data:\n  train: builtin:digits\n  eval:\n    split: 0.2\ntune:\n  space:\n    a.b: [sgd, "on"]\n'
    )
