"""Runs that are killed at random moments end as if nothing had happened.

RAYLIFT_TEST_KILLS_PER_RUN=1 has a run of its own for each kill.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.runs import Run
from tests.faults.checker import assert_as_it_must_be
from tests.faults.screens import LONG_STEPS, long_job, wait_for_nothing_left, write_job
from tests.harness import (
    assert_clean,
    assert_nothing_left,
    find_process,
    fresh_id,
    kill,
    losses,
    open_run,
    start_raylift,
    wait_for,
)
from tests.real.proxy import proxy
from tests.real.seaweedfs import SeaweedFS

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

_AT_ONCE = int(os.environ.get("RAYLIFT_TEST_KILLS_PER_RUN", "6"))
_LATE = 250  # steps before the end at which a kill may come at the latest: what a run has done is seen a second later
SEED = 20261123
CHANCE = random.Random(SEED)
KILLS = [(what, CHANCE.random()) for what in ("worker", "driver", "raylet")]  # and one in a save
KILLS += [(what, CHANCE.random()) for what in ("worker and driver", "gcs_server", "controller")]
KILLS += [("supervisor and driver", CHANCE.random())]
KILLS += [("worker and driver and supervisor and raylet and gcs_server", CHANCE.random())]
KILLS_IN_A_SAVE = [(what, CHANCE.random()) for what in ("worker", "driver", "raylet")]
_SLOW = 0.1  # seconds for every 64 kB that go to storage: a save then takes more than a second


def _of_a_run(kills: list[tuple[str, float]]) -> list[Any]:
    """Return the kills that each run goes through, as parameters of a test."""
    groups = [kills[i : i + _AT_ONCE] for i in range(0, len(kills), _AT_ONCE)]
    return [pytest.param(group, id=", ".join(what for what, _ in group)) for group in groups]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_job(tmp_path_factory.mktemp("kills"), long_job("7 steps", max_failures=_AT_ONCE))


@pytest.mark.parametrize("kills", _of_a_run(KILLS))
def test_a_killed_run_ends_with_the_losses_of_an_undisturbed_one(
    job: Path, undisturbed: Run, kills: list[tuple[str, float]]
) -> None:
    run = open_run(job.parent / "runs", fresh_id("kill"))
    output = ""
    with ExitStack() as commands:
        process = commands.enter_context(start_raylift("run", job, "--id", run.id, "--storage", job.parent / "runs"))
        attempt = 0
        for number, (what, when) in enumerate(kills):
            attempt = _wait_for_step(run, attempt + 1, _step_at((number + when) / len(kills)))
            victims = [(name, find_process(run.id, name)) for name in what.split(" and ")]
            for name, victim in victims:  # at once: without some of them the others end by themselves
                assert victim is not None, f"there is no {name} to kill"
                kill(victim)
            if "supervisor" in what:  # nobody is left to start it again
                output += process.communicate(timeout=240)[0]
                assert process.returncode != 0, output
                process = commands.enter_context(start_raylift("resume", run.uri))
        output += process.communicate(timeout=240)[0]
        assert process.returncode == 0, output
    _check_the_end(run, undisturbed, kills, output)


def test_a_run_whose_supervisor_is_killed_goes_on_and_leaves_nothing_all_the_same(job: Path, undisturbed: Run) -> None:
    run = open_run(job.parent / "runs", fresh_id("orphan"))
    with start_raylift("run", job, "--id", run.id, "--storage", job.parent / "runs") as process:
        _wait_for_step(run, 1, 20)
        supervisor = find_process(run.id, "supervisor")
        assert supervisor is not None
        kill(supervisor)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        assert len(run.attempts()) == 1
        assert losses(run) == losses(undisturbed)
        wait_for_nothing_left(run.id)
    assert_clean(run, output)


@pytest.mark.parametrize("kills", _of_a_run(KILLS_IN_A_SAVE))
def test_a_run_killed_inside_a_save_ends_with_the_losses_of_an_undisturbed_one(
    job: Path,
    undisturbed: Run,
    s3_env: SeaweedFS,
    monkeypatch: pytest.MonkeyPatch,
    kills: list[tuple[str, float]],
) -> None:
    uri = s3_env.fresh_uri()
    run = open_run(uri, fresh_id("kill-in-save"))
    with proxy(s3_env.port) as link:
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", link.endpoint)
            process = start_raylift("run", job, "--id", run.id, "--storage", uri, "--set", "checkpoint.every=21 steps")
        with process:
            attempt = 0
            for number, (what, when) in enumerate(kills):
                attempt = _wait_for_step(run, attempt + 1, _step_at((number + when) / len(kills)))
                victim = find_process(run.id, what)
                assert victim is not None, f"there is no {what} to kill"
                link.delay = _SLOW
                wait_for(partial(_unfinished_saves, run, attempt), "a save")
                kill(victim)
                assert _unfinished_saves(run, attempt), "the save was over before the kill"
                link.delay = 0.0
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output
    _check_the_end(run, undisturbed, kills, output)


def _check_the_end(run: Run, undisturbed: Run, kills: list[tuple[str, float]], output: str) -> None:
    assert len(run.attempts()) > len(kills), f"a kill came too late\n{output}"
    assert losses(run) == losses(undisturbed), output
    assert_nothing_left(run.id)
    resumes = sum("supervisor" in what for what, _ in kills)
    assert_as_it_must_be(run, undisturbed, faults=len(kills) + resumes)
    assert_clean(run, output)


def _step_at(share: float) -> int:
    return int(share * (LONG_STEPS - _LATE))


def _wait_for_step(run: Run, first: int, step: int) -> int:
    """Wait until an attempt, the first or a later one, is past a step, and a moment more; return its number."""

    def past() -> int:
        return next((at for at in run.attempts() if at >= first and _newest_step(run, at) > step), 0)

    attempt: int = wait_for(past, f"step {step} of attempt {first}")
    time.sleep(random.Random(step).random() * 0.3)
    return attempt


def _newest_step(run: Run, attempt: int) -> int:
    return max((row["step"] for row in run.rows_of(attempt, "metrics") if row["kind"] == "step"), default=0)


def _unfinished_saves(run: Run, attempt: int) -> set[str]:
    """Return an attempt's checkpoints whose files have begun to arrive and whose manifest is not there."""
    paths = {entry.path for entry in run.storage.list(run.path(f"attempts/{attempt:06d}/checkpoints/"))}
    folders = {path.rpartition("/")[0] for path in paths}
    newest = max(folders, default="")
    return {newest} if newest and f"{newest}/manifest.json" not in paths else set()
