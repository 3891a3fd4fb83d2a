"""A job run twice on this machine, shortened: once left alone, once through faults; and what difference that made."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.config import ClusterConfig, LocalCluster
from cluster.errors import InfrastructureError, TrainingError, UsageError
from cluster.local import processes_of, scratch_folder
from cluster.runs import Run, new_run_id
from cluster.storage.rehearsed import OUTAGE, REHEARSAL
from launcher.spec import load
from launcher.status import summarize, tear_down
from launcher.submit import prepare, submit
from launcher.verdict import Verdict, compare
from launcher.watch import Follower

if TYPE_CHECKING:
    from launcher.spec import LoadedJob
    from launcher.watch import Update

_SAVES = 8  # in the disturbed run, beside those that faults bring
_ATTEMPTS = 20
_ENDED = 30.0  # seconds that the processes of a run may take to go


class Fault(StrEnum):
    """What a rehearsal can do to a run."""

    KILL_WORKER = "kill-worker"
    KILL_DRIVER = "kill-driver"
    FREEZE_WORKER = "freeze-worker"
    PREEMPT = "preempt"
    STORAGE_503 = "storage-503"


@dataclass(frozen=True)
class Met:
    """A fault that came, and what it cost."""

    fault: Fault
    step: int
    lost: float | None  # seconds from the fault to the next step that was new; None where none came


@dataclass(frozen=True)
class Rehearsal:
    """What came of it."""

    undisturbed: Run
    disturbed: Run
    met: Sequence[Met]
    verdict: Verdict
    left: Sequence[str]  # processes that should be gone
    ended: str  # why the disturbed run did not end well; an empty text where it did

    @property
    def passed(self) -> bool:
        return self.verdict.equal and not self.left and not self.ended

    def as_dict(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "undisturbed": self.undisturbed.uri,
            "disturbed": self.disturbed.uri,
            "faults": [asdict(one) for one in self.met],
            "verdict": self.verdict.as_dict(),
            "left": list(self.left),
            "ended": self.ended,
        }


@dataclass(frozen=True)
class Job:
    """The job to rehearse, as the command line gives it."""

    file: str
    overrides: Sequence[str]
    storage: str | None
    steps: int

    def load(self, *settings: str) -> LoadedJob:
        """Return it shortened, with a row for every step, on a Ray of its own here, and what `settings` change."""
        job = self._load(*settings)
        here = on_this_machine(job.spec.cluster)
        return job if here is None else self._load(*settings, here)

    def moved(self) -> str | None:
        """Return the setting by which it comes to this machine; None where it is of this one."""
        return on_this_machine(self._load().spec.cluster)

    def _load(self, *settings: str) -> LoadedJob:
        short = ("train.log_every=1", f"train.max_steps={self.steps}", f"train.max_failures={_ATTEMPTS}")
        job = load(self.file, overrides=[*self.overrides, *short, *settings], storage=self.storage)
        if job.spec.tune is not None:
            raise UsageError(f"{self.file} is a sweep: rehearse compares two runs of one training")
        return job


def on_this_machine(cluster: ClusterConfig) -> str | None:
    """Return the setting that has a job run here instead, where faults can come; None where it does."""
    if isinstance(cluster, LocalCluster) and cluster.address is None:
        return None
    workers = min(cluster.most_workers or 1, os.cpu_count() or 1)
    price = f", usd_per_hour: {cluster.usd_per_hour}" if cluster.usd_per_hour is not None else ""  # a budget wants it
    return f"cluster={{provider: local, workers: {workers}{price}}}"


def choose(asked: Sequence[Fault], storage: str) -> list[Fault]:
    """Return the faults to rehearse: those asked for, or all that can be. Raises UsageError."""
    in_a_bucket = "://" in storage and not storage.startswith("file://")
    if Fault.STORAGE_503 in asked and not in_a_bucket:
        raise UsageError(f"--storage-503 is for a bucket, and {storage} is a folder: add --storage s3://BUCKET/PREFIX")
    return list(asked) or [fault for fault in Fault if in_a_bucket or fault is not Fault.STORAGE_503]


def rehearse(job: Job, faults: Sequence[Fault], show: Callable[[str, Update], None]) -> Rehearsal:
    """Run the job twice and compare; blocks. `show` is told of every update, and of which run it is.

    Raises TrainingError where the job fails without any fault.
    """
    undisturbed = _run(job.load("checkpoint.every=1000000 steps"), "undisturbed", show)
    summary = summarize(undisturbed)
    if summary.exit_code != 0 or not summary.last_step:
        raise TrainingError(f"the job fails without any fault: {summary.reason}. See: raylift logs {undisturbed.uri}")
    plan = place(faults, summary.last_step)
    every = max(1, summary.last_step // _SAVES)
    with _planned(plan) as folder:
        disturbed = _run(job.load(f"checkpoint.every={every} steps"), "disturbed", show)
        came = [json.loads(path.read_text()) for path in sorted(folder.glob("*-*.json"))]
    missing = {*plan.values()} - {Fault(row["fault"]) for row in came}
    if missing:
        raise InfrastructureError(f"{', '.join(sorted(missing))} never came: see raylift logs {disturbed.uri}")
    left = _left_of(disturbed)
    met = [Met(Fault(row["fault"]), row["step"], time_lost(disturbed, row["step"], row["at"])) for row in came]
    met.sort(key=lambda one: one.step)
    return Rehearsal(undisturbed, disturbed, met, compare(undisturbed, disturbed), left, how_it_ended(disturbed))


def how_it_ended(run: Run) -> str:
    """Return what is wrong with the end of a run, or with the checkpoint of it; an empty text where nothing is."""
    summary = summarize(run)
    if summary.exit_code != 0:
        return f"it is {summary.state}: {summary.reason}"
    newest = run.newest_intact(read=True)
    if newest is None or newest.step != summary.step:  # which an early end may have made the last
        last = f"that of step {newest.step}" if newest is not None else "none"
        return f"its last step is {summary.step}, and the newest checkpoint that is intact is {last}"
    return ""


def place(faults: Sequence[Fault], last_step: int) -> dict[int, Fault]:
    """Spread faults evenly over a run's steps; return them by the step after which they come. Raises UsageError."""
    steps = [last_step * (number + 1) // (len(faults) + 1) for number in range(len(faults))]
    if len({*steps} - {0}) < len(faults):
        raise UsageError(f"{len(faults)} faults need more steps than the {last_step} of this job: raise --steps")
    return dict(zip(steps, faults, strict=True))


def time_lost(run: Run, step: int, at: float) -> float | None:
    """Return the seconds from a fault after `step` to the next step that had not been done before."""
    rows = [row for row in run.all_rows("metrics") if row["kind"] == "step" and row["step"] > step]
    after = [row["time"] for row in rows if row["time"] > at]
    return min(after) - at if after else None


def _run(job: LoadedJob, name: str, show: Callable[[str, Update], None]) -> Run:
    submission = prepare(job, new_run_id(f"rehearse-{job.spec.name}"[:22].rstrip("-")))
    run = submit(submission)
    try:
        for update in Follower(run).follow():
            if update is not None:
                show(name, update)
    except BaseException:
        tear_down(run)
        raise
    _left_of(run)
    return run


@contextmanager
def _planned(plan: Mapping[int, Fault]) -> Iterator[Path]:
    """Have the runs that start in this block meet the planned faults, each once."""
    with tempfile.TemporaryDirectory(prefix="raylift-rehearsal-") as name:
        folder = Path(name)
        (folder / "plan.json").write_text(json.dumps(plan))
        ours = {REHEARSAL: name, OUTAGE: str(folder / "outage"), "RAYLIFT_S3_TRANSFER": "classic"}
        before = {key: os.environ.get(key) for key in ours}
        os.environ.update(ours)
        try:
            yield folder
        finally:
            for key, value in before.items():
                os.environ.pop(key) if value is None else os.environ.update({key: value})


def _left_of(run: Run) -> list[str]:
    """Return what is left of a run that is over, after a while in which it may go."""
    scratch, deadline = scratch_folder(run.id), time.monotonic() + _ENDED
    while (left := processes_of(scratch)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [f"{process.pid} {process.name()}" for process in left]
