"""The convolutional network of the well-known tutorials, arranged for speed."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

SMALLEST_UNPADDED = 18  # pixels of a side: below, unpadded convolutions and poolings leave nothing


class CNN(nn.Module):
    """Conv 32 - pool - Conv 64 - pool - Conv 64 - dense 64 - classes, with 3x3 kernels, 2x2 max-pooling and ReLU.

    The layers are those of https://www.tensorflow.org/tutorials/images/cnn. Convolutions are not padded, but for
    images with a side below 18 pixels, which would vanish. `image_size` is the side, or (height, width), in pixels.
    Initial weights are torch's own.

    The function is that of the layers applied one by one. Written for the CPU, where it is about three times as
    fast: in channels_last, pooling before the ReLU (both are monotonic; it leaves a quarter of the elements), and
    without the image's last rows and columns where no pooling window is left for what they would give.
    """

    def __init__(self, channels: int, classes: int, image_size: int | tuple[int, int], dropout: float = 0.0) -> None:
        super().__init__()
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(self.image_size) < 4:
            raise ValueError(f"images of {_times(self.image_size)} pixels: a side needs 4 or more")
        padding = int(min(self.image_size) < SMALLEST_UNPADDED)
        height, width = (_sides(side, padding) for side in self.image_size)
        self.seen = (height[0], width[0])
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=padding)
        if channels == 1:  # the same bytes in the same order, with the strides that DDP compares its gradient's with
            self.conv1.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack it
        self.conv2 = nn.Conv2d(32, 64, 3, padding=padding)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=padding)
        self.dense = nn.Linear(64 * height[1] * width[1], 64)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, classes] of images [N, channels, height, width]; N may be 0."""
        if images.shape[2:] != self.image_size:
            raise ValueError(f"images of {_times(images.shape[2:])} pixels: the model is for {_times(self.image_size)}")
        height, width = self.seen
        x = images[:, :, :height, :width].to(memory_format=torch.channels_last)
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.conv3(x)).flatten(1)
        x = F.relu(self.dense(x))
        logits: Tensor = self.output(self.dropout(x))
        return logits


def _sides(side: int, padding: int) -> tuple[int, int]:
    """Return how many pixels of a side reach the output, and the side after the last convolution."""
    if padding:
        return side, side // 4
    pooled = (side - 6) // 4  # ((side - 2) // 2 - 2) // 2
    return 4 * pooled + 6, pooled - 2


def _times(sides: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in sides)
