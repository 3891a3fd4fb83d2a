"""Hosts on one Linux machine, to be powered off and unplugged: network namespaces on a bridge of their own.

A host has its own address, process tree, host name, /tmp and /dev/shm; the rest of the file system is shared, as
machines share a network drive. Nothing leads out of the network, and nothing of this machine's own is changed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.harness import wait_for

_NET = "10.231.0"
_BRIDGE = "br0"
_CLONE_NEWNET = 0x40000000
_APART = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
# the first process of a host: it makes /tmp anew, with the folders that hosts share in their places, and then reaps
_BOOT = """
set -e
hostname "$1"; own="$2"; shift 2
mount -t tmpfs tmpfs "$own"; chmod 1777 "$own"
for folder in "$@"; do
    case "$folder" in /tmp/*) mkdir -p "$own/${folder#/tmp/}"; mount --bind "$folder" "$own/${folder#/tmp/}" ;; esac
done
mount --move "$own" /tmp
mount -t tmpfs tmpfs /dev/shm
touch /tmp/booted
while :; do sleep 3600 & wait $! || true; done
"""


class Network:
    """Where hosts are plugged in; the machine that runs the tests can serve on its address, and nothing else."""

    address = f"{_NET}.1"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"raylift-{secrets.token_hex(3)}"
        self.hosts: list[Host] = []
        _ip("netns", "add", self.name)
        for line in (
            "link set lo up",
            f"link add {_BRIDGE} type bridge",
            f"link set {_BRIDGE} up",
            f"addr add {self.address}/24 dev {_BRIDGE}",
        ):
            _ip("-n", self.name, *line.split())

    def listener(self) -> socket.socket:
        """Return a socket of this process that listens in the network."""

        def listen() -> socket.socket:
            with open(f"/run/netns/{self.name}") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return socket.create_server((self.address, 0))

        with ThreadPoolExecutor(1) as thread:  # it alone enters the network; a socket stays where it was made
            return thread.submit(listen).result()

    def host(self, name: str, *shared: Path) -> Host:
        """Boot a host; of /tmp it sees these folders alone."""
        host = Host(self, name, f"{_NET}.{len(self.hosts) + 10}", shared)
        self.hosts.append(host)
        host.boot()
        return host

    def close(self) -> None:
        for host in self.hosts:
            host.power_off()
        _ip("netns", "delete", self.name)


class Host:
    """One machine; it can be booted again after a power-off, and then knows nothing of before."""

    def __init__(self, network: Network, name: str, address: str, shared: Sequence[Path]) -> None:
        self.address = address
        self._network = network
        self._name = name
        self._shared = shared
        self._cable = f"port{address.rpartition('.')[2]}"  # its end at the bridge
        self._first: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        self._namespace = f"{self._network.name}-{self._name}"
        _ip("netns", "add", self._namespace)
        self._on_bridge("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self._namespace)
        self._on_bridge("link", "set", self._cable, "master", _BRIDGE, "up")
        for line in (
            "link set lo up",
            "link set eth0 up",
            f"addr add {self.address}/24 dev eth0",
            f"route add default via {Network.address}",  # without one, Ray takes 127.0.0.1 for the host's address
        ):
            _ip("-n", self._namespace, *line.split())
        own = self._network.folder / f"{self._name}-{secrets.token_hex(3)}"
        own.mkdir(parents=True)
        boot = ["bash", "-c", _BOOT, "boot", self._name, str(own), *map(str, self._shared)]
        self._first = subprocess.Popen(["ip", "netns", "exec", self._namespace, "unshare", *_APART, *boot])
        wait_for(self._is_up, f"host {self._name} to boot", timeout=20)

    def command(self, *arguments: str | Path, env: Mapping[str, str]) -> list[str]:
        """Return what starts a command on this host, in this environment."""
        assert self._first is not None
        enter = ["nsenter", "-t", str(self._init().pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--wd=/tmp"]
        settings = [f"{name}={value}" for name, value in env.items()]
        return [*enter, "env", "--ignore-environment", *settings, *map(str, arguments)]

    def run(self, *arguments: str | Path, env: Mapping[str, str], timeout: float = 60) -> str:
        """Run a command to its end; return what it said."""
        done = subprocess.run(
            self.command(*arguments, env=env), capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, f"{shlex.join(map(str, arguments))}\n{done.stdout}{done.stderr}"
        return done.stdout

    def processes(self) -> list[psutil.Process]:
        """Return all that runs on this host."""
        return [self._init(), *self._init().children(recursive=True)]

    def unplug(self) -> None:
        """Pull the cable: what is sent is lost, and nobody is told."""
        self._on_bridge("link", "set", self._cable, "down")

    def plug_in(self) -> None:
        self._on_bridge("link", "set", self._cable, "up")

    def isolate(self, alone: bool) -> None:
        """Let it reach no other isolated host, or all again; those that are not isolated are reached all the time."""
        self._on_bridge("link", "set", self._cable, "type", "bridge_slave", "isolated", "on" if alone else "off")

    @property
    def root(self) -> Path:
        """Return its file system, as this machine sees it."""
        return Path(f"/proc/{self._init().pid}/root")

    def power_off(self) -> None:
        """End all at once; not one connection is closed, as it would be if the processes were killed alone."""
        if self._first is None:
            return
        self.unplug()
        self._first.kill()  # the first process goes with it, and so do all others
        self._first.wait()
        self._first = None
        wait_for(lambda: not _processes_in(self._namespace), f"the end of {self._name}", timeout=20)
        self._on_bridge("link", "delete", self._cable)
        _ip("netns", "delete", self._namespace)

    def _init(self) -> psutil.Process:
        assert self._first is not None
        return psutil.Process(self._first.pid).children()[0]

    def _is_up(self) -> bool:
        assert self._first is not None
        assert self._first.poll() is None, f"{self._name} did not boot"
        with contextlib.suppress(psutil.Error, IndexError):
            return (self.root / "tmp" / "booted").exists()
        return False

    def _on_bridge(self, *arguments: str) -> None:
        _ip("-n", self._network.name, *arguments)


@contextlib.contextmanager
def lab(folder: Path) -> Iterator[Network]:
    """Make a network for hosts; skip the test where that is impossible."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("hosts are network namespaces: this needs Linux and root")
    for command, package in (("ip", "iproute2"), ("nsenter", "util-linux"), ("unshare", "util-linux")):
        if shutil.which(command) is None:
            pytest.skip(f"hosts are network namespaces: this needs {command}, of {package}")
    try:
        network = Network(folder)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"a network namespace cannot be made here: {error.stderr.strip()}")
    try:
        yield network
    finally:
        network.close()


def _processes_in(namespace: str) -> list[int]:
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return [int(pid) for pid in done.stdout.split()]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
