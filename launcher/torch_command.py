"""Commands that compute with a trained model: they need torch, so they run as a process of their own."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from cluster.errors import MissingExtraError
from launcher.settings import resolve_run


def find_model(text: str, storage: str | None, checkpoint: str | None) -> list[str]:
    """Return arguments that say where a model is: the path of an export, or a run's URI, and which of its checkpoints.

    Of a sweep that is its best trial, at its best unless told. Raises UsageError, RunNotFoundError.
    """
    folder = Path(text).expanduser()
    if (folder / "model.safetensors").is_file():
        return [str(folder.absolute())]
    from cluster.runs import Run
    from cluster.selection import choose
    from launcher.sweeps import winner_of

    winner, by = winner_of(Run.at(resolve_run(text, storage)))
    if by is not None and checkpoint in (None, "best"):
        checkpoint = str(choose(winner, "best", by)[0].step)
    return [winner.uri, "--checkpoint", checkpoint or "last"]


def run_with_torch(module: str, arguments: list[str]) -> int:
    """Run `python -m module` on this terminal; return its exit code. Raises MissingExtraError."""
    if find_spec("torch") is None:
        raise MissingExtraError("this needs torch, which is not installed here: pip install 'raylift[train]'")
    # -P: a package called `cluster` or `trainers` in the user's working folder must not shadow ours
    code = subprocess.run([sys.executable, "-P", "-m", module, *arguments], check=False).returncode
    return code if code >= 0 else 128 - code  # ended by a signal: as shells say it
