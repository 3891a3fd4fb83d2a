"""Ray Tune as its guide has it: a class that trains, random search, one processor a trial."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from benchmarks.sweep_overhead.shared import RATES, arguments, train


class Trial(tune.Trainable):
    """Trains in its one step."""

    def setup(self, config: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self._rate = config["lr"]
        self._settings = config["settings"]

    def step(self) -> dict[str, Any]:
        accuracy = train(self._rate, self._settings["steps"], self._settings["seed"], Path(self._settings["marks"]))
        return {"accuracy": accuracy, "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None: ...

    def load_checkpoint(self, checkpoint: Any) -> None: ...


def main(args: argparse.Namespace, *, reuse: bool) -> None:
    ray.init(address="local", num_cpus=args.slots, include_dashboard=False, configure_logging=False)
    settings = {"steps": args.steps, "seed": args.seed, "marks": str(args.marks)}
    tuner = tune.Tuner(
        Trial,
        param_space={"lr": tune.loguniform(*RATES), "settings": settings},
        tune_config=tune.TuneConfig(metric="accuracy", mode="max", num_samples=args.trials, reuse_actors=reuse),
        run_config=tune.RunConfig(storage_path=str(args.scratch), name="tune", verbose=0),
    )
    print(tuner.fit().get_best_result().metrics)
    ray.shutdown()


if __name__ == "__main__":
    reuse = "--reuse" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--reuse"]
    main(arguments(__doc__), reuse=reuse)
