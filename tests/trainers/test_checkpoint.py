"""Saving behind the training: what the loop waits for, and what happens while storage is away."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import torch

from cluster.attempts import Attempt
from cluster.errors import (
    CorruptObjectError,
    StorageDeniedError,
    StorageError,
    StorageFullError,
    SupersededError,
    TrainingError,
)
from cluster.records import Checkpoint as Stored
from cluster.runs import Run
from cluster.storage.sources import InMemory, Source
from tests.cluster.saves import send_half
from tests.harness import losses, wait_for
from tests.hooked import hooked
from tests.trainers.training import EVERYTHING, STEPS_PER_EPOCH, cut_off, events, start, steps_of, train
from trainers import checkpoint
from trainers.config import Checkpoint
from trainers.context import LocalContext
from trainers.host_memory import HostMemory
from trainers.loop import Progress, Trainer
from trainers.pulse import pulse_folder
from trainers.record import Recorder
from trainers.whole import MODEL_FILE, OPTIMIZER_FILE, State, WholeFiles

pytestmark = pytest.mark.usefixtures("one_thread")
LAST = 3 * STEPS_PER_EPOCH


def saved_step(name: str, *arguments: Any) -> int | None:
    """Return the step whose checkpoint an upload is part of."""
    path = str(arguments[1]) if name == "upload" else ""
    return int(path.split("/checkpoints/")[1].split("/")[0]) if "/checkpoints/" in path else None


def with_storage(run: Run, before: Callable[..., None]) -> Run:
    return Run(hooked(run.storage, before=before), run.id)


def away_for(steps: Collection[int], error: type[StorageError] = StorageError) -> Callable[..., None]:
    """Return a hook that refuses the checkpoints of some steps."""

    def refuse(name: str, *arguments: Any) -> None:
        if saved_step(name, *arguments) in steps:
            raise error("the storage does not answer")

    return refuse


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_PAUSE", 0.01)


@pytest.mark.usefixtures("impatient")
def test_training_goes_on_while_storage_is_away_and_the_newest_state_is_saved_after(tmp_path: Path) -> None:
    whole, run = start(tmp_path, EVERYTHING, run_id="whole"), start(tmp_path, EVERYTHING)
    train(whole)
    train(with_storage(run, away_for(range(4, 9))))
    kept = [one.step for one in run.checkpoints()]
    skipped = {row["step"] for row in events(run, "checkpoint.skipped")}
    assert kept[:3] == [1, 2, 3]
    assert kept[3] >= 9
    assert kept[-1] == LAST
    assert skipped == set(range(1, LAST)) - {*kept}, "every save is committed, or told as skipped"
    assert len(events(run, "storage.back")) == 1
    assert losses(run) == losses(whole)
    result = run.result()
    assert result is not None
    assert result.state == "SUCCEEDED"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("away", [range(4, 6), ()])
def test_a_run_that_ends_takes_away_what_an_outage_may_have_left_half_sent(
    tmp_path: Path, away: Collection[int]
) -> None:
    run, swept = start(tmp_path), list[str]()
    refuse = away_for(away)

    def note(name: str, *arguments: Any) -> None:
        refuse(name, *arguments)
        if name == "sweep":
            swept.append(arguments[0])
            assert run.result() is None, "whoever sees the result may end this process"

    train(with_storage(run, note))
    assert swept == ([run.path("attempts/000001/")] if away else [])


def test_a_run_that_ends_takes_away_what_ranks_before_it_left_that_died_after_it_had_begun(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.claim()

    def die_late(name: str, *arguments: Any) -> None:
        if saved_step(name, *arguments) == 4:
            send_half(run, 1)

    train(with_storage(run, die_late))
    assert run.attempts() == [1, 2]
    assert run.storage.sweep() == []


@pytest.mark.usefixtures("impatient")
def test_the_last_save_waits_until_storage_is_back(tmp_path: Path) -> None:
    run, back = start(tmp_path), threading.Event()

    def refuse(name: str, *arguments: Any) -> None:
        if saved_step(name, *arguments) == LAST and not back.is_set():
            raise StorageError("the storage does not answer")

    threading.Timer(1.5, back.set).start()
    train(with_storage(run, refuse))
    assert back.is_set()
    assert run.checkpoints()[-1].step == LAST


@pytest.mark.usefixtures("impatient")
def test_storage_that_stays_away_ends_the_run_after_a_while_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PATIENCE", 0.3)
    run = start(tmp_path)
    with pytest.raises(StorageError, match="the storage does not answer"):
        train(with_storage(run, away_for(range(5, 100))))
    assert run.result() is None
    assert run.checkpoints()[-1].step == 4


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("error", [StorageDeniedError, StorageFullError])
def test_storage_that_refuses_is_asked_for_a_minute_in_which_somebody_may_mend_it(
    tmp_path: Path, error: type[StorageError]
) -> None:
    run, mended = start(tmp_path), threading.Event()

    def refuse(name: str, *arguments: Any) -> None:
        if saved_step(name, *arguments) == LAST and not mended.is_set():
            raise error("not now")

    threading.Timer(1.0, mended.set).start()
    train(with_storage(run, refuse))
    assert mended.is_set()
    assert run.checkpoints()[-1].step == LAST


@pytest.mark.usefixtures("impatient")
def test_the_minute_of_a_refusal_begins_with_it_and_not_with_the_outage_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_REFUSED", 1.0)
    run, began = start(tmp_path), time.monotonic()

    def refuse(name: str, *arguments: Any) -> None:
        if saved_step(name, *arguments) == LAST:
            if time.monotonic() - began < 2.5:
                raise StorageError("the storage does not answer")
            if time.monotonic() - began < 3.0:
                raise StorageDeniedError("the key has expired")

    train(with_storage(run, refuse))
    assert time.monotonic() - began > 3.0
    assert run.checkpoints()[-1].step == LAST


def test_storage_that_changes_what_it_was_sent_is_not_asked_again(tmp_path: Path) -> None:
    asked: list[int] = []

    def refuse(name: str, *arguments: Any) -> None:
        if saved_step(name, *arguments) == 5:
            asked.append(5)
            raise CorruptObjectError("other bytes have come")

    run = start(tmp_path)
    with pytest.raises(CorruptObjectError):
        train(with_storage(run, refuse))
    assert len(asked) <= 4  # one a file


def test_a_save_that_is_refused_for_good_ends_training_at_its_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_REFUSED", 0.0)
    run = start(tmp_path, {"checkpoint": {"every": "5 steps"}})

    def step_after(_: Any, step: int) -> None:
        if step == 6:  # the first that shows that the weights of step 5 are good
            wait_for(lambda: all(one.name != "checkpoint" for one in threading.enumerate()), "the end of the save")

    monkeypatch.setattr("trainers.control.Control.after", step_after)
    with pytest.raises(StorageDeniedError):
        train(with_storage(run, away_for(range(5, 100), StorageDeniedError)))
    assert max(row["step"] for row in run.rows_of(1, "metrics")) == 7


@pytest.mark.parametrize("error", [StorageDeniedError, StorageFullError, StorageError])
def test_a_storage_that_lets_nobody_delete_does_not_end_training(tmp_path: Path, error: type[StorageError]) -> None:
    run = start(tmp_path, {"checkpoint": {"every": "1 step", "keep": 2}})

    def refuse(name: str, *arguments: Any) -> None:
        if name == "delete" and "checkpoints" in arguments[0]:
            raise error(f"no {name}")

    train(with_storage(run, refuse))
    result = run.result()
    assert result is not None
    assert (result.state, [one.step for one in run.checkpoints()]) == ("SUCCEEDED", list(range(1, LAST + 1)))
    told = [row["message"] for row in events(run, "warning")]
    is_for_good = error is not StorageError  # an outage ends by itself
    assert told == ["checkpoints that nobody needs any more stay: no delete"] * is_for_good


@pytest.mark.usefixtures("impatient")
def test_a_run_that_is_trained_waits_for_storage_to_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, away = start(tmp_path), iter([StorageError("away")] * 5)
    monkeypatch.setattr("cluster.outages._PAUSE", 0.01)

    def refuse(name: str, *arguments: Any) -> None:
        if name == "write" and arguments[0].endswith("result.json") and (error := next(away, None)) is not None:
            raise error

    assert train(with_storage(run, refuse)).step == LAST
    result = run.result()
    assert result is not None
    assert (result.state, next(away, None)) == ("SUCCEEDED", None)
    assert len(events(run, "finished")) == 1


def test_what_a_restore_fetches_is_where_an_attempt_that_comes_after_a_kill_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(tmp_path)
    train(run)
    run.storage.delete(run.path("attempts/000001/result.json"))
    attempt, context = run.claim(), LocalContext()
    context.temporary = tmp_path / "tmp"
    folder = pulse_folder(context.temporary, run.uri, attempt.number)
    folder.mkdir(parents=True)
    restore = WholeFiles.restore

    def look(files: WholeFiles, trainer: Trainer, run: Run, checkpoint: Stored, into: Path) -> None:
        assert into.parent == folder
        restore(files, trainer, run, checkpoint, into)

    monkeypatch.setattr(WholeFiles, "restore", look)
    train(run, context=context, attempt=attempt)
    assert list(folder.iterdir()) == []


def test_a_slow_storage_holds_training_up_and_every_save_tells_for_how_long(tmp_path: Path) -> None:
    run = start(tmp_path, {"checkpoint": {"every": "4 steps"}})

    def slow(name: str, *arguments: Any) -> None:
        if saved_step(name, *arguments) is not None:
            time.sleep(0.4)

    train(with_storage(run, slow))
    saves = events(run, "checkpoint")
    assert [save["step"] for save in saves] == [4, 8, 12]
    assert saves[0]["blocked"] < 0.3
    assert max(save["blocked"] for save in saves[1:]) > 0.1, "the next save waits for the one before"
    assert all(save["bytes"] / save["seconds"] / 1e6 == pytest.approx(save["mb_per_s"], rel=0.1) for save in saves)
    assert steps_of(run) == list(range(1, LAST + 1))


@pytest.mark.parametrize("call", ["folders", "read", "download"])
def test_a_rank_that_starts_while_storage_is_away_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr("cluster.outages._PAUSE", 0.01)
    whole, refused = start(tmp_path, EVERYTHING), set[str]()
    train(whole)

    def refuse_once(name: str, *arguments: Any) -> None:
        path = str(arguments[0])
        if name == call and "/attempts/000002/checkpoints/" in path and path not in refused:
            refused.add(path)
            raise StorageError("the storage does not answer")

    run = cut_off(whole, 6, tmp_path / "cut")
    train(with_storage(run, refuse_once))
    assert refused
    assert run.damage_of(2) is None
    assert losses(run) == losses(whole)


# -- a checkpoint that is damaged


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = start(tmp_path_factory.mktemp("whole"), EVERYTHING, {"train": {"epochs": 2}})
    train(run)
    return run


def flip(run: Run, step: int, name: str, at: int | bytes) -> None:
    """Flip a bit of a file of attempt 1's checkpoint, at a place or in the middle of a text that it holds."""
    path = run.path(f"attempts/000001/checkpoints/{step:09d}/{name}")
    data = bytearray(run.storage.read(path))
    data[at if isinstance(at, int) else data.index(at) + len(at) // 2] ^= 1
    run.storage.write(path, bytes(data))


@pytest.mark.parametrize(
    ("name", "at"),
    [
        (MODEL_FILE, -5),
        (MODEL_FILE, b'"shape":['),
        (OPTIMIZER_FILE, -5),
        (OPTIMIZER_FILE, b"AdamW"),  # in its header: a sound file that says so is of another optimizer
        (OPTIMIZER_FILE, b"state.conv1.weight.exp_avg"),
        ("trainer.json", b"loss_sum"),
        ("raylift.json", 20),
    ],
)
def test_damage_is_found_by_the_rank_and_reported_and_the_next_attempt_goes_on_from_the_one_before(
    whole: Run, tmp_path: Path, name: str, at: int | bytes
) -> None:
    run = cut_off(whole, 6, tmp_path)
    flip(run, 6, name, at)
    told = r"the checkpoint of step 6 cannot be restored: .*attempts/000002/checkpoints/000000006/"
    with pytest.raises(CorruptObjectError, match=f"{told}{name.replace('.', '[.]')}"):
        train(run)
    assert re.match(told, run.damage_of(2) or "")
    assert run.results() == {}
    train(run)
    assert [row["step"] for row in events(run, "restored")] == [5]
    assert losses(run) == losses(whole)


def test_damage_is_reported_once_storage_is_back(whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.outages._PAUSE", 0.01)
    run, refused = cut_off(whole, 6, tmp_path), list[str]()
    flip(run, 6, MODEL_FILE, -5)

    def refuse_twice(name: str, *arguments: Any) -> None:
        if name == "write" and str(arguments[0]).endswith("/damage.json") and len(refused) < 2:
            refused.append(name)
            raise StorageError("the storage does not answer")

    with pytest.raises(CorruptObjectError):
        train(with_storage(run, refuse_twice))
    assert len(refused) == 2
    assert run.damage_of(2) is not None


def test_a_file_that_is_deleted_after_the_claim_is_damage(whole: Run, tmp_path: Path) -> None:
    run = cut_off(whole, 6, tmp_path)
    copied = run.path(f"attempts/000002/checkpoints/000000006/{OPTIMIZER_FILE}")

    def lose(name: str, *_: object) -> None:
        if name == "download":
            run.storage.delete(copied)

    with pytest.raises(CorruptObjectError, match="the checkpoint of step 6 cannot be restored"):
        train(with_storage(run, lose))
    train(run)
    assert [row["step"] for row in events(run, "restored")] == [6], "the original is intact"


def test_a_copy_whose_manifest_is_lost_after_the_claim_is_damage(whole: Run, tmp_path: Path) -> None:
    run = cut_off(whole, 6, tmp_path)
    attempt = run.claim()
    run.storage.delete(run.path("attempts/000002/checkpoints/000000006/manifest.json"))
    with pytest.raises(CorruptObjectError, match=r"the checkpoint of step 6 cannot be restored: .* has lost"):
        train(run, attempt=attempt)
    train(run)
    assert [row["step"] for row in events(run, "restored")] == [6]


def test_a_run_that_is_removed_while_it_restores_is_no_damage_and_stays_removed(whole: Run, tmp_path: Path) -> None:
    run = cut_off(whole, 6, tmp_path)

    def remove(name: str, *_: object) -> None:
        if name == "download":
            run.delete()

    with pytest.raises(SupersededError, match="is gone"):
        train(with_storage(run, remove))
    assert list(run.storage.list(run.path("attempts/000002/damage.json"))) == []


def test_an_optimizer_that_does_not_fit_is_no_damage(whole: Run, tmp_path: Path) -> None:
    run = cut_off(whole, 6, tmp_path)
    job = run.job().replace(b"adamw", b"sgd")
    run.storage.write(run.path("job.yaml"), job)
    with pytest.raises(TrainingError, match="the saved optimizer does not fit: it is of AdamW"):
        train(run)
    assert run.damage_of(2) is None


def test_a_copy_is_contiguous_and_stays_as_it_was_when_the_original_moves_on() -> None:
    weights = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    before, memory = weights.clone(), HostMemory()
    copies = memory.copy("model", {"weights": weights})
    weights.mul_(2)
    memory.wait()
    assert torch.equal(copies["weights"], before)
    assert copies["weights"].is_contiguous()


def test_every_copy_goes_into_the_same_memory_unless_its_shape_has_changed() -> None:
    memory = HostMemory()
    first = memory.copy("model", {"a": torch.zeros(5)})["a"]
    again = memory.copy("model", {"a": torch.ones(5)})["a"]
    larger = memory.copy("model", {"a": torch.ones(6)})["a"]
    other = memory.copy("optimizer", {"a": torch.ones(6)})["a"]
    assert first.data_ptr() == again.data_ptr()
    assert len({again.data_ptr(), larger.data_ptr(), other.data_ptr()}) == 3


def test_a_save_that_takes_very_long_no_longer_holds_up_the_next_but_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_LONGEST_WAIT", 0.05)
    run, trained = start(tmp_path, {"train": {"epochs": 10}}), threading.Event()

    def very_slow(name: str, *arguments: Any) -> None:
        if saved_step(name, *arguments) == 2:
            assert trained.wait(240), "training waits for the save"

    monkeypatch.setattr("trainers.loop.Trainer.finish", _after(trained))
    train(with_storage(run, very_slow))
    assert [one.step for one in run.checkpoints()] == [1, 2, 10 * STEPS_PER_EPOCH]
    undisturbed = start(tmp_path, {"train": {"max_steps": 2}}, run_id="undisturbed")
    train(undisturbed)
    for name in (MODEL_FILE, OPTIMIZER_FILE):
        was = undisturbed.checkpoints()[-1].files[name]
        assert run.checkpoints()[1].files[name] == was, "later copies went elsewhere"
    for one in run.checkpoints():
        run.verify(one)
    assert len(events(run, "checkpoint.skipped")) == 10 * STEPS_PER_EPOCH - 3
    assert max(save["blocked"] for save in events(run, "checkpoint")) < 10


def test_without_memory_for_a_second_copy_saves_are_left_out_but_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_LONGEST_WAIT", 0.01)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    run, gone_on = start(tmp_path), threading.Event()

    def very_slow(name: str, *arguments: Any) -> None:
        if saved_step(name, *arguments) == 1:
            assert gone_on.wait(60), "training waits for the save"

    def step_after(_: Any, step: int) -> None:
        if step == LAST:
            threading.Timer(0.3, gone_on.set).start()  # while the last save waits

    monkeypatch.setattr("trainers.control.Control.after", step_after)
    train(with_storage(run, very_slow))
    assert [one.step for one in run.checkpoints()] == [1, LAST]
    assert {row["step"] for row in events(run, "checkpoint.skipped")} == set(range(2, LAST))
    for one in run.checkpoints():
        run.verify(one)


# -- a machine that goes soon


class Saves:
    """The saves of a small state, of which one hangs `asleep`, or `reading` its file over and over."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, hangs: int, how: str) -> None:
        self.run = start(folder)
        self.gone_on = threading.Event()

        def hang(name: str, *arguments: Any) -> None:
            if saved_step(name, *arguments) != hangs:
                return
            if how == "asleep":
                self.gone_on.wait(60)
            while not self.gone_on.wait(0.01):
                arguments[0].read(0, 1)

        monkeypatch.setattr(checkpoint, "_files_of", lambda _: Number())
        monkeypatch.setattr(checkpoint, "_MARGIN", 0.5)
        attempt = Attempt.reopen(with_storage(self.run, hang), self.run.claim().number)
        self.checkpointer = checkpoint.Checkpointer(
            attempt, 0, config=Checkpoint(keep=99, best=False), recorder=Recorder(attempt, 0, log_every=1), meta={}
        )

    def save(self, step: int, *, left: float | None = None) -> None:
        """Save a state, which is the last where its machine is there only for a time that is `left`."""
        trainer = SimpleNamespace(progress=Progress(step=step), precision="fp32", state=dict)
        if left is not None:
            self.checkpointer.make_room(left)
        self.checkpointer.save(cast(Trainer, trainer), last=left is not None)
        self.checkpointer.confirm()

    @property
    def kept(self) -> list[int]:
        return [one.step for one in self.run.checkpoints()]

    @property
    def skipped(self) -> list[int]:
        self.checkpointer._recorder.flush()
        return [row["step"] for row in events(self.run, "checkpoint.skipped")]


class Number:
    """A state that is the number of its step."""

    def copy(self, trainer: Trainer, memory: HostMemory) -> State:
        return State(memory.copy("model", {"step": torch.tensor(trainer.progress.step)}), {}, {})

    def files(self, copied: State) -> dict[str, Source]:
        return {"step": InMemory(str(int(copied.model["step"])).encode())}

    def restore(self, *_: Any) -> None: ...


@pytest.mark.parametrize(("how", "available"), [("asleep", 1 << 40), ("reading", 1 << 40), ("reading", 0)])
def test_a_save_that_hangs_makes_way_for_the_last_one_before_the_machine_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, available: int
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    saves = Saves(tmp_path, monkeypatch, hangs=2, how=how)
    saves.save(1)
    saves.checkpointer.wait()
    saves.save(2)
    began = time.monotonic()
    saves.save(3, left=4.0)
    saves.checkpointer.close()
    took = time.monotonic() - began
    assert (saves.kept, saves.skipped) == ([1, 3], [2])
    assert saves.run.storage.read(saves.run.path("attempts/000001/checkpoints/000000003/step")) == b"3"
    assert 0.5 < took < 10, "it waits for the one before, as long as it can, and not until that is there"
    saves.gone_on.set()
    wait_for(lambda: sum(one.name == "checkpoint" for one in threading.enumerate()) == 0, "the thread that hung")
    assert (saves.kept, saves.skipped) == ([1, 3], [2]), "it counts no more"


@pytest.mark.parametrize(
    ("left", "took"),
    [
        (2.0, None),  # the first save: nobody knows how long one takes
        (2.0, 5.0),  # the last one would not fit
        (3600.0, 0.1),
    ],
)
def test_a_save_does_not_make_way_where_the_last_one_would_not_fit_or_can_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: float, took: float | None
) -> None:
    saves = Saves(tmp_path, monkeypatch, hangs=2, how="reading")
    saves.save(2)
    saves.checkpointer._took = took
    monkeypatch.setattr(checkpoint, "_LONGEST_WAIT", 0.1)
    threading.Timer(2.5, saves.gone_on.set).start()
    saves.save(3, left=left)
    saves.checkpointer.close()
    assert (saves.kept, saves.skipped) == ([2, 3], [])


@pytest.mark.parametrize("available", [0, 1 << 40])
def test_a_save_that_is_given_up_tells_how_long_training_stood_still_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: int
) -> None:
    """Without memory for a second copy it is left out, with it the next one replaces it."""
    monkeypatch.setattr(checkpoint, "_LONGEST_WAIT", 0.3)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    saves = Saves(tmp_path, monkeypatch, hangs=1, how="asleep")
    for step in (1, 2, 3):
        saves.save(step)
    saves.gone_on.set()
    saves.checkpointer.close()
    assert saves.skipped[0] == 2
    assert 0.3 <= events(saves.run, "checkpoint.skipped")[0]["blocked"] < 2


def _after(trained: threading.Event) -> Callable[..., Any]:
    """Return the end of training, before which all its steps are done."""
    finish = Trainer.finish

    def end(*arguments: Any, **options: Any) -> Any:
        trained.set()
        return finish(*arguments, **options)

    return end
