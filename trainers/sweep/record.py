"""What a sweep writes down, and what it finds written when it goes on."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from cluster.attempts import Attempt
from cluster.errors import StorageError
from cluster.outages import patient
from cluster.records import Result
from cluster.runs import Run
from cluster.segments import SegmentWriter
from cluster.trials import ENDED, Copied, Evaluation, Trial, read_trials, trial_run
from trainers.pulse import ENDED as ENDED_BY_WATCHDOG
from trainers.tuning import Point, Scheduler


class Record:
    """What a sweep writes down, and what it finds written when it goes on."""

    def __init__(self, run: Run, events: SegmentWriter, metric: str, scheduler: Scheduler) -> None:
        self.run = run
        self.metric = metric
        self._scheduler = scheduler
        rows = patient(run).all_rows("events")
        self.rows = [row for row in rows if str(row["event"]).startswith("trial")]
        heads = [row for row in rows if row["event"] == "sweep"]
        self.data: Mapping[str, Any] = next((row["data"] for row in heads if "data" in row), {})  # that it began with
        self._events = events
        now = time.time()  # that it happened before is no time of this attempt
        for row in [row for trial in read_trials(self.rows) if trial.state not in ENDED for row in self._missed(trial)]:
            self.rows.append({**row, "time": now})
            self._write(row)
        self.trials = {trial.id: trial for trial in read_trials(self.rows)}
        self._points: dict[int, list[Trial]] = {}
        for trial in self.trials.values():
            self._points.setdefault(trial.number, []).append(trial)

    def begun(self, name: str, number: int, point: Point, repeat: int = 0) -> Trial:
        trial = self.trials[name] = Trial(name, number, point, time.time(), repeat)
        self._points.setdefault(number, []).append(trial)
        self._write({"event": "trial", "trial": name, "number": number, "repeat": repeat, "point": point})
        return trial

    def evaluated(self, trial: Trial, one: Evaluation) -> None:
        trial.evaluations[one.iteration] = one
        self._write({"event": "trial.result", "trial": trial.id, **vars(one)})

    def copied(self, trial: Trial, copied: Copied, point: Point) -> None:
        """Write down that a trial goes on from another's checkpoint, with new values."""
        trial.go_on_from(copied, point)
        told = {"origin": vars(copied.origin), "iteration": copied.iteration, "point": point}
        self._write({"event": "trial.copied", "trial": trial.id, **told})

    def is_now(self, trial: Trial, state: str) -> None:
        """Write down that a trial waits for others, or goes on."""
        if trial.state != state:
            trial.state = state
            self._write({"event": "trial.state", "trial": trial.id, "state": state})

    def ended(self, trial: Trial, state: str, message: str, **more: Any) -> None:
        trial.state, trial.message, trial.ended = state, message, time.time()
        self._write({"event": "trial.ended", "trial": trial.id, "state": state, "message": message, **more})

    def ended_early(self, last: Evaluation | None) -> tuple[str, str]:
        """Return the state and the message of a trial that the scheduler ended after this evaluation."""
        name, epoch = self._scheduler.name, last.epoch if last is not None else 0
        if last is not None and self._scheduler.is_whole(last.iteration, last.epoch, last.step):
            return "SUCCEEDED", f"trained up to the max_t of {name}, epoch {epoch}"
        return "PRUNED", f"ended by {name} after epoch {epoch}"

    def set_aside(self) -> dict[str, int]:
        """Return the trials that were set `aside` when they ended the last time, and in how many launches they were."""
        ends = [row for row in self.rows if row["event"] == "trial.ended"]
        times = Counter(name for name, _ in {(row["trial"], row["attempt"]) for row in ends if row.get("aside", False)})
        last = {row["trial"]: row for row in ends}
        return {name: times[name] for name, row in last.items() if row.get("aside", False)}

    def close(self, trial: Trial, state: str, message: str) -> None:
        """Write the end of a trial into its own folder, where nobody trains it any more to do so."""
        run = trial_run(self.run, trial.id)
        with contextlib.suppress(StorageError):  # the sweep's own events have it
            if (attempts := run.attempts()) and run.result_of(attempts[-1]) is None:
                step, metrics = (trial.newest.step, trial.newest.metrics) if trial.newest is not None else (0, {})
                code = 1 if state == "FAILED" else 0
                Attempt.reopen(run, attempts[-1]).finish(Result(state, message, code, step, metrics))

    def verdict(self, trial: Trial) -> str | None:
        """Return why a watchdog ended the newest attempt of a trial; None where none did."""
        run = trial_run(self.run, trial.id)
        with contextlib.suppress(StorageError):
            for row in run.rows_of(max(run.attempts(), default=0), "events"):
                if row["event"] == ENDED_BY_WATCHDOG:
                    return f"it was ended: {row['reason']}"
        return None

    def warn(self, message: str) -> None:
        self._write({"event": "warning", "message": message})

    def flush(self) -> None:
        """Write down all so far. Raises StorageError."""
        self._events.flush()

    def values(self, number: int) -> dict[int, float]:
        """Return the metric of a point by evaluation: the mean, where it was trained several times."""
        repeats = [trial.values(self.metric) for trial in self.of(number)]
        shared = set.intersection(*(set(each) for each in repeats))
        return {key: fmean(each[key] for each in repeats) for key in sorted(shared)}

    def has_values(self) -> bool:
        """Whether a trial was evaluated by what the sweep goes by."""
        return any(self.metric in one.metrics for trial in self.trials.values() for one in trial.evaluations.values())

    def of(self, number: int) -> list[Trial]:
        """Return the trials of a point."""
        return self._points[number]

    def _write(self, row: Mapping[str, Any]) -> None:
        self._events.append(row)

    def _missed(self, trial: Trial) -> Iterable[dict[str, Any]]:
        """Yield what a trial's own folder knows of it that the sweep did not write down any more."""
        run = patient(trial_run(self.run, trial.id))
        if trial.copied is not None and not run.has_taken(trial.copied.origin):
            return  # what it knows is of before
        last = trial.newest
        evaluations = [row for row in run.rows("metrics") if row["kind"] == "eval"]
        for iteration, row in enumerate(evaluations, 1 + (trial.copied.iteration if trial.copied is not None else 0)):
            metrics = {key: value for key, value in row.items() if key.startswith("eval_")}
            last = Evaluation(iteration, row["step"], row["epoch"], metrics)
            if trial.evaluations.get(iteration) != last:
                yield {"event": "trial.result", "trial": trial.id, **vars(last), "missed": True}
        result = run.result()
        if result is not None and result.state in ENDED:
            state, message = result.state, result.message
            if state == "PRUNED":
                state, message = self.ended_early(last)
            yield {"event": "trial.ended", "trial": trial.id, "state": state, "message": message}
