"""A run's events and output, attempt after attempt."""

from __future__ import annotations

import time
from json import dumps
from typing import Any

from cluster.local import LocalProvider
from cluster.runs import Run
from launcher.display import describe_event
from launcher.printed import LAUNCH
from launcher.remote import remote_of
from launcher.status import summarize
from launcher.sweeps import described_trial
from launcher.text import finite


def print_logs(run: Run) -> bool:
    """Print what storage holds of a run's log; False where that is nothing."""
    attempts = run.attempts()
    for attempt in attempts:
        events = run.rows_of(attempt, "events")
        for row in events:
            if line := _describe(row, attempt):
                print(f"{time.strftime('%H:%M:%S', time.localtime(row['time']))}  {line}")
        for writer, data in run.output_of(attempt).items():
            for printed in data.decode(errors="replace").splitlines():
                print(f"{writer}: {printed}")
        kinds = {row["event"] for row in events}
        if "sweep" in kinds and "finished" not in kinds and (result := run.result_of(attempt)) is not None:
            print(_end(result.state, result.message))
    if attempts and run.result() is None:
        summary = summarize(run, brief=True)
        if summary.state.is_final:  # storage took no word of it
            print(f"{summary.state}: {summary.reason}")
    return bool(attempts)


def print_rows(run: Run) -> bool:
    """Print the same as JSON, an event or a printed line each; False where that is nothing."""
    attempts = run.attempts()
    for attempt in attempts:
        for row in run.rows_of(attempt, "events"):
            print(dumps(finite({"attempt": attempt, **row})))
        for writer, data in run.output_of(attempt).items():
            for printed in data.decode(errors="replace").splitlines():
                print(dumps({"attempt": attempt, "writer": writer, "line": printed}))
    return bool(attempts)


def print_launch(run: Run, *, json: bool) -> bool:
    """Print what there is of a run without an attempt, where it is launched; False where that is nothing."""
    data = b"".join((remote_of(run) or LocalProvider()).logs(run.id, follow=False))
    if json:
        for printed in data.decode(errors="replace").splitlines():
            print(dumps({"attempt": 0, "writer": LAUNCH, "line": printed}))
    else:
        print(data.decode(errors="replace"), end="")
    return bool(data)


def _describe(row: dict[str, Any], attempt: int) -> str:
    if row["event"] == "finished":  # what follows a run says its end by itself
        return _end(row["state"], row["message"])
    return described_trial(row) or describe_event(row, attempt)


def _end(state: str, message: str) -> str:
    return f"{state}{': ' if message else ''}{message}"
