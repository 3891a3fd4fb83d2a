"""A real Ray of several nodes on this machine, each with a raylet and an address of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from cluster.local import end_processes, processes_of
from tests.harness import environment, wait_for

_TRIES = 3


class RayNode:
    """One node, of raylet and agents; a head has the GCS too."""

    def __init__(self, folder: Path, env: dict[str, str], *arguments: str) -> None:
        self._log = folder / f"node-{secrets.token_hex(3)}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.real.ray_node", str(folder), *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=env,
                start_new_session=True,
            )

    def wait(self) -> tuple[str, str]:
        """Return the address of the GCS, and the node's id, once it runs. Raises RuntimeError where it ended."""
        wait_for(lambda: "running " in self._said() or self._process.poll() is not None, "a node of Ray")
        if self._process.poll() is not None:
            raise RuntimeError(self._said())
        address, node = self._said().rpartition("running ")[2].split()
        return address, node

    def take_away(self) -> None:
        """Let the node be gone without a word: its raylet, with which its workers end."""
        (raylet,) = [process for process in self._processes() if process.name() == "raylet"]
        os.kill(raylet.pid, signal.SIGKILL)

    def pids(self) -> set[int]:
        """Return the processes that it has."""
        return {process.pid for process in self._processes()}

    def close(self) -> None:
        """End all of it, by pid."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _processes(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).children(recursive=True)
        return []

    def _said(self) -> str:
        return self._log.read_text()


class RayNodes:
    """A head with room for one rank, and nodes with as much that are added to it; all behind a token."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: sockets allow 107 bytes
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self._folder = folder
        self._nodes: list[RayNode] = []
        try:
            self.address, _ = self._start().wait()
        except BaseException:
            self.close()
            raise

    def add(self, gpus: int = 0) -> RayNode:
        """Return a further node, once it runs; nothing is behind the GPUs that it says it has."""
        return self._start(self.address, gpus=gpus)

    def drain(self, node: RayNode, seconds: int) -> None:
        """Have Ray tell that a node will be preempted, as its autoscaler does."""
        _, name = node.wait()
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        drain = ["drain-node", "--address", self.address, "--node-id", name, *reason]
        subprocess.run(
            [sys.executable, "-P", "-m", "ray.scripts.scripts", *drain, "--deadline-remaining-seconds", str(seconds)],
            env={**environment(), **self.env},
            capture_output=True,
            check=True,
        )

    def _start(self, *address: str, gpus: int = 0) -> RayNode:
        """Return a node that runs. Ray gives up after half a minute, which a busy machine may need: then once more."""
        for tries_left in reversed(range(_TRIES)):
            more = [f"127.0.0.{len(self._nodes) + 1}", str(gpus)] if address else []
            node = RayNode(self._folder, {**environment(), **self.env}, *address, *more)
            self._nodes.append(node)
            try:
                node.wait()
                break
            except RuntimeError:
                if not tries_left:
                    raise
        return node

    def ranks(self) -> list[psutil.Process]:
        """Return the ranks of any run that are there, also those whose raylet is gone."""
        return [process for process in processes_of(self._folder) if "RayTrainWorker" in _title(process)]

    def close(self) -> None:
        for node in reversed(self._nodes):
            node.close()
        end_processes(self._folder)
        shutil.rmtree(self._folder)


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""
