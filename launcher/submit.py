"""spec -> plan -> run record -> provider. A dry run is the first half of the same way."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.bundles import own_code
from cluster.config import KubernetesCluster, LocalCluster
from cluster.errors import MaybeLaunchedError, UsageError
from cluster.job_file import freeze, in_order
from cluster.provider import LaunchRequest, Plan, Provider, State
from cluster.redaction import SHORTEST
from cluster.registry import open_provider
from cluster.runs import RUN_ID, Run, new_run_id
from cluster.storage.open import check_storage, open_storage
from cluster.trials import sweep_of
from launcher.interrupts import Interrupts
from launcher.remote import clear_remote, launch_of, remote_of
from launcher.text import typed

if TYPE_CHECKING:
    from cluster.bundles import Bundle
    from launcher.spec import JobSpec, LoadedJob
    from launcher.status import Summary

_SILENCE = 60.0  # seconds; a run on another machine shows a sign of life every twenty


@dataclass(frozen=True)
class Submission:
    """A job that is about to become a run."""

    spec: JobSpec
    document: bytes  # the frozen job file
    request: LaunchRequest
    plan: Plan
    provider: Provider
    bundle: Bundle | None = None  # of this raylift, for pods without it
    code: Bundle | None = None  # of the user's own


def prepare(job: LoadedJob, run_id: str | None = None) -> Submission:
    """Work out what a launch would create; nothing is created."""
    run_id = check_run_id(run_id or new_run_id(job.spec.name))
    request, made = _request(job.spec, run_id, str(job.spec.storage))
    provider = open_provider(job.spec.cluster)
    document = freeze(in_order(job.document))
    return Submission(job.spec, document, request, provider.render(request), provider, made, _code(job.spec, run_id))


def submit(submission: Submission) -> Run:
    """Create the run and launch it. Raises RunExistsError, StorageError, InfrastructureError.

    A run whose launch fails leaves nothing in storage, unless its job may be there: that is found by what storage has.
    """
    storage = open_storage(str(submission.spec.storage))
    check_storage(storage)
    run = Run(storage, submission.request.run_id)
    with ExitStack() as undo:
        with Interrupts() as interrupts:  # in the midst of it, a Ctrl-C would leave there what nobody undoes
            run.create(submission.document)
            undo.callback(run.delete)
        if interrupts.count:
            raise KeyboardInterrupt
        for bundle in filter(None, (submission.bundle, submission.code)):
            storage.write(bundle.path, bundle.data)
        try:
            submission.provider.launch(submission.request)
        except MaybeLaunchedError:
            undo.pop_all()
            raise
        undo.pop_all()
    return run


def check_run_id(run_id: str) -> str:
    """Return an id that a run may have. Raises UsageError."""
    if not RUN_ID.fullmatch(run_id):
        raise UsageError(f"--id {run_id!r}: a run's id is of lower-case letters, digits and dashes, at most 40")
    return run_id


def from_this_shell(names: Sequence[str]) -> dict[str, str]:
    """Return variables that are to be kept secret. Raises UsageError where one is not set, or cannot be."""
    absent = [name for name in names if not os.environ.get(name)]
    short = [name for name in names if name not in absent and len(os.environ[name]) < SHORTEST]
    if absent:
        raise UsageError(f"secrets: {', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not set in this shell")
    if short:
        raise UsageError(
            f"secrets: {', '.join(short)}: what has fewer than {SHORTEST} characters cannot be kept out of the logs"
        )
    return {name: os.environ[name] for name in names}


def bundle_for(cluster: KubernetesCluster, run_id: str | None) -> Bundle | None:
    """Return what the pods of a run, or of a cluster with a name, fetch: raylift, unless their image has it."""
    if cluster.image is not None:
        return None
    from launcher.bundle import bundle

    return bundle(run_id, on_gpus=cluster.accelerators is not None)


def _request(spec: JobSpec, run_id: str, storage: str) -> tuple[LaunchRequest, Bundle | None]:
    """Return the launch of a run, and what its pods fetch. Raises UsageError, also where a cluster does not fit."""
    cluster, storage = spec.cluster, storage.rstrip("/")
    named = cluster.name if isinstance(cluster, KubernetesCluster) else None
    request = LaunchRequest(
        run_id=run_id,
        run_uri=f"{storage}/{run_id}",
        cluster=cluster,
        max_failures=spec.train.max_failures,
        deadline=_deadline(spec),
        env=spec.env,
        # the pods of a cluster with a name have them already
        secrets=from_this_shell(spec.secrets) if named is None else dict.fromkeys(spec.secrets, ""),
    )
    if not isinstance(cluster, KubernetesCluster):
        return request, None
    from cluster import code  # late: on this machine nobody asks for it, and it reads all our modules

    request = replace(request, code=code.digest())
    if named is not None:
        from cluster.kubernetes.clusters import NamedClusters

        return NamedClusters(cluster).place(request), None
    if (made := bundle_for(cluster, run_id)) is not None:
        request = replace(request, bundle=f"{storage}/{made.path}")
    return request, made


def _code(spec: JobSpec, run_id: str) -> Bundle | None:
    if spec.workdir is None:
        return None
    from launcher.workdir import pack

    return pack(Path(spec.workdir), spec.task, run_id, str(spec.storage))


def _deadline(spec: JobSpec) -> int | None:
    """Return for how many seconds the budget lasts, in time and in money."""
    if (budget := spec.budget) is None:
        return None
    hours = [] if budget.max_hours is None else [budget.max_hours]
    if budget.max_usd is not None and (price := spec.cluster.usd_per_hour) is not None:
        hours.append(budget.max_usd / price)
    return max(1, round(min(hours) * 3600))


def relaunch(run: Run, agree: Callable[[float], object] = lambda _: None) -> Provider:
    """Go on with a run as it was submitted; where that costs so many dollars an hour, `agree` is asked first.

    Raises UsageError where it runs still, or has nothing left to do, NewerFormatError, and what `agree` raises: then
    nothing has changed.
    """
    from launcher.spec import load_frozen
    from launcher.status import is_launched_anew, tear_down

    provider = open_provider((spec := load_frozen(run.job())).cluster)
    if spec.is_own:
        own_code(run)  # which the laptop may not have lived to upload
    request, made = _request(spec, run.id, run.storage.uri)
    remote = remote_of(run)
    over = launch_of(run, remote) if remote is not None else None
    newest = max(run.attempts(), default=0)
    has_begun = not is_launched_anew(run, newest)  # else: a launch that nobody saw to its end is completed
    if has_begun:
        _refuse_while_held(run)
        check_storage(run.storage)
        run.checkpoints()  # those that a newer raylift wrote would end the driver before it could say so
    if price := provider.render(request).usd_per_hour:
        agree(price)
    if not has_begun and max(run.attempts(), default=0) > newest:
        _refuse_while_held(run)  # its driver has come to life meanwhile
    if has_begun:
        if remote is not None:
            clear_remote(run, remote, over)  # a RayJob that is over
        else:
            tear_down(run)  # what a killed supervisor left behind
    request = replace(request, newest_attempt=max(run.attempts(), default=0))
    if made is not None:
        run.storage.write(made.path, made.data)
    run.withdraw_stop()
    if remote is not None and has_begun:
        run.note_launch(after=request.newest_attempt)
    provider.launch(request)
    return provider


def _refuse_on_less(run: Run) -> None:
    """Raise UsageError where a trial by itself would train on this machine's processors, and in its sweep does not."""
    from launcher.spec import load_frozen
    from launcher.sweeps import has_gpus

    if (sweep := sweep_of(run)) is None:
        return
    is_here = isinstance(load_frozen(sweep.job()).cluster, LocalCluster)
    if not is_here or has_gpus(sweep):
        where = "GPUs" if is_here else "a cluster"
        raise UsageError(f"a trial of a sweep on {where} goes on with that alone: raylift resume {typed(sweep.uri)}")


def _refuse_while_held(run: Run) -> None:
    from launcher.status import is_running, summarize

    _refuse_on_less(run)
    refuse_while_its_sweep_runs(run)
    summary = summarize(run, brief=True)
    if summary.state is State.SUCCEEDED:
        raise UsageError(
            f"{run.uri} has succeeded: there is nothing to resume. Export it: raylift export {typed(run.uri)} DIR"
        )
    if summary.state is State.PRUNED and summary.trial_of:
        raise UsageError(f"{run.id} was ended early by its sweep, which alone decides about its trials")
    if is_running(run):
        where = "on this machine" if remote_of(run) is None else "on its cluster"
        raise UsageError(f"{run.uri} is running already, {where}. Follow it: raylift logs -f {typed(run.uri)}")
    if remote_of(run) is None:  # a cluster has been asked
        refuse_while_heard_of(run, summary)


def refuse_while_running(run: Run) -> None:
    """Raise UsageError where a run may be alive, on this machine or another: what it needs must not be taken away."""
    from launcher.status import is_running, summarize

    refuse_while_its_sweep_runs(run)
    if is_running(run):
        raise UsageError(f"{run.uri} is running. Stop it first: raylift stop {typed(run.uri)}")
    if remote_of(run) is None:
        refuse_while_heard_of(run, summarize(run, brief=True))


def refuse_while_its_sweep_runs(run: Run) -> None:
    """Raise UsageError where a run is a trial of a sweep that may be alive: that alone decides about its trials."""
    if (sweep := sweep_of(run)) is None:
        return
    try:
        refuse_while_running(sweep)
    except UsageError as error:
        raise UsageError(f"{run.id} is a trial of a sweep: {error}") from error


def refuse_while_heard_of(run: Run, summary: Summary) -> None:
    """Raise UsageError where another machine runs it: that shows a sign of life every few seconds."""
    heard = run.last_heard()
    if summary.state is State.RUNNING and heard is not None and time.time() - heard < _SILENCE:
        raise UsageError(
            f"{run.uri} is running already, on {summary.host}: heard from it {time.time() - heard:.0f} s ago. "
            f"Stop it first: raylift stop {typed(run.uri)}"
        )
