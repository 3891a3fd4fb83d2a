"""A run's curves as TensorBoard reads them: event files made from what storage holds, on the laptop.

They hold the committed history alone: where an attempt went on from before the end of the last one, what was repeated
is taken back by a session log, which tells TensorBoard to forget all from a step on. A sweep has a folder for each of
its trials, which are compared on the page HParams.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import MissingExtraError, RunNotFoundError, StorageError, UsageError
from cluster.runs import Run
from cluster.trials import ENDED, Trial, read_trials, trial_run
from launcher.hparams import experiment, session_end, session_start
from launcher.watch import Follower, Update

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

    from trainers.tuning import Domain, Tune

POLL = 2.0  # seconds
_PARALLEL = 8  # trials that are read at once
_POSITION = ("kind", "step", "epoch", "seen", "time", "attempt")  # of a row: where it stands, and no value
_OF_SAVES = ("bytes", "mb_per_s", "blocked")  # the last in seconds that training stood still
_PREFIXES = {"step": "train/", "eval": "eval/", "epoch": "epoch/"}


class EventFiles:
    """Writes what is new in a run to a folder of event files, over its attempts. A context manager."""

    def __init__(self, run: Run, folder: Path, *, first: Summary | None = None) -> None:
        """Begin a file in the folder; `first` stands at its beginning."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.run = run
        self._first = first
        self._follower = Follower(run)
        self._read: list[Update] = []  # and not written yet
        self._attempt = 0
        self._writer = EventFileWriter(str(folder))

    def __enter__(self) -> EventFiles:
        if self._first is not None:
            self.add(self._first)
        self._write_job()
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def update(self) -> int:
        """Write the rows since the last call; return how many. Raises StorageError."""
        self._read += [update for update in self._follower.read() if _has_values(update)]
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

    def add(self, summary: Summary) -> None:
        """Write what belongs to no step."""
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=time.time(), step=0, summary=summary))

    def _begin(self, attempt: int, at: float) -> None:
        """Have TensorBoard forget what an attempt repeats."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        claim = next(claim for claim in self.run.claims() if claim.attempt == attempt)
        base = claim.base or claim.origin
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
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.util.tensor_util import make_tensor_proto

        indented = "\n".join(f"    {line}" for line in self.run.job().decode(errors="replace").splitlines())
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        value = Summary.Value(tag="job.yaml", metadata=metadata, tensor=make_tensor_proto([indented.encode()]))
        self.add(Summary(value=[value]))


class SweepFiles:
    """Writes what is new in the trials of a sweep, each to a folder of its own. A context manager."""

    def __init__(self, run: Run, folder: Path, space: Mapping[str, Domain], *, first: Summary | None = None) -> None:
        self._run = run
        self._folder = folder
        self._space = space
        self._follower = Follower(run)
        self._events: list[Mapping[str, Any]] = []
        self._own = EventFiles(run, folder, first=first)  # the sweep's: its job file, and what all trials share
        self._open: dict[str, EventFiles] = {}
        self._done: set[str] = set()

    def __enter__(self) -> SweepFiles:
        self._own.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for files in [self._own, *self._open.values()]:
            files.__exit__()

    def update(self) -> int:
        """Write the rows since the last call; return how many. Raises StorageError."""
        self._events += [update.row for update in self._follower.read() if update.stream == "events"]
        trials = [trial for trial in read_trials(self._events) if trial.id not in self._done]
        with ThreadPoolExecutor(_PARALLEL) as pool:
            return sum(pool.map(self._update, trials))

    def _update(self, trial: Trial) -> int:
        files = self._open.get(trial.id)
        if files is None:
            run = trial_run(self._run, trial.id)
            try:
                run.job()
            except RunNotFoundError:
                return 0  # it has just begun
            start = session_start(trial, f"{trial.id} of {self._run.id}", self._space)
            files = self._open[trial.id] = EventFiles(run, self._folder / trial.id, first=start)
            files.__enter__()
        count = files.update()
        if trial.state in ENDED:
            files.add(session_end(trial))
            files.__exit__()
            self._done.add(trial.id)
            del self._open[trial.id]
        return count


def _has_values(update: Update) -> bool:
    return update.stream == "metrics" or update.row["event"] in ("checkpoint", "checkpoint.skipped")


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield a row's values with their tags: `train/loss`, `eval/accuracy`, `save/blocked` and so on."""
    if "event" in row:
        yield from ((f"save/{name}", float(row[name])) for name in _OF_SAVES if name in row)
        return
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the server too
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
def _open(runs: Sequence[Run], folder: Path) -> Iterator[list[EventFiles | SweepFiles]]:
    """Raises MissingExtraError without TensorBoard, UsageError where the folder holds event files already."""
    if find_spec("tensorboard") is None:
        raise MissingExtraError("this needs TensorBoard, which is not installed here: pip install 'raylift[train]'")
    for run in runs:
        if any((folder / run.id).glob("events.out.tfevents.*")):
            raise UsageError(f"{folder / run.id} holds event files already. Write to another: --logdir DIR")
    tunes = {run.id: tune for run in runs if (tune := _tune(run)) is not None}
    spaces = {name: tune.ordered for name, (tune, _) in tunes.items()}
    shared = experiment(spaces.values(), _metrics(tunes.values())) if tunes else None  # TensorBoard takes one alone
    with contextlib.ExitStack() as stack:
        files: list[EventFiles | SweepFiles] = []
        for run in runs:
            if run.id in tunes:
                files.append(stack.enter_context(SweepFiles(run, folder / run.id, spaces[run.id], first=shared)))
                shared = None
            else:
                files.append(stack.enter_context(EventFiles(run, folder / run.id)))
        yield files


def _tune(run: Run) -> tuple[Tune, str] | None:
    """Return the sweep that a run is, and its task; None where it is none, or another version wrote it."""
    from launcher.spec import load_frozen

    try:
        spec = load_frozen(run.job())
    except UsageError:
        return None
    return (spec.tune, spec.task) if spec.tune is not None else None


def _metrics(tunes: Iterable[tuple[Tune, str]]) -> list[str]:
    """Return the tags of what trials are evaluated by, first of all of what they are compared by."""
    from trainers.tuning import metric_of, metrics_of

    names = [name for tune, task in tunes for name in (metric_of(tune, task)[0], *metrics_of(task))]
    return [_PREFIXES["eval"] + name.removeprefix("eval_") for name in dict.fromkeys(names)]
