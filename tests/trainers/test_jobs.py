"""The frozen job files of trials."""

from typing import Any

from ruamel.yaml import YAML

from trainers.jobs import freeze


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
