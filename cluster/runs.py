"""A run's folder in storage, for whoever reads it, or claims an attempt: see cluster.attempts for what that writes.

Whatever must be exclusive is made so by conditional creates; no clock is trusted. An attempt writes only in its
own folder. It names its base, the checkpoint it starts from, when it claims its number; from then on readers take
nothing from an older attempt after that base.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.attempts import Attempt
from cluster.errors import (
    CorruptObjectError,
    NewerFormatError,
    ObjectExistsError,
    ObjectNotFoundError,
    RunExistsError,
    RunNotFoundError,
    SupersededError,
)
from cluster.records import (
    FORMAT,
    Base,
    Checkpoint,
    Claim,
    Origin,
    Result,
    Unread,
    attempt_folder,
    by_time,
    checkpoint_folder,
    dump,
    history_of,
    is_before,
    segments_to_read,
    signed,
)
from cluster.storage.base import Digest, Storage
from cluster.storage.open import open_storage, split_run_uri
from cluster.storage.rules import check_digest, digest_in

RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_PARALLEL = 8


class Run:
    """One run's folder. Every method blocks; those that read raise StorageError where storage does."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        if not RUN_ID.fullmatch(run_id):
            raise RunNotFoundError(
                f"{run_id!r} is no run id: lower-case letters, digits and dashes, at most 40. List runs: raylift ps"
            )
        self.storage = storage
        self.id = run_id
        self.uri = f"{storage.uri.rstrip('/')}/{run_id}"

    @classmethod
    def at(cls, uri: str) -> Run:
        """Return the run at a URI; whether it is there is not asked. Raises UsageError where that is no run's."""
        root, run_id = split_run_uri(uri)
        return cls(open_storage(root), run_id)

    def path(self, name: str) -> str:
        return f"{self.id}/{name}"

    def read_json(self, name: str) -> dict[str, Any]:
        """Return what a small file of the run says. Raises ObjectNotFoundError, CorruptObjectError."""
        try:
            found: dict[str, Any] = json.loads(self.storage.read(self.path(name)))
        except ValueError as error:
            raise CorruptObjectError(f"{self.uri}/{name} does not read, as if it were cut off: {error}") from error
        return found

    # -- creating and stopping

    def create(self, job: bytes) -> None:
        """Freeze the job file; that makes the run. Raises RunExistsError where another has this id."""
        who = f"# run {self.id}, created by process {os.getpid()} on {socket.gethostname()}, {secrets.token_hex(8)}\n"
        try:
            self.storage.write(self.path("job.yaml"), who.encode() + job, if_absent=True)
        except ObjectExistsError as error:
            holder = self.job().split(b"\n", 1)[0].decode(errors="replace").removeprefix("# ")
            holder = holder.rsplit(", ", 1)[0]
            raise RunExistsError(
                f"{self.uri} exists already ({holder}). Follow it: raylift logs -f {shlex.quote(self.uri)}; "
                f"go on with it: raylift resume {shlex.quote(self.uri)}; or choose another --id"
            ) from error

    def job(self) -> bytes:
        """Return the frozen job file. Raises RunNotFoundError."""
        try:
            return self.storage.read(self.path("job.yaml"))
        except ObjectNotFoundError as error:
            known = f"raylift ps --storage {shlex.quote(self.storage.uri)}"
            raise RunNotFoundError(f"there is no run {self.uri}. List runs: {known}") from error

    def request_stop(self, reason: str) -> None:
        self.storage.write(self.path("stop.json"), dump({"reason": reason, "at": time.time()}))

    def stop_reason(self) -> str | None:
        try:
            return str(self.read_json("stop.json")["reason"])
        except ObjectNotFoundError:
            return None

    def withdraw_stop(self) -> None:
        self.storage.delete(self.path("stop.json"))

    def note_launch(self, *, after: int) -> None:
        """Write down that a driver is about to be launched that has not claimed the attempt after this one yet."""
        self.storage.write(self.path("launch.json"), dump({"after": after, "at": time.time()}))

    def launched_after(self) -> int | None:
        """Return after which attempt a driver was launched last; None where that was not written down."""
        try:
            return int(self.read_json("launch.json")["after"])
        except ObjectNotFoundError:
            return None

    def delete(self) -> int:
        """Remove the whole run, its job file last, so that a cut-off removal can be repeated; return the objects."""
        self.storage.sweep(self.path(""))
        paths = [entry.path for entry in self.storage.list(self.path(""))]
        job = self.path("job.yaml")
        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(self.storage.delete, [path for path in paths if path != job]))
        self.storage.delete(job)
        return len(paths)

    # -- attempts

    def attempts(self) -> list[int]:
        """Return the numbers of the claimed attempts, oldest first."""
        return sorted(int(name) for name in self.storage.folders(self.path("attempts/")) if name.isdigit())

    def claims(self, on_unread: Callable[[str], object] = lambda _: None) -> list[Claim]:
        """Return every attempt's claim, oldest first; of one that does not read, what can be told without it.

        `on_unread` is told why one does not.
        """
        found = []
        for number in self.attempts():
            try:
                found.append(self.claim_of(number))
            except ObjectNotFoundError:
                continue  # a folder without a claim is no attempt
            except CorruptObjectError as error:
                on_unread(str(error))
                found.append(self._claim_by_its_checkpoints(number))
        return found

    def claim_of(self, attempt: int) -> Claim:
        """Return the claim of an attempt. Raises ObjectNotFoundError, CorruptObjectError."""
        name = f"{attempt_folder(attempt)}/claim.json"
        try:
            return Claim.of(self.read_json(name))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptObjectError(f"{self.uri}/{name} is no claim: {error!r}") from error

    def _claim_by_its_checkpoints(self, attempt: int) -> Claim:
        """Return a claim for what an attempt has saved: it began with the newest checkpoint of those before it."""
        first = min((checkpoint.step for checkpoint in self.checkpoints_of(attempt)), default=math.inf)
        before = [one for number in range(1, attempt) for one in self.checkpoints_of(number) if one.step <= first]
        base = max(before, key=lambda one: (one.step, one.attempt), default=None)
        return Claim(
            attempt=attempt, host="", pid=0, at=0.0, base=Base(base.attempt, base.step) if base is not None else None
        )

    def claim(
        self,
        *,
        launch: str = "",
        after: int | None = None,
        origin: Origin | None = None,
        read: bool = False,
        on_corrupt: Callable[[Checkpoint, str], None] | None = None,
    ) -> Attempt:
        """Take the next attempt number, from the newest checkpoint that is intact, and adopt that checkpoint.

        That is as far as `newest_intact` tells, with `read` or without. Whoever restores it verifies each byte, and
        tells of damage by `report_damage`: the next claim then reads what it chooses.

        With an `origin`, the first attempt starts from that instead and leaves behind what the run did before, those
        after it with the same one go on, from there once more where nothing of their own is intact. `launch` marks the
        attempts of one launch, so that its restarts can be counted. `on_corrupt` is told, once a step, of the
        checkpoints that were passed over, and why.

        With `after`, it takes the number after that one or none: raises SupersededError where somebody else has
        claimed since, so that whoever was cut off for a while does not take the run back.
        """
        damaged: dict[int, tuple[Checkpoint, str]] = {}
        while True:
            # the number first: whoever has it by the time of the write may have saved what is read here too early
            number = max(self.attempts(), default=0) + 1
            if after is not None and number <= after:
                raise SupersededError(f"{self.uri} is gone: somebody removed it while it ran")
            if after is not None and number > after + 1:
                raise SupersededError(f"attempt {number - 1} has taken over {self.uri}; what it ran before ends here")
            holder, base = self, None
            taken = origin is None or self.has_taken(origin)
            if taken:
                base = self.newest_intact(lambda found, why: damaged.setdefault(found.step, (found, why)), read=read)
            if base is None and origin is not None:
                holder = Run(self.storage, origin.run)
                base = holder.checkpoint_at(origin.attempt, origin.step)
                holder._check(base, read=read or taken)  # where it was taken before, the copy of it is damaged
            claim = Claim(
                attempt=number,
                host=socket.gethostname(),
                pid=os.getpid(),
                at=time.time(),
                base=Base(base.attempt, base.step) if base and holder is self else None,
                launch=launch,
                origin=origin if holder is not self else None,
            )
            try:
                self.storage.write(
                    self.path(f"{attempt_folder(number)}/claim.json"), dump(asdict(claim)), if_absent=True
                )
            except ObjectExistsError:
                continue  # somebody else took this number; their base may be newer than ours
            attempt = Attempt(self, claim)
            try:
                attempt.adopt(base, holder)
            except ObjectNotFoundError:
                if holder is not self:
                    raise
                read = True  # its own attempt let go of it in between, or it was listed and is not there all the same
                after = number if after is not None else None
                continue
            if on_corrupt is not None:
                for found, why in damaged.values():
                    on_corrupt(found, why)
            return attempt

    def claim_for(
        self, launch: str, since: int, *, on_corrupt: Callable[[Checkpoint, str], None] | None = None
    ) -> Attempt:
        """Take the attempt after the newest of a launch; `since` was the newest of all as it was launched.

        What a driver of that launch had on its way to storage when it was lost may come in between. Raises
        SupersededError where another launch has claimed one since, or the run is gone.
        """
        newest = self.newest_of(launch, since)
        while True:
            try:
                return self.claim(launch=launch, after=newest, on_corrupt=on_corrupt)
            except SupersededError:
                before, newest = newest, self.newest_of(launch, since)
                if newest <= before:
                    raise

    def newest_of(self, launch: str, since: int) -> int:
        """Return the newest attempt, for a launch to claim after it; `since` was the newest as it was launched.

        Raises SupersededError where another launch has claimed one since.
        """
        newest = max(self.attempts(), default=0)
        others = [claim.attempt for claim in self.claims() if claim.attempt > since and claim.launch != launch]
        if others:
            raise SupersededError(f"attempt {others[-1]} has taken over {self.uri}; what it ran before ends here")
        return newest

    def has_taken(self, origin: Origin) -> bool:
        """Whether an attempt of this run has started from that copy of another's checkpoint."""
        return any(claim.origin == origin and any(self.checkpoints_of(claim.attempt)) for claim in self.claims())

    def result(self) -> Result | None:
        """Return how the newest attempt ended; None while it has not."""
        attempts = self.attempts()
        return self.result_of(attempts[-1]) if attempts else None

    def result_of(self, attempt: int) -> Result | None:
        """Return how an attempt ended; None while it has not, and as failed where that does not read."""
        try:
            told = self.read_json(f"{attempt_folder(attempt)}/result.json")
            return Result(**{key: value for key, value in told.items() if key != "nonce"})
        except ObjectNotFoundError:
            return None
        except CorruptObjectError as error:
            return Result.failed(error)

    def results(self) -> dict[int, Result]:
        """Return how each attempt ended that did so with a result."""
        found = {attempt: self.result_of(attempt) for attempt in self.attempts()}
        return {attempt: result for attempt, result in found.items() if result is not None}

    # -- checkpoints

    def checkpoints(self) -> list[Checkpoint]:
        """Return the committed checkpoints of the run's history, oldest first."""
        newest = {checkpoint.step: checkpoint for checkpoint in reversed(self._candidates())}
        return [newest[step] for step in sorted(newest)]

    def newest_intact(
        self, on_corrupt: Callable[[Checkpoint, str], object] | None = None, *, read: bool = False
    ) -> Checkpoint | None:
        """Return the newest checkpoint that is intact; None where there is none.

        With `read`, that means that every byte verifies; without, that all files are there and as long as they should
        be, which a listing tells. From a checkpoint on that an attempt could not restore, all are read in any case.
        """
        unread: list[Unread] = []

        def tell_of_unread(found: Checkpoint | None) -> None:
            if on_corrupt is not None:
                for one in unread:
                    if found is None or (one.step, one.attempt) > (found.step, found.attempt):
                        on_corrupt(Checkpoint(attempt=one.attempt, step=one.step, files={}, info={}), one.why)

        for checkpoint in self._candidates(unread.append):
            read = read or self.damage_of(checkpoint.attempt) is not None
            try:
                self._check(checkpoint, read=read)
            except (CorruptObjectError, ObjectNotFoundError) as error:
                if checkpoint.step not in [found.step for found in self.checkpoints_of(checkpoint.attempt)]:
                    return self.newest_intact(on_corrupt, read=read)  # retired meanwhile, for a newer one
                if on_corrupt is not None:
                    on_corrupt(checkpoint, str(error))
                continue
            tell_of_unread(checkpoint)
            return checkpoint
        tell_of_unread(None)
        return None

    def verify(self, checkpoint: Checkpoint, names: Sequence[str] | None = None) -> None:
        """Read a checkpoint's files, or those of some names. Raises CorruptObjectError or ObjectNotFoundError."""

        def one(name: str) -> None:
            path, expect = self.path(f"{checkpoint.folder}/{name}"), checkpoint.files[name]
            found = digest_in(self.storage, path, expect.size + 1)  # one byte more, to see one that is longer
            check_digest(found, expect, f"{self.storage.uri}/{path}")

        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(one, checkpoint.files if names is None else names))

    def damage_of(self, attempt: int) -> str | None:
        """Return why an attempt could not restore the checkpoint that it started from, if it said so."""
        try:
            return str(self.read_json(f"{attempt_folder(attempt)}/damage.json")["reason"])
        except ObjectNotFoundError:
            return None
        except CorruptObjectError as error:  # it was said all the same
            return str(error)

    def fetch(
        self,
        checkpoint: Checkpoint,
        target: Path,
        names: Sequence[str] | None = None,
        on_file: Callable[[], None] = lambda: None,
    ) -> None:
        """Download a checkpoint's files, or those of some names, verified, into a folder; `on_file` follows each."""

        def one(name: str) -> None:
            path = self.path(f"{checkpoint.folder}/{name}")
            self.storage.download(path, target / name, expect=checkpoint.files[name])
            on_file()

        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(one, checkpoint.files if names is None else names))

    def _check(self, checkpoint: Checkpoint, *, read: bool) -> None:
        """List a checkpoint's files, or read them. Raises CorruptObjectError or ObjectNotFoundError."""
        if read:
            self.verify(checkpoint)
            return
        prefix = self.path(f"{checkpoint.folder}/")
        sizes = {entry.path.removeprefix(prefix): entry.size for entry in self.storage.list(prefix)}
        for name, expect in checkpoint.files.items():
            file = f"{self.storage.uri}/{prefix}{name}"
            if name not in sizes:
                raise ObjectNotFoundError(f"{file} is missing")
            if sizes[name] != expect.size:
                raise CorruptObjectError(f"{file} holds {sizes[name]} bytes, but {expect.size} were written")

    def _candidates(self, on_unread: Callable[[Unread], object] = lambda _: None) -> list[Checkpoint]:
        """Return the checkpoints of the run's history, the newest first; an adopted copy stands before its original."""
        claims = self.claims()
        while claims and claims[-1].start is not None and not any(self.checkpoints_of(claims[-1].attempt)):
            claims.pop()  # it has not adopted its base yet, and may never
        found = [
            checkpoint
            for claim, bound in history_of(claims)
            for checkpoint in self.checkpoints_of(claim.attempt, _up_to(bound, on_unread))
            if checkpoint.step <= bound
        ]
        return sorted(found, key=lambda checkpoint: (checkpoint.step, checkpoint.attempt), reverse=True)

    def checkpoints_of(
        self, attempt: int, on_unread: Callable[[Unread], object] = lambda _: None
    ) -> Iterator[Checkpoint]:
        """Yield the committed checkpoints in an attempt's folder, whether or not they are part of the history.

        `on_unread` is told of those whose manifest does not read.
        """
        for name in self.storage.folders(self.path(f"{attempt_folder(attempt)}/checkpoints/")):
            if not name.isdigit():
                continue
            try:
                checkpoint = self.checkpoint_at(attempt, int(name))
            except ObjectNotFoundError:
                continue  # without a manifest there is no checkpoint
            except CorruptObjectError as error:
                on_unread(Unread(attempt, int(name), str(error)))
                continue
            yield checkpoint

    def checkpoint_at(self, attempt: int, step: int) -> Checkpoint:
        """Return the checkpoint of one folder, whether or not it is part of the history.

        Raises ObjectNotFoundError without a manifest, CorruptObjectError where that does not read, NewerFormatError.
        """
        folder = checkpoint_folder(attempt, step)
        data = self.storage.read(self.path(f"{folder}/manifest.json"))
        try:
            manifest = json.loads(data)
            if manifest["format"] <= FORMAT:
                if "sha256" in manifest and signed(manifest) != manifest:
                    raise ValueError("its SHA-256 is that of another one")
                quick = manifest.get("crc64", {})
                files = {key: Digest(**value, crc64=quick.get(key, "")) for key, value in manifest["files"].items()}
                return Checkpoint(attempt=attempt, step=manifest["step"], files=files, info=manifest["info"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptObjectError(f"{self.uri}/{folder}/manifest.json does not read: {error!r}") from error
        raise NewerFormatError(
            f"{self.uri}/{folder} was written by a newer raylift (format {manifest['format']}, "
            f"this one reads up to {FORMAT}). Update: pip install -U raylift"
        )

    # -- rows

    def all_rows(self, stream: str) -> list[dict[str, Any]]:
        """Return the rows of a stream of every attempt, oldest attempt first, also those that were repeated."""
        return [
            {**row, "attempt": claim.attempt} for claim in self.claims() for row in self.rows_of(claim.attempt, stream)
        ]

    def rows(self, stream: str) -> list[dict[str, Any]]:
        """Return the rows of a stream ("metrics" or "events") along the run's history, oldest first.

        Of an older attempt, metrics after the base of a newer one are left out: they were repeated. Events all
        count; each names its attempt.
        """
        claims = self.claims()
        history = list(history_of(claims)) if stream == "metrics" else [(claim, math.inf) for claim in reversed(claims)]
        return [
            {**row, "attempt": claim.attempt}
            for claim, bound in reversed(history)
            for row in self.rows_of(claim.attempt, stream)
            if stream != "metrics" or is_before(row, bound)
        ]

    def last_heard(self) -> float | None:
        """Return when the newest attempt last wrote anything, by storage's clock; None before the first one."""
        attempts = self.attempts()
        if not attempts:
            return None
        prefix = self.path(f"{attempt_folder(attempts[-1])}/")
        return max((entry.modified for entry in self.storage.list(prefix)), default=None)

    def last_sign_of_life(self, attempt: int) -> float | None:
        """Return when an attempt's driver last showed that it lives, by its own clock; None where it never did."""
        try:
            return float(self.read_json(f"{attempt_folder(attempt)}/alive.json")["at"])
        except ObjectNotFoundError:
            return None

    def rows_of(self, attempt: int, stream: str) -> list[dict[str, Any]]:
        """Return one attempt's rows, those of each writer in their order, writers by the time of their rows."""
        written = self._written(attempt, stream).values()
        try:
            rows = [[json.loads(line) for line in data.splitlines()] for data in written]
        except ValueError as error:
            place = f"{self.uri}/{attempt_folder(attempt)}/{stream}"
            raise CorruptObjectError(f"a file of {place} does not read, as if it were cut off: {error}") from error
        return by_time(rows, lambda row: float(row["time"]))

    def writers_of(self, attempt: int) -> list[str]:
        """Return which processes of an attempt have printed something."""
        return list(self._segments_of(attempt, "logs"))

    def output_of(self, attempt: int) -> dict[str, bytes]:
        """Return what the processes of an attempt printed, by writer (driver, rank-0 and so on)."""
        return self._written(attempt, "logs")

    def segments(self, attempt: int, stream: str, writer: str) -> list[str]:
        """Return the segments of a writer in order, without those that were merged in another."""
        listed = self.storage.list(self.path(f"{attempt_folder(attempt)}/{stream}/{writer}-"))
        return segments_to_read(entry.path for entry in listed).get(writer, [])

    def _written(self, attempt: int, stream: str) -> dict[str, bytes]:
        """Return what each writer of a stream of an attempt has written."""
        with ThreadPoolExecutor(_PARALLEL) as pool:
            segments = self._segments_of(attempt, stream)
            reading = {writer: pool.map(self.storage.read, paths) for writer, paths in segments.items()}
            return {writer: b"".join(parts) for writer, parts in reading.items()}

    def _segments_of(self, attempt: int, stream: str) -> dict[str, list[str]]:
        """Return the segments of each writer of a stream, without those that were merged in another."""
        prefix = self.path(f"{attempt_folder(attempt)}/{stream}/")
        return segments_to_read(entry.path for entry in self.storage.list(prefix))


def _up_to(bound: float, tell: Callable[[Unread], object]) -> Callable[[Unread], object]:
    return lambda unread: tell(unread) if unread.step <= bound else None


def new_run_id(name: str) -> str:
    """Return `<name>-<yymmddhhmmss UTC>-<4 hex>`, at most 40 characters."""
    stamp = time.strftime("%y%m%d%H%M%S", time.gmtime())
    return f"{name[:22]}-{stamp}-{secrets.token_hex(2)}"


def list_runs(storage: Storage, *, quick: bool = False) -> list[Run]:
    """Return the runs of a storage, newest first by the time in their ids; those with ids of their own come last.

    With `quick` no more is asked than a listing takes; a run that was removed just now may then be among them.
    """

    def stamp(name: str) -> str:
        found = re.search(r"-(\d{12})-[0-9a-f]{4}$", name)
        return found[1] if found else ""

    names = [name for name in storage.folders("", quick=quick) if RUN_ID.fullmatch(name)]
    return [Run(storage, name) for name in sorted(names, key=stamp, reverse=True)]
