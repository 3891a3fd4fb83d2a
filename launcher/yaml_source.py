"""YAML 1.2 with the place of every key and value, so that a mistake can be pointed at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StringMark, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from cluster.errors import UsageError
from launcher.mistakes import Keys, Mistake, Place

_TAG = "tag:yaml.org,2002:"
_SCALARS = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str")}
_PLAIN_TEXT = {f"{_TAG}{name}" for name in ("timestamp", "merge", "value")}  # not of YAML 1.2's core
_COLLECTIONS = {f"{_TAG}map", f"{_TAG}seq"}


@dataclass
class Document:
    """A YAML value in plain Python, and where its parts stand."""

    value: Any
    places: dict[Keys, Place]  # of values; of a block, where its key stands
    keys: dict[Keys, Place] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def place(self, path: Keys, *, of_key: bool = False) -> Place:
        """Return the place of a value (or of its key), or else of the nearest block around it."""
        if of_key and path in self.keys:
            return self.keys[path]
        while path not in self.places:
            path = path[:-1]
        return self.places[path]

    def get(self, path: Keys) -> Any:
        """Return the value at a path; None where there is none."""
        value = self.value
        for key in path:
            if isinstance(value, dict):
                value = value.get(key)
            elif isinstance(value, list) and isinstance(key, int) and key < len(value):
                value = value[key]
            else:
                return None
        return value

    def put(self, path: Keys, other: Document, *, below_text: Callable[[Keys, str], dict[str, Any]]) -> None:
        """Replace what stands at a path by another document; blocks on the way are made.

        `below_text(path, text)` says which block a text stands for that is in the way.
        """
        block = self.value
        for depth, key in enumerate(path[:-1], 1):
            child = block.get(key)
            if not isinstance(child, dict):
                child = below_text(path[:depth], child) if isinstance(child, str) else {}
                block[key] = child
                if not child:
                    self._move_in(path[:depth], other.places[()])
            block = child
        block[path[-1]] = other.value
        self._move_in(path, other.places[()])
        self.places |= {(*path, *rest): place for rest, place in other.places.items()}
        self.keys |= {(*path, *rest): place for rest, place in other.keys.items()}
        self.mistakes += other.mistakes

    def part(self, path: Keys) -> Document:
        """Return the value at a path as a document of its own; the mistakes stay here."""
        depth = len(path)
        inside = {
            name: {keys[depth:]: place for keys, place in places.items() if keys[:depth] == path}
            for name, places in (("places", self.places), ("keys", self.keys))
        }
        return Document(value=self.get(path), places={(): self.place(path)} | inside["places"], keys=inside["keys"])

    def _move_in(self, path: Keys, place: Place) -> None:
        for places in (self.places, self.keys):
            for keys in [keys for keys in places if keys[: len(path)] == path]:
                del places[keys]
        self.places[path] = place


def parse(text: str, source: str) -> Document:
    """Read the text of a file; what is wrong with it is in the document's mistakes."""
    return _parse(text, lambda line, column: Place(source, line=line, column=column))


def read_file(path: Path, shown: str) -> Document:
    """Read a YAML file; a mistake's place names it as it was typed. Raises UsageError."""
    try:
        return parse(path.read_text(encoding="utf-8-sig"), shown)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{shown} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
        ) from error
    except OSError as error:
        raise UsageError(f"{shown} cannot be read: {error.strerror}") from error


def parse_option(text: str, option: str, key: str) -> Document:
    """Read a value from the command line; all of it stands at the option."""
    return _parse(text, lambda _line, _column: Place(option, key=key))


def _parse(text: str, at: Callable[[int, int], Place]) -> Document:
    yaml = YAML(typ="safe", pure=True)
    try:
        node = yaml.compose(text)
    except (MarkedYAMLError, YAMLError) as error:
        return _unreadable(error, at)
    reader = _Reader(yaml, at)
    value = reader.read(node, ()) if node is not None else None
    return Document(value, {(): at(1, 1)} | reader.places, reader.keys, reader.mistakes)


def _unreadable(error: Exception, at: Callable[[int, int], Place]) -> Document:
    mark = getattr(error, "problem_mark", None)
    place = at(mark.line + 1, mark.column + 1) if mark is not None else at(1, 1)
    problem = " ".join(filter(None, (getattr(error, "context", None), getattr(error, "problem", None))))
    problem = problem or str(error).split("\n", 1)[0]
    if "'\\t'" in problem:
        problem += ": indent with spaces, not with tabs"
    return Document(None, {(): at(1, 1)}, mistakes=[Mistake(place, (), f"this is not valid YAML: {problem}")])


class _Reader:
    """Turns ruamel's nodes into plain values, and notes where each stands."""

    def __init__(self, yaml: YAML, at: Callable[[int, int], Place]) -> None:
        self.yaml = yaml
        self.at = at
        self.places: dict[Keys, Place] = {}
        self.keys: dict[Keys, Place] = {}
        self.mistakes: list[Mistake] = []
        self._open: list[Node] = []

    def read(self, node: Node, path: Keys) -> Any:
        self.places.setdefault(path, self._place(node.start_mark))
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if node in self._open or node.tag not in _COLLECTIONS:
            problem = "this alias refers to itself" if node in self._open else f"the tag {node.tag} means nothing here"
            return self._mistake(node, path, problem)
        self._open.append(node)
        value = self._mapping(node, path) if isinstance(node, MappingNode) else self._sequence(node, path)
        self._open.pop()
        return value

    def _scalar(self, node: ScalarNode, path: Keys) -> Any:
        if node.tag in _PLAIN_TEXT:
            return node.value
        if node.tag not in _SCALARS:
            return self._mistake(node, path, f"the tag {node.tag} means nothing here")
        try:
            return self.yaml.constructor.construct_object(node)
        except ValueError:  # such as !!int abc
            return self._mistake(node, path, f"{node.value!r} is not what its tag says")

    def _sequence(self, node: Node, path: Keys) -> list[Any]:
        return [self.read(child, (*path, index)) for index, child in enumerate(node.value)]

    def _mapping(self, node: MappingNode, path: Keys) -> dict[str, Any]:
        block: dict[str, Any] = {}
        for key, child in node.value:
            if not isinstance(key, ScalarNode):
                self._mistake(key, path, "a key must be text; a value that starts with { or [ goes in quotes")
                continue
            at = (*path, str(key.value))
            if key.value in block:
                self._mistake(key, at, f"this key is here twice; first at {self.keys[at]}")
                continue
            self.keys[at] = self._place(key.start_mark)
            if not isinstance(child, ScalarNode):
                self.places[at] = self.keys[at]
            block[str(key.value)] = self.read(child, at)
        return block

    def _place(self, mark: StringMark) -> Place:
        return self.at(mark.line + 1, mark.column + 1)

    def _mistake(self, node: Node, path: Keys, problem: str) -> None:
        self.mistakes.append(Mistake(self._place(node.start_mark), path, problem))
