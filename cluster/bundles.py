"""Archives of code that a run takes along in storage. The same files are the same archive, named by its SHA-256."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import CorruptObjectError, TrainingError
from cluster.runs import Run
from cluster.trials import sweep_of

WORKDIR = "workdir-"  # what the name of an archive of the user's own code begins with
EXPORTED = "code"  # the folder of an exported model that has that code
_FOLDER = "code"  # of a run
_TIME = (2020, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Bundle:
    """An archive, and where in a storage it belongs."""

    data: bytes
    path: str


def bundle_of(files: Iterable[tuple[str, bytes]], holder: str, *, prefix: str = "") -> Bundle:
    """Return the archive of files, each by its path in it, below the folder of a run, or of what else holds it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name, _TIME), data, zipfile.ZIP_DEFLATED)
    data = stream.getvalue()
    return Bundle(data, f"{holder}/{_FOLDER}/{prefix}{hashlib.sha256(data).hexdigest()}.zip")


@dataclass(frozen=True)
class OwnCode:
    """The archive of the user's own code in a run's folder."""

    run: Run
    path: str

    @property
    def digest(self) -> str:
        """Its SHA-256, by its name."""
        return self.path.rpartition("/")[2].removeprefix(WORKDIR).removesuffix(".zip")

    def extract(self, folder: Path) -> None:
        """Write its files into a folder. Raises CorruptObjectError, StorageError."""
        data = self.run.storage.read(self.path)
        if hashlib.sha256(data).hexdigest() != self.digest:
            raise CorruptObjectError(f"{self.run.storage.uri}/{self.path} is not what its name says: it was damaged")
        zipfile.ZipFile(io.BytesIO(data)).extractall(folder)


def own_code(run: Run) -> OwnCode:
    """Return the user's own code that a run took along, or a trial's sweep. Raises TrainingError, StorageError."""
    for holder in filter(None, (run, sweep_of(run))):
        for entry in holder.storage.list(holder.path(f"{_FOLDER}/{WORKDIR}")):
            return OwnCode(holder, entry.path)
    raise TrainingError(f"{run.uri} has no code in storage: it was cut off while it was submitted. Run the job anew")
