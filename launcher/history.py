"""All of a run that can be told afterwards, read from storage once, and what follows from it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cluster.errors import UsageError
from cluster.records import Checkpoint, Claim, Result, counted
from cluster.runs import Run
from launcher.goodput import Goodput, Rows, measure
from launcher.spec import JobSpec, load_frozen
from launcher.status import Summary, as_it_stands, summarize
from launcher.sweeps import Sweep, read_sweep


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """What a report shows; times are seconds since the epoch."""

    summary: Summary
    job: str  # the frozen job file
    spec: JobSpec | None = None  # the same, where this version can read it
    created: float
    made: float
    claims: Sequence[Claim]
    results: Mapping[int, Result]  # of the attempts that ended with one
    checkpoints: Sequence[Checkpoint]
    metrics: Rows
    events: Rows
    goodput: Goodput | None = None  # None before the first claim, and of a sweep
    sweep: Sweep | None = None
    version: str = ""  # of the raylift that makes the report

    @property
    def what(self) -> str:
        """The job in a line."""
        return _what(self.spec) if self.spec is not None else ""

    @cached_property
    def training(self) -> Mapping[str, Any]:
        """The newest event that training began; empty where it never did."""
        return self.newest("training")

    @property
    def steps_per_epoch(self) -> int | None:
        return self.training.get("steps_per_epoch")

    @cached_property
    def ended(self) -> float:
        """When the run ended, was last heard of, or, where it goes on, when this was read."""
        if not self.summary.state.is_final:
            return self.made
        newest = self.results.get(self.claims[-1].attempt) if self.claims else None
        if newest is not None:
            return newest.at
        return max([self.created, *(float(row["time"]) for row in [*self.events, *self.metrics])])

    def newest(self, event: str) -> Mapping[str, Any]:
        return next((row for row in reversed(self.events) if row["event"] == event), {})


def gather(run: Run) -> ReportData:
    """Read a run's folder. Raises RunNotFoundError, StorageError."""
    summary = summarize(run, brief=True)
    job = run.job()
    claims = run.claims()
    results = run.results()
    events, metrics = run.all_rows("events"), run.all_rows("metrics")
    sweep = as_it_stands(read_sweep(events), summary.state)
    return ReportData(
        summary=summary,
        job=job.decode(errors="replace"),
        spec=_spec(job),
        created=next(entry.modified for entry in run.storage.list(run.path("job.yaml"))),
        made=time.time(),
        claims=claims,
        results=results,
        checkpoints=run.checkpoints(),
        metrics=counted(metrics, claims),
        events=events,
        goodput=measure(claims, results, events, metrics) if sweep is None else None,
        sweep=sweep,
        version=_version(),
    )


def ending_of(data: ReportData, claim: Claim) -> tuple[str, str]:
    """Return in a word and a sentence how an attempt ended."""
    result = data.results.get(claim.attempt)
    if result is not None:
        return result.state, result.message
    resizing = [row for row in data.events if row["attempt"] == claim.attempt and row["event"] == "resizing"]
    if resizing:
        return "RESIZED", "all was saved, to go on with another number of ranks"
    told = [row["reason"] for row in data.events if row["attempt"] == claim.attempt and row["event"] == "recovering"]
    if told:
        return "LOST", str(told[-1])
    if claim is data.claims[-1]:
        return data.summary.state, data.summary.reason
    return "LOST", "it ended without a word: killed, or its machine was lost"


def _spec(job: bytes) -> JobSpec | None:
    try:
        return load_frozen(job)
    except UsageError:  # another version wrote it
        return None


def _what(spec: JobSpec) -> str:
    optimizer = spec.train.optimizer
    length = f"{spec.train.max_steps} steps" if spec.train.max_steps else f"{spec.train.epochs or 1} epochs"
    parts = {
        "data.train": spec.task if spec.is_own else f"{spec.task}: {spec.model.name} on {spec.data.train}",
        "train.optimizer": optimizer.name + (f", lr {optimizer.lr:g}" if optimizer.lr else ""),
        "train.batch_size": f"batch size {spec.train.batch_size}",
        "train.epochs": length,
        "train.seed": f"seed {spec.train.seed}",
    }
    searched = list(spec.tune.space or {}) if spec.tune is not None else []
    said = [text for key, text in parts.items() if not any(name.startswith(key) for name in searched)]
    if spec.tune is not None:
        said.append(f"search: {spec.tune.search.name}, scheduler: {spec.tune.scheduler.name}")
    return " · ".join(said)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("raylift")
    except PackageNotFoundError:  # a checkout that is not installed
        return ""
