"""Which keys of a sweep decide whether a trial is among the best, by Optuna's PED-ANOVA (Watanabe et al., 2023).

It asks how far the values of the best trials differ from those of all. Only the order of the trials counts, so those
that were ended early or failed have their say too, as the ones that were left behind.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from launcher.sweeps import Sweep
from launcher.text import so_many
from trainers.tuning import Domain, place_in

if TYPE_CHECKING:
    import optuna

    from cluster.trials import Trial

FEWEST = 10  # trials of which something can be said
_BEST = 5  # trials at least are the best ones, as Optuna advises
_BEST_SHARE = 0.1
_SHUFFLES = 100  # of few trials; of many, where chance does little, fewer, as each takes longer
_FEWEST_SHUFFLES = 20
_CHANCE = 0.03  # of the shuffles may do as well
_WORK = 10_000  # trials to look at, over all shuffles
_MOST = 1000  # trials; of more every second or third, as their order goes


@dataclass(frozen=True)
class Importance:
    """The share of each key, the largest first; they sum to 1."""

    shares: Mapping[str, float]
    by_chance: frozenset[str]  # keys that got as large a share when the results of the trials were shuffled
    trials: int
    shuffles: int


def assess(sweep: Sweep, space: Mapping[str, Domain]) -> Importance | str:
    """Return how important each key of a space is, or why that cannot be told."""
    points: dict[int, Trial] = {}  # those of several seeds count once
    for trial in sweep.ordered:
        if trial.evaluations or trial.state == "FAILED":
            points.setdefault(trial.number, trial)
    judged = list(points.values())[:: -(-len(points) // _MOST) or 1]
    keys = [key for key in space if any(key in trial.point for trial in judged)]
    if len(judged) < FEWEST:
        return f"With {so_many(len(judged), 'trial')} nothing can be said of it yet: it takes {FEWEST} at least."
    if len(keys) < 2:
        return "There is one key alone, so there is nothing to compare."
    if find_spec("optuna") is None:
        return "It is worked out by Optuna, which is not installed here: pip install 'raylift[train]'"
    study = _study(judged, {key: space[key] for key in keys})
    found = _divergences(study, range(len(judged)))
    total = sum(found.values())
    if not total:
        return f"The best of {len(judged)} trials have no other values than the rest."
    shuffles = max(_FEWEST_SHUFFLES, min(_SHUFFLES, _WORK // len(judged)))
    chance = _by_chance(study, found, len(judged), shuffles)
    shares = {key: found[key] / total for key in sorted(found, key=lambda key: -found[key])}
    return Importance(shares, chance, len(judged), shuffles)


def _study(trials: Sequence[Trial], space: Mapping[str, Domain]) -> optuna.Study:
    """Return the trials as Optuna knows them, the number of each its place from the best down."""
    import optuna

    with _quiet():
        distributions = {key: _distribution(domain) for key, domain in space.items()}
        study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction="minimize")
        for place, trial in enumerate(trials):
            known = {key: _value(space[key], value) for key, value in trial.point.items() if key in space}
            given = {key: value for key, value in known.items() if value is not None}
            study.add_trial(
                optuna.trial.create_trial(
                    params=given, distributions={key: distributions[key] for key in given}, value=float(place)
                )
            )
    return study


def _divergences(study: optuna.Study, places: Sequence[int]) -> dict[str, float]:
    """Return how far the best differ from all in each key, where trials have these places."""
    import optuna

    best = min(max(_BEST_SHARE, _BEST / len(places)), 0.5)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=best)
    with _quiet():
        found = optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=lambda trial: float(places[trial.number]), normalize=False
        )
    return {key: float(value) for key, value in found.items()}


def _by_chance(study: optuna.Study, found: Mapping[str, float], count: int, shuffles: int) -> frozenset[str]:
    """Return the keys that differed as much, and not too seldom, where the places of the trials were shuffled.

    Of 16 trials with one key out of seven that mattered, it was found in 13 of 15 sweeps, and another one in 4.
    """
    generator = random.Random(0)
    shuffled = [_divergences(study, generator.sample(range(count), count)) for _ in range(shuffles)]
    beaten = {key: sum(one.get(key, 0.0) >= value for one in shuffled) for key, value in found.items()}
    return frozenset(key for key, times in beaten.items() if times > _CHANCE * shuffles)


def _distribution(domain: Domain) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    listed = domain.choice or domain.grid
    if listed is not None:
        return CategoricalDistribution(range(len(listed)))
    if domain.randint is not None:
        return IntDistribution(domain.randint[0], domain.randint[1] - 1)
    low, high = getattr(domain, domain.kind)[:2]
    return FloatDistribution(low, high, log=domain.loguniform is not None)


def _value(domain: Domain, value: Any) -> Any:
    """Return what Optuna calls a value: of a list its place, of a range one that lies in it; None if there is none."""
    listed = domain.choice or domain.grid
    if listed is not None:
        return place_in(listed, value)
    low, high = (end for end in domain.ends.values())
    return min(max(value, low), high)


@contextmanager
def _quiet() -> Iterator[None]:
    """Say nothing about targets and rare conditions, which are meant."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
