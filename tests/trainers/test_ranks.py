"""The same run on one, two and three ranks: real processes of torchrun, joined by gloo."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.runs import Run
from tests.cluster.saves import send_half
from tests.harness import environment
from tests.trainers.pictures import digits, write_idx
from tests.trainers.training import (
    Change,
    assert_alike,
    cut_off,
    events,
    numbers,
    of_torchrun,
    start,
    steps_of,
    train,
    train_ranks,
)
from trainers import notice, worker

pytestmark = pytest.mark.usefixtures("one_thread")

# all that does not differ with the number of ranks: no dropout
SAME: Change = {
    "data": {"augment": {"rotate": 10, "translate": 0.1, "noise": 0.05, "mixup": 0.3}},
    "train": {"epochs": 2, "schedule": {"name": "cosine", "warmup": 0.2}, "micro_batch_size": 20},
}
Trained = Callable[[int], Run]


def trained_on(folder: Path, *changes: Change) -> Trained:
    """Return the run of a job on so many ranks, trained when it is first asked for."""
    runs: dict[int, Run] = {}

    def on(ranks: int) -> Run:
        if ranks not in runs:
            runs[ranks] = start(folder, *changes, run_id=f"on-{ranks}")
            train(runs[ranks]) if ranks == 1 else train_ranks(runs[ranks], ranks)
        return runs[ranks]

    return on


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_on(tmp_path_factory.mktemp("ranks"), SAME)


@pytest.fixture(scope="module")
def starved(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two samples a step, two to evaluate on: of three ranks, one has nothing to do."""
    folder = tmp_path_factory.mktemp("starved")
    held = write_idx(folder / "held", "t10k", *digits(2))
    return trained_on(
        folder, SAME, {"data": {"eval": str(held)}, "train": {"batch_size": 2, "micro_batch_size": 1, "max_steps": 4}}
    )


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_number_of_ranks_changes_no_loss(trained: Trained, ranks: int) -> None:
    assert_alike(trained(ranks), trained(1), "step")
    assert_alike(trained(ranks), trained(1), "epoch")


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_number_of_ranks_changes_no_evaluation(trained: Trained, ranks: int) -> None:
    assert_alike(trained(ranks), trained(1), "eval")


def test_every_step_is_taken_and_written_down_once(trained: Trained) -> None:
    assert steps_of(trained(2)) == list(range(1, 9))
    assert events(trained(2), "training")[0]["world_size"] == 2


def test_the_memory_of_every_rank_is_told(trained: Trained) -> None:
    told = {event["process"]: event["peak_bytes"] for event in events(trained(2), "memory")}
    assert set(told) == {"rank 0", "rank 1"}
    assert min(told.values()) > 50e6


@pytest.mark.parametrize("kind", ["step", "eval"])
def test_a_rank_without_samples_changes_nothing(starved: Trained, kind: str) -> None:
    assert_alike(starved(3), starved(1), kind)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_ranks(trained: Trained, tmp_path: Path, first: int, then: int) -> None:
    run = cut_off(trained(first), 5, tmp_path)
    train(run) if then == 1 else train_ranks(run, then)
    assert [event["world_size"] for event in events(run, "training")] == [first, then]
    assert_alike(run, trained(1), "step")


def test_a_rank_of_torchrun_that_goes_on_removes_what_was_sent_half_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(tmp_path, {"train": {"epochs": 1}})
    run.claim()
    send_half(run, 1)
    monkeypatch.setattr(notice, "listen", lambda: None)  # this process is to end by SIGTERM as it did
    monkeypatch.setattr("sys.argv", ["worker", run.uri])
    assert worker.main() == 0
    assert run.attempts() == [1, 2]
    assert run.storage.sweep() == []


def test_a_rank_of_torchrun_ends_without_taking_the_interpreter_down() -> None:
    """Where a thread of gloo let go of a tensor meanwhile, the process would be aborted."""
    program = (
        "import atexit; from trainers import worker\n"
        "class Late:\n"
        "    def __del__(self): print('down')\n"
        "late = Late(); atexit.register(print, 'at exit')\n"
        "worker.end_with(lambda: print('over') or 4)"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment())
    assert (done.returncode, done.stdout.split("\n")) == (4, ["over", "at exit", ""])


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [("StorageFullError('no room')", 3, "error: no room\n"), ("OSError('x')", 1, "OSError: x\n")],
)
def test_a_rank_of_torchrun_that_fails_says_of_what(error: str, code: int, told: str) -> None:
    program = (
        f"from cluster.errors import *; from trainers import worker\ndef main(): raise {error}\nworker.end_with(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, env=environment())
    assert done.returncode == code
    assert done.stderr.endswith(told)


@pytest.mark.slow
def test_with_dropout_two_ranks_resume_to_the_bit(tmp_path: Path) -> None:
    run = start(tmp_path, SAME, {"model": {"dropout": 0.5}})
    train_ranks(run, 2)
    resumed = cut_off(run, 5, tmp_path / "resumed")
    train_ranks(resumed, 2)
    for kind in ("step", "epoch", "eval"):
        assert numbers(resumed, kind) == numbers(run, kind)


@pytest.mark.slow
def test_three_ranks_without_shared_memory_go_on_to_the_bit(tmp_path: Path) -> None:
    """As on several machines, where gloo sums."""

    def train_unshared(run: Run) -> None:
        command = of_torchrun(run, 3, "tests.trainers.unshared")
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment())
        assert done.returncode == 0, done.stderr[-3000:]

    whole = start(tmp_path, SAME)
    train_unshared(whole)
    run = cut_off(whole, 5, tmp_path / "cut")
    train_unshared(run)
    assert numbers(run, "step") == numbers(whole, "step")
    last, also = whole.checkpoints()[-1], run.checkpoints()[-1]
    assert {name: one.sha256 for name, one in last.files.items()} == {
        name: one.sha256 for name, one in also.files.items()
    }
