"""The space of a sweep against the job file: every key and every value is checked as if it stood in the file itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import chain, combinations, islice, product
from typing import Any

from pydantic import BaseModel, ValidationError

from cluster.spelling import nearest
from launcher import blocks
from launcher.mistakes import Keys, Mistake
from launcher.overrides import block_for
from launcher.validation import validate
from launcher.yaml_source import Document
from trainers.config import Every
from trainers.tuning import SEARCHED, Domain, Point, Tune

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
    for name in list(space[_OPTIMIZER]):
        if _wrong_with(root, document, {_OPTIMIZER: name}, {}, wrong):
            space[_OPTIMIZER].remove(name)
            if name == "sgd":
                space.pop("train.optimizer.momentum", None)
    if not space[_OPTIMIZER]:
        del space[_OPTIMIZER]
    tune["space"] = space
    place = document.place(("tune",))
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
    places = {(key, *at): _below(document, key, at) for key, domain in space.items() for at in domain.checked}
    seen = {*known}
    for point, origins in _tried(space):
        new = _wrong_with(root, document, point, {key: places[key, *at] for key, at in origins.items()}, seen)
        found += new
        seen |= {*new}
    return found


def _key(document: Document, root: type[BaseModel], key: str) -> Mistake | None:
    path: Keys = tuple(key.split("."))
    if path[0] == "params" and len(path) > 1:
        return _param(document, key)
    if blocks.block_of(blocks.at(root, path[:-1])) is Every:
        problem = f"search {'.'.join(map(str, path[:-1]))} itself: [1 epoch, 2 epochs]"
        return Mistake(document.place((*_SPACE, key), of_key=True), (*_SPACE, key), problem)
    if key in _OF_THE_SWEEP:
        problem = f"{key} counts for the sweep as a whole: say it outside of the space"
        return Mistake(document.place((*_SPACE, key), of_key=True), (*_SPACE, key), problem)
    if path[0] in SEARCHED and len(path) > 1 and blocks.at(root, path) is not None:
        return None
    there = [".".join(map(str, each)) for each in blocks.paths(root) if each[0] in SEARCHED and len(each) > 1]
    if blocks.at(root, path) is not None:
        problem = f"a space names keys inside {', '.join(SEARCHED)}; this one cannot change from trial to trial"
    else:
        last = [name for name in there if name.rpartition(".")[2] == str(path[-1])]
        meant = nearest(key, there) or (f"; did you mean {last[0]}?" if last else "")
        problem = f"the job file has no such key{meant}"
    return Mistake(document.place((*_SPACE, key), of_key=True), (*_SPACE, key), problem)


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
    problem = f"it searches a param that the job file does not give: {known}"
    return Mistake(document.place((*_SPACE, key), of_key=True), (*_SPACE, key), problem)


def _below(document: Document, key: str, at: Keys) -> Keys:
    """Return where a value of a key stands; in a list that stands alone there is no `choice`."""
    return (*_SPACE, key, *(at[1:] if isinstance(document.get((*_SPACE, key)), list) else at))


def _tried(space: Mapping[str, Domain]) -> Iterator[tuple[Point, dict[str, Keys]]]:
    """Yield points that together have all that is to be checked of each domain, and where each value stands.

    Lists are tried in all their combinations, as rules between keys ("momentum is an option of sgd") may hold for
    some alone; were there too many of those, the first some hundred, and of two values each the first thousand pairs.
    """
    tried = list(islice(_combinations(list(space.items()), {}, {}), _COMBINATIONS + 1))
    yield from tried[:_COMBINATIONS]
    alone = ({key: value} for key, domain in space.items() for value in domain.checked.items())
    pairs = (
        {one: first, other: second}
        for one, other in combinations(space, 2)
        for first, second in product(space[one].ends.items(), space[other].ends.items())
    )
    for fixed in chain(alone, islice(pairs, _PAIRS if len(tried) > _COMBINATIONS else 0)):
        if (found := _with(fixed, space)) is not None:
            yield found


def _combinations(
    left: list[tuple[str, Domain]], point: Point, origins: dict[str, Keys]
) -> Iterator[tuple[Point, dict[str, Keys]]]:
    """Yield the combinations of listed values with the lower ends of ranges."""
    if not left:
        yield point, origins
        return
    (key, domain), rest = left[0], left[1:]
    if not domain.counts(point):
        yield from _combinations(rest, point, origins)
        return
    ends = list(domain.ends.items())
    if domain.choice is None and domain.grid is None:
        ends = ends[:1]
    for at, value in ends:
        yield from _combinations(rest, {**point, key: value}, {**origins, key: at})


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


def _wrong_with(
    root: type[BaseModel], document: Document, point: Point, places: Mapping[str, Keys], known: set[Mistake]
) -> list[Mistake]:
    """Return what would be wrong with a job file that has the values of a point."""
    changed = deepcopy(document)
    for block in ("tune", "budget"):  # of the sweep, not of a trial
        changed.value.pop(block, None)
    if isinstance(cluster := changed.value.get("cluster"), dict):
        cluster.pop("nodes", None)  # a sweep may have none to begin with
    changed.mistakes = []
    for key, value in point.items():
        place = document.place(places.get(key, (*_SPACE, key)))
        changed.put(tuple(key.split(".")), Document(deepcopy(value), {(): place}), below_text=block_for(root))
    there = {(mistake.place, mistake.problem) for mistake in known}
    return [each for each in validate(root, changed)[1] if (each.place, each.problem) not in there]
