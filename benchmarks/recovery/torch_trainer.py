"""Ray Train's TorchTrainer, as its guide to fault tolerance has it: each retry loads the newest reported checkpoint."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model

from benchmarks.recovery.loop import STATE_FILE, State, arguments, train

_WORKERS = 2


def train_func(config: dict[str, Any]) -> None:
    args = argparse.Namespace(**config)
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(args.seed)
    state = State(args.lr)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state.load(Path(folder) / STATE_FILE)
    for step in train(args, state, prepare_model(state.model), rank, ranks):
        with tempfile.TemporaryDirectory() as folder:
            if rank == 0:
                state.save(Path(folder) / STATE_FILE)
            kept = Checkpoint.from_directory(folder) if rank == 0 else None
            ray.train.report({"step": step}, checkpoint=kept)


def main() -> None:
    args = arguments("Ray Train MNIST")
    trainer = TorchTrainer(
        train_func,
        train_loop_config=vars(args),
        scaling_config=ScalingConfig(num_workers=_WORKERS),
        run_config=RunConfig(
            name="mnist",
            storage_path=str(args.scratch),
            failure_config=FailureConfig(max_failures=args.max_failures),
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
