"""The network and the data of the two PyTorch contestants.

There is no torchvision for the torch of this environment. `MNIST` does, sample by sample, the work of
torchvision.datasets.MNIST with ToTensor and Normalize, as PyTorch's MNIST example uses them: a Pillow image of
each sample, a float tensor of it, divided by 255, less the mean, over the deviation.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from benchmarks.cnn.shared import load_mnist

_MEAN, _STD = (0.1307,), (0.3081,)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.conv3 = nn.Conv2d(64, 64, 3)
        self.fc1 = nn.Linear(576, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.relu(self.conv3(x))
        x = torch.flatten(x, 1)
        x = functional.relu(self.fc1(x))
        x = self.fc2(x)
        return functional.log_softmax(x, dim=1)


class MNIST(Dataset[tuple[Tensor, int]]):
    def __init__(self, folder: Path, part: str) -> None:
        images, labels = load_mnist(folder, part)
        self.data = torch.from_numpy(images)
        self.targets = torch.from_numpy(labels).long()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, target = self.data[index], int(self.targets[index])
        return normalize(to_tensor(Image.fromarray(image.numpy()))), target


def to_tensor(picture: Image.Image) -> Tensor:
    """Return float [channels, height, width] from 0 to 1."""
    tensor = torch.from_numpy(np.array(picture, np.uint8, copy=True))
    tensor = tensor.view(picture.size[1], picture.size[0], len(picture.getbands()))
    return tensor.permute(2, 0, 1).contiguous().to(dtype=torch.get_default_dtype()).div(255)


def normalize(tensor: Tensor) -> Tensor:
    mean = torch.as_tensor(_MEAN, dtype=tensor.dtype, device=tensor.device)
    std = torch.as_tensor(_STD, dtype=tensor.dtype, device=tensor.device)
    if (std == 0).any():
        raise ValueError("a deviation of zero")
    return tensor.clone().sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))
