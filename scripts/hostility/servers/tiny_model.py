"""Trains and exports a network of a few hundred weights, and prints the class of its first image.

python scripts/hostility/servers/tiny_model.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import cv2
import numpy as np

import ppxcls


@ppxcls.MODELS.register
def Tiny(class_num: int = 3) -> object:
    """A convolution, pooling, and a classifier."""
    from paddle import nn

    layers = nn.Conv2D(3, 4, 3, 2), nn.AdaptiveAvgPool2D(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4, class_num))


def tiny_config(folder: Path) -> dict[str, object]:
    """Returns the config of a short training on the images of a folder."""
    size_ops = [{"ResizeImage": {"resize_short": 75}}, {"CropImage": {"size": 71}}]
    dataset = {
        "name": "ImageNetDataset",
        "image_root": str(folder),
        "cls_label_path": str(folder / "list.txt"),
        "transform_ops": [{"DecodeImage": {}}, *size_ops, {"NormalizeImage": {"order": ""}}],
    }
    sampler = {"name": "DistributedBatchSampler", "batch_size": 4}
    data = {"dataset": dataset, "sampler": sampler, "loader": {"num_workers": 1}}
    return {
        "Global": {
            "device": "cpu",
            "output_dir": str(folder / "output"),
            "epochs": 1,
            "seed": 0,
        },
        "Arch": {"name": "Tiny", "class_num": 3},
        "Loss": {"Train": [{"CELoss": {"weight": 1.0}}], "Eval": [{"CELoss": {"weight": 1.0}}]},
        "Optimizer": {"name": "Momentum", "lr": {"name": "ConstLR", "learning_rate": 0.01}},
        "DataLoader": {"Train": data, "Eval": data},
    }


def main() -> None:
    folder = Path(sys.argv[1])
    rng = np.random.default_rng(0)
    for i in range(8):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 255, (80, 90, 3), np.uint8))
    (folder / "list.txt").write_text("".join(f"{i}.png {i % 3}\n" for i in range(8)), encoding="utf-8")
    ppxcls.build_trainer(ppxcls.load_config(tiny_config(folder))).fit()
    place = f"Global.save_inference_dir={folder / 'export'}"
    ppxcls.export(ppxcls.load_config(str(folder / "output" / "Tiny"), [place]), ["paddle"])
    prediction = ppxcls.load(folder / "export").predict(folder / "0.png")[0]
    print("class", prediction.class_ids[0])


if __name__ == "__main__":
    main()
