"""A run of the real command line through a random sequence of faults, its history held to all that must be true.

    python -m tests.faults.sequence --minutes 30 --seed 7

Runs sequence after sequence, each from the next seed, until the time is over; what it finds is printed with the seed
and the sequence, and makes it exit with 1. The same seed is the same sequence of faults; when within a step each comes
is up to the machine.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.errors import RayliftError, StorageError
from cluster.local import LocalProvider, processes_of, ray_folder, scratch_folder
from cluster.provider import State
from cluster.runs import Run
from cluster.verification import Verdict, survey, verify
from launcher.status import summarize
from tests.faults.checker import History, Injected, Row, Seen, violations
from tests.faults.screens import long_job, write_job
from tests.finished import train
from tests.harness import command, environment, find_process, fresh_id, open_run
from tests.real.proxy import Proxy, proxy
from tests.real.seaweedfs import OTHER_SETTINGS, SeaweedFS

KEEP = 2
_PROCESSES = ("worker", "driver", "supervisor", "raylet", "gcs_server")
_POLL = 0.5  # seconds
_GONE = 40.0  # seconds that the processes of a run have to end
_STILL = 300.0  # seconds without anything new in storage, after which a run hangs


@dataclass(frozen=True)
class Fault:
    """Something that happens to a run, `after` seconds of training since the one before."""

    name: str
    after: float
    act: Callable[[Sequenced], None]


class Sequenced:
    """One run under way, its observer and what was done to it."""

    def __init__(self, run: Run, link: Proxy, job: Path) -> None:
        self.run = run  # as storage has it, beside the proxy: what is seen here meets no fault
        self.link = link
        self.job = job
        self.injected: list[Injected] = []
        self.seen: list[Seen] = []
        self._command: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()
        self._heard: float | None = None  # when storage last took anything from it
        self._moved = time.monotonic()
        self._output = job.with_suffix(f".{run.id}.log").open("ab")

    def go(self, faults: Sequence[Fault]) -> None:
        """Run it through the faults and to its end, resumed whenever nobody else would restart it."""
        observer = threading.Thread(target=self._observe, name="observer")
        observer.start()
        try:
            self._start("run", str(self.job), "--id", self.run.id, "--storage", self.run.storage.uri)
            for fault in faults:
                if not self._trains(fault.after):
                    break
                self._note(fault.name)
                fault.act(self)
            while not self._is_over():
                time.sleep(_POLL)
        finally:
            self._over.set()
            observer.join()
            self.end_the_command()
            self._output.close()

    def state(self) -> str:
        summary = summarize(self.run)
        left = [f"{process.name()} ({process.status()})" for process in processes_of(scratch_folder(self.run.id))]
        return f"{summary.state}, step {summary.step}, attempt {summary.attempt} {summary.reason}; {', '.join(left)}"

    def end_the_command(self) -> None:
        if self._command is not None and self._command.poll() is None:
            self._command.kill()
        if self._command is not None:
            self._command.wait()

    def _start(self, *arguments: str) -> None:
        self.end_the_command()
        env = {**environment(), "AWS_ENDPOINT_URL": self.link.endpoint}
        self._command = subprocess.Popen(
            command(*arguments), stdout=self._output, stderr=self._output, env=env, start_new_session=True
        )

    def _note(self, name: str) -> None:
        self.injected.append(Injected(time.time(), name))

    def _is_over(self) -> bool:
        """Whether the run came to its end; resume it where nobody is left to go on with it."""
        assert self._command is not None
        if (heard := self.run.last_heard()) != self._heard:
            self._heard, self._moved = heard, time.monotonic()
        assert time.monotonic() - self._moved < _STILL, f"it hangs: {self.state()}"
        if (result := self.run.result()) is not None and result.state == State.SUCCEEDED:
            return not processes_of(scratch_folder(self.run.id)) or self._command.poll() is not None
        if self._command.poll() is not None and not LocalProvider().is_running(self.run.id):
            self._note("resume")
            self._start("resume", self.run.uri)
            time.sleep(2.0)
        return False

    def _trains(self, seconds: float) -> bool:
        """Wait until the newest attempt has trained for some seconds; return whether it goes on."""
        trained, last = 0.0, (0, 0)
        while trained < seconds:
            if self._is_over():
                return False
            time.sleep(_POLL)
            now = self._place()
            trained += _POLL * (now > last > (0, 0))
            last = now
        return True

    def _place(self) -> tuple[int, int]:
        attempt = max(self.run.attempts(), default=0)
        rows = self.run.rows_of(attempt, "metrics") if attempt else []
        return attempt, max((int(row["step"]) for row in rows), default=0)

    def _observe(self) -> None:
        while not self._over.wait(1.0):
            with suppress(RayliftError):  # it is not created yet
                state = summarize(self.run, brief=True).state
                self.seen.append(Seen(time.time(), state, self._unreadable()))
        self.seen.append(Seen(time.time(), summarize(self.run, brief=True).state))

    def _unreadable(self) -> list[str]:
        found = []
        for checkpoint in self.run.checkpoints():
            try:
                self.run.verify(checkpoint)
            except StorageError as error:
                if checkpoint in self.run.checkpoints():  # not retired meanwhile
                    found.append(f"{checkpoint.attempt}/{checkpoint.step}: {error}")
        return found


# -- faults


def draw(chance: random.Random, count: int) -> list[Fault]:
    """Return a random sequence of faults."""
    return [_draw_one(chance, chance.uniform(1.0, 4.0)) for _ in range(count)]


def _draw_one(chance: random.Random, after: float) -> Fault:
    kind = chance.choices(
        ("kill", "kill several", "freeze", "pause", "notice", "silent storage", "busy storage", "cut storage"),
        (4, 3, 2, 1, 1, 1, 1, 2),
    )[0]
    match kind:
        case "kill" | "kill several":
            count = 1 if kind == "kill" else chance.randint(2, len(_PROCESSES))
            victims = sorted(chance.sample(_PROCESSES, count))
            return Fault(f"kill {', '.join(victims)}", after, lambda run: _signal(run, victims, signal.SIGKILL))
        case "freeze":
            victim = chance.choice(("worker", "driver", "raylet", "gcs_server"))
            return Fault(f"freeze {victim}", after, lambda run: _signal(run, [victim], signal.SIGSTOP))
        case "pause":
            victim, seconds = chance.choice(_PROCESSES), chance.uniform(0.5, 4.0)
            return Fault(f"pause {victim} for {seconds:.1f} s", after, lambda run: _pause(run, victim, seconds))
        case "notice":
            return Fault("notice of preemption", after, lambda run: _signal(run, ["driver"], signal.SIGTERM))
        case "silent storage" | "busy storage":
            how, seconds = ("silent" if kind == "silent storage" else "busy"), chance.uniform(2.0, 8.0)
            return Fault(f"{how} storage for {seconds:.1f} s", after, lambda run: _outage(run, how, seconds))
        case _:
            delay = chance.uniform(0.0, 1.0)
            return Fault("cut storage's connections", after, lambda run: _cut(run, delay))


def _signal(run: Sequenced, victims: Sequence[str], number: signal.Signals) -> None:
    """Send a signal to all of them at once, those that are there."""
    found = [process for name in victims if (process := find_process(run.run.id, name)) is not None]
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _pause(run: Sequenced, victim: str, seconds: float) -> None:
    process = find_process(run.run.id, victim)
    if process is not None:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
            time.sleep(seconds)
            process.resume()


def _cut(run: Sequenced, delay: float) -> None:
    time.sleep(delay)
    run.link.cut()


def _outage(run: Sequenced, how: str, seconds: float) -> None:
    run.link.outage = "silent" if how == "silent" else "busy"
    run.link.cut()
    time.sleep(seconds)
    run.link.outage = None
    run.link.cut()


# -- the whole


def check_sequence(seed: int, count: int, folder: Path, server: SeaweedFS, expected: Sequence[Row]) -> list[str]:
    """Run the job through the `count` faults of a seed; return what is wrong with its history, and the sequence."""
    run = open_run(server.fresh_uri(), fresh_id(f"seq-{seed}"))
    job = write_job(folder, long_job("7 steps", keep=KEEP, max_failures=20), name="sequence.yaml")
    with proxy(server.port) as link:
        sequenced = Sequenced(run, link, job)
        try:
            sequenced.go(draw(random.Random(seed), count))
            left = _left_of(run, server)
            seen = {"injected": sequenced.injected, "seen": sequenced.seen, "left": left}
            found = violations(History.of(run, expected, keep=KEEP, **seen))
        except AssertionError as error:
            found = [str(error)]
        finally:
            LocalProvider().teardown(run.id)
    if not found:
        return []
    begun = sequenced.injected[0].at if sequenced.injected else 0.0
    told = [f"{one.at - begun:6.1f} s  {one.name}" for one in sequenced.injected]
    return [*found, f"seed {seed}, {count} faults, {run.uri}:", *told]


def _left_of(run: Run, server: SeaweedFS) -> list[str]:
    """Return what is left of a run that is over, after a while in which it may go."""
    scratch, deadline = scratch_folder(run.id), time.monotonic() + _GONE
    while (scratch.exists() or processes_of(scratch)) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = [f"process {process.pid} {process.name()}" for process in processes_of(scratch)]
    left += [f"folder {folder}" for folder in (scratch, ray_folder(scratch)) if folder.exists()]
    uploads = server.client.list_multipart_uploads(Bucket=server.bucket).get("Uploads", [])
    left += [f"upload {one['Key']}" for one in uploads if run.id in one["Key"]]
    partial = [one for one in verify(run, survey(run)).of(Verdict.PARTIAL) if one.folder.attempt == max(run.attempts())]
    return left + [f"a checkpoint's files without a manifest: {one.folder.path}" for one in partial]


@contextmanager
def own_server(folder: Path) -> Iterator[SeaweedFS]:
    """Start a server, and let this process and those that it starts work on it."""
    server = SeaweedFS(folder)
    for name in OTHER_SETTINGS:
        os.environ.pop(name, None)
    os.environ.update(server.env)
    try:
        yield server
    finally:
        server.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no sequence after this time")
    parser.add_argument("--seed", type=int, default=1, help="of the first sequence; the next ones count on")
    parser.add_argument("--faults", type=int, default=5, help="in a sequence")
    chosen = parser.parse_args()
    deadline, seed, bad = time.monotonic() + 60 * chosen.minutes, chosen.seed, 0
    with tempfile.TemporaryDirectory(prefix="raylift-sequence-") as name, own_server(Path(name) / "s3") as server:
        expected = train(Path(name) / "undisturbed", long_job("10 epochs"), ranks=2).rows("metrics")
        while time.monotonic() < deadline:
            began = time.monotonic()
            found = check_sequence(seed, chosen.faults, Path(name), server, expected)
            bad += bool(found)
            print(f"seed {seed}: {len(found) or 'nothing'} found, {time.monotonic() - began:.0f} s", flush=True)
            for line in found:
                print(f"  {line}", flush=True)
            seed += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
