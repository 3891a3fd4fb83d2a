"""The job file: YAML to a validated and frozen JobSpec, or every mistake at once, with its place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from cluster.config import Block, ClusterConfig, KubernetesCluster, LocalCluster, Nodes
from cluster.errors import UsageError
from cluster.spelling import nearest
from launcher import overrides as cli
from launcher import settings
from launcher.mistakes import JobFileError, Mistake, Place
from launcher.searched import check_space, settle_space
from launcher.sources import settle_sources
from launcher.validation import validate
from launcher.yaml_source import Document, parse, read_file
from trainers.config import BUILT_IN_ONLY, OWN_TASK, Budget, TrainJob
from trainers.tuning import Tune, metrics_of

NAME_LENGTH = 22  # <name>-<12 digits>-<4 hex> is then at most 40 characters
_VARIABLE = "[A-Za-z_][A-Za-z0-9_]*"


def _variable(name: str) -> str:
    if not re.fullmatch(_VARIABLE, name):
        raise ValueError(f"{name!r} is no name for a variable: letters, digits and _, no digit first")
    return name


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("the value holds a NUL byte, which no environment can carry")
    return value


class JobSpec(TrainJob):
    """A job file: what to train, on what, and where its run is kept."""

    name: str = Field(
        default="job",
        description=f"lower-case letters, digits and dashes, at most {NAME_LENGTH}; default: the job file's name",
        json_schema_extra={"pattern": "^[a-z][a-z0-9-]*$", "maxLength": NAME_LENGTH},
    )
    cluster: ClusterConfig = LocalCluster()
    storage: str | None = Field(
        default=None,
        description="s3://bucket/prefix, gs://bucket/prefix or a folder, which starts where the command is typed; "
        "default: RAYLIFT_STORAGE, the config file, ./runs",
    )
    workdir: str | None = Field(
        default=None,
        description="the folder with a task of your own, which a run takes along: what git has, or would add and is "
        "not hidden; it starts at the job file, whose folder is the default",
    )
    env: dict[Annotated[str, AfterValidator(_variable)], Annotated[str, AfterValidator(_no_nul)]] = Field(
        default={},
        description="environment variables of the run; their values are text",
        json_schema_extra={"propertyNames": {"pattern": f"^{_VARIABLE}$"}},
    )
    secrets: list[Annotated[str, AfterValidator(_variable)]] = Field(
        default=[],
        description="environment variables of the run by name alone; their values are those of the shell that launches "
        "it, and nothing shows or stores them",
        json_schema_extra={"uniqueItems": True},
    )
    tune: Tune | None = Field(default=None, description="makes a sweep of it: many trials, each with other values")
    budget: Budget | None = Field(default=None, description="what a run or a sweep may take at most")

    @field_validator("name")
    @classmethod
    def _fits_in_a_run_id(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or len(name) > NAME_LENGTH:
            raise ValueError(
                f"{name!r} is no name: lower-case letters, digits and dashes, a letter first, "
                f"at most {NAME_LENGTH} characters; for example {clean_name(name)}"
            )
        return name

    @model_validator(mode="after")
    def _has_code_of_its_own(self) -> JobSpec:
        if self.workdir is not None and not self.is_own:
            raise ValueError(f"workdir: it is for a task of your own, not for {self.task}")
        return self

    @model_validator(mode="after")
    def _says_each_variable_once(self) -> JobSpec:
        if twice := [name for name in self.secrets if name in self.env or self.secrets.count(name) > 1]:
            raise ValueError(
                f"secrets: {twice[0]} is there twice: a variable is either in env, with its value, or here"
            )
        return self

    @model_validator(mode="after")
    def _can_be_paid(self) -> JobSpec:
        if self.budget is not None and self.budget.max_usd is not None and self.cluster.usd_per_hour is None:
            raise ValueError("budget.max_usd: it needs cluster.usd_per_hour, what the cluster costs an hour")
        return self

    @model_validator(mode="after")
    def _has_a_node_to_begin_on(self) -> JobSpec:
        if self.tune is None and isinstance(self.cluster.nodes, Nodes) and not self.cluster.nodes.min:
            raise ValueError("cluster.nodes.min: 0 is for sweeps, whose trials ask for nodes; a run needs 1 or more")
        return self

    @model_validator(mode="after")
    def _can_be_tuned(self) -> JobSpec:
        if self.tune is None:
            return self
        if not self.is_own and self.data.eval is None:
            raise ValueError("tune: it needs data.eval, as trials are compared by an evaluation: eval: {split: 0.2}")
        most, each = self.cluster.most_workers, self.tune.workers_per_trial
        if most is not None and most < each:
            raise ValueError(f"tune.workers_per_trial: a trial has {each}, and the cluster no more than {most} in all")
        on_pods = isinstance(self.cluster, KubernetesCluster) and self.cluster.accelerators is None
        if on_pods and most is not None and 1 < each == most:
            raise ValueError(
                f"tune.workers_per_trial: a trial of {each} takes {each + 1} pods, one for the process that looks "
                f"after it, and the cluster has no more than {most}"
            )
        return self

    @model_validator(mode="after")
    def _knows_its_metrics(self) -> JobSpec:
        stopping = self.train.early_stopping
        named = {
            "tune.metric": self.tune.metric if self.tune is not None else None,
            "checkpoint.metric": self.checkpoint.metric,
            "train.early_stopping.metric": stopping.metric if stopping is not None else None,
        }
        known = metrics_of(self.task)
        for key, metric in named.items():
            if metric is None:
                continue
            if not self.is_own and self.data.eval is None and key == "checkpoint.metric":
                raise ValueError(f"{key}: it needs data.eval, which measures it: eval: {{split: 0.2}}")
            if self.is_own and not metric.startswith("eval_"):
                raise ValueError(f"{key}: it is eval_loss, or eval_ and a name of your metrics, not {metric}")
            if not self.is_own and metric not in known:
                raise ValueError(
                    f"{key}: {self.task} has no {metric!r}; it has {', '.join(known)}{nearest(metric, known)}"
                )
        return self

    @model_validator(mode="after")
    def _is_reached_by_its_cluster(self) -> JobSpec:
        if isinstance(self.cluster, LocalCluster):
            return self
        if self.storage is not None and "://" not in self.storage:
            raise ValueError(
                f"storage: {self.storage} is on this machine, where no pod sees it: write s3://bucket/prefix or "
                "gs://bucket/prefix"
            )
        for key, source in (("data.train", self.data.train), ("data.eval", self.data.eval)):
            if isinstance(source, str) and source.startswith(("/", "file://")):
                raise ValueError(f"{key}: {source} is on this machine, where no pod sees it: upload it to a bucket")
        return self


class _OnlyCluster(Block):
    """The cluster block, by itself."""

    cluster: ClusterConfig


@dataclass(frozen=True)
class LoadedJob:
    """A job that is ready to run."""

    spec: JobSpec
    document: dict[str, Any]  # what to freeze: every default written out, local paths absolute


def load(
    path: str | Path,
    *,
    overrides: Sequence[str] = (),
    on: str | None = None,
    name: str | None = None,
    storage: str | None = None,
    env: Sequence[str] = (),
    secrets: Sequence[str] = (),
    cluster: str | None = None,
) -> LoadedJob:
    """Read a job file and what the command line changes in it.

    `overrides` are `key=value` of --set, `env` is `NAME=value` of --env, `secrets` are names of --secret, `on` is a
    file with a cluster block or the name of one in the user's config file, and `cluster` one that is up. Later ones
    win: file, on, overrides, then name, storage, env, secrets and cluster.
    Raises JobFileError with every mistake, or UsageError where there is no such file.
    """
    path = Path(path)
    document = _read(path)
    if isinstance(document.value, dict):
        _change(document, overrides, on, name, storage, env, secrets)
        cli.put_named_cluster(document, cluster)
        document.value.setdefault("name", clean_name(path.stem))
        settle_sources(document, path.absolute().parent)
        settle_code(document, path.absolute().parent)
        _settle_storage(document)
        settle_space(document, JobSpec)
    spec, mistakes = validate(JobSpec, document)
    mistakes += check_space(document, JobSpec, mistakes)
    if spec is None or mistakes:
        raise JobFileError(mistakes, str(path))
    return LoadedJob(spec, frozen(spec))


def settle_code(document: Document, folder: Path) -> None:
    """Find the code of a task of one's own, from the folder of the job file; no other has any."""
    if re.fullmatch(OWN_TASK, str(document.get(("task",)))):
        from launcher.workdir import settle_workdir  # late: no other job pays for what it imports

        settle_workdir(document, folder)


def frozen(spec: JobSpec) -> dict[str, Any]:
    """Return what of a job is frozen with its run."""
    return spec.model_dump(mode="json", exclude=set(BUILT_IN_ONLY) if spec.is_own else None)


def as_written(document: dict[str, Any]) -> dict[str, Any]:
    """Return a frozen job as a person would write it: without what is so by default.

    It stays whole where this version cannot read it.
    """
    spec, _ = validate(JobSpec, Document(document, {(): Place("job.yaml")}))
    if spec is None:
        return document
    return {"name": spec.name, **spec.model_dump(mode="json", exclude_defaults=True)}  # else that of the file it is in


def load_cluster(on: str) -> ClusterConfig:
    """Return the cluster block of a file, or of a name in the user's config file. Raises JobFileError, UsageError."""
    document = Document({}, {(): Place(on)})
    cli.put_cluster(document, on)
    found, mistakes = validate(_OnlyCluster, document)
    if found is None:
        raise JobFileError(mistakes, on)
    return found.cluster


def load_frozen(job: bytes) -> JobSpec:
    """Return the job of a run from its frozen job.yaml. Raises JobFileError where this version cannot read it."""
    spec, mistakes = validate(JobSpec, parse(job.decode(), "job.yaml"))
    if spec is None:
        raise JobFileError(mistakes, "the run's job.yaml, which another version of raylift may have written")
    return spec


def clean_name(text: str) -> str:
    """Return the nearest name that a job may have."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not words[:1].isalpha():
        words = f"job-{words}"
    return words[:NAME_LENGTH].strip("-")


def _read(path: Path) -> Document:
    if path.is_file():
        return read_file(path, str(path))
    folder = path if path.is_dir() else path.parent
    what = "is a folder" if path.is_dir() else "does not exist"
    names = sorted(each.name for each in folder.glob("*.y*ml")) if folder.is_dir() else []
    if not names:
        raise UsageError(f"{path} {what}, and there is no job file in {folder}. Write one: raylift init")
    raise UsageError(f"{path} {what}; job files in {folder}: {', '.join(names)}{nearest(path.name, names)}")


def _change(
    document: Document,
    overrides: Sequence[str],
    on: str | None,
    name: str | None,
    storage: str | None,
    env: Sequence[str],
    secrets: Sequence[str],
) -> None:
    if on is not None:
        cli.put_cluster(document, on)
    cli.put_settings(document, overrides, JobSpec)
    cli.put_text(document, ("name",), name, "--name")
    cli.put_text(document, ("storage",), storage, "--storage")
    cli.put_env(document, env)
    cli.put_secrets(document, secrets)


def _settle_storage(document: Document) -> None:
    given = document.value.get("storage")
    try:
        if given is None:
            document.value["storage"] = settings.default_storage(None)
        elif isinstance(given, str):
            document.value["storage"] = settings.absolute(given)
    except UsageError as error:
        document.mistakes.append(Mistake(document.place(("storage",)), ("storage",), str(error)))
