"""What each rank runs, under Ray Train, under torchrun, or alone.

torchrun --nproc-per-node 2 -m trainers.worker RUN_URI
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cluster.attempts import Attempt
from cluster.errors import DeviceError, InfrastructureError, PreemptedError, RayliftError, TrainingError, UserCodeError
from cluster.outages import patient, through_outages
from cluster.records import Result
from cluster.runs import Run
from cluster.segments import SegmentWriter
from trainers import notice
from trainers.context import LocalContext, RayContext, StopReason, WorkerContext
from trainers.elastic import Growth
from trainers.pulse import Pulse, forget_attempts, pulse_folder, show_stacks_when_asked
from trainers.tasks.base import Prepared
from trainers.watchdog import Keeper

if TYPE_CHECKING:
    from trainers.config import TrainJob
    from trainers.control import Control
    from trainers.loop import Outcome, Trainer
    from trainers.record import Recorder


_GOES_ON = (
    StopReason.PREEMPTED,
    StopReason.RESIZE,
    StopReason.PAUSED,
)  # with another attempt: such an end has no result
_BATCH_NORM = (
    "the model has batch norm, whose statistics are those of each worker's own micro-batch: with another number of "
    "workers the losses are others"
)
_NO_GPU_MEMORY = (
    "CUDA error: out of memory",
    "Cuda failure 2 ",
    "_STATUS_ALLOC_FAILED",
)  # of CUDA, NCCL, its libraries
# What a GPU, its driver and its libraries say that cannot go on; and what they say of a mistake in what they were given
_GPU_FAILED = ("CUDA error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "CUSPARSE_STATUS_", "HIP error")
_MISUSED = (
    *("device-side assert", "no kernel image", "invalid argument", "invalid configuration argument"),
    *("_INVALID_VALUE", "_BAD_PARAM", "_NOT_SUPPORTED"),
)


@dataclass(frozen=True)
class Elastic:
    """What ranks need to know whose number may change."""

    began: float  # when their start began, in seconds since the epoch
    ranks_before: int | None  # how many trained before them; None: none did


def run_under_ray(config: dict[str, Any]) -> None:
    """Run one rank of Ray Train; `config` is what trainers.main made ready."""
    import ray

    from trainers.output import shipped_output
    from trainers.spares import standing_by

    run = Run.at(config["run_uri"])
    attempt = through_outages(lambda: Attempt.reopen(run, config["attempt"]))
    context = RayContext(Path(config["temporary"]))
    pulse = show_life(context, attempt)
    spares = context.local_world_size if config["spares"] and context.local_rank == 0 else 0
    with shipped_output(attempt, f"rank-{context.rank}"), standing_by(spares, attempt=attempt.number):
        arrays = dict(zip(config["arrays"], ray.get(list(config["arrays"].values())), strict=True))
        prepared = Prepared(arrays=arrays, meta=config["meta"])
        run_rank(context, attempt, config["job"], prepared, config["elastic"], pulse=pulse)


def run_rank(
    context: WorkerContext,
    attempt: Attempt,
    job: TrainJob,
    prepared: Prepared,
    elastic: Elastic | None = None,
    *,
    control: Control | None = None,
    recorder: Recorder | None = None,
    pulse: Pulse | None = None,
) -> Outcome:
    """Train as one rank and, as rank 0, write down how it ended. A trial brings its own control and recorder.

    Where a rank that hangs would be started again, `pulse` is what its watchdog listens to.

    Where it ended for another number of ranks, only that is written down: there is no result yet.
    Raises TrainingError where a retry would fail again (that is written down too), InfrastructureError where one
    may help, PreemptedError where the machine is taken away and all is saved.
    """
    from trainers.checkpoint import Checkpointer
    from trainers.compilation import compilation_shown
    from trainers.control import Control
    from trainers.loop import Trainer
    from trainers.memory import keep_freed_memory, peak_memory
    from trainers.parallel import has_batch_norm
    from trainers.peers import Peers
    from trainers.record import Recorder
    from trainers.sharding import is_sharded
    from trainers.tasks.registry import build_task
    from trainers.user_code import code_of

    started = time.monotonic()
    keep_freed_memory()
    pulse = pulse or Pulse(context.rank)
    pulse.step_timeout = job.train.step_timeout or pulse.step_timeout
    with pulse.meeting():
        context.join()
    control = control or Control(attempt, context.rank, context.world_size)
    control.pulse = pulse
    recorder = recorder or Recorder(attempt, context.rank, log_every=job.train.log_every)
    trainer = checkpointer = None
    try:
        task = build_task(job, prepared, code_of(job, patient(attempt.run)))
        checkpointer = Checkpointer(
            attempt,
            context.rank,
            config=job.checkpoint,
            recorder=recorder,
            meta=prepared.meta,
            peers=Peers.of(context) if is_sharded(job, context) else None,
        )
        trainer = Trainer(
            job, task, context, checkpointer=checkpointer, recorder=recorder, control=control, pulse=pulse
        )
        if job.is_own:  # of others, whoever prepared it has told
            recorder.event("data.ready", **_samples(trainer, context))
            if context.world_size > 1 and has_batch_norm(trainer.model):
                recorder.event("warning", message=_BATCH_NORM)
        if elastic is not None:
            _watch_the_number(context, attempt, control, recorder, elastic, last_step=trainer.last_step)
        with compilation_shown(pulse):
            outcome = trainer.run()
        if outcome.stopped is StopReason.RESIZE:
            recorder.event("resizing", **{"from": context.world_size, "to": control.resize_to, "step": outcome.step})
        if outcome.stopped is StopReason.PREEMPTED:
            recorder.event("preempted", step=outcome.step)
        if outcome.stopped is StopReason.PAUSED:
            recorder.event("paused", step=outcome.step)
        if outcome.stopped in _GOES_ON:
            recorder.close()
        # Here all meet for the last time: none is gone, or has the others ended, before rank 0 has saved and said so.
        peaks = context.gather(peak_memory())
        if outcome.stopped is StopReason.PREEMPTED:
            raise PreemptedError(f"preempted: {outcome.stopped.value}; saved at step {outcome.step}")
        if outcome.stopped in _GOES_ON:
            return outcome
        for rank, peak in enumerate(peaks):
            recorder.event("memory", process=f"rank {rank}", peak_bytes=peak)
        if context.rank == 0:
            if checkpointer.was_away or attempt.number > 1:  # ranks cut off may have died after the last sweep
                attempt.sweep(is_over=True)  # no attempt comes after this one
            result = _result_of(outcome, control.why)
            _note_end(recorder, result, seconds=round(time.monotonic() - started, 3))
            through_outages(recorder.close)  # nobody has to train again to say that it is done
            through_outages(lambda: attempt.finish(result))
        return outcome
    except (Exception, SystemExit) as error:  # the latter of the user's code
        told = explain(error, context.rank, trainer.progress.step if trainer is not None else None)
        with contextlib.suppress(InfrastructureError):
            recorder.flush()  # which step it was at counts where it fails there again
        if isinstance(told, TrainingError):
            if isinstance(told, UserCodeError):
                print(told.traceback, file=sys.stderr)
            else:
                traceback.print_exception(error)
            with contextlib.suppress(InfrastructureError):
                result = Result.failed(told)
                _note_end(recorder, result)
                recorder.close()
                attempt.finish(result)
        if told is error:
            raise
        raise told from error
    finally:
        if checkpointer is not None:
            checkpointer.abandon()
        control.close()
        # DDP must not be the last to let go of the process group: what its reducer does then, with the interpreter's
        # lock held, waits for a thread of gloo that may wait for that lock (torch 2.13).
        trainer = None
        context.leave()
        pulse.close()


def _watch_the_number(
    context: WorkerContext, attempt: Attempt, control: Control, recorder: Recorder, elastic: Elastic, *, last_step: int
) -> None:
    """Write down that the number of ranks is another one, and let rank 0 find out when it is time for more."""
    before, base = elastic.ranks_before, attempt.claim.base
    if before is not None and before != context.world_size:
        step = base.step if base is not None else 0
        recorder.event("resized", **{"from": before, "to": context.world_size, "step": step})
    if context.rank == 0:
        control.growth = Growth(context.world_size, last_step=last_step, began=elastic.began)


def show_life(context: WorkerContext, attempt: Attempt) -> Pulse:
    """Beat, and have a watchdog listen: one a machine. It keeps open what this process prints to at the moment."""
    folder = pulse_folder(context.temporary, attempt.run.uri, attempt.number)
    folder.mkdir(mode=0o700, exist_ok=True)
    show_stacks_when_asked()
    pulse = partial(Pulse, context.rank, folder, run_uri=attempt.run.uri, attempt=attempt.number)
    if context.local_rank != 0:
        return pulse()
    forget_attempts(context.temporary, attempt.run.uri, up_to=attempt.number - 1)
    return pulse(at_each_beat=Keeper(folder, context.world_size, attempt.claim.host).look)


def _samples(trainer: Trainer, context: WorkerContext) -> dict[str, int]:
    """Return how many samples a task of the user's own has for each use. Raises TrainingError where ranks differ."""
    found = {"train": len(trainer.train_data), "eval": len(trainer.eval_data) if trainer.eval_data is not None else 0}
    for use, count in found.items():
        with trainer.pulse.meeting():
            counts = context.gather(count)
        if len({*counts}) > 1:
            told = ", ".join(map(str, counts))
            raise TrainingError(
                f"task: datasets() gave the ranks {told} samples to {use}: they must be the same on all"
            )
    if not found["eval"] and trainer.config.early_stopping is not None:
        raise TrainingError("train.early_stopping: the task has no data to evaluate on")
    return found


def explain(error: BaseException, rank: int, step: int | None) -> RayliftError:
    """Return what an exception of a rank means for the run: the user's to mend, or worth a retry.

    `step` is the last one that was done; None before training.
    """
    import torch

    from trainers.memory import held_on_gpu, peak_memory
    from trainers.user_code import told_of

    if isinstance(error, RayliftError):
        return error
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or any(words in text for words in _NO_GPU_MEMORY):
        asked = re.search(r"Tried to allocate ([\d.]+ \w+)", text)
        return InfrastructureError(
            f"rank {rank} ran out of GPU memory, at step {(step or 0) + 1}: it held {held_on_gpu()} at most"
            f"{f', and needed {asked[1]} more' if asked else ''}. Try a smaller train.micro_batch_size, or "
            "train.precision: bf16"
        )
    if any(words in text for words in _GPU_FAILED) and not any(words in text for words in _MISUSED):
        said = text.strip().partition("\n")[0]
        return DeviceError(f"rank {rank}'s GPU on {socket.gethostname()} failed, at step {(step or 0) + 1}: {said}")
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        held = f"{peak_memory() / 1e9:.1f} GB"
        return InfrastructureError(
            f"rank {rank} ran out of memory, at step {(step or 0) + 1}: it held {held} at most. Try a smaller "
            "train.micro_batch_size, or fewer cluster.workers on a machine"
        )
    if isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in text):
        return InfrastructureError("another rank is gone")
    where = "" if step is None else f" (rank {rank}, step {step + 1})"
    if (of_user := told_of(error, where or f" (rank {rank}, before the first step)")) is not None:
        return of_user
    return TrainingError(f"{type(error).__name__}: {text}{where}")


def _result_of(outcome: Outcome, why: str | None) -> Result:
    if outcome.stopped is StopReason.PRUNED:
        message = f"{outcome.stopped.value}, at step {outcome.step}"
        return Result(state="PRUNED", message=message, step=outcome.step, metrics=outcome.metrics)
    if outcome.stopped is not None:
        message = f"{why or outcome.stopped.value}; saved at step {outcome.step}"
        return Result(state="STOPPED", message=message, exit_code=4, step=outcome.step, metrics=outcome.metrics)
    message = f"stopped early at step {outcome.step}: no more gain" if outcome.early else ""
    return Result(state="SUCCEEDED", message=message, step=outcome.step, metrics=outcome.metrics)


def _note_end(recorder: Recorder, result: Result, **values: float) -> None:
    recorder.event("finished", state=result.state, message=result.message, **values)


def main() -> int:
    """Run a rank that torchrun started, or a whole run in this one process."""
    from trainers.jobs import load_job
    from trainers.tasks.registry import prepare

    notice.listen()
    run = Run.at(sys.argv[1])
    job, _ = load_job(run)
    context = LocalContext()
    prepared = prepare(job)
    attempt = run.claim(read=True) if context.rank == 0 else None  # nobody would start these ranks again
    number = _agree(context, attempt.number if attempt else 0)
    attempt = attempt or Attempt.reopen(run, number)
    if context.rank == 0:
        attempt.sweep()
        events = SegmentWriter(run, number, "events", "driver")
        for note in prepared.notes:
            events.append(note)
        events.close()
    outcome = run_rank(context, attempt, job, prepared)
    return 4 if outcome.stopped is not None else 0


def _agree(context: LocalContext, number: int) -> int:
    """Return rank 0's number on every rank."""
    if context.world_size == 1:
        return number
    import torch

    context.join()
    told = torch.tensor([number], device=context.device())
    torch.distributed.broadcast(told, src=0)
    return int(told.item())


def end_with(main: Callable[[], int]) -> NoReturn:
    """Run a rank of torchrun, and end its process without taking the interpreter down first.

    A thread of gloo that lets go of its last tensor meanwhile would abort the process (torch 2.13, pytorch issue
    190489), and what torch caches for DDP and FSDP keeps these threads past the end of the process group.
    """
    try:
        code = main()
    except RayliftError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    end_with(main)
