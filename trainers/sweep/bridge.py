"""Between Ray Tune, which asks for trials and tells of results, and a sweep's searcher and record."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ray import cloudpickle
from ray.tune import Callback
from ray.tune.search import Searcher as RaySearcher
from ray.tune.search import SearchGenerator

from cluster.errors import DeviceError, PreemptedError, StorageError, is_outage
from cluster.outages import PATIENCE
from cluster.trials import ENDED, Evaluation, Trial, failed_points, trial_id
from trainers.sweep.record import Record
from trainers.sweep.search import Searcher
from trainers.tuning import Point, Tune

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as RayTrial


_UNSTARTED = 3  # actors that may be lost before a trial begins in them, until it has failed
_SET_ASIDE = 2  # launches in which a trial was, before one that takes it for failed if an accelerator fails it again
_UNUSABLE = 3  # trials that accelerators fail, or one that they fail twice, until no more begin


class Bridge(RaySearcher):
    """Our searcher and record, as Ray Tune asks for trials and tells of results."""

    def __init__(
        self,
        sweep: Tune,
        searcher: Searcher,
        record: Record,
        *,
        slots: Callable[[], int] | None,
        ahead: int = 0,
        grows: bool = False,
        mode: str,
        is_stopping: Callable[[], bool],
        on_resumed: Callable[[str, Trial], None],
    ) -> None:
        """As many trials run at once as `slots` says; None: Tune says, and lets some wait.

        So many more as `ahead` says are begun for Tune to have at hand when one ends. Where Ray `grows`, every trial
        waits until it is started, as its node may still have to come.
        """
        super().__init__(metric=record.metric, mode=mode)
        self._sweep = sweep
        self._tried = sweep.tried  # it counts the points of a grid
        self._searcher = searcher
        self._record = record
        self._slots = slots
        self._ahead = ahead
        self._grows = grows
        self._is_stopping = is_stopping
        self._on_resumed = on_resumed
        self._running: dict[str, Trial] = {}
        self._started: set[str] = set()  # of these, those that an actor trains
        self._unstarted: Counter[str] = Counter()  # how often a trial's actor was lost before it began
        self._lacks_metric = False  # no trial has what the sweep goes by, as one has shown
        self._proposed: Trial | None = None  # begun, but not safe in storage yet
        self._set_aside: list[Trial] = []  # tried once more when nothing else is to be done
        self._failed_by_device: dict[str, int] = {}  # trials that have not ended, with how many had ended well by then
        self._ended_well = 0
        self.device_failure: str | None = None  # why no more trials begin
        self._away_since: float | None = None  # when storage ceased to answer
        self._replay()
        left = [trial for trial in record.trials.values() if trial.state not in ENDED]
        self._aside_before = record.set_aside()
        self._waiting = [trial for trial in left if trial.id not in self._aside_before]
        self._set_aside += [trial for trial in left if trial.id in self._aside_before]
        self._next = max((trial.number for trial in record.trials.values()), default=-1) + 1  # point
        self._left = self._repeats_left()

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to begin now; a trial that has to go on elsewhere changes that."""
        if self.is_stopping or self._lacks_metric:
            return True
        is_left = self._set_aside and not self._running  # until then Tune need not keep an idle process
        return not self._waiting and not self._has_new and not is_left

    @property
    def is_stopping(self) -> bool:
        """Whether what waits is to wait for a resume."""
        return self._is_stopping() or self.device_failure is not None

    @property
    def _has_new(self) -> bool:
        return self._proposed is not None or bool(self._left) or self._next < self._tried

    def suggest(self, trial_id: str) -> Any:
        if self.is_done:
            return RaySearcher.FINISHED
        slots = self._slots() if self._slots is not None else math.inf
        if len(self._running) >= slots + self._ahead:
            return None
        if self._waiting:
            trial = self._waiting.pop(0)
            self._on_resumed(trial_id, trial)
        elif not self._has_new:
            trial = self._set_aside.pop(0)
            self._on_resumed(trial_id, trial)
        elif (proposed := self._propose()) is not None:
            trial = proposed
        else:
            return None
        self._record.is_now(trial, "RUNNING" if len(self._running) < slots and not self._grows else "WAITING")
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
        if result is not None and result["state"] == "PREEMPTED":
            self.on_left(trial_id, result["message"])
            return
        if result is not None and result["state"]:
            if result.get("lacks_metric", False) and not self._record.has_values():
                self._lacks_metric = True
            self._end(trial_id, result["state"], result["message"])
            return
        if result is None and self.is_stopping:
            self._end(trial_id, "STOPPED", "it waited when the sweep was stopped")
            return
        state, why = self._record.ended_early(trial.newest)
        # where it is paused, or saves for that, nobody trains it who could say so
        if result is None or trial.state == "WAITING":
            self._record.close(trial, state, why)
        self._end(trial_id, state, why)

    def on_started(self, trial_id: str) -> None:
        """Take note that a trial which waited begins, or goes on."""
        if trial_id in self._running:
            self._started.add(trial_id)
            self._record.is_now(self._running[trial_id], "RUNNING")

    def on_left(self, trial_id: str, why: str) -> None:
        """Have a trial go on elsewhere: it was its machine that had to go."""
        if trial_id in self._running:
            trial = self._running[trial_id]
            self._end(trial_id, "STOPPED", why)
            if not self.is_stopping:
                self._waiting.append(trial)

    def on_restarting(self, trial_id: str) -> None:
        """Take note that a trial's actor was lost, and it waits for another."""
        self._started.discard(trial_id)

    def on_device_failure(self, trial_id: str, why: str) -> None:
        """Set a trial aside that an accelerator failed more often than is allowed, until all others are done.

        It has failed where it meets that again after others have ended well, or was set aside in two launches before:
        it breaks the accelerator. But one that fails each trial at once would get through all there are: then no more
        begin.
        """
        if trial_id not in self._running:
            return
        trial = self._running[trial_id]
        again = trial.id in self._failed_by_device
        is_known = self._aside_before.get(trial.id, 0) >= _SET_ASIDE
        if is_known or (again and self._ended_well > self._failed_by_device[trial.id]):
            self.on_lost(trial_id, why)
            return
        self._record.ended(trial, "STOPPED", why, aside=True)
        self._leave(trial_id)
        self._failed_by_device[trial.id] = self._ended_well
        self._set_aside.append(trial)
        count = len(self._failed_by_device)
        if self.device_failure is None and (count >= _UNUSABLE or again):
            trials = f"{count} trials" if count > 1 else "a trial twice"
            self.device_failure = f"accelerators have failed {trials}; the last, {trial.id}: {why}"
            self._record.warn(f"{self.device_failure}. No more trials begin")

    def on_lost(self, trial_id: str, why: str) -> None:
        """Take a trial for failed whose actor was lost more often than is allowed.

        One whose actor was lost before it began, which Tune takes for a failure at once, is tried again.
        """
        if trial_id in self._running:
            name = self._running[trial_id].id
            if trial_id not in self._started and self._unstarted[name] < _UNSTARTED:
                self._unstarted[name] += 1
                self.on_left(trial_id, why)
                return
            why = self._record.verdict(self._running[trial_id]) or why
            self._record.close(self._running[trial_id], "FAILED", why)
            self._end(trial_id, "FAILED", why)

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...

    def _propose(self) -> Trial | None:
        """Choose the next point and write it down; return None while storage does not take it."""
        if self._proposed is None:
            self._proposed = self._begin()
        try:
            self._record.flush()
        except StorageError as error:
            self._away_since = self._away_since or time.monotonic()
            if not is_outage(error) or time.monotonic() - self._away_since > PATIENCE:
                raise
            return None
        self._away_since = None
        trial, self._proposed = self._proposed, None
        return trial

    def _begin(self) -> Trial:
        """Begin the next trial: of a point with repeats left, or of a new one."""
        repeats = self._sweep.repeats
        if not self._left:
            number, self._next = self._next, self._next + 1
            self._left = [(number, self._searcher.ask(number), repeat) for repeat in range(repeats)]
        number, point, repeat = self._left.pop(0)
        return self._record.begun(trial_id(number, repeat, repeats=repeats), number, point, repeat)

    def _repeats_left(self) -> list[tuple[int, Point, int]]:
        """Return what was still to be begun of the points that were."""
        begun: dict[int, list[Trial]] = {}
        for trial in self._record.trials.values():
            begun.setdefault(trial.number, []).append(trial)
        return [
            (number, dict(trials[0].point), repeat)
            for number, trials in begun.items()
            for repeat in sorted({*range(self._sweep.repeats)} - {trial.repeat for trial in trials})
        ]

    def _evaluated(self, trial: Trial, result: Mapping[str, Any]) -> None:
        metrics = {key: value for key, value in result.items() if key.startswith("evaluation/")}
        metrics = {key.removeprefix("evaluation/"): value for key, value in metrics.items()}
        if metrics:
            one = Evaluation(result["training_iteration"], result["step"], result["epoch"], metrics)
            if trial.evaluations.get(one.iteration) != one:  # the last is repeated where a trial that waits ends
                self._record.evaluated(trial, one)

    def _end(self, trial_id: str, state: str, message: str) -> None:
        trial = self._leave(trial_id)
        self._record.ended(trial, state, message)
        self._ended_well += state in ("SUCCEEDED", "PRUNED")
        if state in ENDED:
            self._failed_by_device.pop(trial.id, None)
            self._tell(trial.number)

    def _leave(self, trial_id: str) -> Trial:
        self._started.discard(trial_id)
        return self._running.pop(trial_id)

    def _tell(self, number: int) -> None:
        """Tell the searcher of a point whose last trial has ended; one that failed once has no value."""
        trials = self._record.of(number)
        states = {trial.state for trial in trials}
        if len(trials) < self._sweep.repeats or not states <= {*ENDED}:
            return
        values = {} if failed_points(trials, self._record.metric) else self._record.values(number)
        self._searcher.tell(number, values, completed=states == {"SUCCEEDED"})

    def _replay(self) -> None:
        """Have the searcher see again, in the same order, what it chose and what came of it."""
        last = {row["trial"]: row for row in self._record.rows if row["event"] == "trial.ended"}
        left = {trial.number: self._sweep.repeats for trial in self._record.trials.values()}
        for row in self._record.rows:
            if row["event"] == "trial" and not row.get("repeat"):
                self._searcher.know(row["number"], row["point"])
            elif last.get(row["trial"]) is row and row["state"] in ENDED:
                number = self._record.trials[row["trial"]].number
                left[number] -= 1
                if not left[number]:
                    self._tell(number)


class Generator(SearchGenerator):
    """Tune's own, which would ask no more once there was nothing to begin: a trial may yet have to go on elsewhere.

    Until then Tune is told that the search is over, as it would keep an idle process, and what that holds, for more.
    """

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(bridge)
        self._bridge = bridge

    def is_finished(self) -> bool:
        return self._bridge.is_done


def config_of(trial: Trial) -> dict[str, Any]:
    """Return what Tune, and an actor, are told of a trial; its keys are none of a space."""
    copied = trial.copied.to_json() if trial.copied is not None else ""
    return {"trial": trial.id, "repeat": trial.repeat, "point": json.dumps(trial.point), "copied": copied}


class Listener(Callback):
    """Hears when Tune starts a trial, why it starts one again, and why it gave one up."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def on_trial_start(self, *_: Any, trial: RayTrial, **__: Any) -> None:  # type: ignore[override]  # named, always
        self._bridge.on_started(trial.trial_id)

    def on_trial_recover(self, *_: Any, trial: RayTrial, **__: Any) -> None:  # type: ignore[override]  # named, always
        self._bridge.on_restarting(trial.trial_id)
        if _has_left(_error_of(trial)):
            trial.max_failures += 1  # this was none

    def on_trial_error(self, *_: Any, trial: RayTrial, **__: Any) -> None:  # type: ignore[override]  # named, always
        error = _error_of(trial)
        lines = str(error).strip().splitlines() if error is not None else []
        why = lines[-1][:300] if lines else "its process was lost"
        if _has_left(error):
            self._bridge.on_left(trial.trial_id, why)
        elif isinstance(cause := getattr(error, "cause", None), DeviceError):
            self._bridge.on_device_failure(trial.trial_id, str(cause))
        else:
            self._bridge.on_lost(trial.trial_id, why)


def _error_of(trial: RayTrial) -> Exception | None:
    """Return what a trial was lost by; Tune's `get_pickled_error` looks where that comes later, if at all."""
    if (file := trial.pickled_error_file) is None:
        return None
    with open(file, "rb") as stream:
        found: Exception = cloudpickle.load(stream)
    return found


def _has_left(error: Exception | None) -> bool:
    """Whether a trial saved because its machine is taken away, as its actor said in an exception."""
    return isinstance(getattr(error, "cause", None), PreemptedError)
