"""A submission before it is made, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from launcher.submit import Submission
from launcher.text import size
from trainers.tuning import metric_of

if TYPE_CHECKING:
    from launcher.spec import JobSpec
    from trainers.config import Budget
    from trainers.tuning import Tune


def as_dict(submission: Submission) -> dict[str, Any]:
    return {
        "run_id": submission.request.run_id,
        "run_uri": submission.request.run_uri,
        "provider": submission.plan.provider,
        "resources": [asdict(resource) for resource in submission.plan.resources],
        "usd_per_hour": _usd_per_hour(submission),
        "manifest": submission.plan.manifest or None,
        "job": submission.spec.model_dump(mode="json", exclude_none=True),
    }


def print_plan(submission: Submission) -> None:
    rows = list(_rows(submission))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")


def _rows(submission: Submission) -> Iterator[tuple[str, str]]:
    spec = submission.spec
    yield "run", submission.request.run_uri
    if spec.is_own:
        yield "task", "  ".join([spec.task, *(f"{key} {value}" for key, value in spec.params.items())])
        yield "code", f"{spec.workdir}, {size(len(submission.code.data)) if submission.code else 'nothing'} when packed"
    else:
        yield "task", f"{spec.task} with {spec.model.name}"
        yield "data", f"{spec.data.train}, evaluated on {_evaluation(submission)}"
    yield "training", _training(submission)
    if spec.tune is not None:
        yield from _sweep(spec, spec.tune)
    yield "saves", f"every {spec.checkpoint.every}, the newest {spec.checkpoint.keep} are kept"
    if spec.budget is not None:
        yield "budget", _budget(spec.budget)
    for resource in submission.plan.resources:
        yield resource.kind, f"{resource.name}{'  ' + resource.detail if resource.detail else ''}"
    yield "price", _price(submission)


def _budget(budget: Budget) -> str:
    hours = [f"{budget.max_hours:g} h"] if budget.max_hours is not None else []
    usd = [f"${budget.max_usd:g}"] if budget.max_usd is not None else []
    return f"it saves and stops after {' or '.join(hours + usd)}"


def _sweep(spec: JobSpec, tune: Tune) -> list[tuple[str, str]]:
    metric, mode = metric_of(tune, spec.task)
    trials = f"{tune.tried} trials"
    if tune.covers_all:
        trials += (
            f": every point, and there are no more, though {tune.trials} were asked for"
            * (tune.trials is not None and tune.trials > tune.tried)
            or ": every point"
        )
    if tune.repeats > 1:
        trials += f", each with {tune.repeats} seeds"
    chosen = f"{tune.search.name}, seed {tune.search.seed}, scheduler {tune.scheduler.name}"
    rows = [("sweep", f"{trials}; {chosen}; the best has the {mode}imum of {metric}")]
    return rows + [("", f"{key}: {domain}") for key, domain in tune.ordered.items()]


def _price(submission: Submission) -> str:
    price = _usd_per_hour(submission)
    if price is None:
        return "not known: give cluster.usd_per_hour"
    return f"${price:.2f} an hour" if price else "nothing: this machine"


def _usd_per_hour(submission: Submission) -> float | None:
    """Return what the cluster of a run costs, whoever has started it; None where nobody said so."""
    if (price := submission.spec.cluster.usd_per_hour) is not None:
        return price
    return 0.0 if submission.plan.provider == "local" else None


def _evaluation(submission: Submission) -> str:
    evaluation = submission.spec.data.eval
    if evaluation is None:
        return "nothing"
    return evaluation if isinstance(evaluation, str) else f"a split of {evaluation.split:g}"


def _training(submission: Submission) -> str:
    train = submission.spec.train
    length = f"{train.max_steps} steps" if train.max_steps else f"{train.epochs or 1} epochs"
    if train.max_steps and train.epochs:
        length += f" or {train.epochs} epochs, whichever is first"
    rate = f" {train.optimizer.lr:g}" if train.optimizer.lr else ""
    optimizer = f"{train.optimizer.name}{rate}, {train.schedule.name}"
    loss = [] if submission.spec.is_own else [train.loss.name]
    return ", ".join([length, f"batches of {train.batch_size}", optimizer, *loss])
