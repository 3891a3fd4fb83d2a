"""What an attempt adds to its run and takes away, in its own folder alone; for its rows see cluster.segments."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import ObjectExistsError, ObjectNotFoundError, StorageError, SupersededError
from cluster.records import (
    FORMAT,
    Checkpoint,
    Claim,
    Notice,
    Result,
    Unread,
    attempt_folder,
    checkpoint_folder,
    dump,
    signed,
)
from cluster.redaction import hide
from cluster.storage.base import Digest
from cluster.storage.sources import Source

if TYPE_CHECKING:
    from cluster.runs import Run

_PARALLEL = 8


class Attempt:
    """The one writer of an attempt's folder."""

    def __init__(self, run: Run, claim: Claim) -> None:
        self.run = run
        self.claim = claim
        self.number = claim.attempt

    @classmethod
    def reopen(cls, run: Run, number: int) -> Attempt:
        """Open an attempt that the driver claimed, in one of its workers."""
        return cls(run, run.claim_of(number))

    def adopt(self, base: Checkpoint | None, holder: Run) -> None:
        """Copy the base from its run into this attempt's folder, its manifest last.

        The copy is verified by whoever reads it. Where it alone is damaged, the next claim takes the original.
        """
        if base is None or (holder is self.run and base.attempt == self.number):
            return
        target = checkpoint_folder(self.number, base.step)
        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(
                pool.map(
                    lambda name: self.run.storage.copy(
                        holder.path(f"{base.folder}/{name}"), self.run.path(f"{target}/{name}")
                    ),
                    base.files,
                )
            )
        self._write_manifest(Checkpoint(attempt=self.number, step=base.step, files=base.files, info=base.info))

    def start_from(self) -> Checkpoint | None:
        """Return the newest checkpoint of this attempt: the adopted base, or one of its own; None where it began anew.

        Raises ObjectNotFoundError where it has lost all.
        """
        found = list(self.run.checkpoints_of(self.number))
        if not found and self.claim.start is not None:
            raise ObjectNotFoundError(f"{self.run.uri} has lost the checkpoint that attempt {self.number} starts from")
        return max(found, key=lambda checkpoint: checkpoint.step, default=None)

    def check_current(self) -> None:
        """Raise SupersededError where a newer attempt has been claimed, or the run was removed."""
        newest = max(self.run.attempts(), default=0)
        if newest > self.number:
            raise SupersededError(f"attempt {newest} has taken over {self.run.uri}; attempt {self.number} ends here")
        try:
            self.run.storage.read(self.run.path(f"{attempt_folder(self.number)}/claim.json"))
        except ObjectNotFoundError as error:
            raise SupersededError(f"{self.run.uri} is gone: somebody removed it while it ran") from error

    def sweep(self, *, is_over: bool = False) -> None:
        """Remove what earlier attempts, and this one where it `is_over`, had sent half of: no reader sees it.

        What storage does not remove now is left for the next attempt.
        """
        numbers = range(1, self.number + is_over)
        with suppress(StorageError), ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(lambda number: self.run.storage.sweep(self.run.path(f"{attempt_folder(number)}/")), numbers))

    def report_damage(self, reason: str) -> None:
        """Say that the checkpoint which this attempt starts from cannot be restored. Raises SupersededError."""
        self.check_current()
        path = self.run.path(f"{attempt_folder(self.number)}/damage.json")
        self.run.storage.write(path, dump({"reason": reason, "at": time.time()}))

    def give_notice(self, reason: str, *, seconds: float | None = None) -> None:
        """Tell this attempt to save and end: its machine goes, in so many seconds. The first word counts."""
        path = self.run.path(f"{attempt_folder(self.number)}/notice.json")
        with suppress(ObjectExistsError):
            self.run.storage.write(
                path, dump({"reason": reason, "at": time.time(), "seconds": seconds}), if_absent=True
            )

    def notice(self) -> Notice | None:
        """Return why this attempt was told to save and end, if it was."""
        try:
            data = self.run.read_json(f"{attempt_folder(self.number)}/notice.json")
        except ObjectNotFoundError:
            return None
        return Notice(data["reason"], data.get("seconds"))

    def show_life(self) -> None:
        """Leave a sign that somebody is at work on this attempt; it takes the place of the one before."""
        self.run.storage.write(self.run.path(f"{attempt_folder(self.number)}/alive.json"), dump({"at": time.time()}))

    def commit(self, step: int, files: Sequence[Path], info: Mapping[str, Any]) -> Checkpoint:
        """Upload a checkpoint's files in parallel, then make it exist by its manifest. Raises SupersededError."""
        return self.seal(step, self.upload(step, {file.name: file for file in files}), info)

    def upload(self, step: int, files: Mapping[str, Path | Source]) -> dict[str, Digest]:
        """Upload files of a checkpoint in parallel; without a manifest there is none yet. Raises SupersededError."""
        self.check_current()
        folder = checkpoint_folder(self.number, step)

        def one(name: str) -> tuple[str, Digest]:
            return name, self.run.storage.upload(files[name], self.run.path(f"{folder}/{name}"))

        with ThreadPoolExecutor(_PARALLEL) as pool:
            return dict(pool.map(one, files))

    def seal(self, step: int, files: Mapping[str, Digest], info: Mapping[str, Any]) -> Checkpoint:
        """Make a checkpoint exist, all of whose files are uploaded, by its manifest. Raises SupersededError."""
        self.check_current()
        checkpoint = Checkpoint(attempt=self.number, step=step, files=dict(files), info=dict(info))
        self._write_manifest(checkpoint)
        return checkpoint

    def retain(self, keep: int, best: int | None = None) -> list[int]:
        """Delete this attempt's checkpoints but the newest `keep` and the step `best`; return the steps deleted.

        The manifest goes first, so that a crash in between leaves no checkpoint that looks whole; what it leaves
        of the files is swept by the next call. Raises SupersededError: what a newer attempt may want stays.
        """
        self.check_current()
        unread: list[Unread] = []
        committed = sorted(checkpoint.step for checkpoint in self.run.checkpoints_of(self.number, unread.append))
        # one whose manifest did not read may do so the next time
        kept = {*committed[-keep:], best, *(one.step for one in unread)}
        prefix = f"{attempt_folder(self.number)}/checkpoints/"
        newest = committed[-1] if committed else -1
        on_storage = [int(name) for name in self.run.storage.folders(self.run.path(prefix)) if name.isdigit()]
        gone = [step for step in on_storage if step not in kept and step < newest]
        for step in gone:
            folder = checkpoint_folder(self.number, step)
            self.run.storage.delete(self.run.path(f"{folder}/manifest.json"))
            for entry in list(self.run.storage.list(self.run.path(f"{folder}/"))):
                self.run.storage.delete(entry.path)
        return gone

    def finish(self, result: Result) -> None:
        """Write the attempt's result, once; a second one is ignored."""
        path = self.run.path(f"{attempt_folder(self.number)}/result.json")
        try:
            self.run.storage.write(path, hide(dump({**asdict(result), "nonce": secrets.token_hex(8)})), if_absent=True)
        except ObjectExistsError:
            return

    def _write_manifest(self, checkpoint: Checkpoint) -> None:
        manifest = {
            "format": FORMAT,
            "run": self.run.id,
            "attempt": checkpoint.attempt,
            "step": checkpoint.step,
            "files": {name: {"size": one.size, "sha256": one.sha256} for name, one in checkpoint.files.items()},
            "crc64": {name: one.crc64 for name, one in checkpoint.files.items() if one.crc64},
            "info": checkpoint.info,
        }
        folder = checkpoint_folder(checkpoint.attempt, checkpoint.step)
        self.run.storage.write(self.run.path(f"{folder}/manifest.json"), dump(signed(manifest)))
