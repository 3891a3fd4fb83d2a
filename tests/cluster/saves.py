"""Small checkpoints and rows, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from cluster.attempts import Attempt
from cluster.records import Checkpoint
from cluster.runs import Run
from cluster.segments import SegmentWriter

Commit = Callable[[Attempt, int], Checkpoint]


def make_files(folder: Path, step: int) -> list[Path]:
    """Write two files whose bytes tell their step."""
    files = [folder / "model.safetensors", folder / "trainer.json"]
    for file in files:
        file.write_bytes(f"{file.name} of step {step}".encode() * 50)
    return files


def write_rows(attempt: Attempt, stream: str, *steps: int) -> None:
    writer = SegmentWriter(attempt.run, attempt.number, stream, "rank-0")
    for step in steps:
        writer.append({"step": step})
    writer.close()


def steps(run: Run) -> list[int]:
    return [checkpoint.step for checkpoint in run.checkpoints()]


def stored(run: Run, folder: str = "") -> list[str]:
    """Return the objects below a folder of the run, whatever readers take from them."""
    return [entry.path.removeprefix(run.path("")) for entry in run.storage.list(f"{run.id}/{folder}")]


def flip_a_byte(run: Run, folder: str) -> None:
    path = run.path(f"{folder}/model.safetensors")
    data = bytearray(run.storage.read(path))
    data[len(data) // 2] ^= 1
    run.storage.write(path, bytes(data))


def make_newer(run: Run, folder: str) -> None:
    """Have a checkpoint say that a newer raylift wrote it."""
    path = run.path(f"{folder}/manifest.json")
    run.storage.write(path, json.dumps({**json.loads(run.storage.read(path)), "format": 2}).encode())


def send_half(run: Run, attempt: int) -> str:
    """Leave what an upload to a storage on disk leaves that was cut off; return its path."""
    path = run.path(f"attempts/{attempt:06d}/checkpoints/000000010/model.safetensors")
    file = Path(run.storage.uri, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_name(f".raylift-partial-00000000-{file.name}").write_bytes(b"half")
    return path
