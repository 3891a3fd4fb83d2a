"""Ray Tune over Ray Train, as Ray's guide to tuning a trainer has it: a function that drives a TorchTrainer a trial.

https://docs.ray.io/en/latest/train/user-guides/hyperparameter-optimization.html
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from benchmarks.sweep_overhead.shared import RATES, arguments, train


def train_on_the_worker(config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    accuracy = train(config["lr"], config["steps"], config["seed"], config["marks"], config["data"])
    ray.train.report({"accuracy": accuracy})


def drive(config: dict[str, Any], *, scratch: Path) -> None:
    trainer = TorchTrainer(
        train_on_the_worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(
            name=f"train-{tune.get_context().get_trial_id()}",
            storage_path=str(scratch),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]  # of the Ray Train before
        ),
    )
    trainer.fit()


def main() -> None:
    args = arguments(__doc__)
    # a trial takes two processors as Ray counts them: its driver, which waits, and its worker
    ray.init(address="local", num_cpus=2 * args.slots, include_dashboard=False, configure_logging=False)
    settings = {"steps": args.steps, "seed": args.seed, "marks": args.marks, "data": args.data}
    tuner = tune.Tuner(
        partial(drive, scratch=args.scratch),
        param_space={"lr": tune.loguniform(*RATES), **settings},
        tune_config=tune.TuneConfig(
            metric="accuracy", mode="max", num_samples=args.trials, max_concurrent_trials=args.slots
        ),
        run_config=tune.RunConfig(storage_path=str(args.scratch), name="tune", verbose=0),
    )
    print(tuner.fit().get_best_result().metrics)
    ray.shutdown()


if __name__ == "__main__":
    main()
