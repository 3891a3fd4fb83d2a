"""Whether every checkpoint of a run is what was written, and which of them nobody will need again."""

from __future__ import annotations

import re
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from enum import StrEnum

from cluster.errors import CorruptObjectError, NewerFormatError, ObjectNotFoundError, SupersededError
from cluster.provider import State
from cluster.records import Checkpoint, Claim, last_steps
from cluster.runs import Run
from cluster.selection import best_of
from cluster.storage.base import Digest
from cluster.storage.rules import digest_in

MANIFEST = "manifest.json"
_STEP = re.compile(r"\d{9,}")
_PARALLEL = 8


class Verdict(StrEnum):
    """What a folder below an attempt's checkpoints is."""

    INTACT = "intact"
    DAMAGED = "damaged"
    PARTIAL = "partial"  # no manifest: a save that was cut off, or one that goes on
    NEWER = "newer"  # written by a newer raylift, and not looked into


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder below an attempt's checkpoints, before its files are read."""

    attempt: int
    step: int
    path: str  # within the run
    sizes: Mapping[str, int]  # bytes that storage lists, by the files' names
    checkpoint: Checkpoint | None = None  # what its manifest says, where that reads
    verdict: Verdict | None = None  # where it is certain already
    why: str = ""

    @property
    def files(self) -> int:
        return len(self.checkpoint.files) if self.checkpoint else len(self.sizes)

    @property
    def size(self) -> int:
        return self.checkpoint.size if self.checkpoint else sum(self.sizes.values())


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All checkpoint folders of a run, by attempt and step, and what there is to know of its attempts."""

    claims: Sequence[Claim]
    newest: int  # attempt; 0 before the first
    state: str | None  # of the newest attempt's result
    folders: Sequence[Folder]
    unread: Sequence[str] = ()  # why claims do not read

    @property
    def size(self) -> int:
        """The bytes that `verify` will read."""
        return sum(digest.size for folder, name, digest in _files(self.folders) if name in folder.sizes)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a folder is, and what is wrong with which of its files."""

    folder: Folder
    verdict: Verdict
    counts: bool  # part of the run's history: a resume or an export may choose it
    faults: Mapping[str, str] = field(default_factory=dict)  # by the files' names

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands in a resume's choice."""
        return self.folder.step, self.folder.attempt


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What all of a run's checkpoint folders are, by attempt and step."""

    newest: int
    state: str | None
    findings: Sequence[Finding]
    unread: Sequence[str] = ()  # why claims do not read

    def of(self, *verdicts: Verdict) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict in verdicts]

    @property
    def choices(self) -> list[Finding]:
        """The checkpoints of the history, whole or not, in the order in which a resume looks at them."""
        found = [one for one in self.findings if one.counts and one.verdict is not Verdict.PARTIAL]
        return sorted(found, key=lambda finding: finding.place, reverse=True)

    @property
    def base(self) -> Finding | None:
        """The one that a resume will go on from."""
        return next((finding for finding in self.choices if finding.verdict is Verdict.INTACT), None)


@dataclass(frozen=True)
class Swept:
    """What a sweep removed."""

    folders: Sequence[str]  # within the run
    size: int
    uploads: Sequence[str]  # partial ones that were aborted


# -- verifying


def survey(run: Run) -> Survey:
    """List the checkpoint folders of every attempt, and read their manifests. Raises StorageError."""
    unread: list[str] = []
    claims, attempts, result = run.claims(unread.append), run.attempts(), run.result()
    return Survey(
        claims=claims,
        newest=max(attempts, default=0),
        state=result.state if result is not None else None,
        folders=[folder for attempt in attempts for folder in _folders_of(run, attempt)],
        unread=tuple(unread),
    )


def verify(run: Run, found: Survey, tell: Callable[[int], None] = lambda _: None) -> Verification:
    """Read every file of every checkpoint, and compare it with its manifest.

    `tell` is told, from any thread, how many bytes were read since it was last told. What a living attempt retires
    meanwhile is left out. Raises StorageError where storage fails; a file that is missing or damaged is no such
    failure.
    """
    files = list(_files(found.folders))
    over = threading.Event()

    def read(chunk: int) -> None:
        if over.is_set():
            raise InterruptedError
        tell(chunk)

    with ThreadPoolExecutor(_PARALLEL) as pool:
        told = [pool.submit(_fault_of, run, file, read) for file in files]
        try:
            for future in as_completed(told):
                future.result()
        except BaseException:  # also Ctrl-C: the pool waits for what has begun, which may be a file of gigabytes
            over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    faults: dict[str, dict[str, str]] = {}
    for (folder, name, _), future in zip(files, told, strict=True):
        if fault := future.result():
            faults.setdefault(folder.path, {})[name] = fault
    bounds = _bounds(found)
    findings = [
        _judge(folder, faults.get(folder.path, {}), bounds)
        for folder in found.folders
        if folder.path not in faults or not _is_retired(run, folder)
    ]
    return Verification(newest=found.newest, state=found.state, findings=findings, unread=found.unread)


def complain(run: Run, found: Verification) -> str:
    """Say which file is damaged and what a resume will do about it; an empty string where all is intact."""
    said = [finding.folder.why for finding in found.of(Verdict.NEWER)]
    said += [f"{why}. A resume takes the attempt to have begun with what those before it saved" for why in found.unread]
    damaged = found.of(Verdict.DAMAGED)
    if damaged:
        worst = max(damaged, key=lambda finding: finding.place)
        name, fault = next(iter(worst.faults.items()))
        others = sum(len(finding.faults) for finding in damaged) - 1
        more = f", and {others} more {'file' if others == 1 else 'files'}" if others else ""
        all_of = len(found.findings) - len(found.of(Verdict.PARTIAL))
        said.insert(
            0,
            f"{len(damaged)} of {all_of} checkpoints of {run.uri} {'is' if len(damaged) == 1 else 'are'} damaged: "
            f"{worst.folder.path}/{name} {fault}{more}. {_consequence(found)}",
        )
    return "\n".join(said)


def _folders_of(run: Run, attempt: int) -> Iterator[Folder]:
    prefix = f"attempts/{attempt:06d}/checkpoints/"
    sizes: dict[str, dict[str, int]] = {}
    for entry in run.storage.list(run.path(prefix)):
        name, _, file = entry.path.removeprefix(run.path(prefix)).partition("/")
        if _STEP.fullmatch(name):
            sizes.setdefault(name, {})[file] = entry.size
    for name, files in sizes.items():
        folder = Folder(attempt=attempt, step=int(name), path=f"{prefix}{name}", sizes=files)
        if (known := _with_manifest(run, folder)) is not None:
            yield known


def _with_manifest(run: Run, folder: Folder) -> Folder | None:
    """Return a folder with what its manifest says; None where that was deleted since it was listed."""
    if MANIFEST not in folder.sizes:
        return replace(folder, verdict=Verdict.PARTIAL)
    try:
        checkpoint = run.checkpoint_at(folder.attempt, folder.step)
    except ObjectNotFoundError:
        return None
    except NewerFormatError as error:
        return replace(folder, verdict=Verdict.NEWER, why=str(error))
    except CorruptObjectError:
        return replace(folder, verdict=Verdict.DAMAGED, why="does not read")
    if checkpoint.step != folder.step:
        return replace(folder, verdict=Verdict.DAMAGED, why=f"is that of step {checkpoint.step}")
    return replace(folder, checkpoint=checkpoint)


def _files(folders: Sequence[Folder]) -> Iterator[tuple[Folder, str, Digest]]:
    for folder in folders:
        if folder.checkpoint is not None:
            yield from ((folder, name, digest) for name, digest in folder.checkpoint.files.items())


def _fault_of(run: Run, file: tuple[Folder, str, Digest], read: Callable[[int], None]) -> str:
    """Return what is wrong with a file, as the end of a sentence that its name begins; an empty string if nothing."""
    folder, name, digest = file
    size = folder.sizes.get(name)
    if size is None:
        return "is missing"
    if size != digest.size:
        read(digest.size)
        return f"holds {size} bytes, but {digest.size} were written"
    try:
        found = digest_in(run.storage, run.path(f"{folder.path}/{name}"), size, read).sha256
    except ObjectNotFoundError:
        return "is missing"
    except CorruptObjectError as error:
        return f"does not read: {error}"
    if found == digest.sha256:
        return ""
    return f"holds bytes with SHA-256 {found[:12]}…, but those with {digest.sha256[:12]}… were written"


def _is_retired(run: Run, folder: Folder) -> bool:
    """Whether an attempt that lives let go of a checkpoint while it was read: its manifest goes first."""
    try:
        run.storage.read(run.path(f"{folder.path}/{MANIFEST}"))
    except ObjectNotFoundError:
        return True
    return False


def _bounds(found: Survey) -> dict[int, float]:
    """Return the last step that counts of each attempt, as `Run.checkpoints` sees it."""
    claims = list(found.claims)
    committed = {folder.attempt for folder in found.folders if folder.checkpoint is not None}
    while claims and claims[-1].start and claims[-1].attempt not in committed:
        claims.pop()  # it has not adopted its base yet, and may never
    return last_steps(claims)


def _judge(folder: Folder, faults: Mapping[str, str], bounds: Mapping[int, float]) -> Finding:
    verdict = folder.verdict or (Verdict.DAMAGED if faults else Verdict.INTACT)
    if verdict is Verdict.DAMAGED and folder.checkpoint is None:
        faults = {MANIFEST: folder.why}
    counts = verdict is not Verdict.PARTIAL and folder.step <= bounds.get(folder.attempt, -1)
    return Finding(folder=folder, verdict=verdict, counts=counts, faults=faults)


def _consequence(found: Verification) -> str:
    if found.of(Verdict.NEWER):
        return "A resume needs the newer raylift"
    base = found.base
    if found.state == State.SUCCEEDED:
        return f"The newest that is intact is of step {base.folder.step}" if base else "None is intact"
    if base is None:
        return "None is intact: a resume will begin anew"
    where = f"step {base.folder.step}, of attempt {base.folder.attempt}"
    if base is found.choices[0]:
        return f"A resume does not need it: it will go on from {where}"
    return f"A resume will fall back to {where}"


# -- sweeping


def sweep(run: Run, found: Verification) -> Swept:
    """Remove what `needless` lists, and partial uploads: of the newest attempt where that has ended with a result.

    A manifest goes first, so that a sweep that is cut off leaves no checkpoint that only looks whole; the next one
    goes on with it. No attempt may be alive, which the caller has to know. Raises SupersededError where one was
    claimed since the run was surveyed.
    """
    attempts = run.attempts()
    if max(attempts, default=0) != found.newest:
        raise SupersededError(
            f"somebody went on with {run.uri}, or removed it, while its checkpoints were read: nothing is swept. "
            f"See where it stands: raylift status {shlex.quote(run.uri)}"
        )
    gone = needless(found)
    for finding in gone:
        _remove(run, finding.folder.path)
    over = attempts if found.state is not None else attempts[:-1]
    if found.of(Verdict.NEWER):
        over = []
    uploads = [path for attempt in over for path in run.storage.sweep(run.path(f"attempts/{attempt:06d}/"))]
    return Swept([finding.folder.path for finding in gone], sum(finding.folder.size for finding in gone), uploads)


def needless(found: Verification) -> list[Finding]:
    """Return the folders that no resume can need, all of them of attempts before the newest.

    These are the partial ones and, once the run has succeeded and its newest attempt holds a checkpoint that is
    intact, all others: each is a copy, or older, or one that no reader sees. What `--checkpoint last` or `best` means
    stays, and so does what it would mean were damaged ones not there. Where a newer raylift wrote any, nothing is
    needless.
    """
    if found.of(Verdict.NEWER):
        return []
    older = [finding for finding in found.findings if finding.folder.attempt < found.newest]
    holds_one = any(finding.folder.attempt == found.newest for finding in found.of(Verdict.INTACT))
    if found.state != State.SUCCEEDED or not holds_one:
        return [finding for finding in older if finding.verdict is Verdict.PARTIAL]
    kept = {*_chosen(found.choices), *_chosen([one for one in found.choices if one.verdict is Verdict.INTACT])}
    return [finding for finding in older if finding.folder.path not in kept]


def _chosen(choices: Sequence[Finding]) -> list[str]:
    """Return the folders that `--checkpoint last` and `best` mean among these."""
    checkpoints = [finding.folder.checkpoint for finding in choices if finding.folder.checkpoint is not None]
    return [chosen.folder for chosen in (*checkpoints[:1], best_of(checkpoints)) if chosen is not None]


def _remove(run: Run, folder: str) -> None:
    run.storage.delete(run.path(f"{folder}/{MANIFEST}"))
    for entry in list(run.storage.list(run.path(f"{folder}/"))):
        run.storage.delete(entry.path)
