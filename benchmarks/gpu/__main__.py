"""Saves and training on a GPU: raylift beside plain PyTorch.

python -m benchmarks.gpu --repeats 3
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu import saving, training
from benchmarks.gpu.saving import Saved
from benchmarks.machine import describe_machine, versions
from benchmarks.report import RESULTS, Spread, table, write_results

_PACKAGES = ["raylift", "torch", "safetensors"]
_STEPS = {64: 2000, 1024: 400}  # by batch size


def main() -> None:
    args = parse()
    if not torch.cuda.is_available():
        sys.exit("the benchmark needs a GPU that torch can compute on")
    machine = describe_machine() | {"packages": versions(Path(sys.executable), _PACKAGES)}
    machine["gpu"] = torch.cuda.get_device_name()
    saved = []
    for size in args.sizes:
        saved.append(saving.measure(size, args.repeats))
        print(saved[-1], file=sys.stderr, flush=True)
    speeds = measure_training(args.repeats) if not args.states_only else {}
    document = {
        "benchmark": "gpu",
        "machine": machine,
        "settings": {"sizes": args.sizes, "repeats": args.repeats, "steps": _STEPS},
        "saves": [asdict(one) for one in saved],
        "samples_per_s": {f"{name}, {size}": values for (name, size), values in speeds.items()},
    }
    path = write_results("gpu", document, args.out)
    tables = [saves_table(saved), *([training_table(speeds)] if speeds else [])]
    print("", *tables, f"Raw numbers: {path.name}", sep="\n\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**9, 4 * 10**9], metavar="BYTES")
    parser.add_argument("--states-only", action="store_true", help="measure saves and restores, and no training")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the raw numbers")
    return parser.parse_args()


def measure_training(repeats: int) -> dict[tuple[str, int], list[float]]:
    """Return samples a second by contestant and batch size, the contestants interleaved."""
    contestants: dict[str, Callable[[Path, int, int], float]] = {
        "raylift": partial(training.raylift, log_every=1),
        "raylift, log_every: 50": partial(training.raylift, log_every=50),
        "plain PyTorch, DataLoader": training.loader,
        "plain PyTorch, data on the GPU": training.resident,
    }
    found: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        training.write_images(Path(name))
        for _ in range(repeats):
            for size, steps in _STEPS.items():
                for title, contestant in contestants.items():
                    found.setdefault((title, size), []).append(contestant(Path(name), size, steps))
                    print(f"{title}, {size}: {found[title, size][-1]:,.0f}/s", file=sys.stderr, flush=True)
    return found


def saves_table(saved: list[Saved]) -> str:
    head = ["state", "loop blocked, s", "the first save, s", "a step longer by, s", "until durable, s"]
    head += ["a copy to pinned memory, s", "`torch.save` to memory, s", "restored, s", "`torch.load`, s"]
    rows = []
    for one in saved:
        longer = [with_save - without for with_save, without in zip(one.step_saved, one.step, strict=True)]
        columns = [
            one.blocked,
            [one.first],
            longer,
            one.durable,
            one.pinned,
            one.torch_save,
            one.restored,
            one.torch_load,
        ]
        rows.append([f"{one.size / 1e9:.1f} GB", *(Spread.of(values).text(3) for values in columns)])
    return table(head, rows)


def training_table(speeds: dict[tuple[str, int], list[float]]) -> str:
    titles = dict.fromkeys(title for title, _ in speeds)
    rows = [[title, *(Spread.of(speeds[title, size]).text(0) for size in _STEPS)] for title in titles]
    return table(["samples/s", *(f"batches of {size}" for size in _STEPS)], rows)


if __name__ == "__main__":
    main()
