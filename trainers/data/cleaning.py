"""What leaves the data before training, and which samples are held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.data.keyed import Keyed

_LISTED = 100
_NEIGHBOURS = 10
_REFERENCES = 20_000  # neighbours are looked for among this many samples at most
_ENOUGH_AGREEMENT = 0.8


@dataclass
class Dropped:
    """What was dropped from one part of the data, and why."""

    split: str
    item: Callable[[int], str]
    rows: dict[int, tuple[str, str]] = field(default_factory=dict)  # row -> (reason, detail)

    def add(self, row: int, reason: str, detail: str = "") -> None:
        self.rows.setdefault(row, (reason, detail))

    def left(self, count: int) -> NDArray[np.int64]:
        """Return the rows that stay."""
        stays = np.ones(count, dtype=bool)
        stays[list(self.rows)] = False
        return np.flatnonzero(stays)

    def events(self) -> list[dict[str, Any]]:
        """Return one event a reason: how many, and the first hundred by name."""
        reasons: dict[str, list[int]] = {}
        for row, (reason, _) in sorted(self.rows.items()):
            reasons.setdefault(reason, []).append(row)
        return [
            {
                "event": "data.cleaned",
                "split": self.split,
                "reason": reason,
                "count": len(rows),
                "items": [self._describe(row) for row in rows[:_LISTED]],
            }
            for reason, rows in reasons.items()
        ]

    def _describe(self, row: int) -> str:
        detail = self.rows[row][1]
        return f"{self.item(row)}: {detail}" if detail else self.item(row)


def drop_duplicates(
    dropped: Dropped, digests: list[bytes], labels: NDArray[np.int64], elsewhere: Iterable[bytes]
) -> None:
    """Drop the images that stand in the other part of the data, and all but the first of identical ones."""
    others = frozenset(elsewhere)
    first: dict[bytes, int] = {}
    for row, digest in enumerate(digests):
        if row in dropped.rows:
            continue
        if digest in others:
            dropped.add(row, "also in eval")
            continue
        original = first.setdefault(digest, row)
        if original != row:
            reason = "duplicate" if labels[original] == labels[row] else "duplicate with another label"
            dropped.add(row, reason, f"the same as {dropped.item(original)}")


def split_off(
    rows: NDArray[np.int64], labels: NDArray[np.int64], digests: list[bytes], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows to train on and those held out, the given share of every class.

    Identical images stay on one side. The choice follows from the seed and the images' content, so that neither
    the order of the files nor what else was cleaned moves an image to the other side, save at the margin.
    """
    content = np.frombuffer(b"".join(digests[row] for row in rows), dtype="<u8").reshape(-1, 2)[:, 0].astype(np.uint64)
    unique, first, group = np.unique(content, return_index=True, return_inverse=True)
    chance = Keyed(seed, 0, unique).uniform("split")[:, 0]
    of_class = labels[rows][first]
    held_out = np.zeros(len(unique), dtype=bool)
    for label in np.unique(of_class):
        members = np.flatnonzero(of_class == label)
        wanted = min(max(round(share * len(members)), 1), len(members) - 1)  # a class of one image trains
        held_out[members[np.argsort(chance[members], kind="stable")[:wanted]]] = True
    return rows[~held_out[group]], rows[held_out[group]]


def thumbnails(images: NDArray[np.uint8], side: int = 16) -> NDArray[np.float32]:
    """Return [images, features] of at most side × side averages a channel, on the scale from 0 to 1."""
    height, width = images.shape[1:3]
    rows = np.linspace(0, height, min(side, height), endpoint=False).astype(int)
    columns = np.linspace(0, width, min(side, width), endpoint=False).astype(int)
    sums = np.add.reduceat(np.add.reduceat(images, rows, axis=1, dtype=np.float32), columns, axis=2)
    areas = np.outer(np.diff([*rows, height]), np.diff([*columns, width])).astype(np.float32)
    return np.asarray(sums / (areas[:, :, None] * 255), dtype=np.float32).reshape(len(images), -1)


def find_label_errors(
    features: NDArray[np.float32], labels: NDArray[np.int64], classes: int, seed: int
) -> tuple[dict[int, int], float]:
    """Return the samples whose label the others contradict, with the label they suggest, and their agreement.

    Confident learning (Northcutt, Jiang and Chuang, JAIR 2021, arXiv:1911.00068): a sample labelled i is an error
    where its probability of another class j reaches the average that samples labelled j give j, and is the largest
    that does so. The probabilities are the shares among the ten nearest other samples. Agreement is the share of
    samples whose own label is their likeliest class; below 0.8 pixels tell too little, and nothing is returned.
    """
    chances = _neighbour_shares(features, labels, classes, seed)
    agreement = float((chances.argmax(axis=1) == labels).mean())
    if agreement < _ENOUGH_AGREEMENT:
        return {}, agreement
    own = chances[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=classes)
    thresholds = np.bincount(labels, weights=own, minlength=classes) / np.maximum(counts, 1)
    thresholds[counts == 0] = np.inf
    confident = np.where(chances >= thresholds, chances, -1)
    suggested = confident.argmax(axis=1)
    wrong = (confident.max(axis=1) >= 0) & (suggested != labels)
    return {int(row): int(suggested[row]) for row in np.flatnonzero(wrong)}, agreement


def _neighbour_shares(
    features: NDArray[np.float32], labels: NDArray[np.int64], classes: int, seed: int
) -> NDArray[np.float64]:
    """Return [samples, classes] shares of the labels of the nearest samples, the sample itself left out."""
    count = len(features)
    chosen = Keyed(seed, 0, np.arange(count)).order("label errors")[:_REFERENCES]
    references = features[chosen]
    lengths = np.einsum("ij,ij->i", references, references)
    neighbours = min(_NEIGHBOURS, len(chosen) - 1)
    shares = np.zeros((count, classes))
    for start in range(0, count, 256):
        rows = np.arange(start, min(start + 256, count))
        distances = lengths - 2 * features[rows] @ references.T
        distances[rows[:, None] == chosen] = np.inf
        nearest = labels[chosen[np.argpartition(distances, neighbours - 1, axis=1)[:, :neighbours]]]
        np.add.at(shares, (np.repeat(rows, neighbours), nearest.reshape(-1)), 1)
    return shares / neighbours
