"""A run on several hosts: one's rank freezes, then one loses its power, its cable, and its way to the other."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.runs import Run
from cluster.storage.open import open_storage
from tests.harness import ROOT, assert_clean, environment, losses, wait_for
from tests.hosts.lab import Host, Network, lab
from tests.real.proxy import Proxy, proxy
from tests.real.seaweedfs import OTHER_SETTINGS, SeaweedFS

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.root, pytest.mark.timeout(900)]

Losses = list[tuple[Any, ...]]
PORT = 6379
_KEPT = ("LANG", "PYTHONPATH", "COLUMNS", "RAY_worker_niceness")  # of this machine's variables
EPOCHS, STEPS_PER_EPOCH = 24, 23
JOB = f"""
task: image-classification
model: {{name: cnn, dropout: 0.3}}
data: {{train: builtin:digits, eval: {{split: 0.2}}, image_size: 28}}
train: {{epochs: {EPOCHS}, batch_size: 64, seed: 11, precision: fp32, max_failures: 4}}
checkpoint: {{every: 10 steps, keep: 3}}
cluster: {{provider: local, workers: 2, address: "ADDRESS"}}
"""
FROZEN = 20.0  # seconds, eight of them without a sign of life, and twelve for Ray and a busy machine
NOTICED = 45.0  # seconds; Ray Train alone would wait for ten minutes
IN_VAIN = 90.0  # seconds in which ranks that cannot meet are ended, which may be the other's machine's to do


class Cluster:
    """A Ray that somebody has on three hosts; its head trains nothing, each of the others has room for one rank."""

    def __init__(self, network: Network, folder: Path, link: Proxy, server: SeaweedFS) -> None:
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.server = server
        self.env = {
            **{name: value for name, value in environment().items() if name in _KEPT},
            **server.env_of(server.admin, link.endpoint),
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/tmp",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "300",  # three hosts start at once, on the processors of one
        }
        self.head, *self.workers = (network.host(name, ROOT, folder) for name in ("head", "one", "two"))
        self._job = folder / "job.yaml"
        self._job.write_text(JOB.replace("ADDRESS", f"{self.head.address}:{PORT}"))
        self._ray(self.head, "--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false")
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.join, self.workers))

    def join(self, host: Host) -> None:
        """Start Ray on a host, as whoever runs the cluster would; one that stands there is ended before."""
        for process in host.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name().startswith("ray") or "/ray/" in " ".join(process.cmdline()):
                    process.kill()
        self._ray(host, f"--address={self.head.address}:{PORT}", "--num-cpus=1")

    @contextlib.contextmanager
    def run(self, name: str) -> Iterator[tuple[Run, subprocess.Popen[str]]]:
        run = Run(open_storage(self.server.fresh_uri()), f"{name}-{secrets.token_hex(3)}")
        arguments = ["run", str(self._job), "--id", run.id, "--storage", run.storage.uri]
        command = self.head.command(sys.executable, "-P", "-m", "launcher.cli.main", *arguments, env=self.env)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                yield run, process
            finally:
                process.kill()
                for row in run.rows("events"):  # pytest shows it where the test fails
                    print({key: value for key, value in row.items() if key != "metrics"})

    def host_of_rank_0(self) -> Host:
        return next(host for host in self.workers if list(host.root.glob("tmp/raylift-pulse-*/rank-0")))

    def rank_1(self) -> psutil.Process:
        """Return the process of rank 1."""
        host = next(host for host in self.workers if list(host.root.glob("tmp/raylift-pulse-*/rank-1")))
        return next(one for one in host.processes() if "RayTrainWorker" in " ".join(one.cmdline()))

    def assert_nothing_left(self) -> None:
        """Fail where a host has still something of a run that is over."""

        def left() -> list[str]:
            hosts = [self.head, *self.workers]
            folders = [str(path) for host in hosts for path in host.root.glob("tmp/raylift-*") if any(path.iterdir())]
            ranks = [one for host in hosts for one in host.processes() if "RayTrainWorker" in " ".join(one.cmdline())]
            return [*folders, *map(str, ranks)]

        wait_for(lambda: not left(), "the hosts to be as before", timeout=90)

    def _ray(self, host: Host, *options: str) -> None:
        ray = Path(sys.executable).with_name("ray")
        address = f"--node-ip-address={host.address}"
        start: list[str | Path] = [sys.executable, "-P", ray, "start", "--disable-usage-stats", address, *options]
        host.run(*start, env=self.env, timeout=400)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, s3_server: SeaweedFS) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("hosts")
    with (
        pytest.MonkeyPatch.context() as patch,
        lab(folder) as network,
        proxy(s3_server.port, listener=network.listener()) as link,
    ):
        for name in OTHER_SETTINGS:
            patch.delenv(name, raising=False)
        for name, value in s3_server.env.items():
            patch.setenv(name, value)
        yield Cluster(network, folder, link, s3_server)


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> Losses:
    with cluster.run("whole") as (run, process):
        output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return losses(run)


def test_two_hosts_train_together_and_keep_nothing_of_it(cluster: Cluster, undisturbed: Losses) -> None:
    assert len(undisturbed) == EPOCHS * (STEPS_PER_EPOCH + 2)
    cluster.assert_nothing_left()


def test_a_frozen_rank_lost_power_a_pulled_cable_and_ranks_that_cannot_meet_cost_the_steps_since_the_checkpoint(
    cluster: Cluster, undisturbed: Losses
) -> None:
    with cluster.run("hosts") as (run, process):
        _until_it_trains(run, 1)
        rank, at = cluster.rank_1(), time.time()
        rank.suspend()
        reason = _noticed(run, process, 1, after=at, within=FROZEN)
        assert reason.startswith("rank 1 was ended: it froze: no sign of life for ")

        _until_it_trains(run, 2)
        victim, at = cluster.host_of_rank_0(), time.time()
        victim.power_off()
        reason = _noticed(run, process, 2, after=at, within=NOTICED)
        assert reason.startswith("rank 0 ")
        assert "its machine" in reason
        victim.boot()
        cluster.join(victim)

        _until_it_trains(run, 3)
        victim, at = cluster.host_of_rank_0(), time.time()
        victim.unplug()
        assert "its machine" in _noticed(run, process, 3, after=at, within=NOTICED)
        wait_for(lambda: len(run.attempts()) > 3, "the next attempt")
        before = _saved(run, 3)
        victim.plug_in()
        time.sleep(5)  # for what the zombie may have had on its way
        cluster.join(victim)

        _until_it_trains(run, 4)
        _assert_nothing_counts_that_came_late(run, 3, before)
        wait_for(lambda: _evaluations(run, 4), "the first evaluation, in which others may load and compile for long")
        at = time.time()
        for host in cluster.workers:
            host.isolate(True)  # from each other; Ray's head reaches both
        reason = _noticed(run, process, 4, after=at, within=IN_VAIN)
        for host in cluster.workers:
            host.isolate(False)
        assert "was ended: it waited in vain for ranks on other machines: no step for " in reason

        output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert len(run.attempts()) == 5, output
    assert losses(run) == undisturbed
    cluster.assert_nothing_left()
    assert_clean(run)


def _until_it_trains(run: Run, attempt: int) -> None:
    def trains() -> bool:
        if attempt not in run.attempts() or not run.rows_of(attempt, "metrics"):
            return False
        return any(path.endswith("/manifest.json") for path in _saved(run, attempt))

    wait_for(trains, f"attempt {attempt} to train and save", timeout=240)


def _evaluations(run: Run, attempt: int) -> list[dict[str, Any]]:
    return [row for row in run.rows_of(attempt, "metrics") if row["kind"] == "eval"]


def _saved(run: Run, attempt: int) -> list[str]:
    return [entry.path for entry in run.storage.list(run.path(f"attempts/{attempt:06d}/checkpoints/"))]


def _assert_nothing_counts_that_came_late(run: Run, attempt: int, before: list[str]) -> None:
    """Fail where a host that is back wrote more than what was on its way when it lost its cable, or readers take it.

    No store takes a request back that it is still to get: at most the manifest of one whole checkpoint, or files of
    one that stays without. Either lies where nobody looks.
    """
    late = [path for path in _saved(run, attempt) if path not in before]
    assert len({path.rpartition("/")[0] for path in late}) <= 1, late
    assert len(late) <= 1 or not [path for path in late if path.endswith("/manifest.json")], late
    base = run.claims()[-1].base
    assert base is not None
    assert base.attempt == attempt
    assert not [one for one in run.checkpoints() if one.attempt == attempt and one.step > base.step]


def _noticed(run: Run, process: subprocess.Popen[str], attempt: int, *, after: float, within: float) -> str:
    """Wait until the loss of a rank is noticed; return the reason."""

    def lost() -> list[dict[str, Any]]:
        if process.poll() is not None:
            raise AssertionError(f"the run has ended: {process.communicate()[0]}")
        return [row for row in run.rows_of(attempt, "events") if row["event"] == "recovering"]

    (row,) = wait_for(lost, "the loss to be noticed", timeout=240)
    print(f"noticed after {row['time'] - after:.0f} s: {row['reason']}")
    assert row["time"] - after < within
    return str(row["reason"])
