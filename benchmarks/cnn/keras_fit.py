"""Keras, as its "Simple MNIST convnet" example does it, with the mission's network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from benchmarks.cnn.shared import arguments, load_mnist, mark


class Marks(keras.callbacks.Callback):  # type: ignore[misc]
    """Times each epoch from its begin to the begin of its validation."""

    def __init__(self, file: Path, samples: int) -> None:
        super().__init__()
        self.file = file
        self.samples = samples
        self.first = True

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        if self.first:
            mark(self.file, "first step")
            self.first = False

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        self.seconds = time.perf_counter() - self.started

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        accuracy = float((logs or {})["val_accuracy"])
        mark(self.file, "epoch", epoch=epoch + 1, samples=self.samples, seconds=self.seconds, accuracy=accuracy)


def main() -> None:
    args = arguments("Keras MNIST")
    keras.utils.set_random_seed(args.seed)

    x_train, y_train = load_mnist(args.data, "train")
    x_test, y_test = load_mnist(args.data, "t10k")
    x_train = np.expand_dims(x_train.astype("float32") / 255, -1)
    x_test = np.expand_dims(x_test.astype("float32") / 255, -1)

    model = keras.Sequential(
        [
            keras.Input(shape=(28, 28, 1)),
            layers.Conv2D(32, kernel_size=(3, 3), activation="relu"),
            layers.MaxPooling2D(pool_size=(2, 2)),
            layers.Conv2D(64, kernel_size=(3, 3), activation="relu"),
            layers.MaxPooling2D(pool_size=(2, 2)),
            layers.Conv2D(64, kernel_size=(3, 3), activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(
        loss="sparse_categorical_crossentropy",
        optimizer=keras.optimizers.Adam(learning_rate=args.lr),
        metrics=["accuracy"],
    )
    model.fit(
        x_train,
        y_train,
        batch_size=args.batch_size,
        epochs=args.epochs,
        validation_data=(x_test, y_test),
        verbose=2,  # a line an epoch, as Keras advises where nobody watches
        callbacks=[Marks(args.marks, len(x_train))],
    )


if __name__ == "__main__":
    main()
