"""The one shape that all images of a training get."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import TrainingError
from trainers.config import Data, MeanStd, TrainJob
from trainers.data.decode import Shape

_MOST_MEMORY = 4 << 30
_LARGEST_BY_DEFAULT = 224
_SMALLEST = 4  # pixels of a side that two poolings leave something of


def choose_shape(sizes: NDArray[np.int64], data: Data) -> tuple[Shape, list[Mapping[str, Any]]]:
    """Choose a shape for images of [images, 3] heights, widths and channels; return it with a note on the choice.

    The job file decides; else images of one size keep it, and those of many become squares with the median side,
    224 at most. They are grey unless any has colour.
    """
    channels = data.channels or int(sizes[:, 2].max())
    height, width = sizes[0, :2].tolist()
    if data.image_size is not None:
        return (data.image_size, data.image_size, channels), []
    if (sizes[:, :2] == sizes[0, :2]).all():
        return (height, width, channels), []
    side = min(round(float(np.median(sizes[:, :2]))), _LARGEST_BY_DEFAULT)
    note = {
        "event": "data.image_size",
        "chosen": [side, side],
        "smallest": sizes[:, :2].min(axis=0).tolist(),
        "largest": sizes[:, :2].max(axis=0).tolist(),
        "hint": f"images differ in size; set data.image_size to choose another than {side}",
    }
    return (side, side, channels), [note]


def check_shape(job: TrainJob, shape: Shape) -> None:
    """Raise TrainingError where the job asks for what images of this shape cannot give."""
    height, width, channels = shape
    if min(height, width) < _SMALLEST:
        raise TrainingError(
            f"images of {width}×{height} pixels are too small: a side needs at least {_SMALLEST}. Set data.image_size."
        )
    given = job.data.normalize
    if isinstance(given, MeanStd) and len(given.mean) != channels:
        raise TrainingError(
            f"data.normalize has {len(given.mean)} channels, the images have {channels}. Give as many numbers, or set "
            f"data.channels: {len(given.mean)}."
        )
    if channels not in (1, 3):
        raise TrainingError(f"the images have {channels} channels; set data.channels to 1 or 3")
    augment = job.data.augment
    coloured = [name for name in ("saturation", "hue") if getattr(augment, name)]
    if channels == 1 and coloured:
        raise TrainingError(f"the images are grey: take {' and '.join(coloured)} out of data.augment")


def fits_memory(images: int, shape: Shape) -> bool:
    """True where so many images may be held decoded: within 4 GiB and a quarter of the machine's memory."""
    return images * int(np.prod(shape)) <= min(_MOST_MEMORY, _machine_memory() // 4)


def _machine_memory() -> int:
    """Return the bytes of memory of this machine, or of the container that we are in."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return physical if text == "max" else min(physical, int(text))
