"""Which point a sweep tries next. Each choice is a function of the seed, its number and the results told before it.

So a search is rebuilt by telling it again what storage knows: there is no random state to lose.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trainers.randomness import seed_for
from trainers.tuning import Domain, Point, Tune, may_be_perturbed, place_in

if TYPE_CHECKING:
    import optuna

STARTUP = 8  # points of which TPE and a GP want to hear before they choose
_MOST_POINTS = 10_000  # of a space, in which trials may meet
Values = Mapping[int, float]  # of the metric, by evaluation


class Searcher(Protocol):
    """Chooses points, and may learn from what became of them."""

    learns: bool

    def ask(self, number: int) -> Point:
        """Return the point of a number; numbers come in order."""
        ...

    def know(self, number: int, point: Point) -> None:
        """Take a point that was chosen before, in its turn, as if `ask` had just returned it."""
        ...

    def tell(self, number: int, values: Values, *, completed: bool) -> None:
        """Say what became of a point; one that diverged or failed has no values."""
        ...


def build_searcher(tune: Tune, mode: str) -> Searcher:
    """Return the searcher that a job file asks for."""
    if tune.covers_all or tune.search.name == "grid":
        return Every(tune)
    own = {"random": Random, "qmc": Sobol}.get(tune.search.name)
    searcher = own(tune) if own is not None else Sampled(tune, mode)
    is_small = tune.is_finite and sum(1 for _ in islice(tune.points(), _MOST_POINTS + 1)) <= _MOST_POINTS
    return Untried(tune, searcher) if is_small and tune.scheduler.name != "pbt" else searcher


class Every:
    """Every point in turn: a grid, or a space that has no more points than there are trials."""

    learns = False

    def __init__(self, tune: Tune) -> None:
        self._points = list(islice(tune.points(), tune.tried))

    def ask(self, number: int) -> Point:
        return self._points[number]

    def know(self, number: int, point: Point) -> None: ...

    def tell(self, number: int, values: Values, *, completed: bool) -> None: ...


class Random:
    """Each point by itself; the keys with a grid go through their combinations, all equally often."""

    learns = False

    def __init__(self, tune: Tune) -> None:
        self._space = tune.ordered
        self._seed = tune.search.seed

    def ask(self, number: int) -> Point:
        point: Point = {}
        left = number
        for (key, domain), share in zip(self._space.items(), self._shares(number), strict=True):
            if not domain.counts(point):
                continue
            if domain.grid is not None:
                point[key] = domain.grid[left % len(domain.grid)]
                left //= len(domain.grid)
            else:
                point[key] = domain.at(share)
        return point

    def know(self, number: int, point: Point) -> None: ...

    def replace(self, number: int, point: Point) -> None:
        """Take another point for the one that was just asked for: nothing here depends on it."""

    def tell(self, number: int, values: Values, *, completed: bool) -> None: ...

    def _shares(self, number: int) -> list[float]:
        """Return where in its domain each key's value lies, also of keys that a condition leaves out."""
        drawn: list[float] = np.random.default_rng([self._seed, number]).random(len(self._space)).tolist()
        return drawn


class Sobol(Random):
    """Points that fill the space evenly: of the first 2^n, one lies in each 2^n-th of every range (Owen 1998)."""

    def _shares(self, number: int) -> list[float]:
        import torch

        sequence = torch.quasirandom.SobolEngine(len(self._space), scramble=True, seed=self._seed)
        found: list[float] = sequence.fast_forward(number).draw(1, dtype=torch.float64)[0].tolist()
        return found


class Sampled:
    """One of Optuna's samplers, seeded anew for each point."""

    learns = True

    def __init__(self, tune: Tune, mode: str) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._tune = tune
        self._storage = optuna.storages.InMemoryStorage()
        directions = optuna.study.StudyDirection
        direction = directions.MAXIMIZE if mode == "max" else directions.MINIMIZE
        self._study = optuna.create_study(storage=self._storage, study_name="sweep", direction=direction)
        self._asked: dict[int, optuna.Trial] = {}
        self._mode = mode
        self._worst: float | None = None  # of all values that it was told

    def ask(self, number: int) -> Point:
        return self._ask(number, self._tune.search.name)

    def know(self, number: int, point: Point) -> None:
        if self._tune.search.name == "cmaes":  # it keeps notes on what it chose, so it chooses again
            if self.ask(number) != point:  # it stands in the place of one that was tried, or another Optuna chose it
                self.replace(number, point)
            return
        self._take(number, point)

    def replace(self, number: int, point: Point) -> None:
        """Take another point for the one that was just asked for."""
        import optuna

        self._study.tell(self._asked.pop(number), state=optuna.trial.TrialState.FAIL)
        self._take(number, point)

    def _take(self, number: int, point: Point) -> None:
        self._study.enqueue_trial({key: _index(self._tune.ordered[key], value) for key, value in point.items()})
        self._ask(number, "random")

    def tell(self, number: int, values: Values, *, completed: bool) -> None:
        import optuna

        trial = self._asked.pop(number)
        finite = {iteration: value for iteration, value in values.items() if math.isfinite(value)}
        last = finite[max(finite)] if finite else None
        if self._tune.search.name != "tpe":  # TPE alone knows what to make of one that ended early, or has no value
            completed, last = True, self._or_worst(last)
        if completed and last is not None:
            self._study.tell(trial, last)
            return
        for iteration, value in finite.items():
            trial.report(value, iteration)
        self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)  # without a value, TPE takes it for the worst

    def _or_worst(self, value: float | None) -> float | None:
        """Return a value or, where there is none, the worst of those so far, if any."""
        values = [each for each in (self._worst, value) if each is not None]
        self._worst = (min if self._mode == "max" else max)(values, default=None)
        return self._worst if value is None else value

    def _ask(self, number: int, sampler: str) -> Point:
        self._study.sampler = _SAMPLERS[sampler](self._seed(number))
        trial = self._study.ask()
        point: Point = {}
        for key, domain in self._tune.ordered.items():
            if domain.counts(point):
                point[key] = _suggest(trial, key, domain)
        self._asked[number] = trial
        self._drop_notes(trial)
        return point

    def _drop_notes(self, trial: optuna.Trial) -> None:
        """Have a sampler see of a trial that runs the values it has, and not what else was drawn and did not count.

        The latter nobody could tell it again (`_get_params` of TPE's sampler, and of the GP's, in Optuna 5.0).
        """
        study = self._storage.get_study_id_from_name("sweep")
        key = self._storage.get_trial_id_from_study_id_trial_number(study, trial.number)
        for sampler in ("tpe", "gp"):
            self._storage.set_trial_system_attr(key, f"{sampler}:relative_params:0", "")

    def _seed(self, number: int) -> int:
        return seed_for(self._tune.search.seed, number) % 2**32


class Untried:
    """Another searcher, but no point of a small space twice: it would train to the same bits.

    In the place of one that was tried comes any that was not, with the same values of keys with a grid where there is
    one, and the searcher takes it for its own choice.
    """

    def __init__(self, tune: Tune, searcher: Random | Sampled) -> None:
        self.learns = searcher.learns
        self._tune = tune
        self._searcher = searcher
        self._tried: set[str] = set()
        self._grid = [key for key, domain in tune.ordered.items() if domain.grid is not None]

    def ask(self, number: int) -> Point:
        point = self._searcher.ask(number)
        if _text(point) in self._tried:
            point = self._another(number, point)
            self._searcher.replace(number, point)
        self._tried.add(_text(point))
        return point

    def know(self, number: int, point: Point) -> None:
        self._tried.add(_text(point))
        self._searcher.know(number, point)

    def tell(self, number: int, values: Values, *, completed: bool) -> None:
        self._searcher.tell(number, values, completed=completed)

    def _another(self, number: int, point: Point) -> Point:
        left = [each for each in self._tune.points() if _text(each) not in self._tried]
        alike = [each for each in left if all(each.get(key) == point.get(key) for key in self._grid)]
        chosen = alike or left
        return chosen[seed_for(self._tune.search.seed, number) % len(chosen)]


def _text(point: Point) -> str:
    return json.dumps(point, sort_keys=True, default=str)


def perturb(config: Tune, point: Point, *, number: int, iteration: int) -> Point:
    """Return the values with which a trial goes on from another's checkpoint, as population based training has it.

    Of what may change while a model trains, each is drawn anew with `resample_probability`; else a number is multiplied
    by one of `perturbation_factors`, within its range, and of a list the value before or after is taken (Jaderberg et
    al. 2017, section 4.1.2). A key that counts only now is drawn, one that no longer does is left out. All else stays
    what it is there.
    """
    generator = np.random.default_rng([config.search.seed, number, iteration])
    scheduler = config.scheduler
    resampled = 0.25 if scheduler.resample_probability is None else scheduler.resample_probability
    changed = dict(point)
    for key, domain in config.ordered.items():
        drawn, share, side = generator.random(3)
        if not may_be_perturbed(key):
            continue
        if not domain.counts(changed):
            changed.pop(key, None)
        elif key not in point or drawn < resampled:
            changed[key] = domain.at(float(share))
        else:
            changed[key] = _beside(domain, point[key], scheduler.perturbation_factors or (1.2, 0.8), up=side < 0.5)
    return changed


def _beside(domain: Domain, value: Any, factors: tuple[float, float], *, up: bool) -> Any:
    if (values := domain.listed) is not None:
        return values[min(max((place_in(values, value) or 0) + (1 if up else -1), 0), len(values) - 1)]
    moved = value * factors[0 if up else 1]
    low, high = domain.ends.values()
    if domain.uniform is not None or domain.loguniform is not None:
        return min(max(moved, low), high)
    # of whole steps at least one, to the side of the factor: a small value would stay what it is
    side = 1 if moved > value or (moved == value and up) else -1
    if domain.randint is not None:
        return min(max(round(moved) if round(moved) != value else value + side, low), high)
    before, after = domain.nearest_multiple(value), domain.nearest_multiple(moved)
    return domain.multiple(domain.clipped(before + side if after == before else after))


def _suggest(trial: optuna.Trial, key: str, domain: Domain) -> Any:
    if domain.choice is not None:
        return domain.choice[trial.suggest_categorical(key, range(len(domain.choice)))]
    if domain.randint is not None:
        return trial.suggest_int(key, domain.randint[0], domain.randint[1] - 1)
    if domain.quniform is not None:  # whole numbers come back from storage as they were, fractions of a step may not
        return domain.multiple(trial.suggest_int(key, domain.multiples[0], domain.multiples[-1]))
    low, high = getattr(domain, domain.kind)
    return trial.suggest_float(key, low, high, log=domain.loguniform is not None)


def _index(domain: Domain, value: Any) -> Any:
    """Return what Optuna calls a value: of a list its place, as it may be a block; of steps their number."""
    if domain.choice is not None:
        return place_in(domain.choice, value)
    return domain.nearest_multiple(value) if domain.quniform is not None else value


def _tpe(seed: int) -> Any:
    import optuna

    return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=STARTUP)


def _random(seed: int) -> Any:
    import optuna

    return optuna.samplers.RandomSampler(seed=seed)


def _gp(seed: int) -> Any:
    import optuna

    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP, warn_independent_sampling=False)


def _cmaes(seed: int) -> Any:
    import optuna

    return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)


_SAMPLERS: dict[str, Callable[[int], Any]] = {
    "tpe": _tpe,
    "random": _random,
    "gp": _gp,
    "cmaes": _cmaes,
}
