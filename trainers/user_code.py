"""The code of a user's own that was sent along with a run, and what an exception in it means."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path
from traceback import FrameSummary, StackSummary, TracebackException
from typing import TYPE_CHECKING, Any

from cluster.bundles import own_code
from cluster.errors import InfrastructureError, TrainingError, UserCodeError
from cluster.runs import Run

if TYPE_CHECKING:
    from trainers.config import TrainJob

_OURS = Path(__file__).parents[1]
_loaded: list[Path] = []  # the folders that this process has imported from
_PACKAGES = tuple(f"{_OURS / name}{os.sep}" for name in ("cluster", "launcher", "trainers"))


def fetch_code(run: Run) -> Path:
    """Return the folder of a run's own code on this machine; of a trial, that of its sweep.

    What was fetched once is there for all processes of this machine. Raises CorruptObjectError, StorageError, and
    TrainingError where storage has none.
    """
    code = own_code(run)
    folder = _cache() / code.digest
    if folder.is_dir():
        return folder
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder.parent))
    code.extract(partial)
    with contextlib.suppress(OSError):  # another process may have been faster
        os.rename(partial, folder)
    shutil.rmtree(partial, ignore_errors=True)
    return folder


def code_of(job: TrainJob, run: Run) -> Path | None:
    """Return the folder of a run's own code, fetched if need be; None where its task is a built-in one."""
    return fetch_code(run) if job.is_own else None


def load_object(name: str, folder: Path) -> Any:
    """Import `module:name` from a folder, which stays importable. What the import raises is the user's."""
    module, _, attribute = name.partition(":")
    if folder not in _loaded:
        _loaded.append(folder)
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
    found = importlib.import_module(module)
    if found.__file__ is None or not Path(found.__file__).is_relative_to(folder):
        raise TrainingError(f"task: {module} is already the name of {found.__file__}: give your module another one")
    if not hasattr(found, attribute):
        raise TrainingError(f"task: {module} has no {attribute}")
    return getattr(found, attribute)


def told_of(error: BaseException, where: str) -> UserCodeError | None:
    """Return an exception of the user's code as they should see it; None where it went through none of their lines.

    `where` is added to the message.
    """
    known = TracebackException.from_exception(error)
    theirs = [frame for each in _chain(known) for frame in each.stack if _folder_of(frame) is not None]
    if not theirs:
        return None
    for each in _chain(known):
        called = list(dropwhile(lambda frame: _folder_of(frame) is None, each.stack)) or each.stack
        each.stack = StackSummary.from_list([_shown(frame) for frame in called if not _is_ours(frame)])
    what, last = f"{type(error).__name__}: {error}".splitlines()[0], _shown(theirs[-1])
    message = f"{what}, in {last.filename}, line {last.lineno}, in {last.name}{where}"
    return UserCodeError(message, "".join(known.format()))


def _chain(error: TracebackException) -> Iterator[TracebackException]:
    """Yield what an exception came of, the first cause first, and itself."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _chain(before)
    yield error


def _is_ours(frame: FrameSummary) -> bool:
    return frame.filename.startswith(_PACKAGES) or frame.filename.startswith("<frozen importlib")


def _folder_of(frame: FrameSummary) -> Path | None:
    return next((folder for folder in _loaded if Path(frame.filename).is_relative_to(folder)), None)


def _shown(frame: FrameSummary) -> FrameSummary:
    """Return a frame with its file as the user knows it: by its path below their folder."""
    folder = _folder_of(frame)
    name = str(Path(frame.filename).relative_to(folder)) if folder is not None else frame.filename
    return FrameSummary(name, frame.lineno, frame.name, line=frame.line)


def _cache() -> Path:
    """Return the folder in which this user's processes keep code; what others may write is not run."""
    folder = Path(tempfile.gettempdir()) / f"raylift-code-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise InfrastructureError(f"{folder} is not this user's alone: remove it, or set TMPDIR")
    return folder
