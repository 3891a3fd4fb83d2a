"""The driver of a run.

    python -m trainers.main RUN_URI

Claims an attempt, prepares the data while Ray starts, runs the ranks, and tries again from the newest checkpoint
where a rank or its machine was lost. Imports no torch: only the ranks do.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cluster.attempts import Attempt
from cluster.config import LocalCluster, Workers
from cluster.errors import (
    InfrastructureError,
    PreemptedError,
    RayliftError,
    StorageDeniedError,
    StorageError,
    StorageFullError,
    SupersededError,
    is_outage,
)
from cluster.life import SignsOfLife
from cluster.local import FINAL, PREEMPTED, TAKEN_AWAY, UNRECORDED, clear, end_processes, scratch_folder
from cluster.memory import SHORT_OF_MEMORY, kills_for_memory
from cluster.outages import PATIENCE, UNREACHED, patient, through_outages
from cluster.records import Checkpoint, Result
from cluster.runs import Run
from cluster.segments import IN_STORAGE, SegmentWriter
from trainers import notice
from trainers.jobs import load_job
from trainers.memory import peak_memory
from trainers.output import shipped_output
from trainers.pulse import ENDED, forget_attempts, pulse_folder, verdicts
from trainers.pulse import read as read_pulse
from trainers.record import passed_over
from trainers.spares import start_first_ranks
from trainers.spending import Spending, limit_of
from trainers.worker import Elastic, run_under_ray

if TYPE_CHECKING:
    from trainers.config import TrainJob
    from trainers.tasks.base import Prepared

_WATCH = 0.25  # seconds
_WORD_FROM_AFAR = 5.0  # seconds
_LOOK = 1.0  # seconds between looks for room for the ranks
_SAME_STEP = 3  # attempts that are lost after the same step: the next would be too
_PARENT = os.getppid()
_SUPERVISED = "RAYLIFT_RAY_FOLDER" in os.environ  # then whoever started this process ends Ray, faster than Ray does


@dataclass(frozen=True)
class Ready:
    """What every attempt of a launch shares: a Ray that runs, and the data in it."""

    workers: Workers
    gpus: bool
    meta: dict[str, Any]
    arrays: dict[str, Any]  # name -> object reference


class Driver:
    """One launch of a run, over its attempts."""

    def __init__(self, run: Run, job: TrainJob, whole: dict[str, Any]) -> None:
        """Drive a run by what `load_job` returns of it."""
        self.run = run
        self.job, self.whole = job, whole
        self.spending = Spending(run, limit_of(whole))
        self._told_to_leave = False
        self._reached: dict[int, int] = {}  # the last step of each attempt, as its ranks on this machine had it
        self.life = SignsOfLife()
        self.patient = patient(run, gives_up=self._gives_up)
        self.launch = os.environ.get("RAYLIFT_LAUNCH", "")
        self.cluster = (
            LocalCluster.model_validate_json(os.environ["RAYLIFT_CLUSTER"])
            if ("RAYLIFT_CLUSTER" in os.environ)
            else LocalCluster.model_validate(self.whole.get("cluster", {}))
        )

    @property
    def leaving(self) -> bool:
        """Whether this machine will be taken away, as a signal or its cloud says."""
        return self._told_to_leave or notice.is_given()

    def _gives_up(self) -> bool:
        """Whether there is no sense in waiting for a storage that is away, as the ranks may have done before us."""
        return self.leaving or self.life.silence > PATIENCE

    def _code_of_leaving(self) -> int:
        return TAKEN_AWAY if notice.is_given() else PREEMPTED

    @property
    def own_ray(self) -> bool:
        """Whether Ray is started for this run, on this machine, and ended with it."""
        return self.cluster.address is None

    @property
    def temporary(self) -> Path:
        """Where ranks and driver meet on this machine; a Ray of somebody else knows nothing of ours."""
        return Path(tempfile.gettempdir()) if self.own_ray else scratch_folder(self.run.id).parents[1]

    def drive(self) -> int:
        """Run attempts until one writes a result; return the exit code.

        Raises RayliftError where none can be claimed; whoever started this process is told by a file why.
        """
        self._listen()
        try:
            if (result := self._result_before()) is not None:
                return result.exit_code
            attempt, events = self._claim()
        except StorageError as error:
            if self.leaving and is_outage(error):
                return self._code_of_leaving()
            if not isinstance(error, SupersededError):
                _leave_word(str(error))
            raise
        print(IN_STORAGE, attempt.number, flush=True)
        with (
            self.life.shown(),
            shipped_output(attempt, "driver"),
            self.spending.watched(attempt),
            self._hearing_its_cloud(),
        ):
            try:
                ready = self._start(attempt, events)
                while True:
                    if (final := self._wait_for_room(events, ready)) is not None:
                        return self._finish(attempt, events, final)
                    if self.leaving:
                        return self._leave(attempt, events)
                    lost = self._fit(attempt, events, ready)
                    if (result := self.patient.result_of(attempt.number)) is not None:
                        self._close(events)
                        if result.state == "FAILED":  # in the midst of a save, maybe
                            attempt.sweep(is_over=True)
                        return result.exit_code
                    if (final := self._why_not_again(attempt, lost)) is not None:
                        return self._finish(attempt, events, final)
                    if not self._ended_with(attempt.number, "resizing"):
                        events.append({"event": "recovering", "reason": lost})
                    through_outages(events.close, gives_up=self._gives_up)
                    if self.own_ray and self._ended_with(attempt.number, "preempted"):
                        notice.look()  # by now it has told the ranks
                    if self.leaving:
                        return self._code_of_leaving()
                    attempt, events = self._claim()
            except SupersededError:
                raise
            except PreemptedError:
                return self._leave(attempt, events)
            except RayliftError as error:
                if self.leaving and isinstance(error, StorageError) and is_outage(error):
                    return self._code_of_leaving()  # there is no time to wait for it
                return self._finish(attempt, events, Result.failed(error))
            except Exception as error:
                traceback.print_exception(error)
                message = f"{type(error).__name__} in the driver: {error}. See: raylift logs {self.run.uri}"
                return self._finish(attempt, events, Result(state="FAILED", message=message, exit_code=1))

    def _result_before(self) -> Result | None:
        """Return the result that an earlier driver of this launch wrote before it was lost itself."""
        since = os.environ.get("RAYLIFT_NEWEST_ATTEMPT")
        if since is None or max(self.patient.attempts(), default=0) <= int(since):
            return None  # it is the first
        return self.patient.result_of(self.patient.newest_of(self.launch, int(since)))

    def _claim(self) -> tuple[Attempt, SegmentWriter]:
        corrupt: list[dict[str, Any]] = []
        note = lambda checkpoint, why: corrupt.append(passed_over(checkpoint, why))  # noqa: E731
        if (own := self.life.attempt) is None:
            claimed = claim_first(self.patient, on_corrupt=note)
        else:
            claimed = self.patient.claim(launch=self.launch, after=own.number, on_corrupt=note)
        attempt = self.life.attempt = Attempt(self.run, claimed.claim)
        events = SegmentWriter(self.run, attempt.number, "events", "driver")
        base = attempt.claim.base
        events.append({"event": "claimed", "base": base.step if base else None})
        for row in corrupt:
            events.append(row)
        return attempt, events

    def _start(self, attempt: Attempt, events: SegmentWriter) -> Ready:
        """Start Ray and prepare the data at the same time. Raises PreemptedError.

        Data that cannot be trained on ends the run at once: nobody waits for a Ray that is not needed.
        """
        from trainers.tasks.registry import prepare

        started = time.monotonic()

        def prepare_or_leave() -> Prepared:
            try:
                return prepare(self.job)
            except RayliftError as error:
                if _SUPERVISED:  # the Ray that is starting is ended with us
                    _exit(self._finish(attempt, events, Result.failed(error)))
                raise

        pool = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        preparing = pool.submit(prepare_or_leave)
        pool.shutdown(wait=False)  # once that is done
        try:
            workers, gpus = self._start_ray()
        except SystemExit as error:  # of a handler of SIGTERM that Ray has set
            self._told_to_leave = True
            raise PreemptedError("preempted: Ray was not ready yet") from error
        self._listen()
        while not wait([preparing], _WATCH).done:
            if self.leaving:
                raise PreemptedError("preempted: the data was not ready yet")
        prepared = preparing.result()
        for note in prepared.notes:
            events.append(note)
        events.append(
            {"event": "cluster", "ranks": workers.max, "gpus": gpus, "seconds": round(time.monotonic() - started, 3)}
        )
        return Ready(workers, gpus, dict(prepared.meta), _share(prepared))

    def _wait_for_room(self, events: SegmentWriter, ready: Ready) -> Result | None:
        """Wait until there is room for enough ranks; return how the run ends where nothing comes of it."""
        from trainers.backend import Wish, look_for_room

        began, least, told = time.monotonic(), ready.workers.min, 0
        with contextlib.ExitStack() as stack:
            wish: Wish | None = None
            while (reason := self._stop_reason()) is None and not self.leaving:
                missing = 0 if self.own_ray else least - sum(room.free for room in look_for_room(gpus=ready.gpus))
                if missing <= 0 or (wish is not None and wish.is_granted()):
                    break
                if wish is None:
                    wish = Wish(least, gpus=ready.gpus)
                    stack.callback(wish.withdraw)
                if missing != told:
                    events.append({"event": "waiting", "workers": missing, "least": least})
                    told = missing
                if time.monotonic() - began > PATIENCE:
                    message = f"waited {PATIENCE / 60:.0f} min for {missing} more of the {least} workers that it needs"
                    return Result(state="FAILED", message=message, exit_code=3)
                time.sleep(_LOOK)
        if told:
            events.append({"event": "waited", "seconds": round(time.monotonic() - began, 3)})
        return Result(state="STOPPED", message=reason, exit_code=4) if reason is not None else None

    def _stop_reason(self) -> str | None:
        """Return why a person wants the run to stop; while storage is away, nobody does."""
        with contextlib.suppress(StorageError):
            return self.run.stop_reason()
        return None

    def _start_ray(self) -> tuple[Workers, bool]:
        workers, gpus = start_ray_for(self.cluster)
        if self.own_ray:
            start_first_ranks(workers.min)
        return workers, gpus

    def _fit(self, attempt: Attempt, events: SegmentWriter, ready: Ready) -> str:
        """Run the ranks of one attempt to their end; return what was lost, for a message."""
        from ray.exceptions import RayActorError
        from ray.train import TrainingFailedError

        from trainers.backend import build_trainer, causes_of, release_resources

        config = {
            "run_uri": self.run.uri,
            "attempt": attempt.number,
            "job": self.job,
            "meta": ready.meta,
            "arrays": ready.arrays,
            "temporary": str(self.temporary),
            "elastic": None if self.own_ray else Elastic(time.time(), self._ranks_before(attempt)),
            "spares": self.own_ray,  # in a Ray of others they could outlive the run
        }
        attempt.sweep()
        pulses = pulse_folder(self.temporary, self.run.uri, attempt.number)
        trainer = build_trainer(
            run_under_ray,
            config,
            workers=ready.workers,
            gpus=ready.gpus,
            scratch=os.getcwd(),
            own_ray=self.own_ray,
        )
        kills = kills_for_memory()
        try:
            with _leaving_at_once(self.run, attempt, lambda: self._close(events)):
                trainer.fit()
        except TrainingFailedError as error:
            for cause in causes_of(error).values():
                if isinstance(cause, StorageFullError | StorageDeniedError | SupersededError):
                    raise cause from error  # another attempt would meet it too, or take the run back
            damage = self.patient.damage_of(attempt.number)
            reason = damage or self._verdict_elsewhere(attempt, error) or _reason_of(error, pulses)
            return reason + SHORT_OF_MEMORY * (kills_for_memory() > kills)
        except RayActorError as error:  # with Ray Train's controller, its ranks end
            release_resources(str(error.actor_id))
            return "the process of Ray Train that looks after the ranks died"
        finally:
            self._note_step(attempt)
            forget_attempts(self.temporary, self.run.uri, up_to=attempt.number)
        return "the ranks ended without a result"

    def _note_step(self, attempt: Attempt) -> None:
        """Keep which step was the last of ranks that were killed: they may not have written all of their rows."""
        files = pulse_folder(self.temporary, self.run.uri, attempt.number).glob("rank-*")
        self._reached[attempt.number] = max((each.step for each in map(read_pulse, files) if each), default=0)

    def _verdict_elsewhere(self, attempt: Attempt, error: Exception) -> str | None:
        """Return why a watchdog of another machine ended a rank, where the ranks are on several; waits a little."""
        from ray.exceptions import RayError

        from trainers.backend import causes_of

        deadline = time.monotonic() + _WORD_FROM_AFAR
        died = any(isinstance(cause, RayError) for cause in causes_of(error).values())
        while not self.own_ray and died and time.monotonic() < deadline:
            with contextlib.suppress(StorageError):
                for row in self.run.rows_of(attempt.number, "events"):
                    if row["event"] == ENDED:
                        return f"rank {row['rank']} was ended: {row['reason']}"
            time.sleep(_WATCH)
        return None

    def _ranks_before(self, attempt: Attempt) -> int | None:
        """Return how many ranks trained last, before an attempt; None: none did."""
        for claim in reversed(self.patient.claims()):
            if claim.attempt < attempt.number:
                for row in self.patient.rows_of(claim.attempt, "events"):
                    if row["event"] == "training":
                        return int(row["world_size"])
        return None

    @contextlib.contextmanager
    def _hearing_its_cloud(self) -> Iterator[None]:
        """Ask whether this machine will be taken away, where all of the run is on it."""
        closed = threading.Event()
        if self.own_ray:
            notice.ask(closed)
        try:
            yield
        finally:
            closed.set()

    def _listen(self) -> None:
        """Have SIGTERM tell the ranks, by way of storage, and go on telling where that does not answer."""

        def tell(attempt: Attempt) -> None:
            while not _told(attempt):
                time.sleep(_WATCH)

        def leave(*_: object) -> None:
            if not self._told_to_leave:
                self._told_to_leave = True
                if (attempt := self.life.attempt) is not None:  # nothing waits in a handler
                    threading.Thread(target=tell, args=(attempt,), name="notice", daemon=True).start()

        signal.signal(signal.SIGTERM, leave)

    def _leave(self, attempt: Attempt, events: SegmentWriter) -> int:
        """Say that an attempt ends which has no ranks yet; return the exit code."""
        base = attempt.claim.base
        events.append({"event": "preempted", "step": base.step if base is not None else 0})
        try:
            events.close()
        except StorageError as error:
            if not is_outage(error):  # there is no time to wait for it
                raise
        return self._code_of_leaving()

    def _why_not_again(self, attempt: Attempt, lost: str) -> Result | None:
        """Return how the run ends where no further attempt makes sense."""
        if self._is_excused(attempt.number):
            return None
        failed = [
            claim.attempt
            for claim in self.patient.claims()
            if claim.launch == self.launch and not self._is_excused(claim.attempt)
        ]
        reached = [self._last_step(attempt) for attempt in failed[-_SAME_STEP:]]
        is_known = self.own_ray or reached[-1] > 0  # else: ranks elsewhere may have been lost with their machines
        if len(reached) == _SAME_STEP and len(set(reached)) == 1 and is_known:
            message = f"{lost}; for the third time in a row after step {reached[0]}, so no restart would help"
            return Result(state="FAILED", message=message, exit_code=1)
        limit = self.job.train.max_failures
        if len(failed) > limit:
            message = f"{lost}, and no restart is left (train.max_failures is {limit})"
            return Result(state="FAILED", message=message, exit_code=3)
        return None

    def _is_excused(self, attempt: int) -> bool:
        """Whether the end of an attempt is no failure: it was planned, or its checkpoint was damaged.

        Not so twice in a row: what the second one starts from was read before.
        """
        if self._ended_with(attempt, "preempted", "resizing"):
            return True
        return self.patient.damage_of(attempt) is not None and self.patient.damage_of(attempt - 1) is None

    def _ended_with(self, attempt: int, *events: str) -> bool:
        return any(row["event"] in events for row in self.patient.rows_of(attempt, "events"))

    def _last_step(self, attempt: int) -> int:
        """Return the last step that an attempt is known for: not all are logged, and not all are saved."""
        saved = [row for row in self.patient.rows_of(attempt, "events") if row["event"] == "checkpoint"]
        written = [int(row["step"]) for row in [*saved, *self.patient.rows_of(attempt, "metrics")]]
        return max(self._reached.get(attempt, 0), *written, 0)

    def _finish(self, attempt: Attempt, events: SegmentWriter, result: Result) -> int:
        events.append({"event": "finished", "state": result.state, "message": result.message})
        self.spending.note(events)
        print(f"{result.state}: {result.message}", file=sys.stderr)
        try:
            events.close()
            attempt.finish(result)
            attempt.sweep(is_over=True)
        except StorageError as error:
            print(f"error: {error}", file=sys.stderr)
            _leave_word(f"{result.message or result.state} (storage took no record of it)")
            return 3
        return result.exit_code

    def _close(self, events: SegmentWriter) -> None:
        self.spending.note(events)
        events.append({"event": "memory", "process": "driver", "peak_bytes": peak_memory()})
        through_outages(events.close, gives_up=self._gives_up)


def claim_first(run: Run, *, on_corrupt: Callable[[Checkpoint, str], None] | None = None) -> Attempt:
    """Claim the first attempt of a driver, after the last of its launch, where it was said when that began.

    Raises SupersededError where another launch has gone on with the run since.
    """
    launch = os.environ.get("RAYLIFT_LAUNCH", "")
    if (since := os.environ.get("RAYLIFT_NEWEST_ATTEMPT")) is None:
        return run.claim(launch=launch, on_corrupt=on_corrupt)
    return run.claim_for(launch, int(since), on_corrupt=on_corrupt)


def start_ray_for(cluster: LocalCluster, cpus: int | None = None) -> tuple[Workers, bool]:
    """Start or join Ray; return the number of ranks and whether each has a GPU. Raises InfrastructureError.

    A Ray of our own is told of `cpus` processors; of all there are, or as many as there are ranks, unless given.
    """
    import ray

    from trainers.backend import join_ray, start_ray

    asked = cluster.workers_on_accelerators
    try:
        if cluster.address is not None:
            join_ray(cluster.address)
        else:
            cpus = cpus or max(os.cpu_count() or 1, on_this_machine(cluster.workers) or 1, asked.max if asked else 1)
            start_ray(cpus=cpus, temp_folder=os.environ.get("RAYLIFT_RAY_FOLDER"))
    except Exception as error:  # ray raises whatever its many parts raise
        raise InfrastructureError(f"Ray did not start: {error}") from error
    there = int(ray.cluster_resources().get("GPU", 0))
    if asked is not None:
        if asked.min > there and cluster.address is None:  # to a Ray elsewhere more may come
            raise InfrastructureError(f"cluster.accelerators asks for {asked.min}, this machine has {there}")
        return asked, True
    if cluster.workers is None and there:
        return Workers(min=there, max=there), True
    if isinstance(cluster.workers, Workers) and cluster.address is not None:
        return cluster.workers, False
    ranks = on_this_machine(cluster.workers) or 1
    return Workers(min=ranks, max=ranks), False


def on_this_machine(workers: int | Workers | None) -> int | None:
    """Return with how many ranks a Ray of our own trains: one machine does not change while a run goes on."""
    if isinstance(workers, Workers):
        return min(max(os.cpu_count() or 1, workers.min), workers.max)
    return workers


def _share(prepared: Prepared) -> dict[str, Any]:
    """Put the data where every rank maps it, once a machine."""
    import ray

    return {name: ray.put(array) for name, array in prepared.arrays.items()}


@contextlib.contextmanager
def _leaving_at_once(run: Run, attempt: Attempt, close: Callable[[], None]) -> Iterator[None]:
    """Under a supervisor, end this process as soon as the result is written."""
    if not _SUPERVISED:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_WATCH):
            with contextlib.suppress(RayliftError):
                if (result := run.result_of(attempt.number)) is not None:
                    close()
                    _exit(result.exit_code)

    thread = threading.Thread(target=watch, name="result", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _leave_word(message: str) -> None:
    """Write down how the run ended where storage has no word of it."""
    with contextlib.suppress(OSError):
        Path(UNRECORDED).write_text(message)


def _told(attempt: Attempt) -> bool:
    try:
        attempt.give_notice("the machine asked the driver to end")
    except StorageError:
        return False
    return True


def _exit(code: int) -> NoReturn:
    """End this process at once; whoever started it ends the rest of the run, and where they are gone, we do."""
    if os.getppid() != _PARENT:
        scratch = Path.cwd()
        end_processes(scratch)
        if code in FINAL and not Path(UNRECORDED).exists():
            clear(scratch)
    os._exit(code)


def _reason_of(error: Exception, folder: Path) -> str:
    """Say in a line which rank was lost and how; a rank that only missed another is named last."""
    from ray.exceptions import OutOfMemoryError, RayError

    from trainers.backend import causes_of, is_unreachable

    if (failure := getattr(error, "controller_failure", None)) is not None:
        return str(failure).strip().splitlines()[0][:200]
    causes = causes_of(error)
    for rank, why in verdicts(folder).items():
        return f"rank {rank} was ended: {why}"
    for rank, cause in causes.items():
        if isinstance(cause, OutOfMemoryError):
            return f"rank {rank} ran out of memory, and Ray ended it{_held(folder, rank)}"
        if isinstance(cause, RayError):
            machine = " with its machine" if "node has died" in str(cause) else ""
            return f"rank {rank} died{machine}{_held(folder, rank)}"
        if is_unreachable(cause):
            return f"rank {rank} no longer answers: its machine is off, or cut off from this one"
    for cause in causes.values():
        if isinstance(cause, InfrastructureError) and "another rank is gone" not in str(cause):
            return str(cause)
    for rank, cause in causes.items():
        text = str(cause).strip().splitlines()[-1][:200]
        if (missed := re.search(r"another rank is gone: rank (\d+)", text)) is not None:
            return f"rank {missed[1]} died{_held(folder, int(missed[1]))}"  # its own end was not noticed yet
        return f"rank {rank}: {text}"
    return str(error).strip().splitlines()[0][:200]


def _held(folder: Path, rank: int) -> str:
    reading = read_pulse(folder / f"rank-{rank}")
    return f" (it held {reading.peak_bytes / 1e9:.1f} GB at most)" if reading is not None else ""


def driver_of(run: Run) -> Driver:
    """Return what drives a run, a sweep among them; waits for a storage that is away. Raises UsageError.

    The launcher had its answers when it created the run; a machine of a cluster may be one that never gets any.
    """
    job, whole = load_job(patient(run, seconds=PATIENCE if _SUPERVISED else UNREACHED))
    if whole.get("tune") is None:
        return Driver(run, job, whole)
    from trainers.sweep.driver import SweepDriver

    return SweepDriver(run, job, whole)


def main() -> int:
    run = Run.at(sys.argv[1])
    code = driver_of(run).drive()
    if not _SUPERVISED:
        import ray

        ray.shutdown()
    return code


if __name__ == "__main__":
    try:
        code = main()
    except RayliftError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    sys.stdout.flush()
    sys.stderr.flush()
    if _SUPERVISED:
        _exit(code)
    sys.exit(code)
