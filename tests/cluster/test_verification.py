"""Every checkpoint is read and judged, and a sweep takes nothing that anybody could still want."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.attempts import Attempt
from cluster.errors import StorageError, SupersededError
from cluster.records import Checkpoint, Origin, Result
from cluster.runs import Run
from cluster.selection import choose
from cluster.storage.base import Storage
from cluster.storage.file import FileStorage
from cluster.storage.gcs import GCSStorage
from cluster.storage.gcs_parts import FOLDER
from cluster.verification import Finding, Verdict, Verification, complain, needless, survey, sweep, verify
from tests.cluster.saves import Commit, flip_a_byte, make_files, steps, stored
from tests.hooked import KilledError, dying, hooked, once


def check(run: Run) -> Verification:
    return verify(run, survey(run))


def verdicts(found: Verification) -> list[tuple[int, int, str]]:
    return [(one.folder.attempt, one.folder.step, str(one.verdict)) for one in found.findings]


def place(finding: Finding | None) -> tuple[int, int] | None:
    return (finding.folder.attempt, finding.folder.step) if finding is not None else None


def folders(run: Run) -> list[str]:
    """Return the checkpoint folders that hold anything, as attempt/step."""
    found = {
        path.split("/")[1][-1] + "/" + path.split("/")[3].lstrip("0")
        for path in stored(run, "attempts/")
        if "/checkpoints/" in path
    }
    return sorted(found)


def of_newer_format(run: Run, folder: str) -> None:
    path = run.path(f"{folder}/manifest.json")
    run.storage.write(path, json.dumps({**json.loads(run.storage.read(path)), "format": 2}).encode())


def save_partly(run: Run, attempt: int, step: int) -> None:
    """Leave what a crash leaves of a save."""
    run.storage.write(run.path(f"attempts/{attempt:06d}/checkpoints/{step:09d}/model.safetensors"), b"half a save")


def abandon_upload(run: Run, path: str, tmp_path: Path) -> None:
    """Leave what a crash leaves of the upload of one file."""
    storage: Any = run.storage
    if isinstance(storage, FileStorage):
        hidden = tmp_path / "storage" / run.path(path)
        hidden.parent.mkdir(parents=True, exist_ok=True)
        hidden.with_name(f".raylift-partial-00000000-{hidden.name}").write_bytes(b"half")
    elif isinstance(storage, GCSStorage):
        part = storage._bucket.blob(f"{storage._root}{FOLDER}/{run.path(path)}/0123456789abcdef/part-0")
        part.upload_from_string(b"half")
    else:
        storage._client.create_multipart_upload(Bucket=storage._bucket, Key=storage._key(run.path(path)))


@pytest.fixture
def resumed(run: Run, commit: Commit) -> Run:
    """Return a run that saved steps 10 and 20, lost a save of 25, went on from 20 and saved step 30."""
    first = run.claim()
    for step in (10, 20):
        commit(first, step)
    save_partly(run, 1, 25)
    commit(run.claim(), 30)
    return run


# -- verdicts


def test_what_was_written_is_intact(resumed: Run) -> None:
    found = check(resumed)
    assert verdicts(found) == [
        (1, 10, "intact"),
        (1, 20, "intact"),
        (1, 25, "partial"),
        (2, 20, "intact"),
        (2, 30, "intact"),
    ]
    assert [place(one) for one in found.choices] == [(2, 30), (2, 20), (1, 20), (1, 10)]
    assert complain(resumed, found) == ""


def test_a_run_without_checkpoints_has_nothing_to_verify(run: Run) -> None:
    assert check(run) == Verification(newest=0, state=None, findings=[])
    run.claim()
    assert check(run) == Verification(newest=1, state=None, findings=[])


def cut_off_the_end(run: Run, folder: str) -> None:
    path = run.path(f"{folder}/model.safetensors")
    run.storage.write(path, run.storage.read(path)[:-1])


def empty_the_file(run: Run, folder: str) -> None:
    run.storage.write(run.path(f"{folder}/model.safetensors"), b"")


def delete_the_file(run: Run, folder: str) -> None:
    run.storage.delete(run.path(f"{folder}/model.safetensors"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_byte, r"holds bytes with SHA-256 [0-9a-f]{12}…, but those with [0-9a-f]{12}… were written"),
        (cut_off_the_end, "holds 1399 bytes, but 1400 were written"),
        (empty_the_file, "holds 0 bytes, but 1400 were written"),
        (delete_the_file, "is missing"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong_and_what_a_resume_will_do(
    run: Run, commit: Commit, damage: Callable[[Run, str], None], words: str
) -> None:
    first = run.claim()
    commit(first, 10)
    damage(run, commit(first, 20).folder)
    found = check(run)
    assert verdicts(found) == [(1, 10, "intact"), (1, 20, "damaged")]
    assert list(found.findings[1].faults) == ["model.safetensors"]
    assert place(found.base) == (1, 10)
    said = complain(run, found)
    assert said.startswith(f"1 of 2 checkpoints of {run.uri} is damaged: attempts/000001/checkpoints/000000020/")
    assert f"/model.safetensors {found.findings[1].faults['model.safetensors']}. " in said
    assert re.search(words, said)
    assert said.endswith("A resume will fall back to step 10, of attempt 1")


def test_every_damaged_file_is_told(run: Run, commit: Commit) -> None:
    first = run.claim()
    flip_a_byte(run, commit(first, 10).folder)
    folder = commit(first, 20).folder
    flip_a_byte(run, folder)
    run.storage.delete(run.path(f"{folder}/trainer.json"))
    found = check(run)
    assert [sorted(one.faults) for one in found.findings] == [
        ["model.safetensors"],
        ["model.safetensors", "trainer.json"],
    ]
    said = complain(run, found)
    assert "2 of 2 checkpoints" in said
    assert ", and 2 more files. None is intact: a resume will begin anew" in said


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"\xff", b'{"format": 1, "step": 10, "info": {}, "files": {"a": 1}}']
)
def test_a_manifest_that_does_not_read_is_damage(run: Run, commit: Commit, data: bytes) -> None:
    run.storage.write(run.path(f"{commit(run.claim(), 10).folder}/manifest.json"), data)
    found = check(run)
    assert verdicts(found) == [(1, 10, "damaged")]
    assert "000000010/manifest.json does not read. None is intact" in complain(run, found)


def test_a_manifest_of_another_step_is_damage(run: Run, commit: Commit) -> None:
    first = run.claim()
    manifest = run.storage.read(run.path(f"{commit(first, 10).folder}/manifest.json"))
    run.storage.write(run.path(f"{commit(first, 20).folder}/manifest.json"), manifest)
    found = check(run)
    assert verdicts(found) == [(1, 10, "intact"), (1, 20, "damaged")]
    assert "manifest.json is that of step 10. A resume will fall back to step 10" in complain(run, found)


def test_a_manifest_of_a_newer_format_is_told_and_the_rest_is_verified(run: Run, commit: Commit) -> None:
    first = run.claim()
    of_newer_format(run, commit(first, 10).folder)
    flip_a_byte(run, commit(first, 20).folder)
    commit(first, 30)
    found = check(run)
    assert verdicts(found) == [(1, 10, "newer"), (1, 20, "damaged"), (1, 30, "intact")]
    damage, newer = complain(run, found).split("\n")
    assert damage.endswith("A resume needs the newer raylift")
    assert newer.endswith(
        "000000010 was written by a newer raylift (format 2, this one reads up to 1). Update: pip install -U raylift"
    )


def test_a_folder_that_is_no_steps_is_nobodys_checkpoint(run: Run, commit: Commit) -> None:
    commit(run.claim(), 10)
    run.storage.write(run.path("attempts/000001/checkpoints/notes/readme"), b"of a person")
    run.storage.write(run.path("attempts/000001/checkpoints/readme"), b"of a person")
    assert verdicts(check(run)) == [(1, 10, "intact")]


# -- history


def test_what_came_after_the_base_of_a_newer_attempt_does_not_count(run: Run, commit: Commit) -> None:
    first = run.claim()
    commit(first, 10)
    takes_over = once(lambda name, *args: name == "write" and args[0].endswith("20/manifest.json"), run.claim)
    commit(Attempt.reopen(Run(hooked(run.storage, before=takes_over), run.id), 1), 20)
    found = check(run)
    assert [(place(one), one.counts) for one in found.findings] == [((1, 10), True), ((1, 20), False), ((2, 10), True)]
    flip_a_byte(run, "attempts/000001/checkpoints/000000020")
    assert complain(run, check(run)).endswith("A resume does not need it: it will go on from step 10, of attempt 2")


def test_an_attempt_that_did_not_adopt_its_base_leaves_the_history_as_it_was(run: Run, commit: Commit) -> None:
    first = run.claim()
    commit(first, 10)
    manifest = run.path(f"{commit(first, 20).folder}/manifest.json")
    data = run.storage.read(manifest)
    run.storage.delete(manifest)  # step 20 is still on its way when attempt 2 is claimed

    def die(name: str, *_: Any) -> None:
        if name == "copy":
            raise KilledError

    with pytest.raises(KilledError):
        Run(hooked(run.storage, before=die), run.id).claim()
    run.storage.write(manifest, data)
    found = check(run)
    assert (found.newest, steps(run)) == (2, [10, 20])
    assert [(place(one), one.counts) for one in found.findings] == [((1, 10), True), ((1, 20), True)]


def test_an_attempt_that_did_not_copy_what_it_takes_of_another_run_leaves_the_history_as_it_was(
    run: Run, commit: Commit
) -> None:
    other = Run(run.storage, "other")
    commit(other.claim(), 15)
    commit(run.claim(), 10)

    def die(name: str, *_: Any) -> None:
        if name == "copy":
            raise KilledError

    with pytest.raises(KilledError):
        Run(hooked(run.storage, before=die), run.id).claim(origin=Origin("other", 1, 15))
    found = check(run)
    assert (found.newest, steps(run), place(found.base)) == (2, [10], (1, 10))


def test_of_a_damaged_copy_a_resume_takes_the_original(run: Run, commit: Commit) -> None:
    commit(run.claim(), 10)
    run.claim()
    flip_a_byte(run, "attempts/000002/checkpoints/000000010")
    assert complain(run, check(run)).endswith("A resume will fall back to step 10, of attempt 1")


def test_damage_that_a_resume_does_not_meet_is_told_apart(run: Run, commit: Commit) -> None:
    first = run.claim()
    flip_a_byte(run, commit(first, 10).folder)
    commit(first, 20)
    said = complain(run, check(run))
    assert said.endswith("A resume does not need it: it will go on from step 20, of attempt 1")


@pytest.mark.parametrize(("damaged", "words"), [([20], "is of step 10"), ([10, 20], "None is intact")])
def test_of_a_run_that_succeeded_nobody_speaks_of_a_resume(
    run: Run, commit: Commit, damaged: list[int], words: str
) -> None:
    first = run.claim()
    for step in (10, 20):
        checkpoint = commit(first, step)
        if step in damaged:
            flip_a_byte(run, checkpoint.folder)
    first.finish(Result(state="SUCCEEDED"))
    said = complain(run, check(run))
    assert said.endswith(words)
    assert "resume" not in said


DAMAGES = [
    subset for count in range(5) for subset in itertools.combinations([(1, 10), (1, 20), (2, 20), (2, 30)], count)
]


def two_attempts(folder: Path, damaged: tuple[tuple[int, int], ...] = (), state: str | None = None) -> Run:
    """Return a run in a folder: steps 10 and 20 of attempt 1, 20 adopted and 30 of attempt 2; 20 is the best."""
    run = Run(FileStorage(folder), "digits")
    run.create(b"")
    first = run.claim()
    for attempt, step in ((first, 10), (first, 20), (None, 30)):
        accuracy = {10: 0.5, 20: 0.9, 30: 0.7}[step]
        saver = attempt or run.claim()
        saver.commit(step, make_files(folder, step), {"metrics": {"eval_accuracy": accuracy}})
    save_partly(run, 1, 25)
    for number, step in damaged:
        flip_a_byte(run, f"attempts/{number:06d}/checkpoints/{step:09d}")
    if state is not None:
        Attempt.reopen(run, 2).finish(Result(state=state))
    return run


@pytest.mark.parametrize("damaged", DAMAGES, ids=str)
def test_verification_and_a_resume_agree(tmp_path: Path, damaged: tuple[tuple[int, int], ...]) -> None:
    run = two_attempts(tmp_path, damaged)
    found = check(run)
    assert {place(one) for one in found.of(Verdict.DAMAGED)} == set(damaged)
    taken = run.newest_intact(read=True)
    assert place(found.base) == ((taken.attempt, taken.step) if taken is not None else None)


# -- reading


def test_every_byte_is_read_in_parts_and_told(resumed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.storage.rules._CHUNK", 100)
    lock, told = threading.Lock(), []

    def tell(count: int) -> None:
        with lock:
            told.append(count)

    found = survey(resumed)
    assert not verify(resumed, found, tell).of(Verdict.DAMAGED)
    written = sum(checkpoint.size for attempt in (1, 2) for checkpoint in resumed.checkpoints_of(attempt))
    assert sum(told) == found.size == written
    assert max(told) == 100


def test_a_checkpoint_that_is_retired_while_it_is_read_is_no_damage(run: Run, commit: Commit) -> None:
    first = run.claim()
    commit(first, 10)
    commit(first, 20)
    retires = once(lambda name, path, *_: name == "read" and path.endswith("10/trainer.json"), lambda: first.retain(1))
    found = check(Run(hooked(run.storage, before=retires), run.id))
    assert verdicts(found) == [(1, 20, "intact")]


def test_a_checkpoint_that_is_retired_before_its_manifest_is_read_is_no_damage(run: Run, commit: Commit) -> None:
    first = run.claim()
    commit(first, 10)
    commit(first, 20)
    retires = once(lambda name, path, *_: name == "read" and path.endswith("10/manifest.json"), lambda: first.retain(1))
    assert verdicts(check(Run(hooked(run.storage, before=retires), run.id))) == [(1, 20, "intact")]


def test_storage_that_fails_is_no_damage_and_ends_the_other_reads(
    run: Run, commit: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.storage.rules._CHUNK", 1)
    commit(run.claim(), 10)
    failed, reads = threading.Event(), itertools.count()

    def fail(name: str, *arguments: Any) -> None:
        if name == "read" and arguments[0].endswith("trainer.json"):
            failed.set()
            raise StorageError("the bucket does not answer")
        if name == "read" and arguments[0].endswith("model.safetensors"):
            failed.wait(30)
            next(reads)

    with pytest.raises(StorageError, match="does not answer"):
        check(Run(hooked(run.storage, before=fail), run.id))
    assert next(reads) < 1400


# -- sweeping


def test_a_sweep_of_a_run_that_may_go_on_takes_what_was_cut_off_alone(resumed: Run, tmp_path: Path) -> None:
    abandon_upload(resumed, "attempts/000001/checkpoints/000000025/trainer.json", tmp_path)
    save_partly(resumed, 2, 35)
    swept = sweep(resumed, check(resumed))
    assert swept.folders == ["attempts/000001/checkpoints/000000025"]
    assert swept.size == len(b"half a save")
    assert swept.uploads == [resumed.path("attempts/000001/checkpoints/000000025/trainer.json")]
    assert folders(resumed) == ["1/10", "1/20", "2/20", "2/30", "2/35"]
    assert resumed.storage.sweep(resumed.path("")) == []


def test_a_sweep_leaves_the_uploads_of_the_newest_attempt_until_that_has_a_result(resumed: Run, tmp_path: Path) -> None:
    path = "attempts/000002/checkpoints/000000035/model.safetensors"
    abandon_upload(resumed, path, tmp_path)
    assert sweep(resumed, check(resumed)).uploads == []
    Attempt.reopen(resumed, 2).finish(Result(state="FAILED", message="it diverged", exit_code=1))
    assert sweep(resumed, check(resumed)).uploads == [resumed.path(path)]
    assert resumed.storage.sweep(resumed.path("")) == []


def test_a_sweep_of_a_run_that_succeeded_takes_the_checkpoints_of_older_attempts(resumed: Run) -> None:
    Attempt.reopen(resumed, 2).finish(Result(state="SUCCEEDED"))
    sweep(resumed, check(resumed))
    assert folders(resumed) == ["2/20", "2/30"]
    assert steps(resumed) == [20, 30]
    assert not check(resumed).of(Verdict.DAMAGED, Verdict.PARTIAL)


def test_a_sweep_takes_what_no_reader_sees(run: Run, commit: Commit) -> None:
    first = run.claim()
    commit(first, 10)
    takes_over = once(lambda name, *args: name == "write" and args[0].endswith("20/manifest.json"), run.claim)
    commit(Attempt.reopen(Run(hooked(run.storage, before=takes_over), run.id), 1), 20)
    Attempt.reopen(run, 2).finish(Result(state="SUCCEEDED"))
    sweep(run, check(run))
    assert folders(run) == ["2/10"]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_sweep_leaves_the_best_checkpoint_where_it_is(run: Run, tmp_path: Path, damaged: bool) -> None:
    first = run.claim()
    for step, accuracy in ((10, 0.95), (20, 0.5)):
        first.commit(step, make_files(tmp_path, step), {"metrics": {"eval_accuracy": accuracy}})
    second = run.claim()
    second.commit(30, make_files(tmp_path, 30), {"metrics": {"eval_accuracy": 0.9}})
    second.finish(Result(state="SUCCEEDED"))
    if damaged:
        flip_a_byte(run, "attempts/000001/checkpoints/000000010")
    sweep(run, check(run))
    assert folders(run) == ["1/10", "2/20", "2/30"]
    assert [one.step for one in choose(run, "best")] == [10]


def test_a_sweep_takes_no_checkpoint_where_the_newest_attempt_holds_none_that_is_intact(tmp_path: Path) -> None:
    run = two_attempts(tmp_path, ((2, 20), (2, 30)), "SUCCEEDED")
    sweep(run, check(run))
    assert folders(run) == ["1/10", "1/20", "2/20", "2/30"]


@pytest.mark.parametrize("state", [None, "STOPPED", "FAILED", "SUCCEEDED"])
@pytest.mark.parametrize("damaged", DAMAGES, ids=str)
def test_no_sweep_changes_what_a_resume_or_an_export_takes(
    tmp_path: Path, damaged: tuple[tuple[int, int], ...], state: str | None
) -> None:
    run = two_attempts(tmp_path, damaged, state)
    found = check(run)
    taken, last, best = run.newest_intact(read=True), choose(run, "last")[0], choose(run, "best")
    intact = [one.folder.step for one in found.of(Verdict.INTACT)]
    sweep(run, found)
    assert (run.newest_intact(read=True), choose(run, "last")[0], choose(run, "best")) == (taken, last, best)
    if 20 in intact:  # the best of those that are whole
        assert 20 in [one.folder.step for one in check(run).of(Verdict.INTACT)]
    assert not check(run).of(Verdict.PARTIAL)


def test_a_sweep_of_what_a_newer_raylift_wrote_takes_nothing(resumed: Run, tmp_path: Path) -> None:
    Attempt.reopen(resumed, 2).finish(Result(state="SUCCEEDED"))
    of_newer_format(resumed, "attempts/000001/checkpoints/000000010")
    abandon_upload(resumed, "attempts/000001/checkpoints/000000025/trainer.json", tmp_path)
    before = stored(resumed)
    swept = sweep(resumed, check(resumed))
    assert (list(swept.folders), list(swept.uploads)) == ([], [])
    assert stored(resumed) == before


def test_a_run_that_went_on_meanwhile_is_not_swept(resumed: Run) -> None:
    found = check(resumed)
    resumed.claim()
    before = stored(resumed)
    with pytest.raises(SupersededError, match=r"nothing is swept\. See where it stands: raylift status"):
        sweep(resumed, found)
    assert stored(resumed) == before


def sweeps_cut_off(folder: Path) -> Iterator[tuple[Run, bool]]:
    """Let a sweep die at its first storage call, then at the second and so on; yield the run, and whether it lived."""
    for calls in itertools.count():
        run = two_attempts(folder / str(calls), state="SUCCEEDED")
        found = check(run)
        storage: Storage = dying(run.storage, calls)
        try:
            sweep(Run(storage, run.id), found)
        except KilledError:
            yield run, False
        else:
            yield run, True
            assert calls > 12, "nothing was cut off"
            return


def wanted(run: Run) -> list[Checkpoint]:
    return [choose(run, "last")[0], *choose(run, "best")]


def test_a_sweep_that_is_cut_off_leaves_no_checkpoint_that_only_looks_whole(tmp_path: Path) -> None:
    for run, _ in sweeps_cut_off(tmp_path):
        assert not check(run).of(Verdict.DAMAGED)
        assert [(one.attempt, one.step) for one in wanted(run)] == [(2, 30), (2, 20)]
        for checkpoint in wanted(run):
            run.verify(checkpoint)


def test_a_sweep_that_was_cut_off_is_made_up_for_by_the_next(tmp_path: Path) -> None:
    for run, _ in sweeps_cut_off(tmp_path):
        sweep(run, check(run))
        assert folders(run) == ["2/20", "2/30"]
        assert needless(check(run)) == []


# -- a claim that was cut off


def test_a_claim_that_is_cut_off_is_a_finding_and_keeps_what_a_resume_takes(run: Run, commit: Commit) -> None:
    commit(run.claim(), 10)
    commit(run.claim(), 20)
    path = run.path("attempts/000002/claim.json")
    run.storage.write(path, run.storage.read(path)[:40])
    found = check(run)
    assert verdicts(found) == [(1, 10, "intact"), (2, 10, "intact"), (2, 20, "intact")]
    assert place(found.base) == (2, 20)
    assert complain(run, found) == (
        f"{found.unread[0]}. A resume takes the attempt to have begun with what those before it saved"
    )
    assert "attempts/000002/claim.json does not read, as if it were cut off" in found.unread[0]
