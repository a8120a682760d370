"""Compares the features of a published trunk in ppxcls, Keras and timm, on photographs.

    python scripts/compare_features.py PHOTOGRAPHS TRUNK --peers-python PEERS/bin/python

PHOTOGRAPHS is a folder with one folder for each class. TRUNK is a file of Keras's Xception, as Keras reads
it. PEERS is an environment with keras, tensorflow-cpu, timm and torch. Prints, relative to the largest
feature, the largest difference for the same input at several sizes, and for photographs as each framework
prepares them itself. The pixels' differences are in levels of 0 to 255.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts/comparison")]

SIZES = (299, 224, 150, 71)  # odd and even sides, on which the padding of pools depends
SUFFIXES = (".jpg", ".jpeg", ".png")
_NORMALIZE = [
    {"NormalizeImage": {"scale": "1.0/255.0", "mean": [0.5] * 3, "std": [0.5] * 3, "order": ""}},
]
# What reproduces each preprocessing. docs/keras.md and docs/timm.md show the same lists.
PREPARATIONS: dict[str, list[dict[str, Any]]] = {
    "folder": [
        {"DecodeImage": {}},
        {"ResizeImage": {"size": 299, "interpolation": "bilinear", "backend": "cv2"}},
        *_NORMALIZE,
    ],
    "load_img": [
        {"DecodeImage": {}},
        {"ResizeImage": {"size": 299, "interpolation": "bilinear", "backend": "pil"}},
        *_NORMALIZE,
    ],
    "timm": [
        {"DecodeImage": {}},
        {"ResizeImage": {"resize_short": 333, "interpolation": "bicubic", "backend": "pil"}},
        {"CropImage": {"size": 299}},
        *_NORMALIZE,
    ],
}
Arrays = dict[str, Any]


def some_photographs(folder: Path, count: int) -> list[str]:
    """Returns ``count`` photographs, taken from the classes in turn."""
    classes = [
        sorted(file for file in place.iterdir() if file.suffix.lower() in SUFFIXES)
        for place in sorted(folder.iterdir())
        if place.is_dir()
    ]
    turns = [files[i] for i in range(max(map(len, classes))) for files in classes if i < len(files)]
    return [str(file.resolve()) for file in turns[:count]]


def write_inputs(photographs: list[str], file: Path) -> Arrays:
    """Writes and returns the networks' inputs: random ones of each size, and the prepared photographs."""
    import ppxcls

    rng = np.random.default_rng(0)
    inputs = {f"random {size}": rng.uniform(-1, 1, (2, size, size, 3)).astype(np.float32) for size in SIZES}
    for name, transforms in PREPARATIONS.items():
        transform = ppxcls.build_transforms(transforms)
        inputs[name] = np.stack([transform(Path(photo).read_bytes()) for photo in photographs])
    np.savez(file, **inputs)
    return inputs


def our_features(weights: Path, inputs: Arrays) -> Arrays:
    """Returns the features of Keras's and of timm's version here: ``features/NAME`` and ``plain/NAME``."""
    import paddle
    from features import in_batches  # scripts/comparison/features.py
    from trunk import trunk_network  # scripts/comparison/trunk.py

    arrays = {}
    for kind, name in (("features", "Xception"), ("plain", "legacy_xception")):
        network = trunk_network(weights, name)
        with paddle.no_grad():
            for key, images in inputs.items():
                channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
                arrays[f"{kind}/{key}"] = in_batches(
                    lambda batch, network=network: network(paddle.to_tensor(batch)).numpy(), channels_first
                )
    return arrays


def peer_arrays(python: Path, framework: str, inputs: Path, photographs: Path, weights: Path) -> Arrays:
    """Runs ``features.py`` with the peers' interpreter."""
    out = inputs.with_name(f"{framework}.npz")
    script = ROOT / "scripts/comparison/features.py"
    command = [str(python), str(script), framework, str(inputs), str(photographs), str(weights), str(out)]
    environment = os.environ | {"KERAS_BACKEND": "tensorflow", "PYTHONPATH": str(script.parent)}
    subprocess.run(command, check=True, env=environment)  # noqa: S603
    with np.load(out) as arrays:
        return {name: arrays[name] for name in arrays.files}


def relative(features: Any, expected: Any) -> float:
    """Returns the largest difference, relative to the largest expected feature."""
    return float(np.abs(features - expected).max() / np.abs(expected).max())


def differences(ours: Arrays, inputs: Arrays, keras: Arrays, timm: Arrays) -> dict[str, dict[str, float]]:
    """Returns the differences by comparison and input.

    ``same input: PEER`` compares features of the same numbers. ``own preparation: PEER`` compares features of
    photographs that each prepares itself. ``pixels: PEER`` is the largest difference of those in levels.
    """
    result: dict[str, dict[str, float]] = {}

    def add(kind: str, name: str, value: float) -> None:
        result.setdefault(kind, {})[name] = value

    for name in inputs:
        key = f"features/{name}"
        add("same input: Keras and Xception", name, relative(ours[key], keras[key]))
        add("same input: timm with Keras's pools and Xception", name, relative(ours[key], timm[key]))
        plain = f"plain/{name}"
        add("same input: timm and legacy_xception", name, relative(ours[plain], timm[plain]))
    for name, peer in (("folder", keras), ("load_img", keras), ("timm", timm)):
        pixels = np.abs(inputs[name] - peer[f"pixels/{name}"]) * 127.5
        add("pixels: largest difference, levels", name, float(pixels.max()))
        add("pixels: mean difference, levels", name, float(pixels.mean()))
        add("own preparation: features", name, relative(ours[f"features/{name}"], peer[f"own/{name}"]))
    return result


def compare(photographs: Path, weights: Path, python: Path, count: int = 12) -> dict[str, dict[str, float]]:
    """Computes all features, and returns ``differences``."""
    from trunk import write_state  # scripts/comparison/trunk.py

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = some_photographs(photographs, count)
        (folder / "photographs.json").write_text(json.dumps(photos))
        inputs = write_inputs(photos, folder / "inputs.npz")
        write_state(weights, folder / "trunk.npz")
        ours = our_features(weights, inputs)
        files = folder / "inputs.npz", folder / "photographs.json"
        keras = peer_arrays(python, "keras", *files, weights)
        timm = peer_arrays(python, "timm", *files, folder / "trunk.npz")
    return differences(ours, inputs, keras, timm)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", type=Path)
    parser.add_argument("trunk", type=Path)
    parser.add_argument("--peers-python", type=Path, required=True, help="interpreter with keras and timm")
    parser.add_argument("--count", type=int, default=12, help="number of photographs (default: 12)")
    arguments = parser.parse_args()
    for kind, row in compare(
        arguments.photographs, arguments.trunk, arguments.peers_python, arguments.count
    ).items():
        print(f"{kind}: " + ", ".join(f"{name} {value:.1e}" for name, value in row.items()))


if __name__ == "__main__":
    main()
