"""The public names of raylift, each imported when it is first used.

    import raylift

    run = raylift.run("job.yaml")          # returns once the job is accepted
    raylift.status(run.id).state           # a raylift.State

A job may also be made in Python, of the same classes that a job file is checked against:

    job = raylift.JobSpec(task="image-classification", data=raylift.Data(train="builtin:digits"))
    raylift.run(job)
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cluster.config import KubernetesCluster, LocalCluster
    from cluster.errors import RayliftError
    from cluster.provider import State
    from cluster.runs import Run
    from launcher.spec import JobSpec, LoadedJob
    from launcher.status import Summary
    from trainers.config import (
        Augment,
        Budget,
        Checkpoint,
        Clean,
        Data,
        EarlyStopping,
        Every,
        Loss,
        MeanStd,
        Model,
        Optimizer,
        Schedule,
        Split,
        Train,
        TrainJob,
    )
    from trainers.metrics import ClassMetrics
    from trainers.tasks.base import Dataset, Draw, Task
    from trainers.tuning import Domain, Scheduler, Search, Tune

__all__ = [
    "Augment",
    "Budget",
    "Checkpoint",
    "ClassMetrics",
    "Clean",
    "Data",
    "Dataset",
    "Domain",
    "Draw",
    "EarlyStopping",
    "Every",
    "JobSpec",
    "KubernetesCluster",
    "LocalCluster",
    "Loss",
    "MeanStd",
    "Model",
    "Optimizer",
    "RayliftError",
    "Run",
    "Schedule",
    "Scheduler",
    "Search",
    "Split",
    "State",
    "Summary",
    "Task",
    "Train",
    "TrainJob",
    "Tune",
    "run",
    "status",
]

_ELSEWHERE = {
    "ClassMetrics": "trainers.metrics",
    "Dataset": "trainers.tasks.base",
    "Domain": "trainers.tuning",
    "Draw": "trainers.tasks.base",
    "JobSpec": "launcher.spec",
    "KubernetesCluster": "cluster.config",
    "LocalCluster": "cluster.config",
    "RayliftError": "cluster.errors",
    "Run": "cluster.runs",
    "Scheduler": "trainers.tuning",
    "Search": "trainers.tuning",
    "State": "cluster.provider",
    "Summary": "launcher.status",
    "Task": "trainers.tasks.base",
    "Tune": "trainers.tuning",
}


_PACKAGES = ("cluster", "launcher", "trainers")


def main() -> None:
    """Run the command line."""
    try:
        _check_packages()
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    from launcher.cli.main import main as run_command_line

    run_command_line()


def run(
    job: str | Path | JobSpec,
    *,
    overrides: Sequence[str] = (),
    storage: str | None = None,
    run_id: str | None = None,
) -> Run:
    """Start a job file, or a job made in Python, and return its run without waiting for its end.

    `overrides` are what --set takes on the command line, for a job file. Local paths start at the job file's folder,
    or in the working folder where there is no file. Raises RayliftError.
    """
    _check_packages()
    from launcher.spec import JobSpec, load
    from launcher.submit import prepare, submit

    loaded = _settle(job, storage) if isinstance(job, JobSpec) else load(job, overrides=overrides, storage=storage)
    return submit(prepare(loaded, run_id))


def status(run: str | Run, *, storage: str | None = None) -> Summary:
    """Return where a run stands, by its id, its URI or what `run` returned. Raises RunNotFoundError."""
    _check_packages()
    from cluster.runs import Run
    from launcher.settings import resolve_run
    from launcher.status import summarize

    if isinstance(run, Run):
        return summarize(run)
    return summarize(Run.at(resolve_run(run, storage)))


def _settle(job: JobSpec, storage: str | None) -> LoadedJob:
    """Do for a job made in Python what loading does for a file: find its data and its storage."""
    from launcher.mistakes import JobFileError
    from launcher.searched import check_space, settle_space
    from launcher.settings import default_storage
    from launcher.sources import settle_sources
    from launcher.spec import JobSpec, LoadedJob, frozen, settle_code
    from launcher.yaml_source import parse_option

    given = {key: value for key, value in frozen(job).items() if value is not None}  # `tune:` alone makes a sweep
    document = parse_option(json.dumps(given), "JobSpec", "")
    document.value["storage"] = default_storage(storage or job.storage)
    settle_sources(document, Path.cwd())
    settle_code(document, Path.cwd())
    settle_space(document, JobSpec)
    document.mistakes += check_space(document, JobSpec, document.mistakes)
    if document.mistakes:
        raise JobFileError(document.mistakes, "the JobSpec")
    spec = JobSpec.model_validate(document.value)
    return LoadedJob(spec, frozen(spec))


def _check_packages() -> None:
    """Raise ImportError where other packages, found earlier on Python's path, have the names of ours."""
    for name in _PACKAGES:
        found = find_spec(name)
        origin = found.origin if found is not None else None
        if origin is not None and Path(origin).resolve().parents[1] != Path(__file__).resolve().parent:
            raise ImportError(
                f"the package {name} in {Path(origin).parents[1]} hides that of raylift: rename it, or take that "
                "folder out of PYTHONPATH"
            )


if not TYPE_CHECKING:  # a type checker then knows the names above, and no others

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        _check_packages()
        globals()[name] = value = getattr(import_module(_ELSEWHERE.get(name, "trainers.config")), name)
        return value


def __dir__() -> list[str]:
    return __all__
