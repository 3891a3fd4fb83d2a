"""A rehearsal on the screen: how far it is, what it met, and its verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from launcher.display import describe_event
from launcher.text import duration, typed

if TYPE_CHECKING:
    from launcher.rehearsal import Rehearsal
    from launcher.watch import Update

_TOLD = ("training", "recovering", "claimed", "storage.back")


@contextmanager
def showing(*, quiet: bool) -> Iterator[Callable[[str, Update], None]]:
    """Yield what shows an update of one of the runs: a line an event that matters, and a status on a terminal."""
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet, highlight=False)
    with console.status("starting") as status:

        def show(run: str, update: Update) -> None:
            row = update.row
            if row.get("kind") == "step":
                status.update(f"{run} run: step {row['step']}")
            elif row.get("event") in _TOLD and (line := describe_event(row, update.attempt)):
                console.print(f"{run + ':':<12} {line}", markup=False, soft_wrap=True)

        yield show


def print_outcome(done: Rehearsal) -> None:
    """Print what came and what it cost, then the verdict."""
    width = max(len(one.fault) for one in done.met)
    for one in done.met:
        lost = "no step came after it" if one.lost is None else f"the next new step came after {duration(one.lost)}"
        print(f"{one.fault:<{width}}  after step {one.step}: {lost}")
    print(f"{done.verdict.repeated} steps were repeated, and are in no curve")
    if done.ended:
        print(f"the disturbed run did not end well: {done.ended}")
    for process in done.left:
        print(f"left over: process {process}")
    print(f"verdict: {done.verdict}")
    if not done.passed:
        print(f"compare them: raylift report {typed(done.undisturbed.uri)}")
        print(f"              raylift report {typed(done.disturbed.uri)}")
