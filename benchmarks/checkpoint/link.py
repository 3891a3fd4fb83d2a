"""An S3 server at the other end of a cable: a network namespace of its own, whose link may be limited."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.real.seaweedfs import SeaweedFS

_HERE, _THERE = "198.18.77.1", "198.18.77.2"  # of the block for benchmarks, RFC 2544
_BUFFERS = ("burst", "256kb", "latency", "400ms")


@contextmanager
def server(folder: Path, rate: str | None) -> Iterator[SeaweedFS]:
    """Run SeaweedFS behind a link of `rate` ("1gbit"; None: as fast as it gets) in both directions.

    Needs root, for the namespace. Raises SystemExit where it cannot be made.
    """
    if os.geteuid() != 0 or shutil.which("tc") is None:
        sys.exit("the benchmark makes a network namespace and limits its link: it needs root, and iproute2")
    name = f"rb-{secrets.token_hex(3)}"
    near, far = f"{name}h", f"{name}s"
    with ExitStack() as undo:
        _run("ip", "netns", "add", name)
        undo.callback(_run, "ip", "netns", "delete", name)
        _run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        _run("ip", "address", "add", f"{_HERE}/30", "dev", near)
        _run("ip", "link", "set", near, "up")
        _run("ip", "-n", name, "address", "add", f"{_THERE}/30", "dev", far)
        _run("ip", "-n", name, "link", "set", far, "up")
        _run("ip", "-n", name, "link", "set", "lo", "up")
        if rate is not None:
            _run("tc", "qdisc", "add", "dev", near, "root", "tbf", "rate", rate, *_BUFFERS)
            _run("tc", "-n", name, "qdisc", "add", "dev", far, "root", "tbf", "rate", rate, *_BUFFERS)
        there = SeaweedFS(folder, host=_THERE, within=("ip", "netns", "exec", name))
        undo.callback(there.stop)
        yield there


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
