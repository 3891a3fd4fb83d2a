"""One contestant saves a state to S3 and restores it, in a process of its own.

python -m benchmarks.checkpoint.saving raylift --uri s3://bucket/prefix --size 1000000000 --out FILE
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoint.peers import copiers
from benchmarks.checkpoint.state import Training

_FILE = "state.pt"


@dataclass(frozen=True)
class Saved:
    """What it took; seconds, and None where a contestant has no such part."""

    size: int  # bytes
    blocked: float | None = None  # that the training loop stood still
    copied: float | None = None  # for a plain copy of the state into memory that is there
    durable: float | None = None  # until all of it was in S3
    cpu: float | None = None  # of this process and its children, until then
    restored: float | None = None  # until it was loaded, and verified where the contestant does that
    restore_cpu: float | None = None
    claimed: float | None = None  # for a new attempt to make the checkpoint its own


class Clock:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), _cpu()

    @property
    def wall(self) -> float:
        return time.perf_counter() - self._wall

    @property
    def cpu(self) -> float:
        return _cpu() - self._cpu


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def raylift(uri: str, size: int) -> Saved:
    """Save twice, as a run does, and measure the second one: the first makes the memory for the copies."""
    from cluster.runs import Run
    from cluster.storage.open import open_storage
    from trainers.checkpoint import Checkpointer
    from trainers.config import Checkpoint
    from trainers.record import Recorder

    def checkpointer(attempt: Any) -> Any:
        recorder = Recorder(attempt, 0, log_every=1)
        return Checkpointer(attempt, 0, config=Checkpoint(keep=1, best=False), recorder=recorder, meta={})

    run = Run(open_storage(uri), "bench")
    run.create(b"name: bench\n")
    training: Any = Training(size, seed=1)
    saving = checkpointer(run.claim())
    for step in (1, 2):
        training.progress.step = step
        copied = _copy(training)
        clock = Clock()
        saving.save(training)
        saving.confirm()
        blocked = clock.wall
        saving.wait()
        durable, cpu = clock.wall, clock.cpu
    saving.close()
    clock = Clock()
    attempt = run.claim()
    claimed = clock.wall
    fresh: Any = Training(size, seed=2, fresh=True)
    clock = Clock()
    checkpointer(attempt).restore(fresh)
    restored, restore_cpu = clock.wall, clock.cpu
    _check(training, fresh)
    return Saved(run.checkpoints()[-1].size, blocked, copied, durable, cpu, restored, restore_cpu, claimed)


def _copy(training: Training) -> float:
    """Return how long a copy of the state takes, into memory that was used before."""
    tensors = training.tensors()
    memory = [torch.empty_like(tensor).fill_(0) for tensor in tensors]
    clock = Clock()
    for target, tensor in zip(memory, tensors, strict=True):
        target.copy_(tensor)
    return clock.wall


def boto3(uri: str, size: int) -> Saved:
    """`torch.save`, then boto3's `upload_file`; the loop waits for both."""
    import boto3 as sdk

    client, (bucket, prefix) = sdk.client("s3"), _split(uri)
    training, fresh = Training(size, seed=1), Training(size, seed=2, fresh=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / _FILE
        clock = Clock()
        torch.save(training.as_dict(), file)
        client.upload_file(str(file), bucket, f"{prefix}/{_FILE}")
        durable, cpu, stored = clock.wall, clock.cpu, file.stat().st_size
        file.unlink()
        clock = Clock()
        client.download_file(bucket, f"{prefix}/{_FILE}", str(file))
        fresh.load(torch.load(file, weights_only=True))
        restored, restore_cpu = clock.wall, clock.cpu
    _check(training, fresh)
    return Saved(stored, durable, None, durable, cpu, restored, restore_cpu)


def dcp(_uri: str, size: int) -> Saved:
    """`torch.distributed.checkpoint.async_save` to the local disk: how long it holds up the loop, the second time."""
    from torch.distributed.checkpoint.state_dict_saver import async_save

    training = Training(size, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        for step in (1, 2):
            clock = Clock()
            saving: Any = async_save(training.as_dict(), checkpoint_id=f"{folder}/{step}", no_dist=True)
            blocked = clock.wall
            saving.result()
    return Saved(size, blocked)


def ray(uri: str, size: int) -> Saved:
    """Ray Train's `report` of a checkpoint, which pyarrow uploads; the loop waits for it."""
    import os

    import pyarrow.fs
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    address = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    filesystem = pyarrow.fs.S3FileSystem(
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=address,
        scheme="http",
        region=os.environ["AWS_REGION"],
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "saved.json"
        trainer = TorchTrainer(
            _report,
            train_loop_config={"size": size, "out": str(out)},
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(name="bench", storage_path=uri.removeprefix("s3://"), storage_filesystem=filesystem),
        )
        result = trainer.fit()
        saved: dict[str, Any] = json.loads(out.read_text())
        training, fresh = Training(size, seed=1), Training(size, seed=2, fresh=True)
        assert result.checkpoint is not None
        clock = Clock()
        with result.checkpoint.as_directory() as there:
            fresh.load(torch.load(Path(there) / _FILE, weights_only=True))
        restored, restore_cpu = clock.wall, clock.cpu
    _check(training, fresh)
    return Saved(**saved, restored=restored, restore_cpu=restore_cpu)


def _report(config: dict[str, Any]) -> None:
    import ray.train

    training = Training(config["size"], seed=1)
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        torch.save(training.as_dict(), Path(folder) / _FILE)
        ray.train.report({}, checkpoint=ray.train.Checkpoint.from_directory(folder))
        blocked, cpu = clock.wall, clock.cpu
        saved = Saved((Path(folder) / _FILE).stat().st_size, blocked=blocked, durable=blocked, cpu=cpu)
    Path(config["out"]).write_text(
        json.dumps({key: value for key, value in asdict(saved).items() if value is not None})
    )


def copier(name: str) -> Callable[[str, int], Saved]:
    """Return a contestant that copies the files of raylift's checkpoint, which lie there, and loads none."""

    def copy(uri: str, size: int) -> Saved:
        import os

        from safetensors.torch import save_file

        from trainers import state
        from trainers.whole import MODEL_FILE, OPTIMIZER_FILE

        program = next(one for one in copiers()[0] if one.name == name)
        training = Training(size, seed=1)
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            save_file(training.model.state_dict(), Path(one) / MODEL_FILE)
            tensors, rest = state.flatten(training.optimizer)
            save_file(tensors, Path(one) / OPTIMIZER_FILE, state.metadata_of(rest))
            clock = Clock()
            _call(program.command(f"{one}/", f"{uri}/"), program.env(os.environ))
            durable, cpu = clock.wall, clock.cpu
            clock = Clock()
            _call(program.command(f"{uri}/", f"{two}/"), program.env(os.environ))
            restored, restore_cpu = clock.wall, clock.cpu
            stored = sum(file.stat().st_size for file in Path(two).iterdir())
            assert stored == sum(file.stat().st_size for file in Path(one).iterdir()), "not all of it came back"
        return Saved(stored, None, None, durable, cpu, restored, restore_cpu)

    return copy


def _call(command: Sequence[str], env: Mapping[str, str]) -> None:
    subprocess.run(command, env=dict(env), check=True)


def _split(uri: str) -> tuple[str, str]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, prefix


def _check(saved: Training, restored: Training) -> None:
    if not saved.equals(restored):
        raise RuntimeError("what was restored is not what was saved")


CONTESTANTS: dict[str, Callable[[str, int], Saved]] = {
    "raylift": raylift,
    "boto3": boto3,
    "dcp": dcp,
    "ray": ray,
    "s5cmd": copier("s5cmd"),
    "rclone": copier("rclone"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=list(CONTESTANTS))
    parser.add_argument("--uri", required=True)
    parser.add_argument("--size", type=int, required=True, help="bytes")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    saved = CONTESTANTS[args.contestant](args.uri, args.size)
    args.out.write_text(json.dumps(asdict(saved)))


if __name__ == "__main__":
    main()
