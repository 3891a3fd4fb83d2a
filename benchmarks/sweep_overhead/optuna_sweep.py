"""Optuna in one process, its trials in as many threads as there are slots."""

from __future__ import annotations

import optuna
import torch

from benchmarks.sweep_overhead.shared import RATES, arguments, train


def main() -> None:
    args = arguments(__doc__)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        return train(trial.suggest_float("lr", *RATES, log=True), args.steps, args.seed, args.marks)

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=args.seed))
    study.optimize(objective, n_trials=args.trials, n_jobs=args.slots)
    print(study.best_value)


if __name__ == "__main__":
    main()
