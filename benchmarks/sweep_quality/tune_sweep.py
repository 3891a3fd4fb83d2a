"""Ray Tune with ASHA over random points, as its guide has it; actors are reused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from benchmarks.sweep_quality.shared import Trial, arguments, suggest


class Trainable(tune.Trainable):
    def setup(self, config: dict[str, Any]) -> None:
        settings = config["settings"]
        generator = np.random.default_rng(config["seed"])

        def value(_: str, kind: str, held: Any) -> Any:
            if kind == "loguniform":
                return float(np.exp(generator.uniform(*np.log(held))))
            return held[generator.integers(len(held))]

        data, seed = settings["data"], settings["seed"]
        point = suggest(value, data, Path(settings["scratch"]), seed)
        paths = {key: Path(settings[key]) for key in ("scratch", "marks")}
        self._trial = Trial(point, config["seed"] % 10**9, data=data, seed=seed, **paths)
        self._epochs = self._trial.epochs()

    def step(self) -> dict[str, Any]:
        _, accuracy = next(self._epochs, (0, 0.0))  # one that diverged is as bad as can be
        return {"accuracy": accuracy, "done": self._trial.done}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        if not self._trial.done:
            self._trial.end()

    def save_checkpoint(self, checkpoint_dir: str) -> None: ...

    def load_checkpoint(self, checkpoint: Any) -> None: ...


def main() -> None:
    args = arguments(__doc__)
    ray.init(address="local", num_cpus=args.slots, include_dashboard=False, configure_logging=False)
    settings = {"data": args.data, "scratch": str(args.scratch), "marks": str(args.marks), "seed": args.seed}
    numbers = np.random.default_rng(args.seed).integers(2**31, size=args.trials).tolist()
    tuner = tune.Tuner(
        Trainable,
        param_space={"seed": tune.grid_search(numbers), "settings": settings},  # a point follows from its number
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            scheduler=ASHAScheduler(max_t=9, grace_period=1, reduction_factor=3),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(args.scratch), name="tune", verbose=0),
    )
    print(tuner.fit().get_best_result().metrics)
    ray.shutdown()


if __name__ == "__main__":
    main()
