"""Random changes to batches of images, each a function of (seed, epoch, sample) alone.

Images are float32 [samples, channels, height, width] in channels_last, from 0 (black) to 1 (white). Nothing here
looks from one sample to another but `mix`, so a sample comes out the same in whatever company.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation calls it
from numpy.typing import NDArray
from torch import Tensor

from trainers.config import Augment
from trainers.data.keyed import Keyed, beta

_GEOMETRY = ("flip", "vertical_flip", "rotate", "translate", "scale", "crop")
_COLOUR = ("brightness", "contrast", "saturation", "hue")


def augment(images: Tensor, config: Augment, keyed: Keyed) -> Tensor:
    """Apply all that changes an image by itself: geometry in one resampling, then colour, then noise."""
    if not len(images):
        return images
    if any(getattr(config, name) for name in _GEOMETRY):
        images = _resample(images, _affine(config, keyed, images.shape[2], images.shape[3]))
    if any(getattr(config, name) for name in _COLOUR):
        images = _recolour(images, config, keyed)
    if config.noise:
        images = _add_noise(images, config.noise, keyed)
    return images.contiguous(memory_format=torch.channels_last)


def _affine(config: Augment, keyed: Keyed, height: int, width: int) -> NDArray[np.float64]:
    """Return [samples, 2, 3] maps from a place in the new image to one in the old, in pixels from the centre.

    The old image is cut to a window, mirrored, scaled, turned and moved; the map runs backwards.
    """
    sides = (("x", width), ("y", height))
    angle = _either_way(keyed, "rotate", np.radians(config.rotate))
    scale = 1 + _either_way(keyed, "scale", config.scale)
    moved = [_either_way(keyed, f"translate {axis}", config.translate * side) for axis, side in sides]
    window = np.sqrt(1 - config.crop * keyed.uniform("crop")[:, 0])  # its share of a side
    offset = [(1 - window) * keyed.spread(f"crop {axis}") * side / 2 for axis, side in sides]
    cosine, sine = np.cos(angle) * window / scale, np.sin(angle) * window / scale
    flip, vertical_flip = _mirror(config.flip, keyed, "flip"), _mirror(config.vertical_flip, keyed, "vertical_flip")
    maps = np.empty((len(keyed.samples), 2, 3))
    maps[:, 0, :2] = np.stack([cosine * flip, sine * flip], axis=1)
    maps[:, 1, :2] = np.stack([-sine * vertical_flip, cosine * vertical_flip], axis=1)
    for axis in (0, 1):
        maps[:, axis, 2] = offset[axis] - maps[:, axis, 0] * moved[0] - maps[:, axis, 1] * moved[1]
    return maps


def _either_way(keyed: Keyed, operation: str, reach: float) -> NDArray[np.float64]:
    return reach * keyed.spread(operation) if reach else np.zeros(len(keyed.samples))


def _mirror(wanted: bool, keyed: Keyed, operation: str) -> NDArray[np.float64]:
    if not wanted:
        return np.ones(len(keyed.samples))
    return np.where(keyed.uniform(operation)[:, 0] < 0.5, -1.0, 1.0)


def _resample(images: Tensor, maps: NDArray[np.float64]) -> Tensor:
    """Take every pixel of the new images from its place in the old ones, bilinear; outside of them is black.

    The grid is made by single products and sums, as a matrix product may round differently for another batch.
    """
    height, width = images.shape[2:]
    m = torch.from_numpy(maps.astype(np.float32))[..., None, None]
    x = torch.arange(width, dtype=torch.float32) - (width - 1) / 2
    y = (torch.arange(height, dtype=torch.float32) - (height - 1) / 2)[:, None]
    across = (m[:, 0, 0] * x + m[:, 0, 1] * y + m[:, 0, 2]) * (2 / width)
    down = (m[:, 1, 0] * x + m[:, 1, 1] * y + m[:, 1, 2]) * (2 / height)
    return F.grid_sample(images, torch.stack([across, down], dim=-1), align_corners=False)


def _recolour(images: Tensor, config: Augment, keyed: Keyed) -> Tensor:
    """Change brightness, contrast, saturation (each by a factor of 1 ± its setting) and hue."""
    from kornia import enhance  # late: it takes a quarter of a second, and few jobs need it

    factors: list[tuple[float, str, Callable[[Tensor, Tensor], Tensor]]] = [
        (config.brightness, "brightness", enhance.adjust_brightness_accumulative),
        (config.contrast, "contrast", enhance.adjust_contrast_with_mean_subtraction),
        (config.saturation, "saturation", enhance.adjust_saturation_with_gray_subtraction),
    ]
    for strength, name, change in factors:
        if strength:
            images = change(images, torch.from_numpy((1 + strength * keyed.spread(name)).astype(np.float32)))
    if config.hue:
        angle = 2 * np.pi * config.hue * keyed.spread("hue")
        images = enhance.adjust_hue(images, torch.from_numpy(angle.astype(np.float32)))
    return images


def _add_noise(images: Tensor, deviation: float, keyed: Keyed) -> Tensor:
    count, channels, height, width = images.shape
    noise = keyed.normal("noise", channels * height * width).reshape(count, height, width, channels)
    return (images + torch.from_numpy(noise).permute(0, 3, 1, 2) * deviation).clamp_(0, 1)


def partners(keyed: Keyed) -> NDArray[np.int64]:
    """Return for each sample of a global batch another one to mix with: each is taken once, none by itself."""
    order = keyed.order("partner")
    chosen = np.empty_like(order)
    chosen[order] = np.roll(order, -1)
    return chosen


def mix(own: Tensor, other: Tensor, config: Augment, keyed: Keyed) -> tuple[Tensor, Tensor]:
    """Mix images with their partners'; return them with the share [samples] of each sample's own label.

    Mixup (Zhang et al., ICLR 2018, arXiv:1710.09412) blends whole images, CutMix (Yun et al., ICCV 2019,
    arXiv:1905.04899) pastes a rectangle; where both are on, each sample takes one of them at even odds.
    """
    cut = _takes_cutmix(config, keyed)
    box = _boxes(config, keyed, own.shape[2], own.shape[3])
    share = np.where(cut, 1 - box.mean(axis=(1, 2)), beta(keyed.uniform("mixup")[:, 0], config.mixup or 1.0))
    weight = np.where(cut[:, None, None], 1.0 - box, share[:, None, None]).astype(np.float32)
    kept = torch.from_numpy(weight)[:, None]
    mixed = own * kept + other * (1 - kept)
    return mixed.contiguous(memory_format=torch.channels_last), torch.from_numpy(share.astype(np.float32))


def _takes_cutmix(config: Augment, keyed: Keyed) -> NDArray[np.bool_]:
    if config.mixup and config.cutmix:
        return keyed.uniform("mixup or cutmix")[:, 0] < 0.5
    return np.full(len(keyed.samples), bool(config.cutmix))


def _boxes(config: Augment, keyed: Keyed, height: int, width: int) -> NDArray[np.bool_]:
    """Return [samples, height, width]: where a partner's pixels go. The rectangle is cut off at the borders."""
    side = np.sqrt(1 - beta(keyed.uniform("cutmix")[:, 0], config.cutmix or 1.0))
    rows = _strip(keyed.uniform("cutmix y"), side, height)
    columns = _strip(keyed.uniform("cutmix x"), side, width)
    return rows[:, :, None] & columns[:, None, :]


def _strip(centre: NDArray[np.float64], side: NDArray[np.float64], length: int) -> NDArray[np.bool_]:
    places = np.arange(length) + 0.5
    return np.asarray(np.abs(places - centre * length) <= side[:, None] * length / 2)
