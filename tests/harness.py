"""Runs of the real command line, for tests."""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest import mock

import psutil

from cluster.local import LocalProvider, processes_of, ray_folder, scratch_folder
from cluster.runs import Run
from cluster.storage.open import open_storage
from cluster.verification import MANIFEST, Verdict, survey, sweep, verify
from launcher.cli.main import main

ROOT = Path(__file__).parents[1]
_MODULES = {"driver": "trainers.main", "supervisor": "cluster.supervisor"}
_RAY_ACTORS = {"worker": "RayTrainWorker", "controller": "TrainController"}


def raylift(*arguments: str | Path, timeout: float = 240, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of the CLI to its end."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=timeout, cwd=cwd, check=False, env=environment()
    )


def raylift_here(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of the CLI to its end in this process, which saves its imports: one that starts nothing."""
    output, errors, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.dict(os.environ, COLUMNS="160"),  # with what the command sets, until it has ended
        mock.patch.object(sys, "argv", ["raylift", *map(str, arguments)]),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        contextlib.chdir(cwd or Path.cwd()),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(["raylift", *arguments], code, output.getvalue(), errors.getvalue())


class Started(subprocess.Popen[str]):
    """A command that ends with its `with` block; so does its run, where the block fails."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self.kill()
        super().__exit__(kind, error, trace)
        arguments = cast("list[str]", self.args)
        if error is not None and "--id" in arguments:
            LocalProvider().teardown(arguments[arguments.index("--id") + 1])


def start_raylift(*arguments: str | Path, cwd: Path | None = None) -> Started:
    """Start a command of the CLI, in a session of its own."""
    return Started(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        start_new_session=True,
        env=environment(),
    )


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-P", "-m", "launcher.cli.main", *map(str, arguments)]


def environment() -> dict[str, str]:
    """The test's environment, in which subprocesses find this checkout, and compiled bytecode is kept."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}


def fresh_id(name: str) -> str:
    """Return a run id that no other test session on this machine uses."""
    return f"{name}-{secrets.token_hex(3)}"


def open_run(storage: str | Path, run_id: str) -> Run:
    return Run(open_storage(str(storage)), run_id)


def losses(run: Run) -> list[tuple[Any, ...]]:
    """Return everything of a run's rows that training computed: what an undisturbed run must equal, bit for bit."""
    computed = ("kind", "step", "epoch", "seen", "loss", "lr", "grad_norm", "train_loss")
    return [
        tuple((key, value) for key, value in row.items() if key in computed or key.startswith("eval_"))
        for row in sorted(run.rows("metrics"), key=lambda row: (row["step"], row["kind"]))
    ]


def find_process(run_id: str, what: str) -> psutil.Process | None:
    """Return a process of a local run.

    That is "worker", "controller" (of Ray Train), "driver", "supervisor", or one of Ray's own names, as "raylet".
    """
    for process in processes_of(scratch_folder(run_id)):
        try:
            name, arguments = process.name(), process.cmdline()
        except psutil.Error:
            continue
        if name == what or _MODULES.get(what) in arguments:
            return process
        if what in _RAY_ACTORS and _RAY_ACTORS[what] in " ".join([name, *arguments[:1]]):
            return process
    return None


def kill(process: psutil.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 120) -> Any:
    """Wait until a condition holds; return its value."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout:.0f} s in vain for {what}")


_OBJECTS = re.compile(  # of a run, beside its checkpoints
    r"job\.yaml|(stop|launch)\.json|code/(workdir-)?[0-9a-f]{64}\.zip|"
    r"attempts/\d{6}/(claim|result|notice|damage|alive)\.json|attempts/\d{6}/(events|metrics|logs)/.+"
)


def assert_clean(run: Run, output: str = "") -> None:
    """Fail where a run that went through faults and succeeded has a damaged checkpoint or more than it needs.

    Attempts before the newest leave no upload that was cut off. What they saved half of is swept by `verify --sweep`;
    then each object is one that a manifest names, or of a known kind. `output` is what the screen said.
    """
    assert "Traceback" not in output, output
    for attempt in run.attempts()[:-1]:
        assert run.storage.sweep(run.path(f"attempts/{attempt:06d}/")) == []
    sweep(run, verify(run, survey(run)))
    found = verify(run, survey(run))
    assert {finding.verdict for finding in found.findings} == {Verdict.INTACT}, found.findings
    named = {f"{one.folder.path}/{name}" for one in found.findings for name in (*one.folder.checkpoint.files, MANIFEST)}  # type: ignore[union-attr]
    stored = {entry.path.removeprefix(run.path("")) for entry in run.storage.list(run.path(""))}
    assert {path for path in stored - named if not _OBJECTS.fullmatch(path)} == set()
    assert run.storage.sweep(run.path("")) == []


def assert_nothing_left(run_id: str) -> None:
    """Fail where a process or a scratch file of a finished local run is still there."""
    left = processes_of(scratch_folder(run_id))
    assert not left, f"left over: {[process.name() for process in left]}"
    assert not scratch_folder(run_id).exists()
    assert not ray_folder(scratch_folder(run_id)).exists()
