"""What a trained model says of images: python -m trainers.predict RUN|DIR INPUT..."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from trainers.command import run_command
from trainers.data.decode import Shape, decode_file, threads
from trainers.data.folders import SUFFIXES
from trainers.saved import Saved, image_task, load_saved
from trainers.tasks.images import ImageClassification

_AT_ONCE = 256


@dataclass(frozen=True)
class Guess:
    """One label that an image may have."""

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The likeliest labels of an image, the first the likeliest; none, but an error, where it cannot be read."""

    image: str
    guesses: tuple[Guess, ...] = ()
    error: str = ""


def predict(saved: Saved, images: Sequence[Path], top: int) -> Iterator[Prediction]:
    """Yield what the model says of each image, in their order."""
    task = image_task(saved, "predict")
    height, width, channels = saved.meta["image"]
    read = partial(_read, shape=(height, width, channels))
    Image.init()  # its lazy loading of plugins is not safe in threads
    with ThreadPoolExecutor(threads()) as pool:
        for start in range(0, len(images), _AT_ONCE):
            chunk = images[start : start + _AT_ONCE]
            yield from _predict(saved, task, chunk, list(pool.map(read, chunk)), top)


def find_images(inputs: Sequence[str]) -> list[Path]:
    """Return the files that are named, and of folders all images below them, by their names' endings."""
    found: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            below = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            found += sorted(file for file in below if not file.name.startswith("."))
        else:
            found.append(path)
    return found


def _read(path: Path, shape: Shape) -> NDArray[np.uint8] | str:
    """Return an image as training saw its like, or what is wrong with it."""
    try:
        with path.open("rb") as file:
            return decode_file(file, shape)
    except UnidentifiedImageError:
        return "this is no image"
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # a decoder that meets arbitrary bytes may raise anything
        return f"{type(error).__name__}: {error}"


@torch.inference_mode()
def _predict(
    saved: Saved, task: ImageClassification, paths: Sequence[Path], read: Sequence[NDArray[np.uint8] | str], top: int
) -> Iterator[Prediction]:
    good = [pixels for pixels in read if not isinstance(pixels, str)]
    chances = iter(_chances(saved, task, np.stack(good))) if good else iter(())
    for path, pixels in zip(paths, read, strict=True):
        if isinstance(pixels, str):
            yield Prediction(str(path), error=pixels)
        else:
            values, labels = next(chances).topk(min(top, len(saved.meta["classes"])))
            guesses = zip(labels.tolist(), values.tolist(), strict=True)
            yield Prediction(str(path), tuple(Guess(saved.meta["classes"][label], value) for label, value in guesses))


def _chances(saved: Saved, task: ImageClassification, pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Return [images, classes] probabilities of [images, height, width, channels] pixels."""
    rows = np.arange(len(pixels))
    data = task.dataset({"eval_images": pixels, "eval_labels": np.zeros_like(rows), "eval_rows": rows})
    output: torch.Tensor = saved.model(data.batch(rows, None)["inputs"].to(saved.device)).float()
    # with bce every class was trained by itself, so their probabilities need not add up to 1
    return output.sigmoid().cpu() if saved.job.train.loss.name == "bce" else output.softmax(dim=1).cpu()


def _say_errors(found: Iterable[Prediction], unread: list[Prediction]) -> Iterator[Prediction]:
    """Pass predictions on; say which images could not be read, and collect them."""
    for one in found:
        if one.error:
            unread.append(one)
            print(f"error: {one.image}: {one.error}", file=sys.stderr)
        yield one


def _print_lines(found: Iterable[Prediction], width: int) -> None:
    for one in found:
        if one.guesses:
            said = "   ".join(f"{guess.label} {guess.probability:.4f}" for guess in one.guesses)
            print(f"{one.image:<{width}}  {said}")


def _print_csv(found: Iterable[Prediction]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "rank", "label", "probability"])
    for one in found:
        for rank, guess in enumerate(one.guesses, start=1):
            writer.writerow([one.image, rank, guess.label, guess.probability])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainers.predict")
    parser.add_argument("model", help="a run's URI, or a folder of raylift export")
    parser.add_argument("inputs", nargs="+", help="image files, or folders of them")
    parser.add_argument("--top", type=int, default=3)
    parser.add_argument("--checkpoint", default="last")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true")
    shape.add_argument("--csv", action="store_true")
    given = parser.parse_args(arguments)
    images = find_images(given.inputs)
    if not images:
        print(f"error: no images in {', '.join(given.inputs)}", file=sys.stderr)
        return 2
    unread: list[Prediction] = []
    found = _say_errors(predict(load_saved(given.model, given.checkpoint), images, given.top), unread)
    if given.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    elif given.csv:
        _print_csv(found)
    else:
        _print_lines(found, max(len(str(path)) for path in images))
    if unread:
        print(f"{len(unread)} of {len(images)} images could not be read", file=sys.stderr)
    return 1 if unread else 0


if __name__ == "__main__":
    run_command(main)
