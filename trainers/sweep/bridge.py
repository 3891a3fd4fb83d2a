"""Between Ray Tune, which asks for trials and tells of results, and a sweep's searcher and record."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ray.tune import Callback
from ray.tune.search import Searcher as RaySearcher

from cluster.errors import StorageError
from cluster.trials import ENDED, Evaluation, Trial
from trainers.sweep.record import Record
from trainers.sweep.search import Searcher
from trainers.sweep.trial import PATIENCE
from trainers.tuning import Tune

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as RayTrial


class Bridge(RaySearcher):
    """Our searcher and record, as Ray Tune asks for trials and tells of results."""

    def __init__(
        self,
        sweep: Tune,
        searcher: Searcher,
        record: Record,
        *,
        slots: Callable[[], int] | None,
        mode: str,
        is_stopping: Callable[[], bool],
        on_resumed: Callable[[str, Trial], None],
    ) -> None:
        """As many trials run at once as `slots` says; None: Tune says, and lets some wait."""
        super().__init__(metric=record.metric, mode=mode)
        self._sweep = sweep
        self._searcher = searcher
        self._record = record
        self._slots = slots
        self._is_stopping = is_stopping
        self._on_resumed = on_resumed
        self._running: dict[str, Trial] = {}
        self._proposed: Trial | None = None  # begun, but not safe in storage yet
        self._away_since: float | None = None  # when storage ceased to answer
        self._replay()
        self._waiting = [trial for trial in record.trials.values() if trial.state not in ENDED]
        self._next = max(record.trials, default=-1) + 1

    def suggest(self, trial_id: str) -> Any:
        if self._is_stopping():
            return RaySearcher.FINISHED
        if self._slots is not None and len(self._running) >= self._slots():
            return None
        if self._waiting:
            trial = self._waiting.pop(0)
            self._on_resumed(trial_id, trial)
        elif self._proposed is None and self._next >= self._sweep.budget:
            return RaySearcher.FINISHED
        elif (proposed := self._propose()) is not None:
            trial = proposed
        else:
            return None
        trial.state = "RUNNING"
        self._running[trial_id] = trial
        return config_of(trial)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._evaluated(self._running[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._running[trial_id]
        if error:
            return  # `on_lost` says why
        if result is not None and result["state"] in ("", "SUCCEEDED"):
            self._evaluated(trial, result)
        if result is not None and result["state"]:
            self._end(trial_id, result["state"], result["message"])
            return
        why = f"ended by {self._sweep.scheduler.name} after epoch {trial.epoch}"
        if result is None:  # it waited, so nobody trains it who could say so
            self._record.close(trial, "PRUNED", why)
        self._end(trial_id, "PRUNED", why)

    def on_lost(self, trial_id: str, why: str) -> None:
        """Take a trial for failed whose actor was lost more often than is allowed."""
        if trial_id in self._running:
            self._record.close(self._running[trial_id], "FAILED", why)
            self._end(trial_id, "FAILED", why)

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...

    def _propose(self) -> Trial | None:
        """Choose the next point and write it down; return None while storage does not take it."""
        if self._proposed is None:
            self._proposed = self._record.begun(self._next, self._searcher.ask(self._next))
            self._next += 1
        try:
            self._record.flush()
        except StorageError:
            self._away_since = self._away_since or time.monotonic()
            if time.monotonic() - self._away_since > PATIENCE:
                raise
            return None
        self._away_since = None
        trial, self._proposed = self._proposed, None
        return trial

    def _evaluated(self, trial: Trial, result: Mapping[str, Any]) -> None:
        metrics = {key: value for key, value in result.items() if key.startswith("evaluation/")}
        metrics = {key.removeprefix("evaluation/"): value for key, value in metrics.items()}
        if metrics:
            one = Evaluation(result["training_iteration"], result["step"], result["epoch"], metrics)
            if trial.evaluations.get(one.iteration) != one:  # the last is repeated where a trial that waits ends
                self._record.evaluated(trial, one)

    def _end(self, trial_id: str, state: str, message: str) -> None:
        trial = self._running.pop(trial_id)
        self._record.ended(trial, state, message)
        if state in ENDED:
            self._tell(trial)

    def _tell(self, trial: Trial) -> None:
        values = {} if trial.state == "FAILED" else self._record.values(trial)
        self._searcher.tell(trial.number, values, completed=trial.state == "SUCCEEDED")

    def _replay(self) -> None:
        """Have the searcher see again, in the same order, what it chose and what came of it."""
        for row in self._record.rows:
            if row["event"] == "trial":
                self._searcher.know(row["number"], row["point"])
            elif row["event"] == "trial.ended" and row["state"] in ENDED:
                self._tell(self._record.trials[int(row["trial"])])


def config_of(trial: Trial) -> dict[str, Any]:
    """Return what Tune, and an actor, are told of a trial; its keys are none of a space."""
    copied = trial.copied.to_json() if trial.copied is not None else ""
    return {"number": trial.number, "point": json.dumps(trial.point), "copied": copied}


class Losses(Callback):
    """Hears why Tune gave a trial up."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def on_trial_error(self, *_: Any, trial: RayTrial, **__: Any) -> None:  # type: ignore[override]  # named, always
        error = trial.get_pickled_error()
        lines = str(error).strip().splitlines() if error is not None else []
        self._bridge.on_lost(trial.trial_id, lines[-1][:300] if lines else "its process was lost")
