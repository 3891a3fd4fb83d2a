"""Optuna, one trial after another: its default sampler with its Hyperband pruner, or random search without one."""

from __future__ import annotations

import sys
from typing import Any

import optuna

from benchmarks.sweep_quality.shared import Trial, arguments, suggest


def main(*, at_random: bool) -> None:
    args = arguments(__doc__)
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        def value(key: str, kind: str, held: Any) -> Any:
            return (
                trial.suggest_float(key, *held, log=True)
                if kind == "loguniform"
                else trial.suggest_categorical(key, held)
            )

        point = suggest(value, args.data, args.scratch, args.seed)
        training = Trial(point, trial.number, data=args.data, scratch=args.scratch, seed=args.seed, marks=args.marks)
        accuracy = 0.0
        for epoch, accuracy in training.epochs():
            trial.report(accuracy, epoch)
            if trial.should_prune():
                training.end()
                raise optuna.TrialPruned
        return accuracy

    samplers = optuna.samplers
    sampler = samplers.RandomSampler(seed=args.seed) if at_random else samplers.TPESampler(seed=args.seed)
    pruner = optuna.pruners.NopPruner() if at_random else optuna.pruners.HyperbandPruner(max_resource=9)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    study.optimize(objective, n_trials=args.trials)
    print(study.best_value)


if __name__ == "__main__":
    at_random = "--random" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--random"]
    main(at_random=at_random)
