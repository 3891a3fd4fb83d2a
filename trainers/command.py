"""What the commands that run as `python -m trainers.…` share: how they end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from cluster.errors import RayliftError


def run_command(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a command's main function and exit as it says; an error of ours is a line, with its exit code."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the reader of our output may go, as `head` does
    try:
        sys.exit(main(sys.argv[1:]))
    except RayliftError as error:
        if os.environ.get("RAYLIFT_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from trainers.user_code import told_of

        told = told_of(error, "")
        if told is None or os.environ.get("RAYLIFT_DEBUG"):
            raise
        print(f"{told.traceback}error: {told}", file=sys.stderr)
        sys.exit(told.exit_code)
