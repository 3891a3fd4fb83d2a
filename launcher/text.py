"""Numbers as people read them, and names as they type them."""

from __future__ import annotations

import math
import shlex
from typing import Any


def size(count: float) -> str:
    """Bytes with a unit: 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def number(value: float) -> str:
    """A number with thousands separated: 12,345."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def decimal(value: float) -> str:
    """A loss or a metric: 0.1234, and 1.235e+24 where that would say little."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.4g}"


def finite(value: Any) -> Any:
    """A value as JSON can say it: of a loss that is no number, or infinite, null."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def so_many(count: int, noun: str) -> str:
    """So many of something: 1 trial, 20 trials."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def typed(uri: str) -> str:
    """A run as one types it in a shell."""
    return shlex.quote(uri)


def duration(seconds: float) -> str:
    """Seconds in words: 0.3 s, 42 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
