"""A document against a class: the value, or every mistake in words that need no knowledge of pydantic."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError

from cluster.spelling import nearest
from launcher import blocks
from launcher.mistakes import Keys, Mistake
from launcher.yaml_source import Document

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

M = TypeVar("M", bound=BaseModel)

_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}
_UNTYPED = ("int_type", "float_type", "bool_type")


def validate(model: type[M], document: Document) -> tuple[M | None, list[Mistake]]:
    """Return the value, or None with every mistake in it. A block that is left empty is its defaults."""
    if document.value is None and document.mistakes:
        return None, document.mistakes
    if not isinstance(document.value, dict):
        keys = ", ".join(model.model_fields)
        problem = "the file is empty" if document.value is None else f"{shown(document.value)} is not a block of keys"
        return None, [Mistake(document.place(()), (), f"{problem}; its keys are: {keys}")]
    _fill_empty_blocks(model, document.value)
    valid, errors = _errors(model, document.value)
    found = [_Found.of(model, error) for error in errors]
    known = {(mistake.place, mistake.path) for mistake in document.mistakes}
    new = [_mistake(model, each, document) for each in _one_for_each_union(model, found, document)]
    mistakes = document.mistakes + [mistake for mistake in new if (mistake.place, mistake.path) not in known]
    return (None, mistakes) if mistakes else (valid, [])


def shown(value: object) -> str:
    """Return a value as a message shows it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "…")
    if isinstance(value, list | dict):
        text = json.dumps(value, default=str, ensure_ascii=False)
        return text if len(text) <= 60 else "a list" if isinstance(value, list) else "a block"
    return repr(value)


def _fill_empty_blocks(annotation: Any, value: dict[str, Any]) -> None:
    for key, child in value.items():
        below = blocks.inside(annotation, key)
        if child is None and (blocks.is_always_block(below) or get_origin(below) is dict):
            value[key] = {}
        elif isinstance(child, dict):
            _fill_empty_blocks(below, child)


def _errors(model: type[M], value: dict[str, Any]) -> tuple[M | None, list[ErrorDetails]]:
    """Validate, and refuse what pydantic would convert though YAML has a type for it: `epochs: true` is not 1."""
    valid, errors = _pass(model, value, strict=False)
    known = {error["loc"] for error in errors}
    for error in _pass(model, value, strict=True)[1]:
        is_whole = error["type"] == "int_type" and isinstance(error["input"], float)  # 1e3 that passed is whole
        if error["type"] in _UNTYPED and error["loc"] not in known and not is_whole:
            errors.append(error)
    return valid, errors


def _pass(model: type[M], value: dict[str, Any], *, strict: bool) -> tuple[M | None, list[ErrorDetails]]:
    try:
        return model.model_validate(value, strict=strict), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


@dataclass(frozen=True)
class _Found:
    """An error of pydantic, and what our classes say of the place it names."""

    error: ErrorDetails
    path: Keys
    annotation: Any  # of what stands at the path
    around: Any  # of the block that the last key of the path is in
    union: Keys | None = None  # where several types may stand, the error being of one of them
    in_block: bool = False  # and that one is a block

    @classmethod
    def of(cls, model: type[BaseModel], error: ErrorDetails) -> _Found:
        annotation: Any = model
        around: Any = None
        path: Keys = ()
        union, in_block = None, False
        for part in error["loc"]:
            members = blocks.alternatives(annotation)
            if len(members) > 1:  # then the part is pydantic's name of the type that it tried
                union = path
                annotation = next((m for m in members if blocks.is_block(m) and m.__name__ in str(part)), annotation)
                in_block = blocks.is_block(annotation)
            elif part != "[key]":  # pydantic's mark of an error in a key of a map
                annotation, around = blocks.inside(annotation, part), annotation
                path = (*path, part)
        return cls(error, path, annotation, around, union, in_block)


def _one_for_each_union(model: type[BaseModel], found: Sequence[_Found], document: Document) -> Iterator[_Found]:
    """Where several types may stand, keep what is wrong with the block that was meant, or say once that none fits.

    A number that is only too large or too small is told as that.
    """
    done: set[Keys] = set()
    out_of_range = {each.union: each for each in found if each.error["type"] in _BOUNDS and not each.in_block}
    blocks_meant = {each.union for each in found if each.in_block and isinstance(document.get(each.union or ()), dict)}
    for each in found:
        if each.union is None or (each.in_block and each.union in blocks_meant):
            yield each
        elif each.union not in done | blocks_meant:
            done.add(each.union)
            if each.union in out_of_range:
                yield out_of_range[each.union]
                continue
            error: ErrorDetails = {**each.error, "type": "union", "input": document.get(each.union)}
            yield _Found(error, each.union, blocks.at(model, each.union), blocks.at(model, each.union[:-1]))


def _mistake(model: type[BaseModel], found: _Found, document: Document) -> Mistake:
    path, kind = found.path, found.error["type"]
    if kind == "extra_forbidden":
        return Mistake(document.place(path, of_key=True), path, _unknown_key(model, found))
    if kind == "value_error":
        return _rule(path, str(found.error["ctx"]["error"]), document)
    return Mistake(document.place(path), path, _wrong_value(model, found))


def _rule(path: Keys, problem: str, document: Document) -> Mistake:
    """Point at the key that a rule between several keys begins with: "momentum is an option of …"."""
    first = problem.split(" ", 1)[0].rstrip(":")
    block, _, key = first.partition(".")  # a key of a space has dots itself
    for named in ((*path, *first.split(".")), (*path, block, key)):
        if named in document.places:
            return Mistake(document.place(named), named, problem.removeprefix(f"{first}: "))
    return Mistake(document.place(path), path, problem)


def _unknown_key(model: type[BaseModel], found: _Found) -> str:
    key, above = str(found.path[-1]), found.path[:-1]
    block = blocks.block_of(found.around)
    known = list(block.model_fields) if block is not None else []
    elsewhere = [".".join(map(str, each)) for each in blocks.paths(model) if each[-1] == key]
    meant = nearest(key, known) or (f"; did you mean {elsewhere[0]}?" if elsewhere else "")
    where = ".".join(map(str, above)) or "the file"
    return f"unknown key{meant} The keys of {where}: {', '.join(known)}".replace("key The", "key. The")


def _wrong_value(model: type[BaseModel], found: _Found) -> str:
    error, annotation = found.error, found.annotation
    value, kind = error["input"], error["type"]
    words = blocks.in_words(annotation) if blocks.alternatives(annotation) else "something else"
    if kind == "missing" and isinstance(found.path[-1], int):
        return f"this is missing; give {blocks.in_words(blocks.at(model, found.path[:-1]))}"
    if kind == "missing":
        return f"this key is missing; give {words}{_described(found)}"
    if value is None:
        return f"there is no value; give {words}"
    if kind in _BOUNDS:
        name, word = _BOUNDS[kind]
        bound = error["ctx"][name]
        limit = f"{bound:g}" if isinstance(bound, float) else str(bound)
        return f"{shown(value)} is out of range: it must be {word} {limit}"
    if kind == "too_short":
        return "the list is empty" if isinstance(value, list | tuple) else "the block is empty"
    if kind == "string_pattern_mismatch":
        return f"{shown(value)} does not fit{_described(found)}"
    if kind == "finite_number":
        return f"{shown(value)} is not a finite number"
    if kind == "literal_error":
        known = blocks.choices(blocks.at(model, found.path))  # of all blocks that may stand here
        return f"{shown(value)} is not a choice here; the choices: {', '.join(known)}{nearest(value, known)}"
    quotes = f'; put it in quotes: "{value}"' if kind == "string_type" and isinstance(value, int | float) else ""
    return f"{shown(value)} is not {words}{nearest(value, blocks.choices(annotation))}{quotes}"


def _described(found: _Found) -> str:
    block = blocks.block_of(found.around)
    field = block.model_fields.get(str(found.path[-1])) if block is not None else None
    return f" ({field.description})" if field is not None and field.description else ""
