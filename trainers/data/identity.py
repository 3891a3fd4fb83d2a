"""By what the samples of a training are known again, so that nobody goes on with others. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PUT_BACK = (
    "Put the data back as it was, or the versions that read it, and go on: raylift resume; or begin anew: raylift run"
)
OTHER_PIXELS = "the images are not to the pixel those that this run began with: other files, or another decoder"
_KEYS = ("eval", "classes", "image", "labels", "pixels")  # of what was prepared, where that is known


def identity(meta: Mapping[str, Any], **counts: int) -> dict[str, Any]:
    """Return what the order of samples follows from (`train`, `eval`), and what is in them, as far as that is known."""
    return {**counts, **{key: meta[key] for key in _KEYS if key in meta}}


def what_changed(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in which way samples are others; an empty text where at most their pixels are, as decoders differ."""
    changed = [key for key in saved if key in now and saved[key] != now[key]]
    first = next((key for key in changed if key != "pixels"), None)
    if first is None:
        return ""
    if first != "labels":
        return f"{first} was {saved[first]} and is {now[first]}"
    if "pixels" not in changed:
        return "their labels, or their order"
    return "their labels or their order, and their pixels, from which also follows which of them are held out"


def has_other_pixels(saved: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return "pixels" in saved and "pixels" in now and saved["pixels"] != now["pixels"]
