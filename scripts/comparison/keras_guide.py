"""Keras's guide to transfer learning, which uses Xception: https://keras.io/guides/transfer_learning/

From the guide: the frozen base in inference mode, RandomFlip and RandomRotation(0.1), Rescaling to [-1, 1],
Dropout(0.2), Dense, Adam(1e-3) for 20 epochs; then the base is trained too, still in inference mode, with
Adam(1e-5) for 10 epochs. Batches of 32, images of 150 px, which are read once and kept. The photographs are
shuffled in each epoch. Keras runs on TensorFlow, which trains this network faster on a CPU than torch does.

A shorter time is divided as the guide's own epochs would be: about a third of the seconds for the first
stage, because an epoch of the second takes about four times as long. Epochs that do not fit are not begun.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"  # keras reads this when it is imported

import keras
import tensorflow as tf
from keras_trunk import build_trunk  # scripts/comparison/keras_trunk.py
from recording import Recording, peer_arguments  # scripts/comparison/recording.py

BATCH = 32
FROZEN_EPOCHS, TUNED_EPOCHS = 20, 10
TUNED_COST = 4.0  # seconds of an epoch of the second stage, in epochs of the first
FROZEN_SHARE = FROZEN_EPOCHS / (FROZEN_EPOCHS + TUNED_COST * TUNED_EPOCHS)


def photographs(folder: Path, size: int, seed: int | None) -> Any:
    """Returns the data of a folder of classes, in batches; shuffled if there is a seed."""
    data = keras.utils.image_dataset_from_directory(
        folder, image_size=(size, size), batch_size=None, shuffle=False
    ).cache()
    if seed is not None:
        count = int(data.cardinality().numpy())
        data = data.shuffle(count, seed=seed)
    return data.batch(BATCH).prefetch(tf.data.AUTOTUNE)


def build(trunk: Any, size: int, class_num: int) -> Any:
    """Builds the guide's model on a trunk."""
    inputs = keras.Input((size, size, 3))
    x = keras.layers.RandomFlip("horizontal")(inputs)
    x = keras.layers.RandomRotation(0.1)(x)
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(x)
    x = trunk(x, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.2)(x)
    return keras.Model(inputs, keras.layers.Dense(class_num)(x))


def run_stage(
    recording: Recording,
    model: Any,
    data: tuple[Any, Any],
    *,
    stage: str,
    rate: float,
    end_seconds: float,
    first_epoch_seconds: float,
    epochs: int,
) -> float:
    """Trains until the next epoch would end after ``end_seconds``. Returns the seconds of the last epoch.

    Args:
        recording: clock and points.
        model: model to train.
        data: photographs to train on, and to evaluate.
        stage: name of the stage.
        rate: learning rate of Adam.
        end_seconds: seconds of all training at which the stage ends.
        first_epoch_seconds: estimate for the first epoch.
        epochs: largest number of epochs.
    """
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    epoch_seconds = first_epoch_seconds
    for epoch in range(1, epochs + 1):
        if recording.seconds + epoch_seconds > end_seconds:
            break
        start = recording.seconds
        with recording.training():
            model.fit(data[0], epochs=1, verbose=0)
        epoch_seconds = recording.seconds - start
        _, accuracy = model.evaluate(data[1], verbose=0)
        recording.add(stage, epoch, accuracy)
    return epoch_seconds


def main() -> None:
    arguments = peer_arguments(__doc__)
    recording = Recording(arguments)
    keras.utils.set_random_seed(arguments.seed)
    class_num = sum(path.is_dir() for path in (arguments.photographs / "train").iterdir())
    trunk = build_trunk(arguments.trunk, arguments.size)
    trunk.trainable = False
    model = build(trunk, arguments.size, class_num)
    data = (
        photographs(arguments.photographs / "train", arguments.size, arguments.seed),
        photographs(arguments.photographs / "test", arguments.size, None),
    )
    recording.end_start_up()
    budget = recording.remaining_seconds
    epoch_seconds = run_stage(
        recording,
        model,
        data,
        stage="frozen",
        rate=1e-3,
        end_seconds=recording.seconds + max(FROZEN_SHARE * budget, 1.0),
        first_epoch_seconds=0.0,
        epochs=FROZEN_EPOCHS,
    )
    trunk.trainable = True
    run_stage(
        recording,
        model,
        data,
        stage="fine-tuned",
        rate=1e-5,
        end_seconds=recording.budget_seconds,
        first_epoch_seconds=TUNED_COST * epoch_seconds,
        epochs=TUNED_EPOCHS,
    )
    recording.write(size=arguments.size, images_for_training="all")


if __name__ == "__main__":
    main()
