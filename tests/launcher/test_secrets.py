"""Secrets that a job file names: they come from the shell, and go to the run alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.errors import UsageError
from cluster.provider import LaunchRequest
from launcher.cli.app import app
from launcher.spec import load
from launcher.submit import prepare, relaunch
from tests.finished import new_run

Job = Callable[..., Path]


def request(job_file: Path, *secrets: str) -> LaunchRequest:
    return prepare(load(job_file, secrets=secrets)).request


def test_the_values_are_the_shells_and_the_frozen_job_has_the_names_alone(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OTHER", "verysecret")
    submission = prepare(load(job("secrets: [HF_TOKEN]"), secrets=["OTHER", "HF_TOKEN"]))
    assert submission.request.secrets == {"HF_TOKEN": "hf_secret", "OTHER": "verysecret"}
    assert b"HF_TOKEN" in submission.document
    assert b"secret" not in submission.document.replace(b"secrets", b"")


def test_secrets_that_are_not_set_are_named_before_anything_is_made(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(UsageError, match="secrets: HF_TOKEN, EMPTY are not set in this shell"):
        request(job("secrets: [HF_TOKEN, EMPTY]"))


def test_what_is_too_short_to_be_hidden_is_refused(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIN", "123")
    with pytest.raises(UsageError, match="secrets: PIN: what has fewer than 4 characters cannot be kept out"):
        request(job(), "PIN")


def test_a_resume_takes_them_from_its_own_shell(home: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    run = new_run(home / "runs", "asked", prepare(load(job("secrets: [HF_TOKEN]"))).document.decode())
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UsageError, match="HF_TOKEN is not set in this shell"):
        relaunch(run)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_plan_does_not_show_them(job: Job, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    done = CliRunner().invoke(app, ["plan", str(job()), "--secret", "HF_TOKEN", *options])
    assert done.exit_code == 0, done.output
    assert "hf_secret" not in done.output
