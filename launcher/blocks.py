"""What the job file's classes say of their keys: which there are, and what they take, in words."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from cluster.config import Words
from launcher.mistakes import Keys
from trainers.config import Every

if TYPE_CHECKING:
    from typing_extensions import TypeIs

_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the types that a value may have, None left out; one that has words of its own stays annotated."""
    if get_origin(annotation) is Annotated:
        if any(isinstance(each, Words) for each in get_args(annotation)[1:]):
            return (annotation,)
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(each for member in get_args(annotation) for each in alternatives(member))
    return () if annotation is type(None) else (annotation,)


def inside(annotation: Any, key: str | int) -> Any:
    """Return the type of what is under a key of a block, list or map; None where there is no such key.

    Where several blocks may stand, and more than one has the key, that is any of their types.
    """
    blocks = [member for member in alternatives(annotation) if is_block(member)]
    if found := [block.model_fields[str(key)].annotation for block in blocks if key in block.model_fields]:
        return Union[tuple(found)]  # noqa: UP007
    for member in alternatives(annotation):
        if get_origin(member) is list:
            return get_args(member)[0]
        if get_origin(member) is tuple and isinstance(key, int) and key < len(get_args(member)):
            return get_args(member)[key]
        if get_origin(member) is dict:
            return get_args(member)[1]
    return None


def at(root: Any, path: Keys) -> Any:
    """Return the type of what is at a path; None where the job file has no such key."""
    for key in path:
        root = inside(root, key)
    return root


def block_of(annotation: Any) -> type[BaseModel] | None:
    """Return the block that may stand here; None where only plain values may."""
    return next((member for member in alternatives(annotation) if is_block(member)), None)


def is_block(member: Any) -> TypeIs[type[BaseModel]]:
    return isinstance(member, type) and issubclass(member, BaseModel)


def is_always_block(annotation: Any) -> bool:
    """Whether nothing but blocks may stand here, not even nothing."""
    if get_origin(annotation) is Annotated:
        return is_always_block(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return all(map(is_always_block, get_args(annotation)))
    return is_block(annotation)


def choices(annotation: Any) -> list[str]:
    """Return the fixed words that may stand here; those of a block's name count, for it may stand alone."""
    members = alternatives(annotation)
    found = [str(value) for member in members if get_origin(member) is Literal for value in get_args(member)]
    return found + [name for member in members if takes_name(member) for name in choices(inside(member, "name"))]


def takes_name(member: Any) -> bool:
    """Say whether a text alone stands for the block of that name: `optimizer: adamw`."""
    return is_block(member) and "name" in member.model_fields


def paths(root: type[BaseModel], above: Keys = ()) -> Iterator[Keys]:
    """Yield the path of every key, blocks before what is in them."""
    for key in root.model_fields:
        yield (*above, key)
        block = block_of(inside(root, key))
        if block is not None and block is not Every:
            yield from paths(block, (*above, key))


def in_words(annotation: Any) -> str:
    """Say what may stand here: "auto, none or a block of mean, std"."""
    members = sorted(alternatives(annotation), key=is_block)
    words = list(dict.fromkeys(word for member in members for word in _words(member)))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _words(member: Any) -> list[str]:
    arguments = get_args(member)
    if get_origin(member) is Annotated:
        return [each.text for each in arguments if isinstance(each, Words)]
    if get_origin(member) is Literal:
        return [str(value) for value in arguments]
    if get_origin(member) is list:
        return ["a list" if arguments[0] is Any else f"a list, each item {in_words(arguments[0])}"]
    if get_origin(member) is tuple:
        return [f"a list of {len(arguments)}, each {in_words(arguments[0])}"]
    if get_origin(member) is dict:
        return ["a block of names and values"]
    if member is Every:
        return ["an interval such as 1 epoch, 500 steps, 15 min"]
    if is_block(member):
        names = [in_words(inside(member, "name"))] if takes_name(member) else []
        return [*names, f"a block of {', '.join(member.model_fields)}"]
    return [_WORDS.get(member, "something else")]
