"""How a followed sweep looks: a live table on a terminal; in a pipe, a line where a trial is best or fails."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from launcher.display import PlainDisplay, describe_event
from launcher.sweeps import Sweep, described_trial, read_sweep, summary_table
from launcher.text import decimal

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from launcher.watch import Update

_PLAIN_EVERY = 10.0  # seconds between lines of progress in a pipe
_REFRESH = 2.0  # times a second
_AROUND = 8  # lines of the table's head, the best, and the counts


class PlainSweepDisplay(PlainDisplay):
    """Prints a line where a trial is the best so far or fails, and one of progress every ten seconds."""

    def __init__(self, console: Console, history: Sequence[dict[str, Any]]) -> None:
        """Show what comes after `history`, the events of earlier attempts."""
        super().__init__(console)
        self._rows = list(history)
        self._head = next((row for row in reversed(history) if row["event"] == "sweep"), None)
        self._read: tuple[int, Sweep | None] = (0, None)  # what so many rows say
        sweep = self.sweep
        best = sweep.best if sweep is not None else None
        self._best = best.value(sweep.metric) if best is not None and sweep is not None else None
        self._said_at = time.monotonic()

    def show(self, update: Update) -> None:
        if update.stream == "logs":
            super().show(update)
        if update.stream != "events":
            return
        self._rows.append(update.row)
        if update.row["event"] == "sweep":
            self._head = update.row
        line = self._line(update.row) or describe_event(update.row, update.attempt)
        if line:
            self.say(line)

    @property
    def sweep(self) -> Sweep | None:
        if self._read[0] != len(self._rows):
            self._read = len(self._rows), read_sweep(self._rows)
        return self._read[1]

    def _line(self, row: dict[str, Any]) -> str:
        match row["event"]:
            case "trial.result" if self._is_best(row):
                return self._best_line(row["trial"])
            case "sweep":
                return described_trial(row)
            case "trial.ended" if row["state"] == "FAILED":
                return described_trial(row)
            case "trial.ended" | "trial.result" if time.monotonic() - self._said_at > _PLAIN_EVERY:
                return self._progress()
            case _:
                return ""

    def _is_best(self, row: dict[str, Any]) -> bool:
        value = row["metrics"].get(self._head["metric"]) if self._head is not None else None
        if self._head is None or value is None or not math.isfinite(value):
            return False
        better = self._best is None or (value > self._best if self._head["mode"] == "max" else value < self._best)
        if better:
            self._best = value
        return better

    def _best_line(self, name: str) -> str:
        sweep = self.sweep
        assert sweep is not None
        assert self._best is not None
        trial = next(trial for trial in sweep.trials if trial.id == name)
        measured = sweep.metric.removeprefix("eval_")
        found = f"{measured} {decimal(self._best)}, the best so far"
        return f"trial {name}, epoch {trial.epoch}: {found}  {sweep.values_of(trial)}"

    def _progress(self) -> str:
        self._said_at = time.monotonic()
        sweep = self.sweep
        return sweep.counts() if sweep is not None else ""


class LiveSweepDisplay(PlainSweepDisplay):
    """Keeps a table of the best and the running trials at the bottom of the terminal."""

    def __init__(self, console: Console, history: Sequence[dict[str, Any]]) -> None:
        super().__init__(console, history)
        from rich.live import Live

        self._live = Live(
            get_renderable=self._table,
            console=console,
            refresh_per_second=_REFRESH,
            transient=True,
            redirect_stdout=False,
        )

    def __enter__(self) -> LiveSweepDisplay:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        self._live.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _line(self, row: dict[str, Any]) -> str:
        return "" if row["event"] in ("trial", "trial.result") else super()._line(row)

    def _progress(self) -> str:
        return ""  # the table says it

    def _table(self) -> RenderableType:
        from rich.console import Group

        sweep = self.sweep
        if sweep is None:
            return "starting"
        room = max(self._live.console.height - _AROUND, 1)
        return Group(summary_table(sweep, now=time.time(), running=room), sweep.counts())
