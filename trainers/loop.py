"""The training loop."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cluster.errors import StorageError, TrainingError
from trainers.config import mode_of
from trainers.context import StopReason, WorkerContext
from trainers.data.identity import OTHER_PIXELS, PUT_BACK, has_other_pixels, identity, what_changed
from trainers.data.loader import Loaded, Loader, split
from trainers.data.order import SampleOrder, largest_share, share
from trainers.optim import Schedule, build_optimizer, clip_and_scale
from trainers.parallel import Reduction, replicate, share_buffers, share_memory, wait_for_own_work, without_sync
from trainers.pulse import Phase, Pulse
from trainers.randomness import DROPOUT, EVALUATION, MODEL, seed_everything, seed_for, seed_generator
from trainers.record import FINGERPRINTS
from trainers.sharding import is_sharded, shard

_EVALUATED_AT_ONCE = 256  # samples, or a batch where that is more
_FAR = 86400.0  # seconds: a deadline later than that is none
_LOOK = 0.5  # seconds between looks at what the last save of all ranks has sent
_OVER = -1  # instead of that

if TYPE_CHECKING:
    from trainers.checkpoint import Checkpointer
    from trainers.config import Every, TrainJob
    from trainers.control import Control
    from trainers.record import Recorder
    from trainers.tasks.base import Batch, Dataset, Task


@dataclass
class Progress:
    """Where training stands; all of it is saved, so that a resume repeats nothing and skips nothing."""

    step: int = 0  # optimizer steps done
    loss_sum: float = 0.0  # over the epoch so far
    target_count: float = 0.0
    seen: int = 0  # the fingerprint of the samples since the last row
    best: float | None = None  # of the early-stopping metric
    evaluations_without_gain: int = 0
    evaluation: dict[str, float] = field(default_factory=dict)  # the newest
    evaluated: int = 0  # the step of that
    owes_evaluation: bool = False  # that of this step was left for a stop: who goes on begins with it
    last_loss: float | None = None  # of the newest step


@dataclass(frozen=True)
class Outcome:
    """How training ended."""

    step: int
    metrics: dict[str, float]
    stopped: StopReason | None = None
    early: bool = False


class Trainer:
    """Trains one task on one rank. All ranks run the same steps in the same order."""

    def __init__(
        self,
        job: TrainJob,
        task: Task,
        context: WorkerContext,
        *,
        checkpointer: Checkpointer,
        recorder: Recorder,
        control: Control,
        pulse: Pulse,
    ) -> None:
        self.config = job.train
        self.every = job.checkpoint.every
        self.best_at = job.checkpoint.metric
        self.context = context
        self.checkpointer = checkpointer
        self.recorder = recorder
        self.control = control
        self.pulse = pulse
        self.task = task
        self.device = context.device()
        self.zero = torch.zeros((), device=self.device)
        self.seed = seed_everything if job.is_own else seed_generator  # our own tasks draw on their device alone
        self.train_data, self.eval_data = task.datasets()
        self.order = SampleOrder(len(self.train_data), self.config.batch_size, self.config.seed)
        self.last_step = self._last_step()
        # `auto` may have meant another one on the machine that the run began on
        self.precision = checkpointer.precision or settle_precision(self.config.precision, self.device)
        self.autocast, self.scaler = mixed_precision(self.precision, self.device)
        seed_generator(torch.device("cpu"), seed_for(self.config.seed, MODEL))  # where models are made
        self.model = task.build_model().to(self.device)
        sharded = is_sharded(job, context)
        if sharded:
            shard(self.model, context.world_size, self.device, self.precision)
        self.parameters = list(self.model.parameters())
        self.has_buffers = any(True for _ in self.model.buffers())  # which a forward pass may change
        self.optimizer = build_optimizer(self.model, self.config.optimizer)
        self.schedule = Schedule(self.config.schedule, self.last_step)
        whole = context.world_size > 1 and not sharded
        with pulse.meeting():  # others may still load their data and build the model
            shared = share_memory(context, self.device)
            self.parallel = replicate(self.model, self.device, shared, uses_all=not job.is_own) if whole else self.model
        self.reduction = Reduction(context.world_size, self.device, shared)
        self.progress = Progress()
        self.saved_at = time.monotonic()
        self.saved_step = -1

    def run(self) -> Outcome:
        """Train from the newest checkpoint to the last step, or until asked to stop."""
        self.checkpointer.restore(self)
        self.pulse.reached(self.progress.step)
        self.recorder.started(self)
        start = self.progress.step
        loader = Loader(
            self.train_data,
            self.order,
            rank=self.context.rank,
            world_size=self.context.world_size,
            micro_batch_size=self.config.micro_batch_size,
            device=self.device,
        )
        if self.progress.owes_evaluation:
            stop = self.evaluate(late=True)
            if stop is not None:
                return self.finish(stop, early=False)  # the checkpoint that it went on from is all there is to save
            self.pulse.enter(Phase.SAVING)
            self.checkpointer.measured(self.progress.evaluation)
        if self.should_end_early():  # it had ended, and was lost before it could say so
            return self.finish(None, early=self.progress.step < self.last_step)
        self.model.train()
        self.pulse.enter(Phase.COMPUTING)
        for loaded in loader.steps(start, self.last_step):
            self.train_step(loaded)
            stop, wants_save = self.settle() if self.has_news() else (None, False)
            if self.is_due(self.config.eval_every) or self.progress.step == self.last_step:
                left = self.evaluate()
                stop = stop or left
            if self.progress.step % self.order.steps_per_epoch == 0:
                self.recorder.epoch(self.progress, self.order.steps_per_epoch)
                self.progress.loss_sum = self.progress.target_count = 0.0
            self.control.after(self.progress.step)
            early = self.should_end_early()
            done = stop is not None or early or self.progress.step == self.last_step
            if done or wants_save or self.is_due(self.every):
                self.save(last=done, left=self.time_left(stop))
            if done:
                return self.finish(stop, early=early and self.progress.step < self.last_step)
            self.pulse.enter(Phase.COMPUTING)
        return self.finish(None, early=False)  # there was nothing left to do

    # -- one step

    def train_step(self, loaded: Loaded) -> None:
        """Forward, backward and one optimizer step on this rank's micro-batches of a global batch."""
        step = self.progress.step
        if self.has_buffers:
            self.checkpointer.hold()
        self.schedule.apply(self.optimizer, step)
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum, count = self.zero, self.zero
        # Losses are summed over targets; DDP and FSDP average gradients over ranks. This factor turns the average into
        # the sum over all ranks divided by the batch size; clip_and_scale corrects it to the true number of targets.
        weight = self.context.world_size / self.config.batch_size
        for index, batch in enumerate(loaded.batches):
            last = index == len(loaded.batches) - 1
            self.seed(self.device, seed_for(self.config.seed, DROPOUT, step, self.context.rank, index))
            with nullcontext() if last else without_sync(self.parallel):
                with self.autocast:
                    loss, targets, _ = self.task.loss(self.parallel, batch)
                loss_sum, count = loss_sum + loss.detach(), count + targets
                if last:
                    stop, wants_save = self.control.stop(), self.wants_save()
                    self.reduction.start(loss_sum, count, seen=loaded.seen, stop=stop, wants_save=wants_save)
                    self.pulse.enter(Phase.WAITING)  # from here on, what the others do holds up this rank too
                self.scaler.scale(loss * weight).backward()
        self.reduction.wait()
        self.scaler.unscale_(self.optimizer)
        norm = clip_and_scale(self.parameters, self.config.batch_size / self.reduction.count, self.config.clip_norm)
        self.checkpointer.hold()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.progress.step += 1
        self.reduction.keep(step=self.progress.step, norm=norm, lr=self.optimizer.param_groups[0]["lr"])

    def has_news(self) -> bool:
        """Whether the step's sums are to be read now: on a GPU that waits for it, so only where they are needed."""
        step = self.progress.step
        return (
            self.device.type == "cpu"
            or step % self.config.log_every == 0
            or step % self.order.steps_per_epoch == 0
            or step in (self.last_step, self.saved_step + 1)
            or self.is_due(self.every)
            or self.is_due(self.config.eval_every)
            or self.reduction.has_wishes()
        )

    def settle(self) -> tuple[StopReason | None, bool]:
        """Read the sums of the steps since the last call: log them, and return the ranks' common wishes."""
        stop, wants_save = None, False
        for kept in self.reduction.read():
            loss = kept.loss_sum / max(kept.count, 1.0)
            if not math.isfinite(loss):
                raise self._diverged(f"the loss is {loss}", kept.step)
            if not math.isfinite(kept.norm) and not self.scaler.is_enabled():  # a scaler leaves such a step out
                raise self._diverged(f"the gradient's norm is {kept.norm}", kept.step)
            self.progress.last_loss = loss
            self.progress.loss_sum += kept.loss_sum
            self.progress.target_count += kept.count
            self.progress.seen = (self.progress.seen + kept.seen) % FINGERPRINTS
            samples = self.order.size(kept.step - 1)
            if self.recorder.step(kept, loss, epoch=self.epoch_of(kept.step), samples=samples, seen=self.progress.seen):
                self.progress.seen = 0
            stop = kept.stop or stop
            wants_save = wants_save or kept.wants_save
        self.pulse.reached(self.progress.step)
        self.checkpointer.confirm()
        return stop, wants_save

    # -- between steps

    @torch.no_grad()  # in inference mode FSDP could not train with what it makes at its first pass, which this may be
    def evaluate(self, *, late: bool = False) -> StopReason | None:
        """Measure loss and metrics on the evaluation data, shared between the ranks.

        Returns why they left it between two batches, if they did: then it is owed, `late`, to this step's checkpoint.
        """
        if self.eval_data is None:
            return None
        started = time.monotonic()
        if self.has_buffers and self.context.world_size > 1:
            self.checkpointer.hold()
            self.pulse.enter(Phase.WAITING)
            share_buffers(self.model, self.device)
        self.pulse.enter(Phase.EVALUATING)
        self.model.eval()
        self.seed(self.device, seed_for(self.config.seed, EVALUATION, self.progress.step, self.context.rank))
        metrics = self.task.metrics().to(self.device)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        agreement = self.reduction.agreement(self.pulse)
        for batch in self._evaluation_batches(self.eval_data):
            if (stop := agreement.ask(self.control.urgent_stop())) is not None:
                self.progress.owes_evaluation = True
                self.model.train()
                return stop
            with self.autocast:
                loss, targets, output = self.task.loss(self.model, batch)
            sums += torch.stack([loss, targets]).double()
            if len(batch["targets"]):
                metrics.update(output.float(), batch["targets"])
        if self.context.world_size > 1:
            wait_for_own_work(self.device)
            with self.pulse.agreeing():
                torch.distributed.all_reduce(sums)
                sums = sums.cpu()  # a GPU's ranks wait where its sums are read
        values = {f"eval_{name}": float(value) for name, value in metrics.compute().items()}
        self.progress.evaluation = {"eval_loss": float(sums[0] / sums[1].clamp(min=1)), **values}
        self.progress.evaluated = self.progress.step
        if not math.isfinite(self.progress.evaluation["eval_loss"]):
            raise self._diverged(f"eval_loss is {self.progress.evaluation['eval_loss']}", self.progress.step)
        self.model.train()
        self.progress.owes_evaluation = False
        self._count_towards_early_stopping()
        seconds, epoch = time.monotonic() - started, self.epoch_of(self.progress.step)
        self.recorder.evaluation(self.progress, seconds, epoch=epoch, late=late)
        if self.best_at not in (None, self.context.compared_by):
            self._measured("checkpoint.metric", self.best_at)
        return None

    def should_end_early(self) -> bool:
        stopping = self.config.early_stopping
        return stopping is not None and self.progress.evaluations_without_gain >= stopping.patience

    def time_left(self, stop: StopReason | None) -> float:
        """Return the fewest seconds that the machine of a rank is still there for, where training stops. Collective."""
        if stop is None:
            return math.inf
        self.pulse.enter(Phase.SAVING)
        return min(self.context.gather(int(min(self.control.left(), _FAR) * 1000))) / 1000

    def save(self, *, last: bool, left: float = math.inf) -> None:
        if last:
            self.finish_saves(partial(self.checkpointer.make_room, left))
        self.pulse.enter(Phase.SAVING)
        urgent = lambda: self.control.urgent_stop() is not None  # noqa: E731
        self.checkpointer.save(self, last=last, is_urgent=urgent)
        self.saved_at = time.monotonic()
        self.saved_step = self.progress.step

    def finish(self, stop: StopReason | None, *, early: bool) -> Outcome:
        self.finish_saves(self.checkpointer.close)
        self.pulse.enter(Phase.ENDING)
        metrics = dict(self.progress.evaluation)
        if self.progress.last_loss is not None:
            metrics["loss"] = self.progress.last_loss
        return Outcome(step=self.progress.step, metrics=metrics, stopped=stop, early=early)

    def finish_saves(self, saves: Callable[[], None]) -> None:
        """Wait until `saves` has returned on every rank; raises what it does here. Collective.

        That may take hours where the way to storage is narrow: none takes another for one that hangs whose bytes move.
        """
        self.pulse.enter(Phase.SAVING)
        saving, headway = _begun(saves), [0]
        while {*headway} != {_OVER}:
            is_over, before = bool(wait([saving], _LOOK).done), headway
            headway = self.context.gather(_OVER if is_over else self.checkpointer.sent)
            if headway != before:
                self.pulse.enter(Phase.SAVING)
        saving.result()

    def is_due(self, every: Every) -> bool:
        """Whether an interval of epochs or steps ends at this step; minutes come as a wish of rank 0."""
        if every.unit == "min":
            return False
        steps, parts = _interval(every, self.order.steps_per_epoch)
        return self.progress.step * parts // steps > (self.progress.step - 1) * parts // steps

    def wants_save(self) -> bool:
        """Whether rank 0 has saved nothing for minutes, or a save failed on this rank, which raises it at the next."""
        if self.checkpointer.has_failed:
            return True
        every = self.every
        return every.unit == "min" and self.context.rank == 0 and time.monotonic() - self.saved_at > every.count * 60

    def epoch_of(self, step: int) -> int:
        return (step - 1) // self.order.steps_per_epoch + 1

    # -- state

    def state(self) -> dict[str, Any]:
        """Return all that a resume needs beside model and optimizer, as plain JSON."""
        progress = vars(self.progress).copy()
        told = {"data": self._data(), "threads": self._threads()}
        return {"progress": progress, "scaler": self.scaler.state_dict(), **told}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave. Raises TrainingError where the data is not that which it was trained on."""
        self.progress = Progress(**state["progress"])
        self._compare_data(state.get("data", {}))
        self._compute_with(state.get("threads", {}))
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def _data(self) -> dict[str, Any]:
        return identity(self.task.meta, train=len(self.train_data), eval=len(self.eval_data or ()))

    def _compare_data(self, saved: Mapping[str, Any]) -> None:
        """Raise TrainingError where the samples are others; of other pixels alone, tell."""
        now = self._data()
        if what := what_changed(saved, now):
            raise TrainingError(
                f"the samples are not those that step {self.progress.step} was reached with: {what}. {PUT_BACK}"
            )
        if has_other_pixels(saved, now):
            self.recorder.event("warning", message=OTHER_PIXELS)

    def _threads(self) -> dict[str, int]:
        """Return what the order of sums on processors follows from."""
        return {"ranks": self.context.world_size, "threads": torch.get_num_threads()}

    def _compute_with(self, saved: Mapping[str, int]) -> None:
        """Compute with as many threads as before, where there are as many ranks and this one's share allows it."""
        now = torch.get_num_threads()
        if self.device.type != "cpu" or not saved or saved["ranks"] != self.context.world_size:
            return
        if (threads := saved["threads"]) < now:
            torch.set_num_threads(threads)
            said = f"with {threads} threads, as it began, of the {now} that it may have: so sums stay the same"
        elif threads > now:
            said = f"with {now} threads, where it had {threads}: losses may differ in their last digits"
        else:
            return
        self.recorder.event("warning", message=f"each rank computes {said}")

    def _last_step(self) -> int:
        if self.config.max_steps is None:
            return (self.config.epochs or 1) * self.order.steps_per_epoch
        if self.config.epochs is None:
            return self.config.max_steps
        return min(self.config.max_steps, self.config.epochs * self.order.steps_per_epoch)

    def _evaluation_batches(self, data: Dataset) -> Iterator[Batch]:
        own = share(np.arange(len(data)), self.context.rank, self.context.world_size)
        at_once = max(self.config.batch_size, _EVALUATED_AT_ONCE)
        for part in split(own, at_once, largest_share(len(data), self.context.world_size)):
            yield {name: tensor.to(self.device) for name, tensor in data.batch(part, None).items()}

    def _count_towards_early_stopping(self) -> None:
        stopping = self.config.early_stopping
        if stopping is None:
            return
        value = self._measured("train.early_stopping.metric", stopping.metric)
        gain = value if mode_of(stopping.metric, stopping.mode) == "max" else -value
        best = self.progress.best
        if math.isfinite(gain) and (best is None or gain > best + stopping.min_delta):
            self.progress.best = gain
            self.progress.evaluations_without_gain = 0
        else:
            self.progress.evaluations_without_gain += 1

    def _measured(self, key: str, metric: str) -> float:
        """Return a metric of the newest evaluation. Raises TrainingError where that has none of the name."""
        found = self.progress.evaluation
        if metric not in found:
            raise TrainingError(f"{key}: there is no {metric!r}; this task has {', '.join(found)}")
        return found[metric]

    def _diverged(self, what: str, step: int) -> TrainingError:
        """Finish the save behind, then say what happened. Collective: every rank sees the same sums."""
        with suppress(StorageError):
            self.finish_saves(self.checkpointer.wait)
        good = max(self.context.gather(self.checkpointer.newest_step))
        kept = f"The last good checkpoint, of step {good}, is kept" if good else "There is no checkpoint before it"
        clip = "" if self.config.clip_norm else " or train.clip_norm: 1"
        return TrainingError(
            f"training diverged: {what} at step {step} (epoch {self.epoch_of(step)}). {kept}. "
            f"Try a smaller train.optimizer.lr (it is {self.optimizer.param_groups[0]['lr']:g}){clip}"
        )


def _begun(work: Callable[[], None]) -> Future[None]:
    """Do something in a thread, which nobody waits for where this process ends."""
    done: Future[None] = Future()

    def do() -> None:
        try:
            work()
        except BaseException as error:  # told to whoever waits
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=do, name="saves", daemon=True).start()
    return done


@cache
def _interval(every: Every, steps_per_epoch: int) -> tuple[int, int]:
    """Return an interval in steps, as a fraction."""
    steps = Fraction(repr(every.count)) * (1 if every.unit == "step" else steps_per_epoch)
    return steps.numerator, steps.denominator


def settle_precision(precision: str, device: torch.device) -> str:
    """Return what `auto` means on a device: bf16 where it computes in it and gains by it, else fp32.

    Of processors these are the ones with AMX, which multiplies matrices of bf16.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities: Mapping[str, Any] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # older versions of torch do not tell
    return "bf16" if device.type == "cpu" and capabilities.get("amx_bf16") else "fp32"


def mixed_precision(
    precision: str, device: torch.device
) -> tuple[AbstractContextManager[Any], torch.amp.grad_scaler.GradScaler]:
    """Return the autocast context and the gradient scaler of a precision; the scaler is idle but for fp16."""
    precision = settle_precision(precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16" and device.type == "cuda")
    if precision == "fp32":
        return nullcontext(), scaler
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=dtype), scaler
