"""Sums in memory that the ranks of a machine share: real processes, which find each other by gloo."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.harness import environment
from trainers import shared_memory
from trainers.parallel import share_memory

pytestmark = pytest.mark.skipif(not shared_memory.is_supported(), reason="only on Linux with x86-64")

START = """
import os, sys, time
import torch
torch.distributed.init_process_group("gloo")
from trainers.shared_memory import SharedSums
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
sums = SharedSums(rank, world)
"""
SUMS = (
    START
    + """
for size in (1, 2, 7, 262144, 600001):
    parts = [torch.randn(size, generator=torch.Generator().manual_seed(100 * size + one)) for one in range(world)]
    expected = parts[0].clone()
    for part in parts[1:]:
        expected += part
    own = parts[rank].clone()
    sums.add(own)
    assert torch.equal(own, expected), size
counts = torch.tensor([2.0**52 / world, rank, 1.0], dtype=torch.float64)
for _ in range(1000):
    told = counts.clone()
    sums.add(told)
    assert told.tolist() == [2.0**52, world * (world - 1) / 2, world]
"""
)
LOST = (
    START
    + """
values = torch.ones(5)
sums.add(values)
print("ready", flush=True)
if rank == 1:
    time.sleep(600)
sums.add(values)
"""
)


def start(script: str, ranks: int) -> list[subprocess.Popen[str]]:
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-P", "-c", script],
            env={**environment(), **common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_rank_gets_the_sum_in_the_order_of_ranks_to_the_bit(ranks: int) -> None:
    for process in start(SUMS, ranks):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def test_a_rank_that_is_killed_is_an_error_for_the_others_within_seconds() -> None:
    waiting, victim = start(LOST, 2)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "ready\n"
    os.kill(victim.pid, signal.SIGKILL)
    _, errors = waiting.communicate(timeout=20)
    victim.communicate()
    assert errors.strip().endswith("cluster.errors.InfrastructureError: another rank is gone: rank 1")


@pytest.mark.parametrize(
    ("world_size", "local_world_size", "device"),
    [(1, 1, "cpu"), (4, 2, "cpu"), (2, 2, "cuda")],
    ids=["one rank", "several machines", "accelerators"],
)
def test_other_ranks_do_not_share_memory(world_size: int, local_world_size: int, device: str) -> None:
    context: Any = SimpleNamespace(rank=0, world_size=world_size, local_world_size=local_world_size)
    assert share_memory(context, torch.device(device)) is None


def test_a_machine_of_another_kind_does_not_share_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.shared_memory.platform.machine", lambda: "arm64")
    context: Any = SimpleNamespace(rank=0, world_size=2, local_world_size=2)
    assert share_memory(context, torch.device("cpu")) is None
