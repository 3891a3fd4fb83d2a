"""The space of a sweep against the job file: every key and every value is checked as if it stood in the file itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import combinations, islice, permutations, product
from typing import Any

from pydantic import BaseModel, ValidationError

from cluster.spelling import nearest
from launcher import blocks
from launcher.mistakes import Keys, Mistake, Place
from launcher.overrides import block_for
from launcher.validation import validate
from launcher.yaml_source import Document
from trainers.config import Every
from trainers.tuning import NAMED, SEARCHED, Domain, Point, Tune

_SPACE: Keys = ("tune", "space")
_COMBINATIONS = 200  # of listed values that are tried together
_PAIRS = 1000  # of values that are tried with each other where there are more combinations
_OPTIMIZER = "train.optimizer.name"
_EVALUATION = "data.eval"
_OF_THE_SWEEP = ("train.max_failures",)
_DEFAULT: dict[str, Any] = {
    _OPTIMIZER: ["adamw", "sgd", "muon"],
    "train.optimizer.lr": {"loguniform": [1e-4, 0.3]},
    "train.optimizer.weight_decay": {"loguniform": [1e-6, 0.1]},
    "train.optimizer.momentum": {"choice": [0.9], "when": {_OPTIMIZER: "sgd"}},
}


def settle_space(document: Document, root: type[BaseModel]) -> None:
    """Give a sweep that names no space the default one, of the optimizers that take the options that are given.

    A file's `tune:` without a block is such a sweep; `--set tune=null` takes the block of the file away.
    """
    if "tune" not in document.value:
        return
    if document.value["tune"] is None:
        if document.place(("tune",)).line is None:
            del document.value["tune"]
            return
        document.value["tune"] = {}
    tune = document.value["tune"]
    if not isinstance(tune, dict) or tune.get("space") is not None:
        return
    space = deepcopy(_DEFAULT)
    options = document.get(("train", "optimizer"))
    given = set(options) if isinstance(options, dict) else set()
    if "momentum" in given:
        del space["train.optimizer.momentum"]
    wrong = {*validate(root, deepcopy(document))[1]}
    trial, place = _of_a_trial(document), document.place(("tune",))
    for name in list(space[_OPTIMIZER]):
        if _wrong_with(root, trial, {_OPTIMIZER: name}, {_OPTIMIZER: place}, wrong):
            space[_OPTIMIZER].remove(name)
            if name == "sgd":
                space.pop("train.optimizer.momentum", None)
    if not space[_OPTIMIZER]:
        del space[_OPTIMIZER]
    tune["space"] = space
    document.places |= {(*_SPACE, key): place for key in space}


def check_space(document: Document, root: type[BaseModel], known: Sequence[Mistake]) -> list[Mistake]:
    """Return what is wrong with the keys and values of the space, beside the mistakes that are known."""
    written = document.get(_SPACE)
    if not isinstance(written, dict):
        return []
    found = [mistake for key in written if (mistake := _key(document, root, key)) is not None]
    wrong_keys = {mistake.path[-1] for mistake in found}
    try:
        tune = Tune.model_validate(document.value["tune"])
    except ValidationError:
        return found  # `known` says what is wrong with it
    space = {key: domain for key, domain in tune.ordered.items() if key not in wrong_keys}
    found += [
        Mistake(document.place(path := _below(document, _EVALUATION, at)), path, "trials are compared by an evaluation")
        for at, value in (space[_EVALUATION].ends if _EVALUATION in space else {}).items()
        if value is None
    ]
    found += _without_room(document, space)
    at_of = {(key, *at): _below(document, key, at) for key, domain in space.items() for at in domain.checked}
    places = {at: document.place(path) for at, path in at_of.items()}
    trial, seen = _of_a_trial(document), {*known}
    for tried in (_each(space), _together(space)):
        for point, origins in tried:
            new = _wrong_with(root, trial, point, {key: places[key, *at] for key, at in origins.items()}, seen)
            found += new
            seen |= {*new}
        if found:
            break
    return found


def _key(document: Document, root: type[BaseModel], key: str) -> Mistake | None:
    path: Keys = tuple(key.split("."))
    if path[0] == "params" and len(path) > 1:
        return _param(document, key)
    if path[0] in SEARCHED and blocks.block_of(blocks.at(root, path[:-1])) is Every:
        return _of_key(document, key, f"search {'.'.join(map(str, path[:-1]))} itself: [1 epoch, 2 epochs]")
    if key in _OF_THE_SWEEP:
        return _of_key(document, key, f"{key} counts for the sweep as a whole: say it outside of the space")
    if path[0] in SEARCHED and len(path) > 1 and blocks.at(root, path) is not None:
        return None
    there = [".".join(map(str, each)) for each in blocks.paths(root) if each[0] in SEARCHED and len(each) > 1]
    if blocks.at(root, path) is not None:
        problem = f"a space names keys inside {', '.join(SEARCHED)}; this one cannot change from trial to trial"
    else:
        last = [name for name in there if name.rpartition(".")[2] == str(path[-1])]
        meant = nearest(key, there) or (f"; did you mean {last[0]}?" if last else "")
        problem = f"the job file has no such key{meant}"
    return _of_key(document, key, problem)


def _param(document: Document, key: str) -> Mistake | None:
    """Return what is wrong with a key below the params of the job file, which has to have it."""
    *above, last = key.split(".")
    around = document.get(tuple(above))
    if isinstance(around, dict) and last in around:
        return None
    if not isinstance(around, dict):
        above, last = ["params"], ".".join([*above, last][1:])
        around = document.get(("params",))
    params = [str(each) for each in around] if isinstance(around, dict) else []
    known = f"{'.'.join(above)} has {', '.join(params)}{nearest(last, params)}" if params else "there are none"
    return _of_key(document, key, f"it searches a param that the job file does not give: {known}")


def _of_key(document: Document, key: str, problem: str) -> Mistake:
    return Mistake(document.place((*_SPACE, key), of_key=True), (*_SPACE, key), problem)


def _without_room(document: Document, space: Mapping[str, Domain]) -> Iterator[Mistake]:
    """Yield what is wrong with values, such as null, that a key below theirs would replace by a block."""
    for key, inner in permutations(space, 2):
        if not inner.startswith(f"{key}."):
            continue
        first = next(iter(space[inner].ends.items()))
        for at, value in space[key].ends.items():
            meet = _with({key: (at, value), inner: first}, space) is not None
            if meet and not _has_room(key, value, inner.removeprefix(f"{key}.").split(".")):
                path = _below(document, key, at)
                problem = f"it would be lost where {inner} has a value: say by its `when` with which {key} that counts"
                yield Mistake(document.place(path), path, problem)


def _has_room(key: str, value: Any, path: Sequence[str]) -> bool:
    """Whether something can be put at a path below a value without a loss."""
    for name in path:
        if not isinstance(value, dict) and not (isinstance(value, str) and key in NAMED):
            return False
        key, value = f"{key}.{name}", value.get(name, {}) if isinstance(value, dict) else {}
    return True


def _below(document: Document, key: str, at: Keys) -> Keys:
    """Return where a value of a key stands; in a list that stands alone there is no `choice`."""
    return (*_SPACE, key, *(at[1:] if isinstance(document.get((*_SPACE, key)), list) else at))


def _each(space: Mapping[str, Domain]) -> Iterator[tuple[Point, dict[str, Keys]]]:
    """Yield points that together have all that is to be checked of each domain, and where each value stands.

    Lists are tried in all their combinations, as rules between keys ("momentum is an option of sgd") may hold for
    some alone; were there too many of those, the first some hundred.
    """
    yield from islice(_combinations(space, end=0), _COMBINATIONS)
    for key, domain in space.items():
        for value in domain.checked.items():
            if (found := _with({key: value}, space)) is not None:
                yield found


def _together(space: Mapping[str, Domain]) -> Iterator[tuple[Point, dict[str, Keys]]]:
    """Yield combinations with the upper ends of all ranges; were there too many, also pairs of two values each."""
    tried = list(islice(_combinations(space, end=-1), _COMBINATIONS + 1))
    if any(domain.listed is None for domain in space.values()):
        yield from tried[:_COMBINATIONS]
    pairs = (
        {one: first, other: second}
        for one, other in combinations(space, 2)
        for first, second in product(space[one].ends.items(), space[other].ends.items())
    )
    for fixed in islice(pairs, _PAIRS if len(tried) > _COMBINATIONS else 0):
        if (found := _with(fixed, space)) is not None:
            yield found


def _combinations(space: Mapping[str, Domain], *, end: int) -> Iterator[tuple[Point, dict[str, Keys]]]:
    """Yield the combinations of listed values, each with the first or last value of every range."""

    def combined(left: list[tuple[str, Domain]], point: Point, at: dict[str, Keys]) -> Iterator[tuple[Point, Any]]:
        if not left:
            yield point, at
            return
        (key, domain), rest = left[0], left[1:]
        if not domain.counts(point):
            yield from combined(rest, point, at)
            return
        ends = list(domain.ends.items())
        for place, value in ends if domain.listed is not None else [ends[end]]:
            yield from combined(rest, {**point, key: value}, {**at, key: place})

    yield from combined(list(space.items()), {}, {})


def _with(fixed: Mapping[str, tuple[Keys, Any]], space: Mapping[str, Domain]) -> tuple[Point, dict[str, Keys]] | None:
    """Return a point with some values, what these depend on, and else the first values; None where they never meet."""
    chosen = dict(fixed)
    for key, domain in reversed([*space.items()]):  # what a key depends on comes before it
        if key in chosen:
            there = {other: values[0] for other, values in domain.conditions.items() if other in space}
            chosen = {other: _placed(space[other], value) for other, value in there.items()} | chosen
    point: Point = {}
    origins: dict[str, Keys] = {}
    for key, domain in space.items():
        if domain.counts(point):
            origins[key], point[key] = chosen.get(key) or next(iter(domain.ends.items()))
    return (point, origins) if chosen.keys() <= point.keys() else None


def _placed(domain: Domain, value: Any) -> tuple[Keys, Any]:
    """Return where a value stands, one within a range at its beginning, and the value."""
    return next((at for at, each in domain.ends.items() if each == value), next(iter(domain.ends))), value


def _of_a_trial(document: Document) -> Document:
    """Return a copy of a job file without what is of its sweep alone."""
    changed = deepcopy(document)
    for block in ("tune", "budget"):
        changed.value.pop(block, None)
    for places in (changed.places, changed.keys):
        for path in [path for path in places if path[:1] == ("tune",)]:  # as many as there are values to check
            del places[path]
    if isinstance(cluster := changed.value.get("cluster"), dict):
        cluster.pop("nodes", None)  # a sweep may have none to begin with
    changed.mistakes = []
    return changed


def _wrong_with(
    root: type[BaseModel], trial: Document, point: Point, places: Mapping[str, Place], known: set[Mistake]
) -> list[Mistake]:
    """Return what would be wrong with the job file of a trial that has the values of a point, which stand there."""
    changed = deepcopy(trial)
    for key, value in point.items():
        changed.put(tuple(key.split(".")), Document(deepcopy(value), {(): places[key]}), below_text=block_for(root))
    there = {(mistake.place, mistake.problem) for mistake in known}
    return [each for each in validate(root, changed)[1] if (each.place, each.problem) not in there]
