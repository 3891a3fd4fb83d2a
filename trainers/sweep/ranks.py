"""A trial of several workers: Ray Train inside the trial, with the same loop; rank 0 asks whether to go on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from cluster.attempts import Attempt
from cluster.config import Workers
from cluster.errors import CorruptObjectError, DeviceError, InfrastructureError, StorageError, SupersededError
from cluster.outages import PATIENCE, patient, through_outages
from cluster.records import Result
from cluster.runs import Run
from trainers import processors
from trainers.context import RayContext, StopReason
from trainers.pulse import forget_attempts
from trainers.sweep.trial import News, Start, Training, TrialControl, TrialRecorder
from trainers.tasks.base import Prepared
from trainers.worker import run_rank, show_life

if TYPE_CHECKING:
    from trainers.config import TrainJob


@dataclass(frozen=True)
class Ranks:
    """The workers of each trial; one alone is the trial's own process."""

    number: int
    gpus: bool
    own_ray: bool
    temporary: str  # the folder in which those of a machine meet
    threads: int  # that each computes with; or ALL_OF_ITS_POD


@dataclass(frozen=True)
class References:
    """Prepared data in Ray's object store."""

    arrays: Mapping[str, Any]  # name -> object reference
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class RankConfig:
    """What every rank of a trial is told."""

    trial_uri: str
    attempt: int
    sweep_uri: str
    sweep_attempt: int
    job: TrainJob
    data: References
    start: Start
    temporary: str
    threads: int
    metric: str | None
    mailbox: Any


class RankedTraining(Training):
    """The training of one trial on several ranks."""

    def __init__(self, *arguments: Any, ranks: Ranks, share: Callable[[TrainJob], References], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._ranks = ranks
        self._share = share

    def _train_attempt(self, attempt: Attempt, start: Start) -> News:
        from ray.train import TrainingFailedError

        from trainers.backend import Wait, build_trainer, causes_of, release_resources

        release_resources()  # of an attempt whose own process was lost: its ranks' places are still taken
        mailbox: Any = ray.remote(num_cpus=0)(Mailbox).remote()
        config = RankConfig(
            trial_uri=self._run.uri,
            attempt=attempt.number,
            sweep_uri=self._sweep.run.uri,
            sweep_attempt=self._sweep.number,
            job=self._job,
            data=self._share(self._job),
            start=start,
            temporary=self._ranks.temporary,
            threads=self._ranks.threads,
            metric=self._metric,
            mailbox=mailbox,
        )
        trainer = build_trainer(
            _run_trial_rank,
            {"config": config},
            workers=Workers(min=self._ranks.number, max=self._ranks.number),
            gpus=self._ranks.gpus,
            scratch=os.getcwd(),
            own_ray=self._ranks.own_ray,
            wait=Wait(PATIENCE, _Over(self._sweep.run.uri, self._sweep.number)),
        )
        relay = threading.Thread(target=self._relay, args=[mailbox], name="relay", daemon=True)
        relay.start()
        lost: TrainingFailedError | None = None
        try:
            trainer.fit()
        except TrainingFailedError as error:
            lost = error
        finally:
            ray.kill(mailbox)
            forget_attempts(Path(self._ranks.temporary), self._run.uri, up_to=attempt.number)
        news = self._news_of(attempt, start) or self._unwanted(attempt, start)
        if news is None and (damage := self._run.damage_of(attempt.number)) is not None:
            raise CorruptObjectError(damage) from lost
        if news is None:
            causes = causes_of(lost).values() if lost is not None else ()
            if (failed := next((cause for cause in causes if isinstance(cause, DeviceError)), None)) is not None:
                raise failed from lost
            raise InfrastructureError(
                f"a rank of the trial was lost: {lost or 'they ended without a result'}"
            ) from lost
        return news

    def _relay(self, mailbox: Any) -> None:
        """Carry news and answers between rank 0 and whoever waits for them, until the ranks are gone."""
        while True:
            try:
                news = ray.get(mailbox.next.remote())
                ray.get(mailbox.answer.remote(self._tell(news)))
            except RayError:
                return

    def _news_of(self, attempt: Attempt, start: Start) -> News | None:
        """Return how an attempt ended, from storage, as its ranks are gone; None where they did not say."""
        run = patient(self._run)  # without an answer all of the attempt would be done again
        evaluations = [row for row in run.rows("metrics") if row["kind"] == "eval"]
        epoch = int(evaluations[-1]["epoch"]) if evaluations else start.epoch
        iteration = start.iteration + sum(row["attempt"] == attempt.number for row in evaluations)
        if (result := run.result_of(attempt.number)) is not None:
            return News(result.step, epoch, iteration, result.metrics, result.state, result.message)
        events = {row["event"]: row for row in run.rows_of(attempt.number, "events")}
        for event, state in (("paused", "PAUSED"), ("preempted", "PREEMPTED")):
            if event in events:
                step = events[event]["step"]
                return News(step, epoch, iteration, state=state, message=f"{event}; saved at step {step}")
        return None

    def _unwanted(self, attempt: Attempt, start: Start) -> News | None:
        """Return how an attempt ends whose ranks waited for room when the sweep was told to end; None: it was not.

        Raises SupersededError.
        """
        self._sweep.check_current()
        step = attempt.claim.base.step if attempt.claim.base is not None else 0
        if (reason := self._sweep.run.stop_reason()) is not None:
            result = Result("STOPPED", f"{reason}; it waited for its workers", 4, step)
            attempt.finish(result)
            return News(step, start.epoch, start.iteration, state=result.state, message=result.message)
        if (told := self._sweep.notice()) is not None:
            return News(step, start.epoch, start.iteration, state="PREEMPTED", message=told.reason)
        return None


@dataclass(frozen=True)
class _Over:
    """Says whether the trials of a sweep are to end; while storage is away, nobody wants that."""

    uri: str  # of the sweep
    attempt: int

    @cached_property
    def _sweep(self) -> Attempt:
        return Attempt.reopen(Run.at(self.uri), self.attempt)

    def __call__(self) -> bool:
        with contextlib.suppress(StorageError):
            try:
                self._sweep.check_current()
            except SupersededError:
                return True
            return self._sweep.run.stop_reason() is not None or self._sweep.notice() is not None
        return False


class Mailbox:
    """Takes what rank 0 tells to its trial, and the answer back."""

    def __init__(self) -> None:
        self._news: asyncio.Queue[News] = asyncio.Queue()
        self._answers: asyncio.Queue[StopReason | None] = asyncio.Queue()

    async def ask(self, news: News) -> StopReason | None:
        await self._news.put(news)
        return await self._answers.get()

    async def next(self) -> News:
        return await self._news.get()

    async def answer(self, told: StopReason | None) -> None:
        await self._answers.put(told)


class RankContext(RayContext):
    """One of the ranks of a trial, which share their machines with those of others."""

    def __init__(self, temporary: Path, threads: int, compared_by: str | None) -> None:
        super().__init__(temporary)
        self.compared_by = compared_by
        self._threads = threads

    def join(self) -> None:
        import torch

        super().join()
        torch.set_num_threads(self._threads or processors.cpu_count())


def _run_trial_rank(told: dict[str, RankConfig]) -> None:
    """Run one rank of Ray Train."""
    from trainers.output import shipped_output

    config = told["config"]
    attempt = through_outages(lambda: Attempt.reopen(Run.at(config.trial_uri), config.attempt))
    context = RankContext(Path(config.temporary), config.threads, config.metric)
    pulse = show_life(context, attempt)
    control = recorder = None
    with shipped_output(attempt, f"rank-{context.rank}"):
        arrays = dict(zip(config.data.arrays, ray.get(list(config.data.arrays.values())), strict=True))
        if context.rank == 0:
            sweep = through_outages(lambda: Attempt.reopen(Run.at(config.sweep_uri), config.sweep_attempt))
            recorder = TrialRecorder(attempt, log_every=config.job.train.log_every, start=config.start)
            control = TrialControl(
                sweep, recorder, lambda news: ray.get(config.mailbox.ask.remote(news)), context.world_size
            )
        run_rank(
            context,
            attempt,
            config.job,
            Prepared(arrays=arrays, meta=config.data.meta),
            control=control,
            recorder=recorder,
            pulse=pulse,
        )
