"""Owns a local run's driver: starts it, restarts it after a crash, and ends all that it leaves behind.

    python -P -m cluster.supervisor SCRATCH

Imports neither torch nor ray, nor anything of a cloud before it is needed. Were it killed too, the run's processes
would still be found by their working directory (see cluster.local).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

import psutil

from cluster.local import FINAL, LAUNCH, PREEMPTED, TAKEN_AWAY, UNRECORDED, clear, end_processes, is_alive, ray_folder
from cluster.memory import SHORT_OF_MEMORY, kills_for_memory

if TYPE_CHECKING:
    from cluster.attempts import Attempt
    from cluster.runs import Run

_SAID = (0, 4)  # it comes to these by way of a result alone
_POLL = 0.2  # seconds
_FROZEN = 8.0  # seconds that driver, Ray, or Ray Train in it may be stopped by a signal; the ranks have as long
_LAST_WORDS = 1.0  # seconds for a driver to end by itself, where all of a machine is told to
_LOOK = 2.0  # seconds between looks for Ray Train's controllers
_CONTROLLER = "ray::TrainContr"  # as much of its name as the system keeps
_PR_SET_CHILD_SUBREAPER = 36
_KILLS_AGO = round(10 / _POLL)  # polls: what was killed before has nothing to do with how a driver ends now
_LOG_TAIL = 64 * 1024  # bytes


class Supervisor:
    """One run's driver, over its restarts."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.launch: dict[str, Any] = json.loads((scratch / LAUNCH).read_text())
        self.launch_id = secrets.token_hex(4)
        self.driver: subprocess.Popen[bytes] | None = None
        self.stopping = False
        self.frozen = ""  # the process for which the driver was ended
        self.kills = [kills_for_memory()]  # for memory, as the last polls found them
        self.recorded = 0  # the newest attempt whose crash is written down

    def run(self) -> int:
        failures = 0
        while True:
            code = self._run_driver()
            end_processes(self.scratch)
            shutil.rmtree(ray_folder(self.scratch), ignore_errors=True)
            if code in (*_SAID, TAKEN_AWAY):
                break
            if code == PREEMPTED:
                if self.stopping:
                    break  # so are we
                continue
            if self._has_result():  # also of a driver that was lost after it had said so
                self._sweep()
                break
            failures += 1
            if not self._record_crash(code, again=code not in FINAL and failures <= self.launch["max_failures"]):
                break
        if not (self.scratch / UNRECORDED).exists():
            clear(self.scratch)
        return code

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.stopping = True
        if self.driver is not None:
            with contextlib.suppress(ProcessLookupError):
                self.driver.send_signal(signal.SIGTERM)

    def _run_driver(self) -> int:
        ray_folder(self.scratch).mkdir(mode=0o700, exist_ok=True)
        environment = {
            **os.environ,
            "RAYLIFT_LAUNCH": self.launch_id,
            "RAYLIFT_NEWEST_ATTEMPT": str(self.launch["newest_attempt"]),
            "RAYLIFT_CLUSTER": json.dumps(self.launch["cluster"]),
            "RAYLIFT_RAY_FOLDER": str(ray_folder(self.scratch)),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        if self.launch["cluster"]["address"] is None:  # a Ray that runs already has a token of its own
            environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.scratch / "token")}
        with (self.scratch / "driver.log").open("ab") as log:
            self.driver = self._start(environment, log)
            if self.stopping:  # since we were told, there was no driver to tell
                self.driver.terminate()
            node: list[psutil.Process] = []
            controllers: list[psutil.Process] = []
            driver, polls, looked_at = psutil.Process(self.driver.pid), 0, time.monotonic()
            while (code := self.driver.poll()) is None:
                time.sleep(_POLL)
                self.kills = [*self.kills[-_KILLS_AGO:], kills_for_memory()]
                node = node or self._node_processes()
                if node and time.monotonic() - looked_at > _LOOK:
                    controllers, looked_at = _controllers_of(driver), time.monotonic()
                stopped = [process for process in (driver, *node, *controllers) if _is_stopped(process)]
                polls = polls + 1 if stopped else 0
                if polls * _POLL > _FROZEN and stopped[0] in controllers:
                    stopped[0].kill()  # the driver starts another one
                elif polls * _POLL > _FROZEN:
                    self.frozen = "driver" if stopped[0] == driver else stopped[0].name()
                    self.driver.kill()
                elif node and not all(is_alive(process) for process in node):
                    self._give_up_on(self.driver)  # without its raylet or GCS a driver only waits
        self.driver = None
        return code

    def _start(self, environment: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "trainers.main", self.launch["run_uri"]],
            cwd=self.scratch,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def _node_processes(self) -> list[psutil.Process]:
        """Return the raylet and the GCS of the driver's Ray, once both are there."""
        assert self.driver is not None
        try:
            children = psutil.Process(self.driver.pid).children()
            found = [child for child in children if child.name() in ("raylet", "gcs_server")]
        except psutil.NoSuchProcess:
            return []
        return found if len(found) == 2 else []

    def _give_up_on(self, driver: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(_LAST_WORDS if self.stopping else _POLL)  # it may be on its way out, and end its own Ray
            return
        driver.kill()
        driver.wait()

    def _has_result(self) -> bool:
        """Whether the driver said how the run ended, in storage or, where that would not take it, here."""
        from cluster.errors import RayliftError

        if (self.scratch / UNRECORDED).exists():
            return True
        try:
            run = self._open_run()
            newest = run.claims()[-1:]
            return bool(newest) and newest[0].launch == self.launch_id and run.result_of(newest[0].attempt) is not None
        except RayliftError:
            return False

    def _sweep(self) -> None:
        """Remove what ranks were sending as the run failed: nobody writes any more, and no attempt comes after it."""
        from cluster.attempts import Attempt
        from cluster.errors import RayliftError

        if (self.scratch / UNRECORDED).exists():
            return  # storage takes nothing now
        with contextlib.suppress(RayliftError):
            run = self._open_run()
            newest = run.newest_of(self.launch_id, since=self.launch["newest_attempt"])  # of nobody who took over
            Attempt.reopen(run, newest).sweep(is_over=True)

    def _record_crash(self, code: int, *, again: bool) -> bool:
        """Say in storage what happened; return whether a restart follows.

        That is with `again`, unless we are told to end, then or meanwhile, or others took over.
        """
        from cluster.errors import RayliftError, SupersededError
        from cluster.segments import SegmentWriter

        log = _tail(self.scratch / "driver.log")
        reason = f"the {self.frozen} froze, and was ended" if self.frozen else _reason(code, log)
        killed = code == -signal.SIGKILL and not self.frozen and kills_for_memory() > self.kills[0]
        reason += SHORT_OF_MEMORY * killed
        self.frozen, self.kills = "", [kills_for_memory()]
        try:
            attempt = self._crashed_attempt(self._open_run())
            output = SegmentWriter(attempt.run, attempt.number, "logs", "supervisor")
            output.append_bytes(log)
            output.close()
            events = SegmentWriter(attempt.run, attempt.number, "events", "supervisor")
            if again and not self.stopping:
                events.append({"event": "recovering", "reason": reason})
                events.flush()  # which takes a while, and we may be told meanwhile
            again = again and not self.stopping
            if not again and attempt.run.result_of(attempt.number) is None:
                events.append(self._end(attempt, code, reason))
            events.close()
        except SupersededError:
            return False
        except RayliftError as error:
            print(f"could not record in {self.launch['run_uri']}: {error}", file=sys.stderr, flush=True)
            again = again and not self.stopping
            if not again:
                (self.scratch / UNRECORDED).write_text(f"{reason}; and that could not be saved: {error}")
        return again

    def _crashed_attempt(self, run: Run) -> Attempt:
        """Return the attempt that the driver lost, a new one where it claimed none. Raises SupersededError."""
        from cluster.attempts import Attempt

        newest = run.newest_of(self.launch_id, since=self.launch["newest_attempt"])
        if newest > max(self.recorded, self.launch["newest_attempt"]):
            lost = Attempt.reopen(run, newest)
        else:
            lost = run.claim_for(self.launch_id, self.launch["newest_attempt"])
        self.recorded = lost.number
        return lost

    def _end(self, attempt: Attempt, code: int, reason: str) -> dict[str, Any]:
        """Return the event that the run ends here, with a result, or goes on elsewhere."""
        from cluster.records import Result

        if self.stopping and attempt.run.stop_reason() is not None:
            result = Result(state="STOPPED", message=reason, exit_code=4)
        elif code in FINAL:
            result = Result(state="FAILED", message=reason, exit_code=code)
        elif self.stopping:  # by the machine
            saved = attempt.start_from()
            return {"event": "preempted", "step": saved.step if saved is not None else 0}
        else:
            message = f"{reason}, and no restart is left (train.max_failures)"
            result = Result(state="FAILED", message=message, exit_code=3)
        attempt.finish(result)
        return {"event": "finished", "state": result.state, "message": result.message}

    def _open_run(self) -> Run:
        from cluster.runs import Run

        return Run.at(self.launch["run_uri"])


def _controllers_of(driver: psutil.Process) -> list[psutil.Process]:
    """Return the processes of Ray Train that look after ranks: of the run, or of each trial that has several."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in driver.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name().startswith(_CONTROLLER):
                    found.append(process)
    return found


def _is_stopped(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_STOPPED)
    return False


def _reason(code: int, log: bytes) -> str:
    if code < 0:
        return f"the driver died (signal {signal.Signals(-code).name})"
    last = log.decode(errors="replace").strip().rpartition("\n")[2][:200]
    return f"the driver died (exit code {code}{': ' + last if last else ''})"


def _tail(log: Path) -> bytes:
    with contextlib.suppress(FileNotFoundError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL))
        return file.read()
    return b""


def _adopt_orphans() -> None:
    """Have the processes that the driver leaves behind handed to us, where the system can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def main() -> int:
    supervisor = Supervisor(Path(sys.argv[1]))
    signal.signal(signal.SIGTERM, supervisor.on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _adopt_orphans()
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
