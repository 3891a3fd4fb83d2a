"""Attempts that were given up and go on: whatever they still do, readers and newer attempts are spared it."""

from __future__ import annotations

import pytest

from cluster.errors import SupersededError
from cluster.records import Base
from cluster.runs import Run
from tests.cluster.saves import Commit, steps, stored, write_rows
from tests.hooked import hooked, once


def test_a_zombie_may_not_commit(run: Run, commit: Commit) -> None:
    first = run.claim()
    commit(first, 10)
    run.claim()
    with pytest.raises(SupersededError, match=r"attempt 2 has taken over .*attempt 1 ends here"):
        commit(first, 20)
    assert not stored(run, "attempts/000001/checkpoints/000000020")


def test_what_a_zombie_commits_in_spite_of_all_is_invisible(run: Run, commit: Commit) -> None:
    takes_over = once(lambda name, *args: name == "write" and args[0].endswith("20/manifest.json"), run.claim)
    first = Run(hooked(run.storage, before=takes_over), run.id).claim()
    commit(first, 10)
    commit(first, 20)  # after its last look, and before its manifest, attempt 2 is claimed
    assert "attempts/000001/checkpoints/000000020/manifest.json" in stored(run, "attempts")
    assert steps(run) == [10]
    assert run.claim().claim.base == Base(attempt=2, step=10)


def test_a_zombies_retention_takes_nothing_from_the_attempt_that_took_over(run: Run, commit: Commit) -> None:
    first = run.claim()
    commit(first, 10)
    second = run.claim()
    commit(second, 20)
    with pytest.raises(SupersededError):
        first.retain(1)
    assert steps(run) == [10, 20]


def test_metrics_after_the_base_of_a_newer_attempt_are_invisible(run: Run, commit: Commit) -> None:
    first = run.claim()
    commit(first, 2)
    write_rows(first, "metrics", 1, 2, 3)
    second = run.claim()
    write_rows(second, "metrics", 3, 4)
    rows = [(row["attempt"], row["step"]) for row in run.rows("metrics")]
    assert rows == [(1, 1), (1, 2), (2, 3), (2, 4)]


def test_events_of_every_attempt_are_kept(run: Run, commit: Commit) -> None:
    first = run.claim()
    commit(first, 2)
    write_rows(first, "events", 1, 3)
    write_rows(run.claim(), "events", 3)
    assert [(row["attempt"], row["step"]) for row in run.rows("events")] == [(1, 1), (1, 3), (2, 3)]


def test_an_attempt_that_starts_anew_hides_all_before_it(run: Run) -> None:
    first = run.claim()
    write_rows(first, "metrics", 1, 2)
    write_rows(run.claim(), "metrics", 1)
    assert [(row["attempt"], row["step"]) for row in run.rows("metrics")] == [(2, 1)]


def test_a_checkpoint_that_is_retired_while_it_is_verified_is_no_damage(run: Run, commit: Commit) -> None:
    first = run.claim()
    commit(first, 10)

    def goes_on() -> None:
        commit(first, 20)
        first.retain(1)

    def reads_it(name: str, path: str, *_: object) -> bool:
        return name == "read" and path.endswith("000000010/trainer.json")

    late = Run(hooked(run.storage, before=once(reads_it, goes_on)), run.id)
    told = lambda checkpoint, _: pytest.fail(f"step {checkpoint.step} is not damaged")  # noqa: E731
    assert late.claim(read=True, on_corrupt=told).claim.base == Base(attempt=1, step=20)


def test_a_checkpoint_that_is_retired_before_its_files_are_listed_is_no_damage(run: Run, commit: Commit) -> None:
    first = run.claim()
    commit(first, 10)

    def goes_on() -> None:
        commit(first, 20)
        first.retain(1)

    def lists_it(name: str, path: str, *_: object) -> bool:
        return name == "list" and path.endswith("000000010/")

    late = Run(hooked(run.storage, before=once(lists_it, goes_on)), run.id)
    told = lambda checkpoint, _: pytest.fail(f"step {checkpoint.step} is not damaged")  # noqa: E731
    assert late.claim(on_corrupt=told).claim.base == Base(attempt=1, step=20)


def test_a_base_that_is_retired_before_its_copy_costs_nothing(run: Run, commit: Commit) -> None:
    first = run.claim()
    commit(first, 10)
    write_rows(first, "metrics", 10, 20)
    manifest = run.path(f"{commit(first, 20).folder}/manifest.json")
    data = run.storage.read(manifest)
    run.storage.delete(manifest)  # step 20 is still on its way when the base is chosen

    def committed_and_retired() -> None:
        run.storage.write(manifest, data)
        for path in stored(run, "attempts/000001/checkpoints/000000010/"):
            run.storage.delete(run.path(path))

    storage = hooked(run.storage, before=once(lambda name, *_: name == "copy", committed_and_retired))
    attempt = Run(storage, run.id).claim()
    assert (attempt.number, attempt.claim.base) == (3, Base(attempt=1, step=20))
    assert steps(run) == [20]
    assert [row["step"] for row in run.rows("metrics")] == [10, 20]


def test_an_attempt_whose_run_was_removed_ends(run: Run, commit: Commit) -> None:
    attempt = run.claim()
    run.delete()
    with pytest.raises(SupersededError, match="is gone"):
        commit(attempt, 10)
