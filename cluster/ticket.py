"""What a run has to be told on machines that are older than it: one word, which goes through any shell unchanged."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

VARIABLES = "RAYLIFT_VARIABLES"  # the variables that a driver hands on to its ranks, by name, with commas between them


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """What a driver is told, nothing of which is secret, and when it is given up."""

    variables: Mapping[str, str]
    max_failures: int
    deadline: int | None = None  # seconds

    def word(self) -> str:
        """Return it as letters, digits, dashes and underscores, with = at the end."""
        return base64.urlsafe_b64encode(json.dumps(asdict(self)).encode()).decode()

    @classmethod
    def of(cls, word: str) -> Ticket:
        return cls(**json.loads(base64.urlsafe_b64decode(word)))
