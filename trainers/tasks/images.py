"""Image classification: the CNN, the batches it sees, its loss and its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainers import losses
from trainers.data.augment import augment, mix, partners
from trainers.data.keyed import Keyed
from trainers.data.store import Part, unpack
from trainers.metrics import ClassMetrics
from trainers.models.cnn import CNN
from trainers.tasks.base import Draw, Prepared

if TYPE_CHECKING:
    from trainers.config import Augment, TrainJob
    from trainers.tasks.base import Batch


class ImageClassification:
    """Tells which class an image belongs to."""

    def __init__(self, job: TrainJob, prepared: Prepared) -> None:
        self.meta = prepared.meta
        self._job = job
        self._arrays = prepared.arrays
        self._loss = losses.build(job.train.loss)

    def build_model(self) -> nn.Module:
        height, width, channels = self.meta["image"]
        return CNN(channels, len(self.meta["classes"]), (height, width), self._job.model.dropout)

    def datasets(self) -> tuple[ImageDataset, ImageDataset | None]:
        """Return what to train on, and what to evaluate on where there is any."""
        train, held = self._part(self._arrays, "train"), self._part(self._arrays, "eval")
        assert train is not None, "a saved model has no data of its own"
        evaluation = ImageDataset(held, self.meta) if held is not None else None
        return ImageDataset(train, self.meta, self._job.data.augment), evaluation

    def dataset(self, arrays: Mapping[str, NDArray[Any]]) -> ImageDataset:
        """Return the images that `trainers.data.images.load_images` read."""
        part = self._part(arrays, "eval")
        assert part is not None, "load_images fills the eval side"
        return ImageDataset(part, self.meta)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        output = model(batch["inputs"])
        total, count = self._loss(output, batch["targets"])
        return total, count, output

    def metrics(self) -> ClassMetrics:
        """Return the share of right answers, and F1 averaged over the classes."""
        return ClassMetrics(len(self.meta["classes"]))

    def _part(self, arrays: Mapping[str, NDArray[Any]], split: str) -> Part | None:
        height, width, channels = self.meta["image"]
        return unpack(arrays, split, (height, width, channels))


class ImageDataset:
    """Normalised batches of images.

    `inputs` are float32 [samples, channels, height, width] in channels_last; `targets` int64 [samples], or
    float32 [samples, classes] where mixup or cutmix blend the labels.
    """

    def __init__(self, part: Part, meta: Mapping[str, Any], augment: Augment | None = None) -> None:
        self._part = part
        self._classes = len(meta["classes"])
        self._augment = augment if augment is not None and any(augment.model_dump().values()) else None
        mean, std = np.array(meta["mean"]), np.array(meta["std"])
        pixels = meta["image"][0] * meta["image"][1]
        # one number a value, as numpy is many times slower where it repeats three numbers along the last axis
        self._gain = np.tile(1 / std, pixels).astype(np.float32)
        self._byte_gain = np.tile(1 / (255 * std), pixels).astype(np.float32)
        self._offset = np.tile(-mean / std, pixels).astype(np.float32)

    def __len__(self) -> int:
        return len(self._part.rows)

    def batch(self, samples: NDArray[np.int64], draw: Draw | None) -> Batch:
        """Return the images and targets of these samples; see `trainers.tasks.base.Dataset`."""
        if draw is None or self._augment is None:
            images = self._part.pixels.take(self._part.rows[samples])
            values = np.multiply(images.reshape(len(images), self._gain.size), self._byte_gain, dtype=np.float32)
            values += self._offset
            inputs = torch.from_numpy(values.reshape(images.shape)).permute(0, 3, 1, 2)
            return {"inputs": inputs, "targets": torch.from_numpy(self._part.labels[samples])}
        if self._augment.mixup or self._augment.cutmix:
            return self._mixed(samples, draw, self._augment)
        inputs = self._augmented(samples, draw, self._augment)
        return {"inputs": self._normalise(inputs), "targets": torch.from_numpy(self._part.labels[samples])}

    def _augmented(self, samples: NDArray[np.int64], draw: Draw, config: Augment) -> Tensor:
        images = torch.from_numpy(self._part.pixels.take(self._part.rows[samples])).permute(0, 3, 1, 2)
        return augment(images.to(torch.float32).div_(255), config, Keyed(draw.seed, draw.epoch, samples))

    def _mixed(self, samples: NDArray[np.int64], draw: Draw, config: Augment) -> Batch:
        """Mix each sample with its partner in the global batch, whoever holds it, augmented as it is itself."""
        chosen = draw.batch[partners(Keyed(draw.seed, draw.epoch, draw.batch))]
        sorter = np.argsort(draw.batch)
        others = chosen[sorter[np.searchsorted(draw.batch, samples, sorter=sorter)]]
        needed, places = np.unique(np.concatenate([samples, others]), return_inverse=True)
        own, other = self._augmented(needed, draw, config)[torch.from_numpy(places)].tensor_split([len(samples)])
        inputs, share = mix(own, other, config, Keyed(draw.seed, draw.epoch, samples))
        targets = self._one_hot(samples) * share[:, None] + self._one_hot(others) * (1 - share[:, None])
        return {"inputs": self._normalise(inputs), "targets": targets}

    def _one_hot(self, samples: NDArray[np.int64]) -> Tensor:
        labels = torch.from_numpy(self._part.labels[samples])
        return nn.functional.one_hot(labels, self._classes).to(torch.float32)

    def _normalise(self, images: Tensor) -> Tensor:
        """Normalise channels_last images, in place."""
        values = images.permute(0, 2, 3, 1).reshape(len(images), self._gain.size)
        values.mul_(torch.from_numpy(self._gain)).add_(torch.from_numpy(self._offset))
        return values.reshape(len(images), *images.shape[2:], images.shape[1]).permute(0, 3, 1, 2)
