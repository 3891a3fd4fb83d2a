"""The command line: runs a command, and turns what it raises into a message and an exit code."""

from __future__ import annotations

import os
import sys


def main() -> None:
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(130)


def _run() -> None:
    # a plugin of pydantic can mean nothing to a job file, and looking for some takes a fifth of a command's time
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    from cluster.errors import RayliftError
    from launcher.cli.app import app  # here, as Ctrl-C may come while it imports

    try:
        app()
    except RayliftError as error:
        if os.environ.get("RAYLIFT_DEBUG"):
            import traceback

            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
