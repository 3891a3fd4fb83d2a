"""A process that dies between any two of its storage calls leaves a run that reads, and that others go on with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster.attempts import Attempt
from cluster.records import Base
from cluster.runs import Run, list_runs
from cluster.storage.file import FileStorage
from tests.cluster.saves import make_files, steps, stored
from tests.hooked import KilledError, dying


def deaths(folder: Path, act: Callable[[Attempt], object], *, saves: tuple[int, ...]) -> Iterator[tuple[Run, bool]]:
    """Let a process die at the first call of `act`, then at the second and so on, until it lives to the end.

    Yields each time the run, of one attempt with these checkpoints, and whether `act` came to its end.
    """
    for calls in itertools.count():
        storage = FileStorage(folder / str(calls))
        run = Run(storage, "digits")
        run.create(b"")
        attempt = run.claim()
        for step in saves:
            attempt.commit(step, make_files(folder, step), {})
        try:
            act(Attempt.reopen(Run(dying(storage, calls), run.id), 1))
        except KilledError:
            yield run, False
        else:
            yield run, True
            assert calls > 5, "nothing was cut off"
            return


def assert_all_intact(run: Run) -> None:
    for checkpoint in run.checkpoints():
        run.verify(checkpoint)
    for claim in run.claims():
        for checkpoint in run.checkpoints_of(claim.attempt):
            run.verify(checkpoint)


def test_a_commit_that_is_cut_off_is_whole_or_invisible(tmp_path: Path) -> None:
    def act(attempt: Attempt) -> None:
        attempt.commit(20, make_files(tmp_path, 20), {})

    for run, done in deaths(tmp_path, act, saves=(10,)):
        assert steps(run) == ([10, 20] if done else [10])
        assert_all_intact(run)


def test_a_commit_that_was_cut_off_can_be_repeated(tmp_path: Path) -> None:
    def act(attempt: Attempt) -> None:
        attempt.commit(20, make_files(tmp_path, 20), {})

    for run, _ in deaths(tmp_path, act, saves=(10,)):
        act(Attempt.reopen(run, 1))
        assert steps(run) == [10, 20]
        assert_all_intact(run)


def test_retention_that_is_cut_off_leaves_no_checkpoint_that_only_looks_whole(tmp_path: Path) -> None:
    for run, _ in deaths(tmp_path, lambda attempt: attempt.retain(2), saves=(10, 20, 30, 40)):
        assert steps(run)[-2:] == [30, 40]
        assert_all_intact(run)


def test_retention_that_was_cut_off_is_made_up_for_by_the_next(tmp_path: Path) -> None:
    for run, _ in deaths(tmp_path, lambda attempt: attempt.retain(2), saves=(10, 20, 30, 40)):
        Attempt.reopen(run, 1).retain(2)
        assert len(stored(run, "attempts/000001/checkpoints/")) == 2 * 3


def test_a_claim_that_is_cut_off_leaves_the_next_one_the_same_base(tmp_path: Path) -> None:
    for run, done in deaths(tmp_path, lambda attempt: attempt.run.claim(), saves=(10, 20)):
        again = run.claim()
        assert again.claim.base is not None
        assert again.claim.base.step == 20
        assert done is (again.claim.base == Base(attempt=2, step=20))
        assert_all_intact(run)


def test_a_removal_that_was_cut_off_can_be_repeated(tmp_path: Path) -> None:
    for run, done in deaths(tmp_path, lambda attempt: attempt.run.delete(), saves=(10,)):
        assert [each.id for each in list_runs(run.storage)] == ([] if done else ["digits"])
        if not done:
            run.job()  # it can still be named
            run.delete()
        assert list(run.storage.list()) == []
