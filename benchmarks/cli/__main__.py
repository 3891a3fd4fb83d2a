"""How long a person waits for the command line: raylift's quick commands from a cold start, beside `ray --help`.

python -m benchmarks.cli --repeats 10
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cache import ROOT, compile_everything, program
from benchmarks.cli.runs import fill
from benchmarks.machine import describe_machine, versions
from benchmarks.processes import Ran, clean_environment, run
from benchmarks.report import RESULTS, Spread, Target, table, targets_table, write_results

_PEER = "ray --help"
_BOUND = 0.4
_RUNS = 200
_LIMIT = 120.0  # seconds a command


def main() -> None:
    args = parse()
    compile_everything()
    machine = describe_machine() | {"packages": versions(Path(sys.executable), ["raylift", "ray", "typer", "pydantic"])}
    with tempfile.TemporaryDirectory(prefix="rb-") as folder:
        fill(Path(folder) / "runs", _RUNS)
        commands = {
            "raylift --help": ["raylift", "--help"],
            "raylift ps": ["raylift", "ps", "--storage", str(Path(folder) / "runs")],
            "raylift plan": ["raylift", "plan", str(ROOT / "examples" / "digits.yaml")],
            _PEER: ["ray", "--help"],
        }
        chosen = {name: words for name, words in commands.items() if name in args.only}
        seconds: dict[str, list[float]] = {name: [] for name in chosen}
        for round_ in range(args.repeats + 1):
            for name, (first, *words) in chosen.items():
                ran = start(name, [str(program(first)), *words], Path(folder))
                if round_:  # round 0 brings the files into memory
                    seconds[name].append(ran.whole)
    settings = {"repeats": args.repeats, "runs_listed_by_ps": _RUNS}
    document = {"benchmark": "cli", "machine": machine, "settings": settings, "seconds": rounded(seconds)}
    path = write_results("cli", document, args.out)
    print(f"{summary(seconds)}\n\n{targets_table(targets(seconds))}\n")
    print(f"{args.repeats} repeats, interleaved: median (least – most) in seconds. Raw numbers: {path.name}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cli", description=__doc__)
    names = ["raylift --help", "raylift ps", "raylift plan", _PEER]
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the raw numbers")
    return parser.parse_args()


def start(name: str, command: Sequence[str], folder: Path) -> Ran:
    """Run a command once. Raises SystemExit, with its output, where it fails."""
    log = folder / "output.log"
    ran = run(command, cwd=folder, env=clean_environment(), log=log, limit=_LIMIT)
    if ran.exit_code != 0:
        sys.exit(f"{name} failed with exit code {ran.exit_code}:\n{log.read_text(errors='replace')}")
    return ran


def summary(seconds: dict[str, list[float]]) -> str:
    rows = [[f"`{name}`", Spread.of(values).text(2)] for name, values in seconds.items()]
    return table(["command", "seconds"], rows)


def targets(seconds: dict[str, list[float]]) -> list[Target]:
    """Return the issue's bound for each of our commands: ratios of medians."""
    peer = Spread.of(seconds[_PEER]).median if _PEER in seconds else None
    return [
        Target(f"`{name}` × `{_PEER}`", Spread.of(values).median / peer if peer else None, _BOUND, at_least=False)
        for name, values in seconds.items()
        if name != _PEER
    ]


def rounded(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: [round(value, 4) for value in values] for name, values in seconds.items()}


if __name__ == "__main__":
    main()
