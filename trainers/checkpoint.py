"""State <-> files <-> storage. The loop waits for a copy of the state; hashing and uploading go on behind it."""

from __future__ import annotations

import json
import math
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cluster.attempts import Attempt
from cluster.errors import (
    CorruptObjectError,
    InfrastructureError,
    ObjectNotFoundError,
    StorageDeniedError,
    StorageError,
    StorageFullError,
    is_outage,
)
from cluster.outages import PATIENCE, patient
from cluster.records import Checkpoint
from cluster.selection import best_of
from cluster.shards import INDEX_FILE, joined
from cluster.storage.base import Digest
from cluster.storage.sources import InMemory, Piece, Source, digest_of
from trainers.host_memory import HostMemory
from trainers.memory import available_memory
from trainers.peers import Looks, Peers, RankFailedError, Stand, Told
from trainers.pulse import pulse_folder
from trainers.rehearsal import is_rehearsed
from trainers.state import options_of, set_options
from trainers.whole import State, StateFiles, WholeFiles

if TYPE_CHECKING:
    from trainers.config import Checkpoint as CheckpointConfig
    from trainers.loop import Trainer
    from trainers.record import Recorder

TRAINER_FILE = "trainer.json"
META_FILE = "raylift.json"  # what evaluation and prediction need beside the weights
_LONGEST_WAIT = 30.0  # seconds that the loop stands still for the save before
_ROOM = 1.5  # times the memory of a copy that must be free for another
_PAUSE = 5.0  # seconds between tries, beside those that storage takes by itself
_LOOK = 0.5  # seconds between looks whether something is urgent
_REFUSED = 60.0  # seconds in which a key may be renewed, or room be made
_MARGIN = 2.0  # seconds before its machine goes by which the last save is to be there


@dataclass(frozen=True)
class Evaluation:
    """The newest evaluation before a checkpoint, or of its step."""

    step: int
    metrics: dict[str, float]

    def info(self, step: int) -> dict[str, Any]:
        """Return what the manifest of a checkpoint says: metrics are those of its own weights."""
        return {"metrics": self.metrics if self.step == step else {}, "evaluation": asdict(self)}


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state on the host, all of it or this rank's part, safe from the next step."""

    step: int
    state: State
    trainer: dict[str, Any]
    meta: dict[str, Any]
    evaluation: Evaluation
    memory: HostMemory  # that the copy is in
    blocked: float  # seconds that the loop stood still for it
    dropped: threading.Event = field(default_factory=threading.Event)  # set where it makes way for the last one


class _DroppedError(Exception):
    """Nobody wants a save any more that is being written."""


class _Droppable:
    """A file of a save, of which nothing more is read once that is dropped."""

    def __init__(self, source: Source, dropped: threading.Event, on_read: Callable[[int], None]) -> None:
        self._source = source
        self._dropped = dropped
        self._on_read = on_read

    @property
    def size(self) -> int:
        return self._source.size

    def read(self, start: int, end: int) -> bytes:
        self._check()
        self._on_read(end - start)
        return self._source.read(start, end)

    def pieces(self) -> Iterator[Piece]:
        for piece in self._source.pieces():
            self._check()
            self._on_read(len(piece))
            yield piece

    def check_unchanged(self) -> None:
        self._source.check_unchanged()

    def _check(self) -> None:
        if self._dropped.is_set():
            raise _DroppedError


class Checkpointer:
    """Saves the whole state on rank 0 or, with `peers`, each rank's part of it on that; restores on every rank.

    One save is on its way at most: the next one waits for it, half a minute at most, and tells how long. While storage
    is away nobody waits: a second copy is made, where there is memory for it, and replaced by the next, and the newest
    goes out when storage is back. Copies are sent from memory, and never written to a disk of this machine.
    What is true of one rank's part holds for all: a save that one rank gives up for a newer one is given up by all.
    """

    def __init__(
        self,
        attempt: Attempt,
        rank: int,
        *,
        config: CheckpointConfig,
        recorder: Recorder,
        meta: Mapping[str, Any],
        peers: Peers | None = None,
    ) -> None:
        self._attempt = attempt
        self._rank = rank
        self._config = config
        self._recorder = recorder
        self._meta = meta
        self._peers = peers
        self._files = _files_of(peers)
        self._memories: list[HostMemory] = []  # two at most
        with _reporting_damage(attempt):
            self._base = Attempt(patient(attempt.run), attempt.claim).start_from()
        self._unproven: Snapshot | None = None
        self._copying: HostMemory | None = None
        self._took: float | None = None  # seconds, the newest checkpoint to be written
        self._longest = math.inf  # of time.monotonic(): until when the last save can wait for the one before
        self._committed: list[Checkpoint] = []
        self._changed = threading.Condition()  # guards all that follows
        self._waiting: Snapshot | None = None  # to be written next
        self._writing: Snapshot | None = None
        self._before: Snapshot | None = None  # was being written when the newest copy was made
        self._away_since: float | None = None  # when storage ceased to answer
        self._refused_since: float | None = None  # when it began to refuse
        self._has_warned = False  # that it refuses to delete
        self._error: BaseException | None = None
        self._closed = False
        self._thread: threading.Thread | None = None
        self.newest_step = 0
        self.sent = 0  # bytes of all saves so far, or read for that: what shows that one goes on
        self.was_away = False  # storage, at a save: what had been sent of that may still be there

    @property
    def precision(self) -> str | None:
        """The precision of the checkpoint to go on from; None without one."""
        return self._base.info.get("precision") if self._base is not None else None

    @property
    def has_failed(self) -> bool:
        """Whether a save has failed for good, which the next one raises."""
        return self._error is not None

    def restore(self, trainer: Trainer) -> None:
        """Load the attempt's base into the trainer; without one, leave it as initialised. Collective, if sharded.

        Whoever claimed the attempt has not read it: where it is damaged, that is reported, for the next attempt to
        start from another. Raises CorruptObjectError; the trainer is then worth nothing.
        """
        checkpoint = self._base
        if checkpoint is None:
            return
        started = time.monotonic()
        kept = pulse_folder(trainer.context.temporary, self._attempt.run.uri, self._attempt.number)
        place = kept if kept.is_dir() else None  # what a kill leaves there is removed
        with (
            _reporting_damage(self._attempt),
            tempfile.TemporaryDirectory(prefix="raylift-restore-", dir=place) as folder,
        ):
            files = Path(folder)
            options = options_of(trainer.optimizer)
            self._files.restore(trainer, patient(self._attempt.run), checkpoint, files)
            state = json.loads((files / TRAINER_FILE).read_text())
            if self._attempt.claim.origin is not None:  # what another run had is not this job's
                set_options(trainer.optimizer, options)
                state.pop("data", None)
            trainer.load_state(state)
        self.newest_step = checkpoint.step
        self._committed = [checkpoint]
        seconds = round(time.monotonic() - started, 3)
        found = {"exact": self._is_exact(trainer, checkpoint)} if is_rehearsed() else {}
        self._recorder.event("restored", step=checkpoint.step, seconds=seconds, **found)

    def _is_exact(self, trainer: Trainer, checkpoint: Checkpoint) -> bool:
        """Whether all ranks hold, to the bit, what they would have saved at the checkpoint. Collective.

        That takes as long as a save. Files of another number of ranks are not compared.
        """
        memory = HostMemory()
        copied = self._files.copy(trainer, memory)
        memory.wait()
        own = {name: digest_of(source).sha256 for name, source in self._files.files(copied).items()}
        differ = sum(checkpoint.files[name].sha256 != own[name] for name in own if name in checkpoint.files)
        return not any(trainer.context.gather(differ))

    def make_room(self, left: float = math.inf) -> None:
        """Have memory free for the last copy: where it is short, that waits for the save before, however long.

        Where the machine goes in the seconds `left`, the save before is given up for the last one as soon as that,
        written as fast as the newest checkpoint, would come too late; but not where it would in any case. Raises what
        the save before met.
        """
        if self._rank != 0 and self._peers is None:
            return
        if self._took is not None and left > self._took + _MARGIN:
            self._longest = time.monotonic() + left - self._took - _MARGIN
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._writing or not self._waiting)  # begun, if there is one
            before = self._before = self._writing
        if before is not None and len(self._memories) == 1 and available_memory() < _ROOM * before.memory.size:
            self._drop_the_one_before()
            self.wait()

    def save(self, trainer: Trainer, *, last: bool = False, is_urgent: Callable[[], bool] = lambda: False) -> None:
        """Copy the state, for `confirm` to write; waits first for the save before. Raises what that one met.

        Where it `is_urgent` that training goes on, to its end at the next step, only the last save waits.
        The last state of a training is never left out, however long there is no memory for it.
        """
        if self._rank != 0 and self._peers is None:
            return
        started = time.monotonic()
        memory = self._free_memory(last=last, is_urgent=is_urgent)
        if memory is None:
            self._skip(trainer.progress.step, time.monotonic() - started)
            return
        self._unproven = Snapshot(
            step=trainer.progress.step,
            state=self._files.copy(trainer, memory),
            trainer=trainer.state(),
            meta={**self._meta, "precision": trainer.precision},
            evaluation=Evaluation(trainer.progress.evaluated, dict(trainer.progress.evaluation)),
            memory=memory,
            blocked=time.monotonic() - started,
        )
        self._copying = memory

    def measured(self, evaluation: Mapping[str, float]) -> None:
        """Have the checkpoint that training goes on from tell the evaluation that was owed to it; waits for storage."""
        assert self._base is not None
        step = self._base.step
        info = {**self._base.info, **Evaluation(step, dict(evaluation)).info(step)}
        self._base = replace(self._base, info=info)
        self._committed = [self._base]
        if self._rank == 0:
            Attempt(patient(self._attempt.run), self._attempt.claim).seal(step, self._base.files, info)

    def hold(self) -> None:
        """Keep the state as it is until it is copied; called before each change of it. Only a GPU waits, if any."""
        if self._copying is not None:
            self._copying.hold()
            self._copying = None

    def confirm(self) -> None:
        """Begin to write the copy: the next step's loss, or the run's end, shows that its weights are good.

        Were it written before, a checkpoint of weights that have diverged could push the last good one out. Raises what
        the save before met, as what is trained from then on is lost; of one that ranks save together, `save` does that,
        where all of them are, and which they come to once one of them `has_failed`.
        """
        if self._peers is None:
            self._raise()
        if self._unproven is None:
            return
        if self._thread is None:
            self._start()
        with self._changed:
            self._waiting, self._unproven = self._unproven, None
            self._changed.notify_all()

    def wait(self) -> None:
        """Block until all that is confirmed is committed. Raises StorageError."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or not (self._writing or self._waiting))
            self._raise()

    def close(self) -> None:
        """Write what is confirmed by the end of the training, and finish it. Raises StorageError."""
        self.confirm()
        try:
            if self._drop_the_one_before():
                self._start()  # the thread before may hang in the midst of what it sends
            self.wait()
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()

    def abandon(self) -> None:
        """Let go of what is not written yet, after a failure; nothing happens where all is. Does not block."""
        with self._changed:
            self._closed, self._waiting = True, None
            self._changed.notify_all()

    def _free_memory(self, *, last: bool, is_urgent: Callable[[], bool]) -> HostMemory | None:
        """Wait until the save before is committed; where storage is away, or slow, not for long.

        A copy that waits still is given up for the next one, which goes into its memory. Returns None where there is
        only the memory of the save that is on its way, and not enough for as much again.
        """
        until = min(time.monotonic() + _LONGEST_WAIT, self._longest)
        with self._changed:
            while (self._writing or self._waiting) and not (self._error or self._away_since):
                if (wait := until - time.monotonic()) <= 0 or (is_urgent() and not last):
                    break
                self._changed.wait(min(wait, _LOOK))
            self._raise()
            if self._waiting is not None:
                self._skip(self._waiting.step, self._waiting.blocked)
                self._waiting = None
            self._before = self._writing
            taken = self._writing.memory if self._writing is not None else None
        for memory in self._memories:
            if memory is not taken:
                return memory
        if taken is not None and available_memory() < _ROOM * taken.size:
            if not last:
                return None
            self._drop_the_one_before()
            self.wait()
            return taken
        self._memories.append(HostMemory())
        return self._memories[-1]

    def _drop_the_one_before(self) -> bool:
        """Wait for the save before, and give it up once the last one can wait no longer; return whether it was."""
        with self._changed:
            before = self._before
            is_over = lambda: self._error or before is None or self._writing is not before  # noqa: E731
            if self._changed.wait_for(is_over, timeout=min(self._longest - time.monotonic(), threading.TIMEOUT_MAX)):
                return False
            assert before is not None
            before.dropped.set()
            self._skip(before.step, before.blocked)
            return True

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    # -- behind the loop

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="checkpoint", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (snapshot := self._next()) is not None:
            try:
                self._write(snapshot)
            except BaseException as failed:  # told to the loop, at its next step or its end
                if snapshot.dropped.is_set():
                    continue
                error = failed.cause if isinstance(failed, RankFailedError) else failed
                if self._peers is not None:
                    with suppress(torch.distributed.DistError):  # then they know without being told
                        self._peers.fail(snapshot.step, error)
                with self._changed:
                    self._error, self._writing = error, None
                    self._changed.notify_all()
                return

    def _next(self) -> Snapshot | None:
        """Return what is to be written, once there is something; None when all is over, or another thread goes on."""
        with self._changed:
            if self._thread is not threading.current_thread():
                return None
            self._writing = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._closed)
            self._writing, self._waiting = self._waiting, None
            self._changed.notify_all()
            return self._writing

    def _write(self, snapshot: Snapshot) -> None:
        started = time.monotonic()
        snapshot.memory.wait()
        committed = self._commit(snapshot, self._files_of(snapshot))
        if committed is None:
            if not snapshot.dropped.is_set():
                self._skip(snapshot.step, snapshot.blocked)
            return
        checkpoint, blocked = committed
        seconds = self._took = time.monotonic() - started
        if self._rank != 0:
            return
        self._recorder.event(
            "checkpoint",
            step=snapshot.step,
            bytes=checkpoint.size,
            seconds=round(seconds, 3),
            blocked=round(blocked, 3),
            mb_per_s=round(checkpoint.size / 1e6 / max(seconds, 1e-3), 1),
            metrics=checkpoint.info["metrics"],
        )
        self._committed.append(checkpoint)
        best = best_of(self._committed) if self._config.best else None
        try:
            self._attempt.retain(self._config.keep, best.step if best is not None else None)
        except StorageError as error:  # the checkpoint is there all the same, and the next save takes them away
            if isinstance(error, StorageDeniedError | StorageFullError):
                self._warn_that_all_stay(error)
            elif not is_outage(error):
                raise

    def _warn_that_all_stay(self, error: StorageError) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._recorder.event("warning", message=f"checkpoints that nobody needs any more stay: {error}")

    def _files_of(self, snapshot: Snapshot) -> dict[str, Source]:
        files = self._files.files(snapshot.state)
        if self._rank == 0:
            files[META_FILE] = InMemory(json.dumps(snapshot.meta, indent=1).encode())
            files[TRAINER_FILE] = InMemory(json.dumps(snapshot.trainer).encode())
        return {name: _Droppable(source, snapshot.dropped, self._note_sent) for name, source in files.items()}

    def _note_sent(self, count: int) -> None:
        self.sent += count

    def _commit(self, snapshot: Snapshot, files: Mapping[str, Source]) -> tuple[Checkpoint, float] | None:
        """Upload, over and over while storage is away, and have the checkpoint exist; return it, and who stood still.

        That is the longest time that a rank's loop stood still for its copy. Returns None where a newer save has come
        meanwhile, here or on another rank.
        """
        uploaded: dict[str, Digest] | None = None
        while True:
            try:
                if self._peers is not None and self._is_skipped(self._peers, snapshot.step):
                    return None
                if uploaded is None:
                    uploaded = self._upload(snapshot.step, files)
                committed = self._seal(snapshot, uploaded)
            except StorageError as error:
                if snapshot.dropped.is_set():
                    return None
                if not self._is_worth_another_try(error):
                    raise
                if self._peers is not None:
                    self._peers.tell(snapshot.step, Told(Stand.AWAY))
                if self._newer_waits():
                    return None
                continue
            if committed is None or snapshot.dropped.is_set():
                return None
            if self._away_since is not None:
                self._recorder.event("storage.back", seconds=round(time.monotonic() - self._away_since, 1))
            with self._changed:
                self._away_since = self._refused_since = None
            self.newest_step = snapshot.step
            return committed

    def _upload(self, step: int, files: Mapping[str, Source]) -> dict[str, Digest]:
        """Upload the files, and beside them the rows up to the step: a checkpoint vouches for both."""
        with ThreadPoolExecutor(1) as pool:
            rows = pool.submit(self._recorder.flush)
            uploaded = self._attempt.upload(step, files)
            rows.result()
        return uploaded

    def _seal(self, snapshot: Snapshot, uploaded: dict[str, Digest]) -> tuple[Checkpoint, float] | None:
        """Make the checkpoint exist, as rank 0, or wait until it does; return None where it was given up."""
        step, info = snapshot.step, self._info(snapshot)
        if self._peers is None:
            return None if snapshot.dropped.is_set() else (self._attempt.seal(step, uploaded, info), snapshot.blocked)
        stored = Told(Stand.STORED, uploaded, snapshot.state.layout, snapshot.blocked)
        self._peers.tell(step, stored)
        if self._rank != 0:
            return (Checkpoint(self._attempt.number, step, uploaded, info), 0.0) if self._is_ruled(snapshot) else None
        told = self._all_parts(self._peers, snapshot, stored)
        if told is None or snapshot.dropped.is_set():
            return None
        index = InMemory(joined([one.layout for one in told], snapshot.state.metadata).to_json())
        uploaded = {name: digest for one in told for name, digest in one.files.items()}
        checkpoint = self._attempt.seal(step, {**uploaded, **self._attempt.upload(step, {INDEX_FILE: index})}, info)
        self._peers.tell(step, Told(Stand.COMMITTED))
        self._peers.forget(step)
        return checkpoint, max(one.blocked for one in told)

    def _all_parts(self, peers: Peers, snapshot: Snapshot, own: Told) -> list[Told] | None:
        """Wait, as rank 0, until every rank has stored its part; return None where the save is given up."""
        step, told, looks, is_announced = snapshot.step, {0: own}, Looks(), False
        while not snapshot.dropped.is_set():
            self._raise_if_abandoned()
            for rank in set(range(peers.world_size)) - set(told):
                part = peers.part(step, rank)
                if part is None:
                    continue
                if part.stand is Stand.STORED:
                    told[rank] = part
                elif part.stand is Stand.SKIPPED:
                    return None
                elif not is_announced:
                    is_announced = True
                    self._note_away()
                    peers.tell(step, Told(Stand.AWAY))
            if len(told) == peers.world_size:
                return [told[rank] for rank in range(peers.world_size)]
            looks.pause()
        return None

    def _is_ruled(self, snapshot: Snapshot) -> bool:
        """Wait until rank 0 has ruled what becomes of a save; return whether it exists."""
        assert self._peers is not None
        looks = Looks()
        while not snapshot.dropped.is_set():
            self._raise_if_abandoned()
            told = self._peers.ruling(snapshot.step)
            if told is not None and told.stand is not Stand.AWAY:
                return told.stand is Stand.COMMITTED
            if told is not None:
                self._note_away()
            looks.pause()
        return False

    def _raise_if_abandoned(self) -> None:
        """Have a save end that waits for other ranks, after a failure: one that is gone tells nothing any more."""
        with self._changed:
            if self._closed:
                raise InfrastructureError("another rank is gone")

    def _is_skipped(self, peers: Peers, step: int) -> bool:
        told = peers.ruling(step)
        return told is not None and told.stand is Stand.SKIPPED

    def _skip(self, step: int, blocked: float) -> None:
        """Give up a save for a newer one, on all ranks; the loop stood still for it all the same."""
        self._recorder.event("checkpoint.skipped", step=step, blocked=round(blocked, 3))
        if self._peers is not None:
            self._peers.tell(step, Told(Stand.SKIPPED))

    def _info(self, snapshot: Snapshot) -> dict[str, Any]:
        return {
            **snapshot.evaluation.info(snapshot.step),
            "best": self._config.best_at(),
            "precision": snapshot.meta["precision"],
            "torch": torch.__version__,
            "python": platform.python_version(),
        }

    def _is_worth_another_try(self, error: StorageError) -> bool:
        """Whether a save that failed may go well later, and so long has not been tried; notes that storage is away."""
        if is_outage(error):
            self._refused_since = None
            return time.monotonic() - self._note_away() <= PATIENCE
        if not isinstance(error, StorageDeniedError | StorageFullError):
            return False
        self._note_away()
        self._refused_since = self._refused_since or time.monotonic()
        return time.monotonic() - self._refused_since <= _REFUSED

    def _note_away(self) -> float:
        """Let the loop go on without a save that storage does not take; return since when it takes none."""
        with self._changed:
            self.was_away = True
            self._away_since = self._away_since or time.monotonic()
            self._changed.notify_all()
            return self._away_since

    def _newer_waits(self) -> bool:
        """Wait a little for a newer save; return whether the loop has brought one."""
        with self._changed:
            return bool(self._changed.wait_for(lambda: self._waiting is not None, timeout=_PAUSE))


@contextmanager
def _reporting_damage(attempt: Attempt) -> Iterator[None]:
    """Report what is damaged, or not there, of the checkpoint that an attempt starts from; raise CorruptObjectError."""
    try:
        yield
    except (CorruptObjectError, ObjectNotFoundError) as error:
        start = attempt.claim.start
        reason = f"the checkpoint of step {start.step if start else 0} cannot be restored: {error}"
        Attempt(patient(attempt.run), attempt.claim).report_damage(reason)
        raise CorruptObjectError(reason) from error


def _files_of(peers: Peers | None) -> StateFiles:
    if peers is None:
        return WholeFiles()
    from trainers.shards import ShardFiles  # DCP and DTensor take a second to import

    return ShardFiles(peers.rank, peers.world_size)
