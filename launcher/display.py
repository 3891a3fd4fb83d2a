"""How a followed run looks: a live line on a terminal, plain lines in a pipe."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from launcher.text import decimal, duration, finite, number, size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from launcher.watch import Update

_PLAIN_EVERY = 10.0  # seconds between progress lines in a pipe
_FELT = 0.1  # seconds from which on it matters how fast a save was, or that training stood still for it


class PlainDisplay:
    """Prints a line an event, and one of progress every ten seconds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._last_step = 0
        self._printed_at = time.monotonic()

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, update: Update) -> None:
        row = update.row
        if update.stream == "events":
            self._last_step = row.get("last_step", self._last_step)
            line = describe_event(row, update.attempt)
        elif update.stream == "logs":
            line = f"{row['writer']}: {row['line']}"
        elif row["kind"] == "step":
            line = self._progress_line(row)
        else:
            line = describe_metrics(row)
        if line:
            self.say(line)

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def _progress_line(self, row: dict[str, Any]) -> str:
        if time.monotonic() - self._printed_at < _PLAIN_EVERY:
            return ""
        self._printed_at = time.monotonic()
        return (
            f"step {row['step']}/{self._last_step}  epoch {row['epoch']}  loss {decimal(row['loss'])}  "
            f"{number(row['samples_per_s'])} samples/s"
        )


class JsonDisplay(PlainDisplay):
    """Prints each row for programs, an object a line; what else is said goes to its console."""

    def show(self, update: Update) -> None:
        print(json.dumps(finite({"attempt": update.attempt, **update.row})), flush=True)


class LiveDisplay(PlainDisplay):
    """Adds a progress bar that stays at the bottom of the terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._progress: Progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[facts]}"),
            console=console,
            transient=True,
            expand=True,
        )
        self._task: TaskID = self._progress.add_task("starting", total=None, facts="")
        self._checkpoint: int | None = None
        self._on = 1
        self._first: tuple[float, int] | None = None  # time and step of this attempt's first row: for the ETA

    def __enter__(self) -> LiveDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, update: Update) -> None:
        row = update.row
        if row.get("event") == "training":
            self._progress.update(self._task, total=row["last_step"], completed=row["step"], description="training")
            self._first = None
            self._on = row["world_size"]
        if row.get("event") in ("recovering", "resizing", "waiting"):
            self._progress.update(self._task, description=row["event"])
        if row.get("event") == "checkpoint":
            self._checkpoint = row["step"]
        if row.get("kind") == "step":
            self._advance(row)
        else:
            super().show(update)

    def say(self, line: str) -> None:
        self._progress.console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def _advance(self, row: dict[str, Any]) -> None:
        first_time, first_step = self._first = self._first or (row["time"], row["step"])
        rate = (row["step"] - first_step) / (row["time"] - first_time) if row["time"] > first_time else 0.0
        eta = duration((self._last_step - row["step"]) / rate) if rate else "…"
        saved = f"  saved {self._checkpoint}" if self._checkpoint is not None else ""
        facts = (
            f"{row['step']}/{self._last_step}  loss {decimal(row['loss'])}  {number(row['samples_per_s'])}/s"
            f" on {_ranks(self._on)}{saved}  ETA {eta}"
        )
        self._progress.update(self._task, completed=row["step"], description=f"epoch {row['epoch']}", facts=facts)


def describe_event(row: dict[str, Any], attempt: int) -> str:
    """Say an event in a line; an empty one where a person need not know."""
    match row["event"]:
        case "claimed" if row["base"] is not None:
            return f"attempt {attempt}: goes on from the checkpoint of step {row['base']}"
        case "claimed":
            return f"attempt {attempt}: starting" if attempt > 1 else "starting Ray and reading the data"
        case "data.cleaned":
            shown = ", ".join(str(item) for item in row.get("items", [])[:3])
            return f"data: dropped {row['count']} of {row['split']} ({row['reason']}): {shown}"
        case "warning":
            return f"warning: {row['message']}"
        case "data.ready":
            samples = f"data: {row['train']} to train on, {row['eval']} to evaluate"
            if "image" not in row:  # of a task of one's own
                return samples
            height, width, channels = row["image"]
            return f"{samples}, {len(row['classes'])} classes, {height}x{width}x{channels}"
        case "training":
            return (
                f"training: {row['last_step']} steps, {_ranks(row['world_size'])} on {row['device']}, "
                f"{number(row['parameters'])} parameters"
            )
        case "checkpoint":
            return _saved(row)
        case "checkpoint.skipped":
            why = f"storage was away or slow, a newer one followed{_held(row)}"
            return f"not saved: the checkpoint of step {row['step']}: {why}"
        case "storage.back":
            return f"storage is back, after {duration(row['seconds'])}"
        case "checkpoint.corrupt":
            return f"warning: the checkpoint of step {row['step']} is damaged and passed over: {row['reason']}"
        case "recovering":
            return f"recovering: {row['reason']}"
        case "paused":
            return f"waiting, saved at step {row['step']}: the sweep's scheduler lets other trials catch up"
        case "resizing":
            return (
                f"resizing: there is room for {row['to']} ranks instead of {row['from']}; saved at step {row['step']}"
            )
        case "resized":
            return f"resized: the number of ranks is {row['to']} instead of {row['from']}, from step {row['step']} on"
        case "waiting":
            more = f"{row['workers']} more {'worker' if row['workers'] == 1 else 'workers'}"
            return f"waiting for {more}: there is no room yet for the {row['least']} that it needs at least"
        case _:
            return ""


def _ranks(number: int) -> str:
    return f"{number} {'rank' if number == 1 else 'ranks'}"


def describe_metrics(row: dict[str, Any]) -> str:
    """Say an evaluation or the end of an epoch in a line."""
    if row["kind"] == "epoch":
        return f"epoch {row['epoch']}: train loss {decimal(row['train_loss'])}"
    values = "  ".join(
        f"{key.removeprefix('eval_')} {decimal(value)}" for key, value in row.items() if key.startswith("eval_")
    )
    return f"epoch {row['epoch']}: eval {values}"


def _saved(row: dict[str, Any]) -> str:
    rate = f" ({row['mb_per_s']} MB/s)" if row["seconds"] >= _FELT and "mb_per_s" in row else ""
    took = f"{duration(row['seconds'])}{rate}{_held(row)}"
    return f"saved: checkpoint of step {row['step']}, {size(row['bytes'])}, in {took}"


def _held(row: dict[str, Any]) -> str:
    blocked = row.get("blocked", 0.0)
    return f"; training stood still for {duration(blocked)}" if blocked >= _FELT else ""
