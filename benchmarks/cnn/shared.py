"""What the contestants that are scripts share: their arguments, the data, and the marks that they leave."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST's four idx files")
    parser.add_argument("--marks", type=Path, required=True, help="file for what is measured")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--loader-workers", type=int, default=None, help="processes that load the training data")
    return parser.parse_args()


def load_mnist(folder: Path, part: str) -> tuple[Bytes, Bytes]:
    """Return images [n, 28, 28] and labels [n] of a part, `train` or `t10k`; both may be written to."""
    images = np.fromfile(folder / f"{part}-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 28, 28)
    return images, np.fromfile(folder / f"{part}-labels-idx1-ubyte", np.uint8, offset=8)


def mark(file: Path, name: str, **values: Any) -> None:
    """Note that something has happened, with the time of day: the only trace of the benchmark in a contestant."""
    with file.open("a") as out:
        out.write(json.dumps({"mark": name, "time": time.time(), **values}) + "\n")
