"""The JSON Schema of a job file agrees with what load takes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from launcher.cli.schema import schema_command
from launcher.json_schema import job_schema
from launcher.mistakes import JobFileError
from launcher.spec import load
from launcher.starter import starter
from launcher.yaml_source import parse

Job = Callable[..., Path]
START = "task: image-classification\ndata: {train: builtin:digits, eval: {split: 0.2}}\n"

RIGHT = [
    "",
    "train: {optimizer: adamw, schedule: cosine, loss: bce, eval_every: 1 epoch}",
    "train: {optimizer: {name: sgd, lr: 1e-3, momentum: 0.9}, eval_every: 500 steps}",
    "train: {optimizer: {betas: [0.9, 0.99], name: adam}, early_stopping: {patience: 2}}",
    "train: {eval_every: 2 epochs, max_steps: 1e3}",
    "train:\nmodel: cnn\ncheckpoint: {every: 15 min, keep: 1}",
    "model:\ncluster:\n  # workers: 2",
    "name: digits-2\nstorage: s3://bucket/runs\nenv: {LOG_LEVEL: info}",
    "cluster: {provider: local, accelerators: 'GPU:2'}",
    "storage: s3://b/runs\nbudget: {max_hours: 9}\ncluster: {provider: kubernetes, image: x, spot: true, workers: 2}",
    "cluster: {provider: local, workers: {min: 1, max: 4}, address: 'host:6379'}",
    "tune: {trials: 20}",
    "tune: {search: grid, scheduler: {name: asha, grace_period: 2}, space: {train.optimizer.lr: [0.1, 0.01]}}",
    "tune: {space: {train.optimizer.lr: {loguniform: [1e-4, 0.1]}, train.batch_size: {randint: [8, 64]}}}",
]
WRONG = [
    "epochs: 3",
    "name: Digits",
    "name: " + "n" * 23,
    "train: {optimizer: adamm}",
    "train: {optimizer: {name: sgd, lr: 0}}",
    "train: {optimizer: {betas: [0.9]}}",
    "train: {eval_every: 2 days}",
    "train: {epochs: 2.5}",
    "train: {epochs: true}",
    "checkpoint: {every: often}",
    "cluster: {workers: 0}",
    "cluster: {workers: {min: 1}}",
    "cluster: {workers: {min: 1, max: many}}",
    "cluster: {accelerators: 2 GPUs}",
    "cluster: {provider: kubernetes, image: 5}",
    "storage: s3://b/runs\ncluster: {provider: kubernetes, image: x, spot: maybe}",
    "env: {1X: a}",
    "env: {X: 1}",
    "tune: {trials: 0}",
    "tune: {search: bayes}",
    "tune: {space: {train.optimizer.lr: {lognormal: [1e-4, 0.1]}}}",
    "tune: {space: {train.optimizer.lr: {uniform: [0.1]}}}",
]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return job_schema()


def errors(schema: dict[str, Any], text: str) -> list[str]:
    return [error.message for error in Draft202012Validator(schema).iter_errors(parse(text, "f").value)]


@pytest.mark.parametrize("more", RIGHT)
def test_the_schema_takes_what_loads(schema: dict[str, Any], job: Job, more: str) -> None:
    load(job(more))
    assert errors(schema, START + more) == []


@pytest.mark.parametrize("more", WRONG)
def test_the_schema_refuses_what_does_not_load(schema: dict[str, Any], job: Job, more: str) -> None:
    with pytest.raises(JobFileError):
        load(job(more))
    assert errors(schema, START + more) != []


def test_the_schema_takes_the_starter_file(schema: dict[str, Any]) -> None:
    assert errors(schema, starter("job.yaml", "job")) == []


def test_the_command_prints_a_valid_schema_of_draft_2020_12(capsys: pytest.CaptureFixture[str]) -> None:
    schema_command()
    printed = json.loads(capsys.readouterr().out)
    assert printed["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(printed)


def test_every_default_in_the_schema_is_one_that_the_schema_takes(schema: dict[str, Any]) -> None:
    for block in (schema, *schema["$defs"].values()):
        for name, field in block["properties"].items():
            if "default" in field:
                validator = Draft202012Validator({**field, "$defs": schema["$defs"]})
                assert [error.message for error in validator.iter_errors(field["default"])] == [], name
