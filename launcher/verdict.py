"""Whether two runs of one job computed the same, worked out from their rows in storage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.runs import Run
from launcher.text import decimal

TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2, "fp16": 3e-2}  # relative, of losses, where their bits may differ
_NOT_COMPUTED = ("time", "attempt", "seconds", "samples_per_s", "late")
_SHOWN = 5

Key = tuple[str, int]  # the kind of a row, and its step


@dataclass(frozen=True)
class Difference:
    """A number that is not what it should be; None where there is none."""

    step: int
    what: str
    expected: float | None
    found: float | None

    def __str__(self) -> str:
        if self.what == "seen":
            return f"step {self.step}: it saw other samples"
        if self.what == "restored":
            return f"step {self.step}: it did not go on with the weights and the optimizer state that were saved"
        expected, found = (decimal(value) if value is not None else "none" for value in (self.expected, self.found))
        return f"step {self.step}: {self.what} is {found}, not {expected}"


@dataclass(frozen=True)
class Verdict:
    """What a comparison found."""

    steps: int  # of the run that was not disturbed
    tolerance: float  # relative; 0: to the bit
    differences: Sequence[Difference]
    repeated: int  # steps that were done again, and so are in no curve

    @property
    def equal(self) -> bool:
        return self.steps > 0 and not self.differences

    def __str__(self) -> str:
        if not self.steps:
            return "NOT EQUAL: the run has no steps to compare"
        if self.equal:
            how = "to the bit" if self.tolerance == 0 else f"within {self.tolerance:g} of their value"
            return f"EQUAL: {self.steps} steps, each on the same samples, all losses and metrics {how}"
        shown = "; ".join(str(one) for one in self.differences[:_SHOWN])
        more = len(self.differences) - _SHOWN
        return f"NOT EQUAL: {shown}" + (f"; and {more} more" if more > 0 else "")

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "equal": self.equal}


def compare(undisturbed: Run, disturbed: Run) -> Verdict:
    """Compare what two runs of one job computed, step for step, along their history.

    Samples must be the same. Losses, gradient norms and metrics must be so to the bit on processors, with as many
    ranks; on accelerators, or with other ranks, within TOLERANCE. No step may be missing, or there twice. A tolerance
    says nothing of what was restored: in a rehearsal each rank compares that with what was saved, to the bit.
    """
    ours, theirs = undisturbed.rows("metrics"), disturbed.rows("metrics")
    tolerance = _tolerance([*undisturbed.rows("events"), *disturbed.rows("events")])
    expected, found = _by_key(ours), _by_key(theirs)
    differences = [*_twice(theirs), *_other_than_saved(disturbed.rows("events"))]
    for key in sorted({*expected, *found}, key=lambda key: (key[1], key[0] != "step", key[0])):
        differences += _differ(key, expected.get(key, {}), found.get(key, {}), tolerance)
    steps = sum(kind == "step" for kind, _ in expected)
    done = sum(row["kind"] == "step" for row in disturbed.all_rows("metrics"))
    return Verdict(steps, tolerance, differences, repeated=done - sum(kind == "step" for kind, _ in found))


def _tolerance(events: Sequence[Mapping[str, Any]]) -> float:
    began = [row for row in events if row["event"] == "training"]
    alike = {(row["device"].partition(":")[0], row["world_size"]) for row in began}
    if len(alike) == 1 and next(iter(alike))[0] == "cpu":
        return 0.0
    return max((TOLERANCE[row.get("precision", "bf16")] for row in began), default=0.0)


def _by_key(rows: Sequence[Mapping[str, Any]]) -> dict[Key, Mapping[str, Any]]:
    return {(row["kind"], row["step"]): row for row in rows}


def _twice(rows: Sequence[Mapping[str, Any]]) -> Iterator[Difference]:
    counted = Counter((row["kind"], row["step"]) for row in rows)
    for (kind, step), count in counted.items():
        if count > 1:
            yield Difference(step, f"the number of its {kind} rows", 1, count)


def _other_than_saved(events: Sequence[Mapping[str, Any]]) -> Iterator[Difference]:
    for row in events:
        if row["event"] == "restored" and not row.get("exact", True):
            yield Difference(row["step"], "restored", None, None)


def _differ(key: Key, expected: Mapping[str, Any], found: Mapping[str, Any], tolerance: float) -> Iterator[Difference]:
    kind, step = key
    if not expected or not found:
        yield Difference(step, f"the number of its {kind} rows", len(expected) and 1, len(found) and 1)
        return
    for name in sorted({*expected, *found} - {*_NOT_COMPUTED, "kind", "step"}, key=lambda name: (name != "seen", name)):
        ours, theirs = expected.get(name), found.get(name)
        exact = tolerance == 0 or name in ("seen", "epoch", "lr")
        near = not exact and None not in (ours, theirs) and abs(ours - theirs) <= tolerance * max(1e-2, abs(ours))  # type: ignore[operator,arg-type]
        if ours != theirs and not near:
            yield Difference(step, name, ours, theirs)
