"""What is wrong with a job file: every mistake, each with its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.errors import UsageError

Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Place:
    """A place in a file, or an option of the command line; lines and columns count from 1."""

    source: str
    line: int | None = None
    column: int | None = None
    key: str = ""  # the key that an option sets

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"

    @property
    def order(self) -> tuple[bool, str, int, int]:
        """Files come before options, and then by line."""
        return self.line is None, "" if self.line is None else self.source, self.line or 0, self.column or 0


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong: where, under which key, and what to write instead."""

    place: Place
    path: Keys
    problem: str

    @property
    def key(self) -> str:
        return ".".join(map(str, self.path))

    def __str__(self) -> str:
        shown = self.key if self.key != self.place.key else ""
        return ": ".join(filter(None, (str(self.place), shown, self.problem)))


class JobFileError(UsageError):
    """The job file, or what the command line changes in it, is wrong; all that is wrong is in `mistakes`."""

    def __init__(self, mistakes: Sequence[Mistake], source: str) -> None:
        unique = {str(mistake): mistake for mistake in sorted(mistakes, key=lambda mistake: mistake.place.order)}
        self.mistakes = tuple(unique.values())
        count = f"{len(unique)} mistake{'s' if len(unique) > 1 else ''} in {source}; nothing was created"
        super().__init__("\n".join((*unique, count)))
