"""A run's folder: its names, who claims it, and what is taken from it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cluster.attempts import Attempt
from cluster.errors import (
    CorruptObjectError,
    NewerFormatError,
    ObjectNotFoundError,
    RunExistsError,
    RunNotFoundError,
    StorageError,
    SupersededError,
)
from cluster.outages import through_outages
from cluster.records import Base, Checkpoint, Origin, Result, history_of
from cluster.runs import Run, list_runs, new_run_id
from cluster.storage.base import Digest, Storage
from cluster.storage.file import FileStorage
from tests.cluster.saves import Commit, flip_a_byte, make_newer, steps, stored, write_rows
from tests.hooked import hooked

# -- names


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "-digits", "Digits", "a/b", "a b", "a_b", "ö", "$(id)", "a;b", "a\n", "x" * 41],
)
def test_a_name_that_could_mean_something_else_is_no_run_id(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunNotFoundError, match="lower-case letters, digits and dashes, at most 40"):
        Run(FileStorage(tmp_path), name)


@pytest.mark.parametrize("name", ["a", "digits", "a-name-of-22-characters"[:22]])
def test_a_new_id_is_the_name_the_time_and_four_digits(tmp_path: Path, name: str) -> None:
    run_id = Run(FileStorage(tmp_path), new_run_id(name)).id
    assert re.fullmatch(rf"{name}-\d{{12}}-[0-9a-f]{{4}}", run_id)
    assert abs(time.mktime(time.strptime(run_id[-17:-5], "%y%m%d%H%M%S")) - time.mktime(time.gmtime())) < 60


def test_runs_are_listed_newest_first_and_those_with_names_of_their_own_last(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    for name in ("b-260101000000-0000", "own", "a-270101000000-ffff", "c-250101000000-ffff"):
        Run(storage, name).create(b"")
    storage.write("Notes of mine/readme", b"")
    found = [run.id for run in list_runs(storage)]
    assert found == ["a-270101000000-ffff", "b-260101000000-0000", "c-250101000000-ffff", "own"]


# -- creating and stopping


def test_the_job_file_is_frozen_as_it_was_given(run: Run) -> None:
    assert run.job().split(b"\n", 1)[1] == b"task: image-classification\n"


def test_a_second_creator_loses_and_is_told_who_holds_the_run(run: Run) -> None:
    before = run.job()
    with pytest.raises(RunExistsError, match=r"created by process \d+ on \S+\). .*raylift resume .*--id"):
        Run(run.storage, run.id).create(b"another job")
    assert run.job() == before


def test_a_run_that_is_not_there_is_not_found(storage: Storage) -> None:
    with pytest.raises(RunNotFoundError, match=r"there is no run .*raylift ps"):
        Run(storage, "none").job()


def test_a_wish_to_stop_is_read_until_it_is_withdrawn(run: Run) -> None:
    reasons = [run.stop_reason()]
    run.request_stop("enough")
    reasons.append(run.stop_reason())
    run.withdraw_stop()
    assert [*reasons, run.stop_reason()] == [None, "enough", None]


# -- claims


def test_sixteen_racing_claimers_get_sixteen_numbers(run: Run, commit: Commit) -> None:
    commit(run.claim(), 10)
    with ThreadPoolExecutor(16) as pool:
        attempts = list(pool.map(lambda _: Run(run.storage, run.id).claim(), range(16)))
    assert sorted(attempt.number for attempt in attempts) == list(range(2, 18))
    assert [claim.attempt for claim in run.claims()] == list(range(1, 18))


def test_an_attempt_that_saves_while_the_next_one_is_claimed_is_what_that_starts_from(
    run: Run, commit: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(run.claim(), 10)
    other, chosen = Run(run.storage, run.id), []

    def slow(*arguments: Any, **options: Any) -> Checkpoint | None:
        chosen.append(Run.newest_intact(run, *arguments, **options))
        if len(chosen) == 1:  # two claim, and save, before this claim goes on
            commit(other.claim(), 20)
            commit(other.claim(), 30)
        return chosen[-1]

    monkeypatch.setattr(run, "newest_intact", slow)
    assert run.claim().claim.base == Base(attempt=3, step=30)


def test_a_first_attempt_has_no_base(run: Run) -> None:
    attempt = run.claim(launch="abc")
    assert (attempt.number, attempt.claim.base, attempt.claim.launch) == (1, None, "abc")
    assert attempt.start_from() is None


def test_a_claim_adopts_the_newest_checkpoint_by_copy(run: Run, commit: Commit, tmp_path: Path) -> None:
    first = run.claim()
    for step in (10, 20):
        commit(first, step)
    second = run.claim()
    assert second.claim.base == Base(attempt=1, step=20)
    adopted = second.start_from()
    assert adopted is not None
    assert (adopted.attempt, adopted.step, adopted.info) == (2, 20, {"step": 20})
    run.fetch(adopted, tmp_path / "restored")
    assert (tmp_path / "restored" / "trainer.json").read_bytes() == b"trainer.json of step 20" * 50


def test_what_a_newer_raylift_wrote_is_no_storage_that_is_away(run: Run, commit: Commit) -> None:
    make_newer(run, commit(run.claim(), 10).folder)
    with pytest.raises(NewerFormatError, match="Update: pip install"):
        through_outages(run.claim, gives_up=lambda: pytest.fail("it waited"))


def test_a_claim_from_a_checkpoint_of_another_run_leaves_its_own_behind(run: Run, commit: Commit) -> None:
    other = Run(run.storage, "other")
    commit(other.claim(), 15)
    other.claim()
    commit(run.claim(), 20)
    origin = Origin("other", 1, 15)
    assert not run.has_taken(origin)
    second = run.claim(origin=origin)
    assert (second.claim.base, Attempt.reopen(run, 2).claim.origin) == (None, origin)
    assert run.has_taken(origin)
    assert [(one.attempt, one.step) for one in run.checkpoints()] == [(2, 15)]
    commit(second, 18)
    third = run.claim(origin=origin)
    assert (third.claim.base, third.claim.origin) == (Base(2, 18), None)
    assert run.claim(origin=Origin("other", 2, 15)).claim.origin == Origin("other", 2, 15)


def test_a_claim_that_died_before_it_copied_from_another_run_changed_nothing(run: Run, commit: Commit) -> None:
    commit(run.claim(), 20)
    commit(Run(run.storage, "other").claim(), 15)
    origin = Origin("other", 1, 15)
    dead = run.claim(origin=origin)
    run.storage.delete(run.path(f"{dead.run.checkpoint_at(2, 15).folder}/manifest.json"))
    assert not run.has_taken(origin)
    assert run.claim().claim.base == Base(1, 20)
    assert run.claim(origin=origin).claim.origin == origin


def test_of_two_claims_from_another_run_at_once_the_later_goes_on_from_what_the_first_has_saved(
    run: Run, commit: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(Run(run.storage, "other").claim(), 15)
    origin, asked = Origin("other", 1, 15), []

    def slow(origin: Origin) -> bool:
        asked.append(Run.has_taken(run, origin))
        if len(asked) == 1:
            commit(Run(run.storage, run.id).claim(origin=origin), 30)
        return asked[-1]

    monkeypatch.setattr(run, "has_taken", slow)
    assert run.claim(origin=origin).claim.base == Base(attempt=1, step=30)


def test_where_the_other_run_has_no_such_checkpoint_a_claim_says_so(run: Run) -> None:
    with pytest.raises(ObjectNotFoundError):
        run.claim(origin=Origin("other", 1, 15))
    assert run.attempts() == []


def test_a_worker_opens_the_attempt_that_its_driver_claimed(run: Run) -> None:
    attempt = run.claim(launch="abc")
    assert Attempt.reopen(run, attempt.number).claim == attempt.claim


# -- damage


def cut_off_the_end(run: Run, folder: str) -> None:
    path = run.path(f"{folder}/trainer.json")
    run.storage.write(path, run.storage.read(path)[:-1])


def lose_a_file(run: Run, folder: str) -> None:
    run.storage.delete(run.path(f"{folder}/model.safetensors"))


def lose_the_manifest(run: Run, folder: str) -> None:
    run.storage.delete(run.path(f"{folder}/manifest.json"))


def empty_the_manifest(run: Run, folder: str) -> None:
    run.storage.write(run.path(f"{folder}/manifest.json"), b"")


def change_what_the_manifest_tells(run: Run, folder: str) -> None:
    path = run.path(f"{folder}/manifest.json")
    run.storage.write(path, run.storage.read(path).replace(b'"info":{', b'"info":{"added":1,'))


Damage = Callable[[Run, str], None]


def without_reading(run: Run) -> Run:
    """Return the run where no file of a checkpoint can be read but its manifest."""

    def refuse(name: str, path: str, *_: object) -> None:
        if name in ("read", "download") and "/checkpoints/" in path and not path.endswith("/manifest.json"):
            pytest.fail(f"{path} is read")

    return Run(hooked(run.storage, before=refuse), run.id)


@pytest.mark.parametrize(
    "damage",
    [cut_off_the_end, lose_a_file, lose_the_manifest, empty_the_manifest, change_what_the_manifest_tells],
)
def test_a_claim_sees_by_a_listing_what_is_not_whole_and_passes_it_over(
    run: Run, commit: Commit, damage: Damage
) -> None:
    first = run.claim()
    commit(first, 10)
    damage(run, commit(first, 20).folder)
    assert without_reading(run).claim().claim.base == Base(attempt=1, step=10)


@pytest.mark.parametrize("damage", [flip_a_byte, cut_off_the_end, lose_a_file, lose_the_manifest, empty_the_manifest])
def test_a_claim_that_reads_passes_over_whatever_is_damaged(run: Run, commit: Commit, damage: Damage) -> None:
    first = run.claim()
    commit(first, 10)
    damage(run, commit(first, 20).folder)
    assert run.claim(read=True).claim.base == Base(attempt=1, step=10)


@pytest.mark.parametrize("damage", [empty_the_manifest, change_what_the_manifest_tells])
def test_a_manifest_that_does_not_read_is_told_of_where_it_is_newer_than_what_is_taken(
    run: Run, commit: Commit, damage: Damage
) -> None:
    first, said = run.claim(), []
    for step in (10, 20, 30):
        commit(first, step)
    damage(run, "attempts/000001/checkpoints/000000010")
    damage(run, "attempts/000001/checkpoints/000000030")
    claimed = run.claim(on_corrupt=lambda checkpoint, why: said.append((checkpoint.step, why)))
    assert claimed.claim.base == Base(attempt=1, step=20)
    assert [step for step, _ in said] == [30]
    assert f"{run.uri}/attempts/000001/checkpoints/000000030/manifest.json does not read" in said[0][1]


def test_a_manifest_of_before_they_had_a_digest_of_themselves_reads(run: Run, commit: Commit) -> None:
    saved = commit(run.claim(), 10)
    path = run.path(f"{saved.folder}/manifest.json")
    told = json.loads(run.storage.read(path))
    del told["sha256"]
    run.storage.write(path, json.dumps(told).encode())
    assert run.newest_intact(read=True) == saved


def test_a_checkpoint_whose_manifest_did_not_read_once_is_not_deleted(run: Run, commit: Commit) -> None:
    first = run.claim()
    for step in (10, 20, 30, 40):
        commit(first, step)
    fault = iter([True])

    def refuse(name: str, path: str, *_: object) -> None:
        if name == "read" and path.endswith("000000030/manifest.json") and next(fault, False):
            raise CorruptObjectError("its bytes do not have the checksum that the server keeps")

    flaky = Attempt(Run(hooked(run.storage, before=refuse), run.id), first.claim)
    assert flaky.retain(keep=2) == [10]
    assert [one.step for one in run.checkpoints()] == [20, 30, 40]
    assert first.retain(keep=2) == [20]


# -- small files that are cut off


def cut_in_half(run: Run, name: str) -> None:
    data = run.storage.read(run.path(name))
    run.storage.write(run.path(name), data[: len(data) // 2])


@pytest.mark.parametrize("own", [True, False])
def test_a_run_whose_newest_claim_is_cut_off_goes_on_from_what_it_has_saved(
    run: Run, commit: Commit, own: bool
) -> None:
    first = run.claim()
    commit(first, 10)
    second = run.claim()
    if own:
        commit(second, 20)
    cut_in_half(run, "attempts/000002/claim.json")
    assert [claim.base for claim in run.claims()] == [None, Base(attempt=1, step=10)]
    third = run.claim()
    assert (third.number, third.claim.base) == (3, Base(attempt=2, step=20 if own else 10))
    assert [claim.attempt for claim, _ in history_of(run.claims())] == [3, 2, 1]
    with pytest.raises(CorruptObjectError, match=r"attempts/000002/claim\.json does not read, as if it were cut off"):
        run.claim_of(2)


def test_an_attempt_whose_result_is_cut_off_has_failed_and_says_which_file(run: Run) -> None:
    attempt = run.claim()
    attempt.finish(Result("SUCCEEDED", "done", 0, 10))
    cut_in_half(run, "attempts/000001/result.json")
    result = run.result()
    assert result is not None
    assert (result.state, result.exit_code) == ("FAILED", 3)
    assert f"{run.uri}/attempts/000001/result.json does not read" in result.message


@pytest.mark.parametrize("name", ["stop.json", "notice.json", "alive.json", "damage.json", "metrics"])
def test_any_other_file_that_is_cut_off_is_named(run: Run, name: str) -> None:
    attempt = run.claim()
    run.request_stop("enough")
    attempt.give_notice("a spot notice")
    attempt.show_life()
    attempt.report_damage("it cannot be restored")
    write_rows(attempt, "metrics", 1, 2, 3)
    if name == "damage.json":
        cut_in_half(run, "attempts/000001/damage.json")
        assert "damage.json does not read" in str(run.damage_of(1)), "that it is there counts"
        return
    ask: dict[str, Callable[[], object]] = {
        "stop.json": run.stop_reason,
        "notice.json": attempt.notice,
        "alive.json": lambda: run.last_sign_of_life(1),
        "metrics": lambda: run.rows_of(1, "metrics"),
    }
    folder = "" if name == "stop.json" else "attempts/000001/"
    (path,) = [each for each in stored(run, folder) if name in each]
    cut_in_half(run, path)
    with pytest.raises(CorruptObjectError, match=rf"{name}.* does not read, as if it were cut off"):
        ask[name]()


@pytest.mark.parametrize("damage", [flip_a_byte, cut_off_the_end, lose_a_file])
def test_what_is_passed_over_is_said_once_with_the_file(run: Run, commit: Commit, damage: Damage) -> None:
    first = run.claim()
    commit(first, 10)
    damage(run, commit(first, 20).folder)
    said: list[tuple[int, str]] = []
    run.claim(read=True, on_corrupt=lambda checkpoint, why: said.append((checkpoint.step, why)))
    assert [step for step, _ in said] == [20]
    assert re.search(r"000000020/(model\.safetensors|trainer\.json)", said[0][1])


def test_where_every_checkpoint_is_damaged_an_attempt_starts_anew(run: Run, commit: Commit) -> None:
    first = run.claim()
    for step in (10, 20):
        flip_a_byte(run, commit(first, step).folder)
    assert run.claim(read=True).claim.base is None


def test_after_damage_that_an_attempt_reports_the_next_reads_and_takes_the_newest_that_verifies(
    run: Run, commit: Commit
) -> None:
    first = run.claim()
    commit(first, 10)
    for step in (20, 30):
        flip_a_byte(run, commit(first, step).folder)
    second = run.claim()
    assert second.claim.base == Base(attempt=1, step=30)
    second.report_damage("the checkpoint of step 30 cannot be restored")
    assert run.damage_of(2) == "the checkpoint of step 30 cannot be restored"
    said: list[int] = []
    elsewhere = Run(run.storage, run.id)
    third = elsewhere.claim(on_corrupt=lambda checkpoint, _: said.append(checkpoint.step))
    assert (third.claim.base, said) == (Base(attempt=1, step=10), [30, 20]), "of a copy and its original, once"
    assert without_reading(run).claim().claim.base == Base(attempt=3, step=10)


def test_where_all_is_damaged_the_attempt_after_the_one_that_reports_it_starts_anew(run: Run, commit: Commit) -> None:
    first = run.claim()
    for step in (10, 20, 30):
        flip_a_byte(run, commit(first, step).folder)
    run.claim().report_damage("it cannot be restored")
    assert run.claim().claim.base is None


def test_reported_damage_outlives_a_claim_that_died_before_it_adopted_anything(run: Run, commit: Commit) -> None:
    first = run.claim()
    commit(first, 10)
    flip_a_byte(run, commit(first, 20).folder)
    run.claim().report_damage("it cannot be restored")
    dead = run.claim()
    run.storage.delete(run.path(f"{run.checkpoint_at(dead.number, 10).folder}/manifest.json"))
    assert run.claim().claim.base == Base(attempt=1, step=10)


def test_what_was_reported_but_verifies_is_not_lost(run: Run, commit: Commit) -> None:
    commit(run.claim(), 10)
    run.claim().report_damage("the memory of this machine is damaged")
    assert run.claim().claim.base == Base(attempt=2, step=10)


def test_a_file_that_is_listed_and_is_not_there_is_damage(run: Run, commit: Commit) -> None:
    first = run.claim()
    commit(first, 10)
    lost = f"{commit(first, 20).folder}/model.safetensors"

    def lose(name: str, path: str, *_: object) -> None:
        if name in ("read", "copy") and path == run.path(lost):
            raise ObjectNotFoundError(f"there is no {path}")

    assert Run(hooked(run.storage, before=lose), run.id).claim().claim.base == Base(attempt=1, step=10)


@pytest.mark.parametrize("damage", [lose_the_manifest, empty_the_manifest])
def test_an_attempt_that_has_lost_what_it_starts_from_does_not_begin_anew(
    run: Run, commit: Commit, damage: Damage
) -> None:
    commit(run.claim(), 10)
    second = run.claim()
    damage(run, "attempts/000002/checkpoints/000000010")
    with pytest.raises(ObjectNotFoundError, match="has lost the checkpoint that attempt 2 starts from"):
        second.start_from()
    assert run.claim().claim.base == Base(attempt=1, step=10)


def test_who_was_superseded_reports_no_damage(run: Run, commit: Commit) -> None:
    commit(run.claim(), 10)
    second = run.claim()
    run.claim()
    with pytest.raises(SupersededError):
        second.report_damage("it cannot be restored")
    assert run.damage_of(2) is None


def test_an_adopted_copy_that_is_damaged_later_leaves_its_original(run: Run, commit: Commit) -> None:
    commit(run.claim(), 10)
    second = run.claim()
    flip_a_byte(run, commit(second, 20).folder)
    flip_a_byte(run, "attempts/000002/checkpoints/000000010")
    run.claim().report_damage("it cannot be restored")
    assert run.claim().claim.base == Base(attempt=1, step=10)


def test_an_adopted_copy_that_is_damaged_at_once_is_not_read_and_leaves_its_original(
    run: Run, commit: Commit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(run.claim(), 10)
    copy = run.storage.copy

    def copy_and_damage(source: str, target: str) -> None:
        copy(source, target)
        if target.endswith("model.safetensors"):
            flip_a_byte(run, "attempts/000002/checkpoints/000000010")

    with monkeypatch.context() as patch:
        patch.setattr(run.storage, "copy", copy_and_damage)
        second = run.claim()
    adopted = second.start_from()
    assert adopted is not None
    with pytest.raises(CorruptObjectError, match=r"000002/checkpoints/000000010/model\.safetensors"):
        run.fetch(adopted, tmp_path / "restored")
    second.report_damage("it cannot be restored")
    assert run.claim().claim.base == Base(attempt=1, step=10)


def test_a_copy_from_another_run_that_is_damaged_is_taken_from_there_again(run: Run, commit: Commit) -> None:
    other = Run(run.storage, "other")
    other.create(b"")
    commit(other.claim(), 15)
    origin = Origin("other", 1, 15)
    run.claim(origin=origin)
    flip_a_byte(run, "attempts/000001/checkpoints/000000015")
    run.claim(origin=origin).report_damage("it cannot be restored")
    again = run.claim(origin=origin)
    assert again.claim.origin == origin
    adopted = again.start_from()
    assert adopted is not None
    run.verify(adopted)


def test_where_the_checkpoint_of_another_run_is_damaged_too_a_claim_says_so(run: Run, commit: Commit) -> None:
    other = Run(run.storage, "other")
    other.create(b"")
    flip_a_byte(other, commit(other.claim(), 15).folder)
    origin = Origin("other", 1, 15)
    run.claim(origin=origin).report_damage("it cannot be restored")
    with pytest.raises(CorruptObjectError, match=r"other/attempts/000001/checkpoints/000000015/model\.safetensors"):
        run.claim(origin=origin)


def test_a_claim_that_names_itself_as_its_base_ends_the_history(run: Run, commit: Commit) -> None:
    attempt = run.claim()
    commit(attempt, 10)
    damaged = {**asdict(attempt.claim), "base": {"attempt": 1, "step": 10}}
    run.storage.write(run.path("attempts/000001/claim.json"), json.dumps(damaged).encode())
    assert steps(run) == [10]
    assert run.claim().claim.base == Base(attempt=1, step=10)


def test_a_manifest_keeps_the_quick_checksum_beside_the_other_where_there_is_one(run: Run) -> None:
    known, unknown = Digest(3, "a" * 64, "b" * 16), Digest(4, "c" * 64)
    attempt = run.claim()
    folder = attempt.seal(1, {"known": known, "unknown": unknown}, {}).folder
    found = run.checkpoint_at(attempt.number, 1).files
    assert {name: digest.crc64 for name, digest in found.items()} == {"known": known.crc64, "unknown": ""}
    path = run.path(f"{folder}/manifest.json")
    manifest = json.loads(run.storage.read(path))
    assert manifest["files"] == {name: {"size": one.size, "sha256": one.sha256} for name, one in found.items()}
    del manifest["crc64"], manifest["sha256"]  # as older versions wrote it
    run.storage.write(path, json.dumps(manifest).encode())
    assert run.checkpoint_at(attempt.number, 1).files == found


def test_a_manifest_of_a_newer_format_is_refused_with_what_to_do(run: Run, commit: Commit) -> None:
    path = run.path(f"{commit(run.claim(), 10).folder}/manifest.json")
    manifest = json.loads(run.storage.read(path))
    run.storage.write(path, json.dumps({**manifest, "format": 2}).encode())
    with pytest.raises(StorageError, match=r"newer raylift \(format 2, this one reads up to 1\)\. Update: pip install"):
        run.claim()


# -- retention, results, removal


def test_retention_keeps_the_newest_and_the_best(run: Run, commit: Commit) -> None:
    attempt = run.claim()
    for step in (10, 20, 30, 40):
        commit(attempt, step)
    assert attempt.retain(2, best=10) == [20]
    assert steps(run) == [10, 30, 40]


def test_retention_sweeps_what_a_crash_left_of_older_saves(run: Run, commit: Commit) -> None:
    attempt = run.claim()
    run.storage.write(run.path("attempts/000001/checkpoints/000000005/model.safetensors"), b"half a save")
    run.storage.write(run.path("attempts/000001/checkpoints/000000025/model.safetensors"), b"a save that goes on")
    commit(attempt, 10)
    commit(attempt, 20)
    attempt.retain(2)
    assert sorted({path.split("/")[3] for path in stored(run, "attempts/000001/checkpoints/")}) == [
        "000000010",
        "000000020",
        "000000025",
    ]


def test_an_attempts_result_is_written_once(run: Run) -> None:
    attempt = run.claim()
    attempt.finish(Result(state="SUCCEEDED", step=20, metrics={"loss": 0.5}, at=1.0))
    attempt.finish(Result(state="FAILED", message="too late", exit_code=1))
    assert run.result() == Result(state="SUCCEEDED", step=20, metrics={"loss": 0.5}, at=1.0)


def test_who_was_overtaken_claims_nothing_more(run: Run) -> None:
    assert run.claim(after=0).number == 1
    assert run.claim(after=1).number == 2
    with pytest.raises(SupersededError, match="attempt 2 has taken over"):
        run.claim(after=1)
    assert run.attempts() == [1, 2]


def test_of_two_that_claim_the_same_number_one_is_told_so(run: Run) -> None:
    def overtake(call: str, path: str, *_: object) -> None:
        if call == "write" and path.endswith("claim.json") and not run.attempts():
            run.claim()

    with pytest.raises(SupersededError, match="attempt 1 has taken over"):
        Run(hooked(run.storage, before=overtake), run.id).claim(after=0)
    assert run.attempts() == [1]


def test_a_run_that_was_removed_is_not_claimed_by_who_had_it(run: Run) -> None:
    run.claim()
    run.delete()
    with pytest.raises(SupersededError, match="is gone: somebody removed it"):
        run.claim(after=1)
    assert run.attempts() == []


def test_a_launch_goes_on_after_its_own_attempts_and_those_before_it_alone(run: Run) -> None:
    run.claim(launch="before")
    assert run.newest_of("mine", since=1) == 1
    run.claim(launch="mine")
    assert run.newest_of("mine", since=1) == 2
    run.claim(launch="a person's resume")
    with pytest.raises(SupersededError, match="attempt 3 has taken over"):
        run.newest_of("mine", since=1)
    assert run.newest_of("another resume", since=3) == 3


def test_a_runs_result_is_that_of_its_newest_attempt(run: Run) -> None:
    results = [run.result()]
    run.claim().finish(Result(state="STOPPED", exit_code=4, at=1.0))
    second = run.claim()
    results.append(run.result())
    second.finish(Result(state="SUCCEEDED", at=2.0))
    assert [*results, run.result()] == [None, None, Result(state="SUCCEEDED", at=2.0)]


def test_a_run_that_was_removed_is_gone_with_all_its_objects(run: Run, commit: Commit) -> None:
    commit(run.claim(), 10)
    other = Run(run.storage, "digits-2")
    other.create(b"")
    assert run.delete() == 5  # job, claim, two files and a manifest
    assert [entry.path for entry in run.storage.list()] == ["digits-2/job.yaml"]


def test_a_checkpoint_knows_its_size(run: Run, commit: Commit) -> None:
    checkpoint = commit(run.claim(), 10)
    assert checkpoint.size == 50 * len(b"model.safetensors of step 10trainer.json of step 10")
    assert asdict(run.checkpoints()[0]) == asdict(checkpoint)


def test_verification_reads_every_byte(run: Run, commit: Commit) -> None:
    checkpoint = commit(run.claim(), 10)
    run.verify(checkpoint)
    flip_a_byte(run, checkpoint.folder)
    with pytest.raises(CorruptObjectError, match=r"model\.safetensors"):
        run.verify(checkpoint)


def test_a_run_was_last_heard_of_when_its_newest_attempt_wrote(run: Run) -> None:
    assert run.last_heard() is None
    run.claim()
    heard = run.last_heard()
    assert heard is not None
    assert abs(heard - time.time()) < 30
