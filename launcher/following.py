"""Following a run on the screen until it is over, with Ctrl-C meaning what people expect."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from cluster.errors import InfrastructureError, RunExistsError, StorageError
from cluster.local import LocalProvider
from launcher.interrupts import Interrupts
from launcher.text import decimal, duration, typed

if TYPE_CHECKING:
    from cluster.provider import OnWait, Provider
    from cluster.runs import Run
    from launcher.display import PlainDisplay
    from launcher.printed import Launching
    from launcher.remote import Remote
    from launcher.watch import Follower, Update

LOST = 5  # exit codes
LEFT = 6
KILLED = 130
_FROM_THE_KEYBOARD = "stopped from the keyboard"
_LAST_WORDS = 5.0  # seconds that what a launch printed has to arrive, once the run is over
_CLEANED = 20.0  # seconds that a finished run's processes have to be gone


def follow_to_the_end(run: Run, provider: Provider, *, after: int = 0, json: bool = False) -> int:
    """Show a run, from its first attempt after `after`, until it ends; return the command's exit code.

    The first Ctrl-C asks the run to save and stop, the second ends its processes at once. A run on a cluster goes on.
    """
    if not isinstance(provider, LocalProvider):
        return _follow_elsewhere(run, cast("Remote", provider), after=after, json=json)
    with Interrupts() as interrupts:  # before all else: no moment is left in which Ctrl-C would mean another thing
        from launcher.watch import Follower

        started = time.monotonic()
        display = _display(run, after, json=json)
        stopping = False
        try:
            with display:
                display.say(f"run {run.uri}")
                for update in Follower(run, after=after).follow():
                    _show(update, display)
                    if interrupts.count and not stopping:
                        stopping = True
                        _ask_to_stop(run, display)
        except KeyboardInterrupt:
            return _end_at_once(run, provider, display)
        except StorageError as error:
            return _lose_sight(run, error, display)
        return _report_end(run, seconds=time.monotonic() - started, json=json, display=display)


def watch_only(run: Run, *, json: bool = False) -> int:
    """Show a run, and what it prints, until it ends; Ctrl-C leaves it running and says how to go on."""
    from cluster.trials import sweep_of
    from launcher.printed import Launching
    from launcher.remote import Watcher, remote_of
    from launcher.status import summarize
    from launcher.watch import Follower

    alive = sweep_of(run) or run  # who has the processes
    after = _history(run)
    display = _rows_alone() if json else _display(run, after, json=False)
    with Interrupts() as interrupts, display:
        try:
            watcher = Watcher(alive, remote) if (remote := remote_of(alive)) is not None else None
            is_begun = alive is not run or max(run.attempts(), default=0) > after
            launching = Launching(alive, remote) if remote is not None and not is_begun else None
            is_alive = watcher.is_alive if watcher is not None else None
            follower = Follower(run, after=after, is_alive=is_alive, output=True)
            for update in _with_launch(follower, launching):
                _show(update, display)
                if watcher is not None and (news := watcher.news()):
                    display.say(news)
                if interrupts.count:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            display.say(f"it goes on. Stop it: raylift stop {typed(alive.uri)}")
            return LOST
        except StorageError as error:
            return _lose_sight(run, error, display)
    summary = summarize(run)
    display.say(f"{summary.state}{': ' + summary.reason if summary.reason else ''}")
    return 0


def _with_launch(follower: Follower, launching: Launching | None) -> Iterator[Update | None]:
    """Yield what a follower does, and what is printed before there is an attempt."""
    from launcher.watch import as_update

    for update in follower.follow():
        yield from map(as_update, launching.read() if launching is not None else [])
        yield update
    yield from map(as_update, launching.end(_LAST_WORDS) if launching is not None else [])


def _history(run: Run) -> int:
    """Return up to which attempt all is history: before the newest, unless a resume is about to bring another."""
    from launcher.status import waits_to_begin

    newest = max(run.attempts(), default=0)
    return newest if newest and run.result() is not None and waits_to_begin(run) else max(newest - 1, 0)


def _follow_elsewhere(run: Run, remote: Remote, *, after: int, json: bool) -> int:
    """Show a run on a cluster until it ends, and take away what is left of it there; Ctrl-C leaves it running."""
    from launcher.remote import Watcher
    from launcher.waiting import Waiting
    from launcher.watch import Follower

    started, display = time.monotonic(), _display(run, after, json=json)
    try:
        with Interrupts() as interrupts, display:
            display.say(f"run {run.uri}")
            watcher = Watcher(run, remote)
            for update in Follower(run, after=after, is_alive=watcher.is_alive).follow():
                _show(update, display)
                if news := watcher.news():
                    display.say(news)
                if interrupts.count:
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        return _leave_running(run, display)
    except StorageError as error:
        return _lose_sight(run, error, display)
    code = _report_end(run, seconds=time.monotonic() - started, json=json, display=display)
    if run.result() is None:
        return code
    return _take_away(run, remote, watcher.launch, display, on_wait=None if json else Waiting(display.say)) or code


def _leave_running(run: Run, display: PlainDisplay) -> int:
    name = typed(run.uri)
    display.say(f"it goes on without this terminal. Follow it: raylift logs -f {name}")
    display.say(f"save and stop it: raylift stop {name}; end it at once: raylift stop --now {name}")
    return LOST


def _take_away(run: Run, remote: Remote, launch: str | None, display: PlainDisplay, *, on_wait: OnWait | None) -> int:
    """Remove what a launch that is over left on its cluster, and say so; return an exit code where something stays."""
    from launcher.remote import tear_down_remote

    try:
        receipt = tear_down_remote(run, remote, launch=launch, on_wait=on_wait)
    except RunExistsError as error:
        display.say(str(error))
        return 0
    except InfrastructureError as error:
        display.say(f"what is left of it in the cluster is not known: {error}")
        display.say("its pods go by themselves")
        return LEFT
    display.say(f"removed from the cluster: {len(receipt.removed)} objects; left over: {len(receipt.leftovers)}")
    for line in receipt.remarks:
        display.say(line)
    return LEFT if receipt.leftovers else 0


def _show(update: Update | None, display: PlainDisplay) -> None:
    if update is not None:
        display.show(update)


def _lose_sight(run: Run, error: StorageError, display: PlainDisplay) -> int:
    display.say(f"lost sight of it, though it may go on: {error}")
    display.say(f"follow it: raylift logs -f {typed(run.uri)}")
    return LOST


def _ask_to_stop(run: Run, display: PlainDisplay) -> None:
    display.say("stopping: saving a checkpoint first (Ctrl-C again ends it at once)")
    try:
        run.request_stop(_FROM_THE_KEYBOARD)
    except StorageError as error:
        display.say(f"it cannot be told: {error}. Ctrl-C again ends it at once")


def _end_at_once(run: Run, provider: Provider, display: PlainDisplay) -> int:
    receipt = provider.teardown(run.id)
    with suppress(StorageError):
        run.request_stop(_FROM_THE_KEYBOARD)  # two in a row may have left no time for it before
    for left in receipt.leftovers:
        display.say(f"left over: {left.kind} {left.name} {left.detail}")
    display.say(f"ended at once. Go on from the newest checkpoint: raylift resume {typed(run.uri)}")
    return LEFT if receipt.leftovers else KILLED


def _report_end(run: Run, *, seconds: float, json: bool, display: PlainDisplay) -> int:
    from launcher.cli.common import print_json
    from launcher.remote import remote_of
    from launcher.status import next_steps, summarize

    if remote_of(run) is None:
        _wait_until_gone(run)
    summary = summarize(run)
    if json:
        print_json(summary.as_dict())
    if summary.sweep is not None:
        from launcher.sweeps import summary_table

        display.console.print(summary_table(summary.sweep))
        display.say(summary.sweep.counts())
    metrics = "  ".join(f"{name} {decimal(value)}" for name, value in summary.metrics.items())
    display.say(f"{summary.state} in {duration(seconds)}  {metrics}".rstrip())
    if summary.traceback:
        display.say(summary.traceback.rstrip())
    if summary.reason:
        display.say(summary.reason)
    for line in next_steps(summary):
        display.say(line)
    if summary.exit_code is not None:
        return summary.exit_code
    return 3


def _wait_until_gone(run: Run) -> None:
    from launcher.status import is_running_here

    deadline = time.monotonic() + _CLEANED
    while is_running_here(run) and time.monotonic() < deadline:
        time.sleep(0.05)


def _display(run: Run, after: int, *, json: bool) -> PlainDisplay:
    from rich.console import Console

    from launcher.display import LiveDisplay, PlainDisplay
    from launcher.status import is_sweep

    console = Console(stderr=json)  # with --json, standard output is the program's
    live = console.is_terminal and sys.stdin.isatty()
    with suppress(StorageError):  # whoever follows meets it too
        if is_sweep(run):
            from launcher.sweep_display import LiveSweepDisplay, PlainSweepDisplay

            history = [row for row in run.all_rows("events") if row["attempt"] <= after]
            return (LiveSweepDisplay if live else PlainSweepDisplay)(console, history)
    if live:
        return LiveDisplay(console)
    return PlainDisplay(console)


def _rows_alone() -> PlainDisplay:
    from rich.console import Console

    from launcher.display import JsonDisplay

    return JsonDisplay(Console(stderr=True))
