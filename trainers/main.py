"""The driver of a run.

    python -m trainers.main RUN_URI

Claims an attempt, prepares the data while Ray starts, runs the ranks, and tries again from the newest checkpoint
where a rank or its machine was lost. Imports no torch: only the ranks do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.config import LocalCluster
from cluster.errors import InfrastructureError, RayliftError, StorageDeniedError, StorageError, StorageFullError
from cluster.local import UNRECORDED
from cluster.runs import Attempt, Checkpoint, Result, Run, SupersededError
from cluster.segments import SegmentWriter
from trainers.jobs import load_job
from trainers.output import shipped_output
from trainers.record import peak_memory
from trainers.worker import run_under_ray

if TYPE_CHECKING:
    from trainers.tasks.base import Prepared

_WATCH = 0.25  # seconds
_SUPERVISED = "RAYLIFT_RAY_FOLDER" in os.environ  # then whoever started this process ends Ray, faster than Ray does


@dataclass(frozen=True)
class Ready:
    """What every attempt of a launch shares: a Ray that runs, and the data in it."""

    ranks: int
    gpus: bool
    meta: dict[str, Any]
    arrays: dict[str, Any]  # name -> object reference


class Driver:
    """One launch of a run, over its attempts."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.launch = os.environ.get("RAYLIFT_LAUNCH", "")
        self.job, whole = load_job(run)
        self.cluster = (
            LocalCluster.model_validate_json(os.environ["RAYLIFT_CLUSTER"])
            if ("RAYLIFT_CLUSTER" in os.environ)
            else LocalCluster.model_validate(whole.get("cluster", {}))
        )

    def drive(self) -> int:
        """Run attempts until one writes a result; return the exit code."""
        attempt, events = self._claim()
        with shipped_output(attempt, "driver"):
            try:
                ready = self._start(attempt, events)
                # after Ray's start, which sets a handler of its own
                signal.signal(signal.SIGTERM, lambda *_: self.run.request_stop("the machine asked the driver to end"))
                while True:
                    if (reason := self.run.stop_reason()) is not None:
                        return self._finish(attempt, events, Result(state="STOPPED", message=reason, exit_code=4))
                    lost = self._fit(attempt, events, ready)
                    if (result := self.run.result_of(attempt.number)) is not None:
                        _close(events)
                        return result.exit_code
                    if not self._may_retry():
                        limit = self.job.train.max_failures
                        message = f"{lost}, and no restart is left (train.max_failures is {limit})"
                        return self._finish(attempt, events, Result(state="FAILED", message=message, exit_code=3))
                    events.append({"event": "recovering", "reason": lost})
                    events.close()
                    attempt, events = self._claim()
            except SupersededError:
                raise
            except RayliftError as error:
                return self._finish(attempt, events, _failed(error))
            except Exception as error:
                traceback.print_exception(error)
                message = f"{type(error).__name__} in the driver: {error}. See: raylift logs {self.run.uri}"
                return self._finish(attempt, events, Result(state="FAILED", message=message, exit_code=1))

    def _claim(self) -> tuple[Attempt, SegmentWriter]:
        passed_over: list[dict[str, Any]] = []

        def note(checkpoint: Checkpoint, why: str) -> None:
            passed_over.append({"event": "checkpoint.corrupt", "step": checkpoint.step, "reason": why})

        attempt = self.run.claim(launch=self.launch, on_corrupt=note)
        events = SegmentWriter(self.run, attempt.number, "events", "driver")
        base = attempt.claim.base
        events.append({"event": "claimed", "base": base.step if base else None})
        for row in passed_over:
            events.append(row)
        return attempt, events

    def _start(self, attempt: Attempt, events: SegmentWriter) -> Ready:
        """Start Ray and prepare the data at the same time.

        Data that cannot be trained on ends the run at once: nobody waits for a Ray that is not needed.
        """
        from trainers.tasks.registry import prepare

        started = time.monotonic()

        def prepare_or_leave() -> Prepared:
            try:
                return prepare(self.job)
            except RayliftError as error:
                if _SUPERVISED:  # the Ray that is starting is ended with us
                    os._exit(self._finish(attempt, events, _failed(error)))
                raise

        with ThreadPoolExecutor(1, thread_name_prefix="prepare") as pool:
            preparing = pool.submit(prepare_or_leave)
            ranks, gpus = _start_ray(self.cluster)
            prepared = preparing.result()
        for note in prepared.notes:
            events.append(note)
        events.append(
            {"event": "cluster", "ranks": ranks, "gpus": gpus, "seconds": round(time.monotonic() - started, 3)}
        )
        return Ready(ranks, gpus, dict(prepared.meta), _share(prepared))

    def _fit(self, attempt: Attempt, events: SegmentWriter, ready: Ready) -> str:
        """Run the ranks of one attempt to their end; return what was lost, for a message."""
        from ray.train import TrainingFailedError

        from trainers.backend import build_trainer

        config = {
            "run_uri": self.run.uri,
            "attempt": attempt.number,
            "job": self.job,
            "meta": ready.meta,
            "arrays": ready.arrays,
        }
        trainer = build_trainer(
            run_under_ray,
            config,
            workers=ready.ranks,
            gpus=ready.gpus,
            scratch=os.getcwd(),
            own_ray=self.cluster.address is None,
        )
        try:
            with _leaving_at_once(self.run, attempt, events):
                trainer.fit()
        except TrainingFailedError as error:
            for cause in _causes(error).values():
                if isinstance(cause, StorageFullError | StorageDeniedError | SupersededError):
                    raise cause from error  # another attempt would meet it too, or take the run back
            return _reason_of(error)
        return "the ranks ended without a result"

    def _may_retry(self) -> bool:
        mine = [claim for claim in self.run.claims() if claim.launch == self.launch]
        return len(mine) <= self.job.train.max_failures

    def _finish(self, attempt: Attempt, events: SegmentWriter, result: Result) -> int:
        events.append({"event": "finished", "state": result.state, "message": result.message})
        print(f"{result.state}: {result.message}", file=sys.stderr)
        try:
            events.close()
            attempt.finish(result)
        except StorageError as error:
            print(f"error: {error}", file=sys.stderr)
            with contextlib.suppress(OSError):
                Path(UNRECORDED).write_text(f"{result.message or result.state} (storage took no record of it)")
            return 3
        return result.exit_code


def _start_ray(cluster: LocalCluster) -> tuple[int, bool]:
    """Start or join Ray; return the number of ranks and whether each has a GPU. Raises InfrastructureError."""
    import ray

    from trainers.backend import join_ray, start_ray

    asked = int(cluster.accelerators.partition(":")[2] or 1) if cluster.accelerators else None
    try:
        if cluster.address is not None:
            join_ray(cluster.address)
        else:
            cpus = max(os.cpu_count() or 1, cluster.workers or 1, asked or 1)
            start_ray(cpus=cpus, temp_folder=os.environ.get("RAYLIFT_RAY_FOLDER"))
    except Exception as error:  # ray raises whatever its many parts raise
        raise InfrastructureError(f"Ray did not start: {error}") from error
    there = int(ray.cluster_resources().get("GPU", 0))
    if asked is not None and asked > there:
        raise InfrastructureError(f"cluster.accelerators asks for {asked}, this machine has {there}")
    if asked is not None:
        return asked, True
    if cluster.workers is None and there:
        return there, True
    return cluster.workers or 1, False


def _share(prepared: Prepared) -> dict[str, Any]:
    """Put the data where every rank maps it, once a machine."""
    import ray

    return {name: ray.put(array) for name, array in prepared.arrays.items()}


@contextlib.contextmanager
def _leaving_at_once(run: Run, attempt: Attempt, events: SegmentWriter) -> Iterator[None]:
    """Under a supervisor, end this process as soon as the result is written."""
    if not _SUPERVISED:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_WATCH):
            with contextlib.suppress(RayliftError):
                if (result := run.result_of(attempt.number)) is not None:
                    _close(events)
                    os._exit(result.exit_code)

    thread = threading.Thread(target=watch, name="result", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _failed(error: RayliftError) -> Result:
    return Result(state="FAILED", message=str(error), exit_code=error.exit_code)


def _close(events: SegmentWriter) -> None:
    events.append({"event": "memory", "process": "driver", "peak_bytes": peak_memory()})
    events.close()


def _causes(error: Exception) -> dict[int, Exception]:
    """Return what each lost rank died of, as it was raised there."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    return {rank: _root(failure) for rank, failure in sorted(failures.items())}


def _root(failure: Exception) -> Exception:
    """Take off what Ray Train wraps around what a rank raised, or around what became of its process."""
    for wrapping in ("_base_exc", "health_check_failure"):
        failure = getattr(failure, wrapping, failure)
    return failure


def _reason_of(error: Exception) -> str:
    """Say in a line which rank was lost and how; a rank that only missed another is named last."""
    from ray.exceptions import RayError

    causes = _causes(error)
    for rank, cause in causes.items():
        if isinstance(cause, RayError):
            return f"rank {rank} died"
    for rank, cause in causes.items():
        return f"rank {rank}: {str(cause).strip().splitlines()[-1][:200]}"
    return str(error).strip().splitlines()[0][:200]


def main() -> int:
    run = Run.at(sys.argv[1])
    code = Driver(run).drive()
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
        os._exit(code)
    sys.exit(code)
