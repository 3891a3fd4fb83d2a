"""What storage keeps of a run, as values: claims, checkpoints, results, and the history that claims tell. Pure."""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cluster.errors import RayliftError, UserCodeError
from cluster.storage.base import Digest

FORMAT = 1  # of a manifest
_SEGMENT = re.compile(r"(?:.*/)?([^/]+)-(\d{8})(?:_(\d{8}))?\.jsonl")

Row = TypeVar("Row")


@dataclass(frozen=True)
class Base:
    """The checkpoint that an attempt starts from."""

    attempt: int
    step: int


@dataclass(frozen=True)
class Origin:
    """A checkpoint of another run of the same storage, copied once: a second copy of it is another origin."""

    run: str  # its id
    attempt: int
    step: int
    nonce: str = ""  # of the copy


@dataclass(frozen=True)
class Claim:
    """Who holds an attempt, and where it starts: at a checkpoint of its run, or of another one."""

    attempt: int
    host: str
    pid: int
    at: float
    base: Base | None
    launch: str = ""
    origin: Origin | None = None
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def start(self) -> Base | Origin | None:
        """The checkpoint that it starts from, of whichever run; None where it begins anew."""
        return self.base or self.origin

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Claim:
        """Return what a claim.json says."""
        value = dict(told)
        base, origin = value.pop("base"), value.pop("origin", None)
        return cls(**value, base=Base(**base) if base else None, origin=Origin(**origin) if origin else None)


@dataclass(frozen=True)
class Notice:
    """Why an attempt is to save and end."""

    reason: str
    seconds: float | None = None  # that were left when it was written; clocks of machines differ


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: it exists because its manifest does."""

    attempt: int
    step: int
    files: Mapping[str, Digest]
    info: Mapping[str, Any]

    @property
    def folder(self) -> str:
        return checkpoint_folder(self.attempt, self.step)

    @property
    def size(self) -> int:
        return sum(digest.size for digest in self.files.values())


@dataclass(frozen=True)
class Unread:
    """A checkpoint whose manifest is there and does not read, and why."""

    attempt: int
    step: int
    why: str


@dataclass(frozen=True)
class Result:
    """How an attempt ended; the newest attempt's is the run's."""

    state: str
    message: str = ""
    exit_code: int = 0
    step: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    at: float = field(default_factory=time.time)
    traceback: str = ""  # of the user's own code, without our frames

    @classmethod
    def failed(cls, error: RayliftError) -> Result:
        """Return what an error that ends a run comes to."""
        traceback = error.traceback if isinstance(error, UserCodeError) else ""
        return cls(state="FAILED", message=str(error), exit_code=error.exit_code, traceback=traceback)


def attempt_folder(attempt: int) -> str:
    """Return where an attempt is, within its run."""
    return f"attempts/{attempt:06d}"


def checkpoint_folder(attempt: int, step: int) -> str:
    """Return where a checkpoint is, within its run."""
    return f"{attempt_folder(attempt)}/checkpoints/{step:09d}"


def segment_path(attempt: int, stream: str, writer: str, first: int, last: int | None = None) -> str:
    """Return where a segment of rows is, within its run; with `last`, the one in which those up to it are merged."""
    merged = f"_{last:08d}" if last is not None else ""
    return f"{attempt_folder(attempt)}/{stream}/{writer}-{first:08d}{merged}.jsonl"


def segments_to_read(paths: Iterable[str]) -> dict[str, list[str]]:
    """Return the segments of each writer in order, without those that were merged in another."""
    found: dict[str, list[tuple[int, int, str]]] = {}
    for path in paths:
        if match := _SEGMENT.fullmatch(path):
            writer, first, last = match.groups()
            found.setdefault(writer, []).append((int(first), -int(last or first), path))
    chosen: dict[str, list[str]] = {}
    for writer, segments in found.items():
        covered = -1
        for _, last, path in sorted(segments):  # the longest of those that begin alike stands first
            if -last > covered:
                chosen.setdefault(writer, []).append(path)
                covered = -last
    return chosen


def last_of(path: str) -> int:
    """Return the number of a segment, or of the last that was merged in it."""
    match = _SEGMENT.fullmatch(path)
    assert match is not None
    return int(match[3] or match[2])


def by_time(writers: Iterable[Sequence[Row]], time_of: Callable[[Row], float]) -> list[Row]:
    """Merge what several writers wrote by its time; each one's own order stays, also where its clock was set back."""
    timed = []
    for rows in writers:
        latest = -math.inf
        for row in rows:
            latest = max(latest, time_of(row))
            timed.append((latest, row))
    return [row for _, row in sorted(timed, key=lambda one: one[0])]


def dump(value: object) -> bytes:
    """Return JSON without spaces."""
    return json.dumps(value, separators=(",", ":")).encode()


def signed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with the SHA-256 of all else in it, so that a changed byte is seen."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return {**rest, "sha256": hashlib.sha256(dump(rest)).hexdigest()}


def history_of(claims: Sequence[Claim]) -> Iterator[tuple[Claim, float]]:
    """Follow the bases back from the newest claim: yield each attempt that counts, and the last step of it that does.

    An attempt that no base leads to has done nothing that the run stands on.
    """
    by_number = {claim.attempt: claim for claim in claims}
    number, bound = max(by_number, default=0), math.inf
    while claim := by_number.pop(number, None):  # each once: a damaged claim may name itself
        yield claim, bound
        number, bound = (claim.base.attempt, claim.base.step) if claim.base else (0, 0)


def last_steps(claims: Sequence[Claim]) -> dict[int, float]:
    """Return the last step that counts of each attempt that does: the base of a newer one, or infinity."""
    return {claim.attempt: bound for claim, bound in history_of(claims)}


def counted(metrics: Sequence[dict[str, Any]], claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """Return of the metrics of all attempts those that a newer attempt did not repeat."""
    bounds = last_steps(claims)
    return [row for row in metrics if is_before(row, bounds.get(row["attempt"], -1))]


def is_before(row: Mapping[str, Any], bound: float) -> bool:
    """Whether a row of metrics was made before the checkpoint of a step; one that is `late` came after it."""
    return bool(row["step"] < bound or (row["step"] == bound and not row.get("late")))
