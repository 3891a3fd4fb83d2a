"""What a person sees of a run: a line an event, and a bar on a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from launcher import display
from launcher.display import LiveDisplay, PlainDisplay, describe_event, describe_metrics
from launcher.printed import Lines
from launcher.watch import Update
from tests.finished import META, started, training


def shown(*rows: dict[str, Any], attempt: int = 1) -> list[str]:
    """Return the lines that a pipe gets of these rows."""
    out = io.StringIO()
    with PlainDisplay(Console(file=out, width=40)) as plain:
        for row in rows:
            plain.show(Update("events" if "event" in row else "metrics", attempt, row))
    return out.getvalue().splitlines()


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"event": "claimed", "base": None}, "starting Ray and reading the data"),
        ({"event": "data.ready", **META}, "data: 8 to train on, 4 to evaluate, 2 classes, 8x8x1"),
        ({"event": "warning", "message": "it is hot"}, "warning: it is hot"),
        ({"event": "data.ready", "train": 8, "eval": 4}, "data: 8 to train on, 4 to evaluate"),
        (
            {
                "event": "data.cleaned",
                "split": "train",
                "reason": "duplicate",
                "count": 4,
                "items": ["a", "b", "c", "d"],
            },
            "data: dropped 4 of train (duplicate): a, b, c",
        ),
        (started(0, at=1.0), "training: 12 steps, 2 ranks on cpu, 1,234 parameters"),
        ({**started(0, at=1.0), "world_size": 1}, "training: 12 steps, 1 rank on cpu, 1,234 parameters"),
        (
            {"event": "checkpoint", "step": 8, "bytes": 1_200_000, "seconds": 0.02, "blocked": 0.01, "mb_per_s": 60.0},
            "saved: checkpoint of step 8, 1.2 MB, in 0.0 s",
        ),
        (
            {"event": "checkpoint", "step": 8, "bytes": 1_200_000, "seconds": 0.25, "blocked": 0.01, "mb_per_s": 4.8},
            "saved: checkpoint of step 8, 1.2 MB, in 0.2 s (4.8 MB/s)",
        ),
        (
            {"event": "checkpoint", "step": 8, "bytes": 12_300_000, "seconds": 5.0, "blocked": 1.5, "mb_per_s": 2.5},
            "saved: checkpoint of step 8, 12.3 MB, in 5.0 s (2.5 MB/s); training stood still for 1.5 s",
        ),
        (
            {"event": "checkpoint.skipped", "step": 8, "blocked": 30.0},
            "not saved: the checkpoint of step 8: storage was away or slow, a newer one followed; training stood still "
            "for 30 s",
        ),
        (
            {"event": "checkpoint.corrupt", "step": 8, "reason": "model.safetensors is damaged"},
            "warning: the checkpoint of step 8 is damaged and passed over: model.safetensors is damaged",
        ),
        ({"event": "recovering", "reason": "rank 1 died"}, "recovering: rank 1 died"),
        (
            {"event": "resizing", "from": 1, "to": 2, "step": 40},
            "resizing: there is room for 2 ranks instead of 1; saved at step 40",
        ),
        (
            {"event": "resized", "from": 2, "to": 1, "step": 40},
            "resized: the number of ranks is 1 instead of 2, from step 40 on",
        ),
        (
            {"event": "waiting", "workers": 1, "least": 2},
            "waiting for 1 more worker: there is no room yet for the 2 that it needs at least",
        ),
        ({"event": "waited", "seconds": 3.0}, ""),
        ({"event": "memory", "process": "rank 0", "peak_bytes": 1}, ""),
        ({"event": "of a newer version"}, ""),
    ],
    ids=lambda value: value.get("event") if isinstance(value, dict) else "",
)
def test_an_event_is_said_in_a_line(row: dict[str, Any], line: str) -> None:
    assert describe_event(row, 1) == line


def test_a_later_attempt_says_where_it_goes_on() -> None:
    assert describe_event({"event": "claimed", "base": 8}, 2) == "attempt 2: goes on from the checkpoint of step 8"
    assert describe_event({"event": "claimed", "base": None}, 2) == "attempt 2: starting"


def test_epochs_and_evaluations_are_said_in_a_line() -> None:
    lines = [describe_metrics(row) for row in training(3, 4, begin=1.0) if row["kind"] != "step"]
    assert lines == ["epoch 1: eval loss 0.6250  accuracy 0.7500", "epoch 1: train loss 0.5500"]


def test_a_line_is_neither_wrapped_nor_coloured_nor_read_as_markup() -> None:
    reason = "[red]rank 1[/red] died " + "of nothing in particular " * 8
    assert shown({"event": "recovering", "reason": reason}) == [f"recovering: {reason}"]


def test_what_processes_print_is_shown_as_it_is_and_progress_as_a_terminal_would_leave_it() -> None:
    lines = Lines().feed(b"12:100:3 user:id:5\r\n  0%|  |\r 50%|= |\r100%|==|\n")
    assert lines == ["12:100:3 user:id:5", "100%|==|"]
    out = io.StringIO()
    with PlainDisplay(Console(file=out, width=40)) as plain:
        plain.show(Update("logs", 1, {"writer": "rank-0", "line": lines[0]}))
    assert out.getvalue() == "rank-0: 12:100:3 user:id:5\n"


def test_steps_are_silent_until_ten_seconds_have_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [row for row in training(0, 3, begin=1.0) if row["kind"] == "step"]
    quiet = shown(started(0, at=1.0), *steps)
    monkeypatch.setattr(display, "_PLAIN_EVERY", 0.0)
    loud = shown(started(0, at=1.0), *steps)
    assert len(quiet) == 1
    assert loud[1:] == [
        "step 1/12  epoch 1  loss 2.0000  640 samples/s",
        "step 2/12  epoch 1  loss 1.0000  640 samples/s",
        "step 3/12  epoch 1  loss 0.6667  640 samples/s",
    ]


def test_a_terminal_shows_a_bar_with_step_loss_rate_checkpoint_and_time_left() -> None:
    out = io.StringIO()
    console = Console(file=out, width=140, force_terminal=True, color_system=None)
    with LiveDisplay(console) as live:
        saved = {"event": "checkpoint", "step": 4, "bytes": 1000, "seconds": 0.1}
        for row in [started(0, at=1.0), *training(0, 4, begin=1.0), saved, *training(4, 6, begin=1.4)]:
            live.show(Update("events" if "event" in row else "metrics", 1, row))
        live._progress.refresh()
    text = out.getvalue()
    assert "epoch 2" in text
    assert "6/12  loss 0.3333  640/s on 2 ranks  saved 4  ETA 0.6 s" in text
    assert "saved: checkpoint of step 4" in text


def test_a_bar_begins_anew_with_a_new_attempt() -> None:
    out = io.StringIO()
    with LiveDisplay(Console(file=out, width=140, force_terminal=True, color_system=None)) as live:
        for attempt, row in [
            (1, started(0, at=1.0)),
            *((1, row) for row in training(0, 6, begin=1.0)),
            (1, {"event": "recovering", "reason": "rank 1 died"}),
            (2, started(4, at=100.0)),
        ]:
            live.show(Update("events" if "event" in row else "metrics", attempt, row))
        (task,) = live._progress.tasks
        assert (task.completed, task.total, task.description) == (4, 12, "training")
        for row in training(4, 6, begin=100.0):
            live.show(Update("metrics", 2, row))
        assert task.fields["facts"].endswith("ETA 0.6 s")  # by the pace since step 5, not since the first attempt
