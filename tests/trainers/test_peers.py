"""Saves that every rank has a part in: all of them write it, or none does."""

from __future__ import annotations

import itertools
import json
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from torch._C._distributed_c10d import HashStore

from cluster.attempts import Attempt
from cluster.errors import InfrastructureError, StorageDeniedError, StorageError, StorageFullError, SupersededError
from cluster.records import Result
from cluster.runs import Run
from cluster.shards import INDEX_FILE, Part, TensorLayout
from cluster.storage.sources import InMemory, Source
from cluster.verification import survey, sweep, verify
from tests.finished import new_run
from tests.harness import wait_for
from tests.hooked import KilledError, hooked
from tests.trainers.training import events
from trainers import checkpoint
from trainers.checkpoint import Checkpointer
from trainers.config import Checkpoint
from trainers.host_memory import HostMemory
from trainers.loop import Progress, Trainer
from trainers.peers import Peers, Told
from trainers.record import Recorder
from trainers.whole import State

RANKS = 3
Hook = Callable[..., None]


class Halves:
    """A state of which every rank has a part that names its step."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def copy(self, trainer: Trainer, _: HostMemory) -> State:
        box = Part(self.rank, (self.rank,), (1,))
        return State(
            {}, {}, {"step": trainer.progress.step}, {"model": {"weight": TensorLayout("int", (RANKS,), (box,))}}
        )

    def files(self, copied: State) -> dict[str, Source]:
        return {f"part-{self.rank}": InMemory(str(copied.rest["step"]).encode())}

    def restore(self, *_: Any) -> None: ...


class Death:
    """A hook for the storage of a rank that is killed after so many calls of its saves: none is done any more."""

    def __init__(self, calls: int) -> None:
        self._left = calls
        self._counting = threading.Lock()
        self.is_near = False
        self.has_come = threading.Event()

    def __call__(self, *_: Any) -> None:
        with self._counting:
            self._left -= self.is_near
            if self._left < 0:
                self.has_come.set()
                raise KilledError


class MortalPeers(Peers):
    """What a rank tells the others, as long as it lives."""

    def __init__(self, rank: int, store: HashStore, death: Death) -> None:
        super().__init__(rank, RANKS, store)
        self._death = death

    def tell(self, step: int, told: Told) -> None:
        if not self._death.has_come.is_set():
            super().tell(step, told)


class Ranks:
    """The checkpointers of all ranks of an attempt, which save at the same steps as their loops do."""

    def __init__(self, run: Run, hooks: Mapping[int, Hook], *, keep: int = 99) -> None:
        self.run = run
        self.number = run.claim().number
        store = HashStore()
        self.ranks = [self._rank(rank, store, hooks.get(rank), keep) for rank in range(RANKS)]

    def _rank(self, rank: int, store: HashStore, hook: Hook | None, keep: int) -> Checkpointer:
        own = self.run if hook is None else Run(hooked(self.run.storage, before=hook), self.run.id)
        attempt = Attempt(own, Attempt.reopen(self.run, self.number).claim)
        recorder = Recorder(attempt, rank, log_every=1)
        peers = MortalPeers(rank, store, hook) if isinstance(hook, Death) else Peers(rank, RANKS, store)
        config = Checkpoint(keep=keep, best=False)
        return Checkpointer(attempt, rank, config=config, recorder=recorder, meta={}, peers=peers)

    def save(self, step: int, *, left: float | None = None) -> None:
        trainer = SimpleNamespace(progress=Progress(step=step), precision="fp32", state=dict)
        for rank in self.ranks:
            if left is not None:
                rank.make_room(left)
            rank.save(cast(Trainer, trainer), last=left is not None)
        for rank in self.ranks:
            rank.confirm()

    def finish_or(self, happens: threading.Event) -> None:
        """Wait until nothing is left to write, or something has happened."""
        wait_for(lambda: happens.is_set() or not any(rank._writing or rank._waiting for rank in self.ranks), "the save")

    def outlive(self, dead: int) -> None:
        """Have the others go on for a moment without a rank, until their loops miss it; assert that they end."""
        others = [rank for number, rank in enumerate(self.ranks) if number != dead]
        for rank in others:
            with rank._changed:
                rank._changed.wait_for(lambda one=rank: not one._writing, timeout=0.02)  # type: ignore[misc]
        for rank in self.ranks:
            rank.abandon()
            if rank._thread is not None:
                rank._thread.join(20)
                assert not rank._thread.is_alive(), "a rank waits for ever for one that is gone"
            with suppress(KilledError):
                rank._recorder.close()

    def close(self) -> list[BaseException | None]:
        """End all ranks; return what each of them raised."""
        found: list[BaseException | None] = [None] * RANKS

        def one(rank: int) -> None:
            try:
                self.ranks[rank].close()
            except BaseException as error:
                found[rank] = error

        threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(RANKS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads), "a rank waits for ever"
        self.ranks[0]._recorder.close()
        return found


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_PAUSE", 0.002)
    monkeypatch.setattr(checkpoint, "_REFUSED", 0.0)
    monkeypatch.setattr(checkpoint, "_LONGEST_WAIT", 0.05)
    monkeypatch.setattr(checkpoint, "_files_of", lambda peers: Halves(peers.rank))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path)


def at(steps: Sequence[int], error: BaseException, name: str = "upload", ending: str = "") -> Hook:
    """Return a hook that raises where a file of some steps' checkpoints is written."""

    def hook(called: str, *arguments: Any) -> None:
        path = str(arguments[-1]) if called == "upload" else str(arguments[0])
        found = re.search(r"/checkpoints/(\d+)/", path)
        if called == name and found and int(found[1]) in steps and path.endswith(ending):
            raise error

    return hook


def assert_of_one_step(run: Run) -> None:
    """Fail where a checkpoint holds parts of several steps, or not all parts."""
    for found in run.checkpoints():
        parts = {name: run.storage.read(run.path(f"{found.folder}/{name}")) for name in found.files}
        assert {name for name in parts if name.startswith("part-")} == {f"part-{rank}" for rank in range(RANKS)}
        assert {int(parts[f"part-{rank}"]) for rank in range(RANKS)} == {found.step}
        index = json.loads(parts[INDEX_FILE])
        assert [one["rank"] for one in index["tensors"]["model"]["weight"]["parts"]] == list(range(RANKS))
        run.verify(found)


def test_every_rank_uploads_its_part_and_rank_0_says_that_there_is_a_checkpoint(run: Run) -> None:
    wrote: dict[int, set[str]] = {rank: set() for rank in range(RANKS)}

    def note(rank: int) -> Hook:
        def hook(name: str, *arguments: Any) -> None:
            if name in ("upload", "write"):
                wrote[rank].add(str(arguments[-1 if name == "upload" else 0]).rpartition("/")[2])

        return hook

    ranks = Ranks(run, {rank: note(rank) for rank in range(RANKS)})
    ranks.save(1)
    assert ranks.close() == [None] * RANKS
    assert {"part-0", "trainer.json", "raylift.json", INDEX_FILE, "manifest.json"} <= wrote[0]
    assert (wrote[1], wrote[2]) == ({"part-1"}, {"part-2"})
    assert_of_one_step(run)
    assert [rank.newest_step for rank in ranks.ranks] == [1] * RANKS


@pytest.mark.parametrize("away", range(RANKS))
def test_a_save_that_one_rank_gives_up_is_given_up_by_all(run: Run, away: int) -> None:
    ranks = Ranks(run, {away: at(range(3, 7), StorageError("no answer"))})
    for step in range(1, 10):
        ranks.save(step)
        time.sleep(0.03)
    assert ranks.close() == [None] * RANKS
    kept = [one.step for one in run.checkpoints()]
    assert kept[:2] == [1, 2]
    assert not {3, 4, 5, 6} & set(kept)
    assert kept[-1] == 9
    assert {row["step"] for row in events(run, "checkpoint.skipped")} == set(range(1, 10)) - set(kept)
    assert len(events(run, "storage.back")) == 1
    assert_of_one_step(run)


@pytest.mark.parametrize("slow", range(RANKS))
def test_where_one_rank_hangs_in_a_save_all_give_it_up_for_the_last_before_the_machine_goes(
    run: Run, monkeypatch: pytest.MonkeyPatch, slow: int
) -> None:
    monkeypatch.setattr(checkpoint, "_MARGIN", 0.5)
    gone_on = threading.Event()

    def hang(name: str, *arguments: Any) -> None:
        if name == "upload" and "/checkpoints/000000002/" in str(arguments[-1]):
            gone_on.wait(60)

    ranks = Ranks(run, {slow: hang})
    ranks.save(1)
    for rank in ranks.ranks:
        rank.wait()
    ranks.save(2)
    began = time.monotonic()
    ranks.save(3, left=4.0)
    assert ranks.close() == [None] * RANKS
    assert time.monotonic() - began < 10
    gone_on.set()
    assert [one.step for one in run.checkpoints()] == [1, 3]
    assert {row["step"] for row in events(run, "checkpoint.skipped")} == {2}
    assert_of_one_step(run)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_storage_does_to_whom_there_are_whole_checkpoints_alone_and_the_last_is_there(
    run: Run, seed: int
) -> None:
    draw, lock = random.Random(seed), threading.Lock()

    def moody(name: str, *arguments: Any) -> None:
        if name not in ("upload", "write") or "/checkpoints/" not in str(arguments):
            return
        with lock:
            mood, pause = draw.random(), draw.random() * 0.03
        time.sleep(pause)
        if mood < 0.3:
            raise StorageError("no answer")

    ranks = Ranks(run, dict.fromkeys(range(RANKS), moody))
    for step in range(1, 15):
        ranks.save(step)
    assert ranks.close() == [None] * RANKS
    kept = [one.step for one in run.checkpoints()]
    assert kept[-1] == 14
    assert {row["step"] for row in events(run, "checkpoint.skipped")} == set(range(1, 15)) - set(kept)
    assert {rank.newest_step for rank in ranks.ranks} == {14}
    assert_of_one_step(run)


@pytest.mark.parametrize("failing", range(RANKS))
@pytest.mark.parametrize(
    "error", [StorageFullError("no space left"), StorageDeniedError("no key"), SupersededError("2")]
)
def test_what_ends_the_saves_of_one_rank_ends_those_of_all_for_the_same_reason(
    run: Run, failing: int, error: StorageError
) -> None:
    ranks = Ranks(run, {failing: at([2], error)})
    ranks.save(1)
    ranks.save(2)
    found = ranks.close()
    assert [(type(one), str(one)) for one in found] == [(type(error), str(error))] * RANKS
    assert [one.step for one in run.checkpoints()] == [1]


def test_a_manifest_that_is_refused_ends_all_ranks(run: Run) -> None:
    ranks = Ranks(run, {0: at([1], StorageDeniedError("read only"), "write", "manifest.json")})
    ranks.save(1)
    assert [type(one) for one in ranks.close()] == [StorageDeniedError] * RANKS
    assert run.checkpoints() == []


def test_an_error_of_our_own_on_one_rank_is_raised_there_and_is_a_lost_rank_to_the_others(run: Run) -> None:
    ranks = Ranks(run, {1: at([1], ZeroDivisionError("a mistake"))})
    ranks.save(1)
    first, own, last = ranks.close()
    assert isinstance(own, ZeroDivisionError)
    for other in (first, last):
        assert isinstance(other, InfrastructureError)
        assert str(other) == "another rank is gone: rank 1 could not save: a mistake"


def test_storage_that_stays_away_from_one_rank_ends_all_after_a_while(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PATIENCE", 0.2)
    ranks = Ranks(run, {2: at(range(2, 99), StorageError("no answer"))})
    ranks.save(1)
    ranks.save(2)
    assert [str(one) for one in ranks.close()] == ["no answer"] * RANKS
    assert [one.step for one in run.checkpoints()] == [1]


def test_a_rank_that_is_slow_after_an_outage_still_has_saves_finished(run: Run) -> None:
    is_back = threading.Event()

    def slow(name: str, *_: Any) -> None:
        if name != "upload":
            return
        if not is_back.is_set():
            is_back.set()
            raise StorageError("no answer")
        time.sleep(0.2)

    ranks = Ranks(run, {1: slow})
    for step in range(1, 40):
        ranks.save(step)
        time.sleep(0.02)
    assert ranks.close() == [None] * RANKS
    assert len(run.checkpoints()) > 3, "not the last alone"


@pytest.mark.parametrize("dying", range(RANKS))
def test_a_save_in_parts_that_is_cut_by_a_ranks_death_at_any_call_is_whole_or_invisible_and_its_rest_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dying: int
) -> None:
    monkeypatch.setattr("cluster.segments._FIRST_INTERVAL", 60.0)  # rows go out with the saves alone
    for calls in itertools.count():
        run, death = new_run(tmp_path / str(calls)), Death(calls)
        ranks = Ranks(run, {dying: death}, keep=1)
        death.is_near = True
        for step in (1, 2):
            if not death.has_come.is_set():
                ranks.save(step)
                ranks.finish_or(death.has_come)
        ranks.outlive(dying)
        assert_of_one_step(run)
        newest = max((one.step for one in run.checkpoints()), default=0)
        assert newest >= max(rank.newest_step for rank in ranks.ranks), "what a rank knows of exists"
        _go_on_and_sweep(run, newest)
        if not death.has_come.is_set():
            break
    assert calls >= 4, "both saves have been cut"
    assert newest == 2


def _go_on_and_sweep(run: Run, newest: int) -> None:
    """Train on from the newest checkpoint, which is to be the newest whole one, and fail where a sweep leaves more."""
    ranks = Ranks(run, {}, keep=1)
    attempt = Attempt.reopen(run, ranks.number)
    assert (attempt.claim.base.step if attempt.claim.base else 0) == newest
    ranks.save(newest + 1)
    assert ranks.close() == [None] * RANKS
    attempt.finish(Result(state="SUCCEEDED", step=newest + 1))
    sweep(run, verify(run, survey(run)))
    assert [one.step for one in run.checkpoints()] == [newest + 1]
    known = {run.path(f"{one.folder}/{name}") for one in run.checkpoints() for name in (*one.files, "manifest.json")}
    assert {entry.path for entry in run.storage.list() if "/checkpoints/" in entry.path} == known
    assert_of_one_step(run)


def test_while_one_rank_writes_slowly_no_rank_begins_the_next_save(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_LONGEST_WAIT", 20.0)
    begun: list[int] = []

    def slow(name: str, *_: Any) -> None:
        if name == "upload":
            time.sleep(0.3)

    def note(name: str, *_: Any) -> None:
        if name == "upload":
            begun.append(len(run.checkpoints()))

    ranks = Ranks(run, {1: slow, 2: note})
    for step in range(1, 4):
        ranks.save(step)
    ranks.close()
    assert begun == [0, 1, 2], "rank 2 waits for the save before to be whole"
    told = {row["step"]: row["blocked"] for row in events(run, "checkpoint")}
    assert min(told[2], told[3]) > 0.2, "how long the loops stood still is told"
