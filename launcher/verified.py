"""What was found in the checkpoints of a run, or of a sweep's trials, for people and for programs; how much is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from cluster.runs import Run
from cluster.verification import Finding, Swept, Verdict, Verification, needless
from launcher.text import size, typed

_HEAD = ("ATTEMPT", "STEP", "FILES", "SIZE", "VERDICT")


@contextmanager
def reading(total: int) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how many of the bytes are read; what is yielded is told of each part."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)  # standard output is for what is found
    bar = Progress(
        TextColumn("reading"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        expand=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("reading", total=total)
        yield lambda count: bar.advance(task, count)


def as_dict(run: Run, found: Verification, swept: Swept | None) -> dict[str, Any]:
    base = found.base
    removed = None
    if swept is not None:
        removed = {"folders": list(swept.folders), "bytes": swept.size, "uploads": list(swept.uploads)}
    return {
        "run_id": run.id,
        "run_uri": run.uri,
        "resume_from": {"attempt": base.folder.attempt, "step": base.folder.step} if base is not None else None,
        "folders": [_folder(finding) for finding in found.findings],
        "swept": removed,
    }


def _folder(finding: Finding) -> dict[str, Any]:
    folder = finding.folder
    return {
        "attempt": folder.attempt,
        "step": folder.step,
        "path": folder.path,
        "files": folder.files,
        "bytes": folder.size,
        "verdict": finding.verdict,
        "counts": finding.counts,
        "faults": dict(finding.faults),
    }


def as_dict_of_trials(
    run: Run, found: Mapping[str, tuple[Run, Verification]], swept: Mapping[str, Swept]
) -> dict[str, Any]:
    trials = {name: as_dict(trial, one, swept.get(name)) for name, (trial, one) in found.items()}
    return {"run_id": run.id, "run_uri": run.uri, "trials": trials}


def print_found_of_trials(found: Mapping[str, Verification]) -> None:
    """Print a line for each trial that has more than intact checkpoints, then one for all of them."""
    for name, one in found.items():
        if len(one.of(Verdict.INTACT)) < len(one.findings):
            print(f"{name}  {_summary(one)}")
    together = Verification(newest=0, state=None, findings=[each for one in found.values() for each in one.findings])
    print(f"{len(found)} {_plural('trial', len(found))}: {_summary(together)}")


def print_found(found: Verification) -> None:
    """Print a line a folder, then one of summary."""
    if found.findings:
        rows = [_HEAD, *(_row(finding) for finding in found.findings)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD) - 1)]
        for *numbers, verdict in rows:
            columns = [f"{text:>{width}}" for text, width in zip(numbers, widths, strict=True)]
            print("  ".join([*columns, verdict]))
    print(_summary(found))


def print_hint(run: Run, *found: Verification) -> None:
    """Say how to sweep a run, or its trials, where there is something to sweep."""
    if gone := [finding for one in found for finding in needless(one)]:
        print(f"no resume needs {len(gone)} of them, {_size(gone)}. Sweep: raylift verify --sweep {typed(run.uri)}")


def print_swept(*swept: Swept) -> None:
    count, uploads = (sum(map(len, each)) for each in ([one.folders for one in swept], [one.uploads for one in swept]))
    also = f" and {uploads} abandoned {_plural('upload', uploads)}" if uploads else ""
    print(f"swept {count} {_plural('folder', count)}, {size(sum(one.size for one in swept))}{also}")


def _row(finding: Finding) -> tuple[str, ...]:
    folder = finding.folder
    return str(folder.attempt), str(folder.step), str(folder.files), size(folder.size), _verdict(finding)


def _verdict(finding: Finding) -> str:
    match finding.verdict:
        case Verdict.PARTIAL:
            return "partial: a save that was cut off, or that goes on"
        case Verdict.NEWER:
            return "not read: of a newer raylift"
        case Verdict.DAMAGED:
            said = "damaged: " + "; ".join(f"{name} {fault}" for name, fault in finding.faults.items())
        case Verdict.INTACT:
            said = "intact"
    return said if finding.counts else f"{said}, not part of the history"


def _summary(found: Verification) -> str:
    whole = [finding for finding in found.findings if finding.verdict is not Verdict.PARTIAL]
    partial = found.of(Verdict.PARTIAL)
    intact = len(found.of(Verdict.INTACT))
    if not whole:
        said = "no checkpoint yet"
    elif intact == len(whole):
        said = f"{len(whole)} {_plural('checkpoint', len(whole))}, {_size(whole)}: intact"
    else:
        said = f"{intact} of {len(whole)} {_plural('checkpoint', len(whole))} intact"
    return said + (f"; {len(partial)} partial, {_size(partial)}" if partial else "")


def _size(findings: Sequence[Finding]) -> str:
    return size(sum(finding.folder.size for finding in findings))


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
