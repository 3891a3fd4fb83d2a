"""One trial's training: the same loop as a run's, in a thread that stands still at each evaluation until told to go on.

A trial is a run in miniature: its folder has the layout of a run's, and whoever goes on with it adopts its newest
checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster.attempts import Attempt
from cluster.errors import CorruptObjectError, PreemptedError, RunExistsError, StorageError, TrainingError
from cluster.outages import patient, through_outages
from cluster.records import Origin, Result
from cluster.runs import Run
from cluster.segments import SegmentWriter
from cluster.trials import Copied
from trainers import processors
from trainers.config import Split
from trainers.context import LocalContext, StopReason, compute_alike, device_from_ray
from trainers.control import Control
from trainers.memory import let_go
from trainers.output import shipped_output
from trainers.pulse import Pulse
from trainers.record import Recorder, passed_over
from trainers.spares import import_what_ranks_need
from trainers.worker import run_rank

if TYPE_CHECKING:
    import torch

    from trainers.config import TrainJob
    from trainers.loop import Progress
    from trainers.tasks.base import Prepared

ALL_OF_ITS_POD = 0  # threads: as many as there are processors in the pod, where no other rank is


@dataclass(frozen=True)
class News:
    """What a trial has to tell: an evaluation or, with `state`, its end."""

    step: int
    epoch: int
    iteration: int  # evaluations so far, those of earlier attempts with them
    metrics: Mapping[str, float] = field(default_factory=dict)
    state: str = ""
    message: str = ""


class TrialContext(LocalContext):
    """The only rank of a trial: it shares its machine with other trials, and sees the accelerator that Ray gave it."""

    def __init__(self, threads: int, compared_by: str | None = None) -> None:
        self.rank = self.local_rank = 0
        self.world_size = self.local_world_size = 1
        self.compared_by = compared_by
        self._threads = threads

    def device(self) -> torch.device:
        import ray

        return device_from_ray() if ray.is_initialized() else super().device()

    def join(self) -> None:
        import torch

        if (device := self.device()).type == "cuda":
            compute_alike(device)
        torch.set_num_threads(self._threads or processors.cpu_count())


@dataclass(frozen=True)
class Start:
    """Where an attempt of a trial starts."""

    iteration: int = 0  # evaluations up to the checkpoint that it goes on from
    epoch: int = 0  # of the last one


class TrialRecorder(Recorder):
    """Keeps the newest evaluation for whoever decides whether the trial goes on."""

    def __init__(self, attempt: Attempt, *, log_every: int, start: Start) -> None:
        super().__init__(attempt, 0, log_every=log_every)
        self.iteration = start.iteration
        self.epoch_evaluated = start.epoch
        self.news: News | None = None

    def evaluation(self, progress: Progress, seconds: float, *, epoch: int, late: bool = False) -> None:
        super().evaluation(progress, seconds, epoch=epoch, late=late)
        self.iteration += 1
        self.epoch_evaluated = epoch
        self.news = News(progress.step, epoch, self.iteration, dict(progress.evaluation))


class TrialControl(Control):
    """Asks after every evaluation whether to go on; a wish to stop the sweep stops the trial."""

    def __init__(
        self,
        sweep: Attempt,
        recorder: TrialRecorder,
        ask: Callable[[News], StopReason | None],
        world_size: int = 1,
    ) -> None:
        super().__init__(sweep, rank=0, world_size=world_size)
        self._recorder = recorder
        self._ask = ask

    def stop(self) -> StopReason | None:
        """Tell of an evaluation, in the step after it, and wait for the answer."""
        news, self._recorder.news = self._recorder.news, None
        if news is None:
            return super().stop()
        with self.excused():
            told = self._ask(news)
        return told or super().stop()


class Training(ABC):
    """The training of one trial, until its end or until somebody ends it."""

    def __init__(
        self,
        run: Run,
        job: TrainJob,
        document: bytes,
        sweep: Attempt,
        copied: Copied | None = None,
        *,
        metric: str | None = None,
    ) -> None:
        """Train a job, whose file is `document`, in the folder of `run`; from another's checkpoint, where `copied`.

        The `metric` is what whoever asks for news compares trials by.
        """
        self._run = run
        self._job = job
        self._document = document
        self._sweep = sweep
        self._copied = copied
        self._metric = metric
        self._news: queue.Queue[News | Exception] = queue.Queue()
        self._answers: queue.Queue[StopReason | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._waiting = False  # it stands still

    @abstractmethod
    def _train_attempt(self, attempt: Attempt, start: Start) -> News:
        """Train to the end of an attempt; tell of each evaluation meanwhile, and return how it ended. Raises."""

    def start(self) -> None:
        """Begin to train, or to go on from a pause."""
        self._thread = threading.Thread(target=self._train, name=f"trial-{self._run.id}", daemon=True)
        self._thread.start()

    def next(self) -> News:
        """Let it go on, and return the next evaluation, or how it ended. Blocks; raises what is worth a retry."""
        if self._thread is None:
            self.start()
        if self._waiting:
            self._waiting = False
            self._answers.put(None)
        news = self._news.get()
        if isinstance(news, Exception):
            raise news
        self._waiting = not news.state
        return news

    def pause(self) -> Origin | None:
        """Have it save and wait, and return its newest checkpoint; `next` goes on from there.

        Blocks; raises as `next` does. There is no checkpoint where it diverged in the step that it still had to do.
        """
        assert self._waiting, "it pauses where it stands still"
        self.end(StopReason.PAUSED)
        self._thread, self._waiting = None, False
        news = self._news.get()
        if isinstance(news, Exception):
            raise news
        saved = self._run.newest_intact()  # whoever goes on from it reads it
        return Origin(self._run.id, saved.attempt, saved.step) if saved is not None else None

    def end(self, why: StopReason) -> None:
        """Have it save and leave, if it has not ended. Blocks until it has."""
        self._answers.put(why)
        if self._thread is not None:
            self._thread.join()

    def _train(self) -> None:
        try:
            self._news.put(through_outages(self._attempt))
        except Exception as error:  # told to whoever waits
            self._news.put(error)

    def _attempt(self) -> News:
        """Go on from the newest checkpoint to the end of the trial; where that is damaged, from the one before."""
        try:
            self._run.create(self._document)
        except RunExistsError:  # it goes on
            if (news := self._ended_before()) is not None:
                return news
        attempt = self._claim()
        try:
            return self._train_attempt(attempt, self._start_of(attempt))
        except CorruptObjectError:
            if self._run.damage_of(attempt.number) is None:
                raise
        attempt = self._claim()  # this time, what it starts from was read
        return self._train_attempt(attempt, self._start_of(attempt))

    def _ended_before(self) -> News | None:
        """Return how it ended where its process was lost before that could say so; None where it has not."""
        run, copied = patient(self._run), self._copied
        result = run.result()
        if result is None or result.state not in ("SUCCEEDED", "FAILED"):
            return None
        if copied is not None and not run.has_taken(copied.origin):
            return None  # that was before it became a copy
        evaluations = [row for row in run.rows("metrics") if row["kind"] == "eval"]
        iteration = len(evaluations) + (copied.iteration if copied is not None else 0)
        epoch = int(evaluations[-1]["epoch"]) if evaluations else 0
        return News(result.step, epoch, iteration, result.metrics, result.state, result.message)

    def _claim(self) -> Attempt:
        """Claim the next attempt, and write down what it passed over."""
        corrupt: list[dict[str, Any]] = []
        attempt = self._run.claim(
            launch=self._sweep.claim.launch,
            origin=self._copied.origin if self._copied is not None else None,
            on_corrupt=lambda checkpoint, why: corrupt.append(passed_over(checkpoint, why)),
        )
        attempt.sweep()
        if corrupt:
            events = SegmentWriter(self._run, attempt.number, "events", "driver")
            for row in corrupt:
                events.append(row)
            events.close()
        return attempt

    def _start_of(self, attempt: Attempt) -> Start:
        known = [row for row in self._run.rows("metrics") if row["kind"] == "eval"] if attempt.claim.base else []
        before = self._copied.iteration if self._copied is not None else 0
        return Start(before + len(known), int(known[-1]["epoch"]) if known else 0)

    def _tell(self, news: News) -> StopReason | None:
        self._news.put(news)
        return self._answers.get()


class OneRankTraining(Training):
    """The training of one trial in this process."""

    def __init__(
        self,
        *arguments: Any,
        prepare: Callable[[TrainJob], Prepared],
        threads: int = 1,
        show_life: Callable[[Attempt], Pulse] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._show_life = show_life
        self._prepare = prepare
        self._threads = threads

    def _train_attempt(self, attempt: Attempt, start: Start) -> News:
        import_what_ranks_need()  # else in the midst of the first trial
        recorder = TrialRecorder(attempt, log_every=self._job.train.log_every, start=start)
        outcome, failed = None, False
        with shipped_output(attempt, "rank-0"):
            try:
                outcome = run_rank(
                    TrialContext(self._threads, self._metric),
                    attempt,
                    self._job,
                    self._prepare(self._job),
                    control=TrialControl(self._sweep, recorder, self._tell),
                    recorder=recorder,
                    pulse=self._show_life(attempt) if self._show_life is not None else None,
                )
            except PreemptedError as error:
                return News(0, recorder.epoch_evaluated, recorder.iteration, state="PREEMPTED", message=str(error))
            except TrainingError as error:
                failed = True
                attempt.finish(Result.failed(error))
            finally:
                with contextlib.suppress(StorageError):
                    recorder.close()
        let_go(failed=failed)
        if outcome is not None and outcome.stopped is StopReason.PAUSED:
            return News(outcome.step, recorder.epoch_evaluated, recorder.iteration, state="PAUSED")
        result = patient(attempt.run).result_of(attempt.number)  # else all of this would be done again
        assert result is not None, "run_rank writes one, or raises"
        evaluated = recorder.epoch_evaluated, recorder.iteration
        return News(result.step, *evaluated, result.metrics, result.state, result.message)


def data_key(job: TrainJob) -> str:
    """Say what the prepared data depends on: two jobs with the same key share it."""
    data = job.data.model_dump(mode="json", exclude={"augment"})
    seed = job.train.seed if isinstance(job.data.eval, Split) or job.data.clean.drop_label_errors else None
    return json.dumps([job.task, job.params, data, seed], default=str)


def threads_each(trials: int) -> int:
    """Return how many threads a trial computes with, where so many share this machine."""
    return max(1, processors.cpu_count() // trials)
