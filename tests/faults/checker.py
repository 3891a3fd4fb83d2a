"""What must hold of a run's history, whatever faults it met: a pure function from the history to its violations.

A history has all that storage keeps of the run (claims, results, rows, checkpoints), what an observer saw while it
went on, the faults with their times, and what a run of the same job computed that met none.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from cluster.provider import State
from cluster.records import Claim, Result, counted, last_steps
from cluster.runs import Run
from cluster.verification import survey, verify

Row = dict[str, Any]
INTACT = "intact"
_RETIRED = ("gone", "partial")  # retention takes the manifest first; killed then, it leaves the rest to a sweep
_NEEDS_A_RESUME = {State.FAILED, State.STOPPED}
_NOT_COMPUTED = {"time", "attempt", "seconds", "samples_per_s", "late"}


@dataclass(frozen=True)
class Injected:
    """A fault, or a `resume` of whoever follows the run."""

    at: float
    name: str


@dataclass(frozen=True)
class Seen:
    """What an observer saw of the run at a time: its state, and the checkpoints that it could list but not read."""

    at: float
    state: State
    unreadable: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class History:
    """A run that is over. Rows name their attempt; checkpoints are told by attempt and step."""

    claims: Sequence[Claim]
    results: Mapping[int, Result]
    metrics: Sequence[Row]  # of all attempts, also those that were repeated
    events: Sequence[Row]
    stored: Mapping[tuple[int, int], str]  # what each folder of a checkpoint is: see cluster.verification.Verdict
    visible: Sequence[tuple[int, int]]  # the checkpoints that readers take from it
    keep: int  # checkpoints of an attempt that retention spares
    expected: Sequence[Row]  # the metrics of a run that met no fault
    injected: Sequence[Injected] = ()
    seen: Sequence[Seen] = ()
    left: Sequence[str] = ()  # what should be gone: processes, files, uploads

    @classmethod
    def of(cls, run: Run, expected: Sequence[Row], *, keep: int, **observed: Any) -> History:
        """Return the history of a run as its storage has it, and what was `observed` beside: other fields of this."""
        findings = verify(run, survey(run)).findings
        return cls(
            claims=run.claims(),
            results=run.results(),
            metrics=run.all_rows("metrics"),
            events=run.all_rows("events"),
            stored={(one.folder.attempt, one.folder.step): one.verdict for one in findings},
            visible=[(checkpoint.attempt, checkpoint.step) for checkpoint in run.checkpoints()],
            keep=keep,
            expected=expected,
            **observed,
        )

    def named(self, event: str) -> list[Row]:
        return [row for row in self.events if row["event"] == event]


@dataclass
class _Saves:
    """Which steps each attempt has saved, and said so, by the time of its word."""

    times: dict[int, dict[int, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, history: History) -> _Saves:
        saves = cls()
        for row in history.named("checkpoint"):
            saves.times.setdefault(row["attempt"], {})[row["step"]] = row["time"]
        return saves

    def newest(self, claims: Sequence[Claim], before: float) -> tuple[int, int]:
        """Return step and attempt of the newest checkpoint that these claims' history had at a time; (0, 0) if none."""
        bounds = last_steps(claims)
        found = [
            (step, attempt)
            for attempt, bound in bounds.items()
            for step, at in self.times.get(attempt, {}).items()
            if step <= bound and at < before
        ]
        return max(found, default=(0, 0))


def assert_as_it_must_be(run: Run, undisturbed: Run, *, faults: int, keep: int = 2) -> None:
    """Fail where a run that went through so many faults, with resumes, has a history that cannot be.

    Every attempt started from the newest checkpoint then, and whatever was computed is what the other run computed.
    """
    injected = [Injected(0.0, "a fault")] * faults
    found = violations(History.of(run, undisturbed.rows("metrics"), keep=keep, injected=injected))
    assert not found, "\n".join(found)


def violations(history: History) -> list[str]:
    """Return what is wrong with a run's history, a line each; nothing where all is as it must be."""
    if circular := [claim for claim in history.claims if claim.base and claim.base.attempt >= claim.attempt]:
        return [f"attempt {one.attempt} starts from attempt {one.base and one.base.attempt}" for one in circular]
    return [
        *_attempts(history),
        *_bases(history),
        *_steps(history),
        *_rows(history),
        *_checkpoints(history),
        *_results(history),
        *_states(history),
        *_words(history),
        *(f"left over: {what}" for what in history.left),
    ]


def _attempts(history: History) -> Iterator[str]:
    numbers = [claim.attempt for claim in history.claims]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"the attempts are {numbers}: a number is missing or was claimed twice"
    began = [row["attempt"] for row in history.named("claimed")]
    if len(began) > len(history.injected) + 1:
        yield f"{len(began)} attempts after {len(history.injected)} faults: an attempt was lost without one"


def _bases(history: History) -> Iterator[str]:
    """Every attempt starts from the newest checkpoint that was intact when it was claimed."""
    saves = _Saves.of(history)
    restored = {row["attempt"]: row["step"] for row in history.named("restored")}
    passed_over = {(row["attempt"], row["step"]) for row in history.named("checkpoint.corrupt")}
    for index, claim in enumerate(history.claims):
        base, number = claim.base, claim.attempt
        if base is not None and restored.get(number, base.step) != base.step:
            yield f"attempt {number} restored step {restored[number]}, and its base is step {base.step}"
        if base is None and number in restored:
            yield f"attempt {number} restored step {restored[number]}, and has no base"
        step, attempt = saves.newest(history.claims[:index], claim.at)
        if step > (base.step if base else 0) and (number, step) not in passed_over:
            found = f"step {base.step}" if base else "nothing"
            yield f"attempt {number} starts from {found}, though attempt {attempt} had saved step {step}"


def _steps(history: History) -> Iterator[str]:
    """Along the history every step is there once, in order of time."""
    for kind in ("step", "eval", "epoch"):
        expected = [row["step"] for row in history.expected if row["kind"] == kind]
        found = Counter(row["step"] for row in counted(history.metrics, history.claims) if row["kind"] == kind)
        last = max(found, default=0) if not _succeeded(history) else max(expected, default=0)
        missing = [step for step in expected if step <= last and step not in found]
        doubled = sorted(step for step, count in found.items() if count > 1)
        unknown = sorted({*found} - {*expected})
        for what, these in (("missing", missing), ("doubled", doubled), ("of no other run", unknown)):
            if these:
                yield f"{kind} rows {what}: {_few(these)}"


def _rows(history: History) -> Iterator[str]:
    """What was computed equals what the other run computed, to the bit, also where it was repeated later."""
    expected = {(row["kind"], row["step"]): _computed(row) for row in history.expected}
    for row in history.metrics:
        ours, theirs = _computed(row), expected.get((row["kind"], row["step"]))
        if theirs is not None and ours != theirs:
            names = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
            yield f"attempt {row['attempt']}, step {row['step']}: {', '.join(names)} of its {row['kind']} row differ"


def _checkpoints(history: History) -> Iterator[str]:
    for attempt, step in history.visible:
        if (verdict := history.stored.get((attempt, step), "gone")) != INTACT:
            yield f"readers see step {step} of attempt {attempt}, which is {verdict}"
    if _succeeded(history) and (last := _last_step(history)) not in [step for _, step in history.visible]:
        yield f"there is no checkpoint of the last step, {last}"
    for seen in history.seen:
        for what in seen.unreadable:
            yield f"at {seen.at:.1f} readers saw a checkpoint that could not be read: {what}"
    for attempt, steps in _Saves.of(history).times.items():
        adopted = {step for (number, step), what in history.stored.items() if number == attempt and what != "partial"}
        kept = sorted({*steps} | adopted)[-history.keep :]
        for step in steps:
            found = history.stored.get((attempt, step), "gone")
            if found != INTACT and (step in kept or found not in _RETIRED):
                though = f", though retention keeps {history.keep}" if found == "gone" else ""
                yield f"step {step} of attempt {attempt} was saved and is {found}{though}"


def _results(history: History) -> Iterator[str]:
    newest = max((claim.attempt for claim in history.claims), default=0)
    for attempt, result in history.results.items():
        if attempt != newest and result.state == State.SUCCEEDED:
            yield f"attempt {attempt} succeeded, and attempt {newest} came after it"
    final = history.results.get(newest)
    if final is None:
        yield f"attempt {newest} is the newest and has no result"
    elif final.state == State.SUCCEEDED and final.step != _last_step(history):
        yield f"the result is of step {final.step}, not of the last one, {_last_step(history)}"
    told = Counter(row["attempt"] for row in history.named("finished"))
    for attempt, count in told.items():
        if count > 1:
            yield f"attempt {attempt} was finished {count} times"


def _states(history: History) -> Iterator[str]:
    resumes = [one.at for one in history.injected if one.name == "resume"]
    since = 0.0  # when it came to the state that it is in
    for before, after in pairwise(history.seen):
        if before.state == after.state:
            continue
        resumed = any(since <= at <= after.at for at in resumes)  # it may be FAILED for a while yet
        since = after.at
        if before.state is State.SUCCEEDED or (before.state in _NEEDS_A_RESUME and not resumed):
            yield f"at {after.at:.1f} it was {after.state}, after it had been {before.state}"
        if after.state is State.PENDING:
            yield f"at {after.at:.1f} it was {after.state} again, after it had been {before.state}"
    if history.seen and _succeeded(history) and history.seen[-1].state is not State.SUCCEEDED:
        yield f"it has succeeded, and was {history.seen[-1].state} at last"


def _words(history: History) -> Iterator[str]:
    """No message of an event is a traceback, or empty where a person needs the reason."""
    for row in history.events:
        if "Traceback" in json.dumps(row):
            yield f"attempt {row['attempt']} has a traceback in an event: {row['event']}"
    for row in history.named("recovering"):
        if not row.get("reason"):
            yield f"attempt {row['attempt']} recovers without a reason"


def _succeeded(history: History) -> bool:
    newest = max((claim.attempt for claim in history.claims), default=0)
    result = history.results.get(newest)
    return result is not None and result.state == State.SUCCEEDED


def _last_step(history: History) -> int:
    return max((row["step"] for row in history.expected), default=0)


def _computed(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in _NOT_COMPUTED}


def _few(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:5])) + (f" and {len(steps) - 5} more" if len(steps) > 5 else "")
