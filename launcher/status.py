"""Where a run stands, worked out from its folder and, on the machine it runs on, from its processes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cluster.errors import InfrastructureError, NewerFormatError, RunNotFoundError, UsageError
from cluster.local import LocalProvider
from cluster.provider import OnWait, Receipt, State
from cluster.records import Claim, Result, counted
from cluster.runs import Run
from cluster.trials import ENDED, sweep_of
from launcher.display import describe_event
from launcher.goodput import Goodput, measure
from launcher.remote import describe, look, may_be_remote, remote_of, tear_down_remote
from launcher.sweeps import Sweep, read_sweep
from launcher.text import typed


@dataclass(frozen=True)
class Summary:
    """A run in a few words; what is not known yet is None."""

    id: str
    uri: str
    state: State
    reason: str = ""
    attempt: int = 0
    step: int = 0
    last_step: int | None = None
    epoch: int | None = None
    loss: float | None = None
    samples_per_s: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoints: tuple[int, ...] = ()
    restarts: int = 0
    ranks: int | None = None
    host: str = ""
    exit_code: int | None = None
    traceback: str = ""  # of the user's own code, where that failed
    data: dict[str, Any] = field(default_factory=dict)
    goodput: Goodput | None = None
    sweep: Sweep | None = None  # of many trials; what there is of metrics is then the best one's
    trial_of: str = ""  # the URI of its sweep

    def as_dict(self) -> dict[str, Any]:
        """Return it for programs; times are in seconds."""
        found = {**asdict(replace(self, sweep=None)), "sweep": self.sweep.as_dict() if self.sweep is not None else None}
        return {**found, "goodput": self.goodput.as_dict() if self.goodput is not None else None}


def summarize(run: Run, *, brief: bool = False) -> Summary:
    """Read a run's folder; `brief` leaves out what needs its metrics. Raises RunNotFoundError."""
    job, claims = run.job(), run.claims()
    sweep = sweep_of(run)
    trial_of = sweep.uri if sweep is not None else ""
    trained_by = None if sweep is None or _has_processes(run) else sweep  # it may have been resumed alone
    if not claims:
        before = _before_claim(run, brief=brief) if trained_by is None else _as_trial(run, trained_by)
        return Summary(run.id, run.uri, *before, trial_of=trial_of)
    newest = claims[-1]
    if trained_by is not None and newest.launch not in {claim.launch for claim in trained_by.claims()}:
        trained_by = None
    result = run.result_of(newest.attempt)
    if result is not None and result.state in (State.STOPPED, State.PRUNED) and trained_by is not None:
        result = _as_its_sweep_tells(run, trained_by, result)
    if result is not None and not brief and may_be_remote(job) and _is_launched_anew(run, newest.attempt):
        result = None
    common: dict[str, Any] = {"attempt": newest.attempt, "restarts": len(claims) - 1, "host": newest.host}
    common["trial_of"] = trial_of
    if result is not None:
        common |= {"exit_code": result.exit_code, "traceback": result.traceback}
        if result.step:  # what failed has none
            common |= {"step": result.step, "metrics": dict(result.metrics)}
        state, reason = State(result.state), result.message
    else:
        told = _while_it_runs(run, newest, brief=brief) if trained_by is None else _as_trial(run, trained_by)
        state, reason = told
    if brief:
        return Summary(run.id, run.uri, state, reason, **common)
    found = {**_progress(run, claims), **common}
    try:
        found["checkpoints"] = tuple(checkpoint.step for checkpoint in run.checkpoints())
    except NewerFormatError as error:  # all else reads well
        reason = f"{reason}; {error}" if reason else str(error)
    return Summary(run.id, run.uri, state, reason, **{**found, "sweep": as_it_stands(found["sweep"], state)})


def as_it_stands(sweep: Sweep | None, state: State) -> Sweep | None:
    """Return what there is of a sweep, in a run of this state: unless that runs, no trial does."""
    return sweep.at_rest() if sweep is not None and state != State.RUNNING else sweep


def is_sweep(run: Run) -> bool:
    """Whether the job file of a run makes a sweep of it; not where another version wrote that."""
    from launcher.spec import load_frozen

    with contextlib.suppress(UsageError):
        return load_frozen(run.job()).tune is not None
    return False


def open_sweep(run: Run) -> Sweep:
    """Return a run's sweep. Raises UsageError where it is none."""
    sweep = summarize(run).sweep
    if sweep is None:
        why = "it has not begun" if is_sweep(run) else "its job file has no tune: block"
        raise UsageError(f"{run.uri} has no trials: {why}. See where it stands: raylift status {typed(run.uri)}")
    return sweep


def next_steps(summary: Summary) -> list[str]:
    """Say what a person may type once a run is over."""
    uri = typed(summary.uri)
    go_on, log = f"go on:     raylift resume {typed(summary.trial_of or summary.uri)}", f"its log:   raylift logs {uri}"
    match summary.state:
        case State.SUCCEEDED if summary.sweep is not None:
            return [
                f"export the best: raylift export {uri} DIR",
                f"its job file:    raylift trials {uri} --best",
                f"see them all:    raylift report {uri}",
            ]
        case State.SUCCEEDED | State.PRUNED:
            return [f"export it: raylift export {uri} DIR", f"see it:    raylift report {uri}"]
        case State.PENDING if summary.trial_of:
            return []  # its sweep goes on
        case State.STOPPED | State.PENDING:
            return [go_on]
        case State.RECOVERING if summary.reason.startswith("preempted"):
            return [go_on]
        case State.FAILED:
            return [log] if summary.exit_code == 1 or summary.trial_of else [go_on, log]
        case _:
            return []


def is_running(run: Run) -> bool:
    """Whether a run is alive, or the sweep that it is a trial of: its processes on this machine, or its pods.

    Raises InfrastructureError.
    """
    if (sweep := sweep_of(run)) is not None and is_running(sweep):
        return True
    if (remote := remote_of(run)) is not None:
        try:
            return not describe(run, remote).state.is_final
        except RunNotFoundError:
            return False
    return is_running_here(run)


def waits_to_begin(run: Run) -> bool:
    """Whether a run has no driver on its cluster, which would hear of a stop; False where that cannot be asked."""
    with contextlib.suppress(InfrastructureError, RunNotFoundError):
        if (remote := remote_of(run)) is not None:
            return describe(run, remote).state in (State.PENDING, State.PROVISIONING)
    return False


def is_launched_anew(run: Run, newest: int) -> bool:
    """Whether a launch is on a run's cluster whose driver has not claimed what follows its `newest` attempt yet.

    Results are history then. Asks the cluster where storage says so alone. Raises InfrastructureError.
    """
    is_told = not newest or run.launched_after() == newest
    return is_told and remote_of(run) is not None and is_running(run)


def is_running_here(run: Run) -> bool:
    """Whether processes of a run, or of the sweep that it is a trial of, are alive on this machine."""
    sweep = sweep_of(run)
    return _has_processes(run) or (sweep is not None and _has_processes(sweep))


def _has_processes(run: Run) -> bool:
    provider = LocalProvider()
    return provider.is_here(run.id, run.uri) and provider.is_running(run.id)


def tear_down(run: Run, on_wait: OnWait | None = None) -> Receipt:
    """End what there is of a run, on this machine or on its cluster; of that, `on_wait` hears what is waited for."""
    if (remote := remote_of(run)) is not None:
        return tear_down_remote(run, remote, on_wait=on_wait)
    provider = LocalProvider()
    return provider.teardown(run.id) if provider.is_here(run.id, run.uri) else Receipt()


def _is_launched_anew(run: Run, newest: int) -> bool:
    with contextlib.suppress(InfrastructureError):  # then the newest result is all that is known
        return is_launched_anew(run, newest)
    return False


def _before_claim(run: Run, *, brief: bool) -> tuple[State, str]:
    if (remote := remote_of(run)) is not None:
        return (State.PENDING, "as far as storage tells") if brief else look(run, remote)
    if is_running_here(run):
        return State.PROVISIONING, "its driver is starting"
    if last := _last_words(run):
        return State.FAILED, last
    return State.PENDING, "it never started, or its machine is gone"


def _while_it_runs(run: Run, claim: Claim, *, brief: bool) -> tuple[State, str]:
    if not brief and (remote := remote_of(run)) is not None:
        return look(run, remote)
    is_of_here = claim.host == socket.gethostname()
    events = run.rows_of(claim.attempt, "events")
    if is_of_here and is_running_here(run):
        starting = not any(row["event"] in ("training", "sweep") for row in events)
        if starting and (missing := _missing_workers(events)):
            return State.RECOVERING if claim.attempt > 1 else State.PROVISIONING, missing
        if starting and claim.attempt > 1:
            return State.RECOVERING, "starting again from its newest checkpoint"
        return (State.PROVISIONING, "Ray and the data are getting ready") if starting else (State.RUNNING, "")
    saved = [row["step"] for row in events if row["event"] == "preempted"]
    if not is_of_here and not saved:
        return State.RUNNING, f"as far as storage tells: it runs on {claim.host}"
    if (stop := run.stop_reason()) is not None:
        return State.STOPPED, stop
    if saved:
        return State.RECOVERING, f"preempted: its machine was taken away, all up to step {saved[-1]} is saved"
    return State.FAILED, _last_words(run) or "its processes are gone"


def _as_trial(run: Run, sweep: Run) -> tuple[State, str]:
    """Return where a trial without a result stands, as its sweep tells."""
    above = summarize(sweep)
    found = [trial for trial in above.sweep.trials if trial.id == run.id] if above.sweep is not None else []
    if found and found[0].state in ENDED:
        return State(found[0].state), found[0].message
    if above.state.is_final:
        return State.STOPPED, f"its sweep does not run: that is {above.state}"
    if above.state is not State.RUNNING or not found:
        return State.PENDING, f"its sweep is {above.state}{f': {above.reason}' if above.reason else ''}"
    if found[0].state == "RUNNING":
        return State.RUNNING, above.reason
    return State.PENDING, "it waits for others" if found[0].state == "WAITING" else "it goes on when there is room"


def _as_its_sweep_tells(run: Run, sweep: Run, result: Result) -> Result | None:
    """Return how a trial ended that others ended, as far as it knows; None where its sweep goes on, and it too.

    It stood still when its process was let go, and the scheduler ended it, maybe at its whole length; or its actor was
    lost as it went on.
    """
    state, message = _as_trial(run, sweep)
    if state in ENDED:
        return replace(result, state=state.value, message=message, exit_code=1 if state is State.FAILED else 0)
    return result if state.is_final or result.state == State.PRUNED else None


def _missing_workers(events: Sequence[dict[str, Any]]) -> str:
    """Say for how many workers an attempt waits; an empty text where it waits for none."""
    waits = [row for row in events if row["event"] in ("waiting", "waited")]
    return describe_event(waits[-1], 0) if waits and waits[-1]["event"] == "waiting" else ""


def _last_words(run: Run) -> str:
    """Return what this machine knows of the end of a run that could not write it down."""
    provider = LocalProvider()
    with contextlib.suppress(RunNotFoundError):
        if provider.is_here(run.id, run.uri):
            return provider.describe(run.id).reason
    return ""


def _progress(run: Run, claims: Sequence[Claim]) -> dict[str, Any]:
    events, metrics = run.all_rows("events"), run.all_rows("metrics")
    found: dict[str, Any] = {"data": {}, "sweep": read_sweep(events)}
    if found["sweep"] is None:
        found["goodput"] = measure(claims, run.results(), events, metrics)
    elif (best := found["sweep"].best) is not None:
        found["metrics"] = dict(best.newest.metrics)
    for row in events:
        if row["event"] == "training":
            found |= {"last_step": row["last_step"], "ranks": row["world_size"]}
        if row["event"] == "data.ready":
            found["data"] = {key: value for key, value in row.items() if key not in ("time", "event")}
    for row in counted(metrics, claims):
        if row["kind"] == "step":
            found |= {key: row[key] for key in ("step", "epoch", "loss", "samples_per_s")}
        elif row["kind"] == "eval":
            found["metrics"] = {key: value for key, value in row.items() if key.startswith("eval_")}
    return found
