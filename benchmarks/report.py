"""Medians with their spread, tables in Markdown, and raw numbers in JSON."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Spread:
    """The median of repeated measurements, and their extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int) -> str:
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f} – {self.high:,.{digits}f})"


@dataclass(frozen=True)
class Target:
    """A ratio of two medians that the benchmark is to reach."""

    what: str
    ratio: float | None  # None: not measured this time
    bound: float
    at_least: bool

    def row(self) -> list[str]:
        wanted = f"{'≥' if self.at_least else '≤'} {self.bound:g}"
        if self.ratio is None:
            return [self.what, wanted, "not measured", ""]
        met = self.ratio >= self.bound if self.at_least else self.ratio <= self.bound
        return [self.what, wanted, f"{self.ratio:.4g}", "yes" if met else "no"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are aligned to the right."""
    lines = [head, ["---", *("--:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def targets_table(targets: Iterable[Target]) -> str:
    return table(["to reach", "wanted", "measured", "met"], [target.row() for target in targets])


def write_results(name: str, document: dict[str, Any], folder: Path) -> Path:
    """Write raw numbers to <folder>/<name>-<date>.json, or beside what this day holds already; return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    day = time.strftime("%Y-%m-%d", time.gmtime())
    number, path = 1, folder / f"{name}-{day}.json"
    while path.exists():
        number += 1
        path = folder / f"{name}-{day}-{number}.json"
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return path
