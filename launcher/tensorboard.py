"""A run's curves as TensorBoard reads them: event files made from what storage holds, on the laptop.

They hold the committed history alone: where an attempt went on from before the end of the last one, what was repeated
is taken back by a session log, which tells TensorBoard to forget all from a step on.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cluster.errors import MissingExtraError, StorageError, UsageError
from cluster.runs import Run
from launcher.watch import Follower, Update

POLL = 2.0  # seconds
_POSITION = ("kind", "step", "epoch", "seen", "time", "attempt")  # of a row: where it stands, and no value
_PREFIXES = {"step": "train/", "eval": "eval/", "epoch": "epoch/"}


class EventFiles:
    """Writes what is new in a run to a folder of event files, over its attempts. A context manager."""

    def __init__(self, run: Run, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.run = run
        self._follower = Follower(run)
        self._read: list[Update] = []  # and not written yet
        self._attempt = 0
        self._writer = EventFileWriter(str(folder))

    def __enter__(self) -> EventFiles:
        self._write_job()
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def update(self) -> int:
        """Write the rows since the last call; return how many. Raises StorageError."""
        self._read += [update for update in self._follower.read() if update.stream == "metrics"]
        count = len(self._read)
        while self._read:  # one by one, as storage may go away between two attempts
            update = self._read[0]
            if update.attempt != self._attempt:
                self._begin(update.attempt, float(update.row["time"]))
            for tag, value in scalars(update.row):
                self._write(update.row, tag, value)
            del self._read[0]
        self._writer.flush()
        return count

    def _begin(self, attempt: int, at: float) -> None:
        """Have TensorBoard forget what an attempt repeats."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        base = next(claim.base for claim in self.run.claims() if claim.attempt == attempt)
        if self._attempt:
            log = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=at, step=base.step + 1 if base else 0, session_log=log))
        self._attempt = attempt

    def _write(self, row: Mapping[str, Any], tag: str, value: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        self._writer.add_event(Event(wall_time=row["time"], step=row["step"], summary=summary))

    def _write_job(self) -> None:
        """Show the job file on the page for texts, as the code that it is."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.util.tensor_util import make_tensor_proto

        indented = "\n".join(f"    {line}" for line in self.run.job().decode(errors="replace").splitlines())
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        value = Summary.Value(tag="job.yaml", metadata=metadata, tensor=make_tensor_proto([indented.encode()]))
        self._writer.add_event(Event(wall_time=time.time(), step=0, summary=Summary(value=[value])))


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield a row's values with their tags: `train/loss`, `eval/accuracy` and so on."""
    prefix = _PREFIXES[row["kind"]]
    for name, value in row.items():
        if name not in _POSITION:
            yield prefix + name.removeprefix("eval_").removeprefix("train_"), float(value)


def write_event_files(runs: Sequence[Run], folder: Path) -> int:
    """Write the event files of runs, one folder each, as they are now; return the number of rows."""
    with _open(runs, folder) as files:
        return sum(one.update() for one in files)


def serve(runs: Sequence[Run], folder: Path, port: int) -> int:
    """Show runs in TensorBoard on this machine, while they go on, until Ctrl-C; return the command's exit code."""
    with _open(runs, folder) as files:
        for one in files:
            one.update()
        command = [sys.executable, "-P", "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
        with subprocess.Popen([*command, "--reload_interval", str(POLL)]) as server:
            try:
                while server.poll() is None:
                    time.sleep(POLL)
                    with contextlib.suppress(StorageError):  # away: what is shown stays, the next look may tell
                        for one in files:
                            one.update()
            except KeyboardInterrupt:  # the terminal has told the server too
                server.terminate()
                return 0
            except BaseException:
                server.terminate()
                raise
        return server.returncode


@contextlib.contextmanager
def _open(runs: Sequence[Run], folder: Path) -> Iterator[list[EventFiles]]:
    """Raises MissingExtraError without TensorBoard, UsageError where the folder holds event files already."""
    if find_spec("tensorboard") is None:
        raise MissingExtraError("this needs TensorBoard, which is not installed here: pip install 'raylift[train]'")
    for run in runs:
        if any((folder / run.id).glob("events.out.tfevents.*")):
            raise UsageError(f"{folder / run.id} holds event files already. Write to another: --logdir DIR")
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(EventFiles(run, folder / run.id)) for run in runs]
