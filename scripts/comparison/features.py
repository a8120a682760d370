"""Computes features and pixels with Keras or timm, for ``scripts/compare_features.py``.

    python scripts/comparison/features.py keras INPUTS.npz PHOTOGRAPHS.json TRUNK OUT.npz

It runs in the interpreter that has the other framework. Each image of INPUTS is float32 [N, H, W, 3], ready
for the network. PHOTOGRAPHS lists files, which are also prepared as the framework does it itself.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 299
_BATCH = 4
Arrays = dict[str, Any]


def in_batches(function: Callable[[Any], Any], images: Any) -> Any:
    """Applies a function to a few images at a time."""
    return np.concatenate(
        [np.asarray(function(images[i : i + _BATCH])) for i in range(0, len(images), _BATCH)]
    )


def keras_arrays(inputs: Arrays, photographs: list[str], trunk: Path) -> Arrays:
    """Returns features and pixels of Keras: ``features/NAME``, ``pixels/NAME`` and ``own/NAME``.

    NAME is ``folder`` for the pixels of ``image_dataset_from_directory``, and ``load_img`` for those of
    ``load_img`` with bilinear interpolation.
    """
    import keras
    from keras_trunk import build_trunk  # scripts/comparison/keras_trunk.py

    pooled = keras.Sequential([build_trunk(trunk, None), keras.layers.GlobalAveragePooling2D()])

    def features(images: Any) -> Any:
        return in_batches(lambda batch: pooled(batch, training=False), images)

    prepare = keras.applications.xception.preprocess_input
    arrays = {f"features/{name}": features(images) for name, images in inputs.items()}
    pixels = {"folder": folder_pixels(photographs), "load_img": load_img_pixels(photographs)}
    for name, images in pixels.items():
        arrays[f"pixels/{name}"] = prepare(images.copy())
        arrays[f"own/{name}"] = features(arrays[f"pixels/{name}"])
    return arrays


def folder_pixels(photographs: list[str]) -> Any:
    """Returns what ``image_dataset_from_directory`` reads from the photographs, 0 to 255."""
    import keras

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "class").mkdir()
        for i, file in enumerate(photographs):
            os.symlink(file, Path(folder) / f"class/{i:04}{Path(file).suffix}")
        data = keras.utils.image_dataset_from_directory(
            folder, labels=None, image_size=(SIZE, SIZE), batch_size=_BATCH, shuffle=False
        )
        return np.concatenate([np.asarray(batch) for batch in data])


def load_img_pixels(photographs: list[str]) -> Any:
    """Returns what ``load_img`` reads from the photographs, 0 to 255."""
    import keras

    pictures = [
        keras.utils.load_img(file, target_size=(SIZE, SIZE), interpolation="bilinear") for file in photographs
    ]
    return np.stack([keras.utils.img_to_array(picture) for picture in pictures])


def timm_arrays(inputs: Arrays, photographs: list[str], state: Path) -> Arrays:
    """Returns features and pixels of timm: ``features/NAME``, ``plain/NAME``, ``pixels/timm``, ``own/timm``.

    ``plain`` are the features of timm's own network, without Keras's pools and batch norms.
    """
    import timm
    import torch
    from PIL import Image
    from timm_network import load_trunk  # scripts/comparison/timm_network.py, which registers xception_keras

    networks = {
        "features": timm.create_model("xception_keras", num_classes=0),
        "plain": timm.create_model("legacy_xception", num_classes=0),
    }
    for network in networks.values():
        load_trunk(network, state)
        network.eval()

    def features(kind: str, images: Any) -> Any:
        with torch.no_grad():
            return in_batches(
                lambda batch: networks[kind](torch.from_numpy(batch).permute(0, 3, 1, 2)), images
            )

    config = timm.data.resolve_data_config({}, model=networks["plain"])
    transform = timm.data.create_transform(**config, is_training=False)
    pictures = [transform(Image.open(file).convert("RGB")).permute(1, 2, 0) for file in photographs]
    prepared_images = np.ascontiguousarray(torch.stack(pictures).numpy())
    arrays = {
        f"{kind}/{name}": features(kind, images) for name, images in inputs.items() for kind in networks
    }
    return arrays | {"pixels/timm": prepared_images, "own/timm": features("features", prepared_images)}


def main() -> None:
    framework, inputs_file, photographs_file, weights, out = sys.argv[1:]
    with np.load(inputs_file) as arrays:
        inputs = {name: arrays[name] for name in arrays.files}
    photographs = json.loads(Path(photographs_file).read_text())
    computed = {"keras": keras_arrays, "timm": timm_arrays}[framework](inputs, photographs, Path(weights))
    np.savez(out, **computed)


if __name__ == "__main__":
    main()
