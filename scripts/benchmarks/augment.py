"""Images a second on one core of training transforms, against torchvision's and timm's; medians of
interleaved
rounds, and ratios.

    pip install torch torchvision timm # the peers; without them, ours alone is printed python
    scripts/benchmarks/augment.py [FOLDER] # a folder of images; without one, scikit-learn's two sample photos

All decode a JPEG, crop to 299 px, flip, and apply the policy; ours from files and from packed data. The
transforms of every YAML of ``configs/`` follow.
"""

import argparse
import contextlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ppxcls.system import environment

environment.import_paddle()

import cv2
import numpy as np
from loader import exhaust, measure  # of this folder
from ratios import compare  # of this folder

from ppxcls import build_transforms, load_config
from ppxcls.data.transforms import split_for_device
from ppxcls.packed.dataset import PackedDataset
from ppxcls.packed.write import pack

Step = Callable[[Any], Any]  # of a file's bytes, of what packed data give, or of its number in them
BASE = [{"DecodeImage": {}}, {"RandCropImage": {"size": 299}}, {"RandFlipImage": {}}]
POLICIES = {
    "plain": [],
    "RandAugment": [{"RandAugment": {"num_layers": 2, "magnitude": 9}}],
    "AutoAugment": [{"AutoAugment": {}}],
    "TrivialAugment": [{"TrivialAugment": {}}],
    "ColorJitter": [{"ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}}],
    "timm's rand-m9-mstd0.5-inc1": [{"TimmAutoAugment": {"config_str": "rand-m9-mstd0.5-inc1"}}],
    "RandomErasing": [{"RandomErasing": {"EPSILON": 0.25, "mode": "pixel"}}],
}
RECIPE = (
    ROOT / "configs/recipes/modern_xception41.yaml"
)  # a bicubic crop by Pillow, timm's policy, normalisation, erasing


def ours(ops: Sequence[Any]) -> Step:
    host, _ = split_for_device(build_transforms(ops))
    rng = np.random.default_rng(0)
    return lambda data: host(data, rng)


def ours_packed(ops: Sequence[Any], folder: Path) -> Step:
    """The same of a sample of packed data."""
    dataset, step = PackedDataset(str(folder), ops), ours(ops)
    return lambda i: step(dataset.read(i))


def packed(data: Sequence[bytes], folder: Path) -> Path:
    """Pack images."""
    for i, file in enumerate(data):
        (folder / f"{i}.jpg").write_bytes(file)
    (folder / "list.txt").write_text("".join(f"{i}.jpg 0\n" for i in range(len(data))))
    pack(folder / "list.txt", folder, output=str(folder / "packed"))
    return folder / "packed"


def torchvisions(name: str) -> Step | None:
    """torchvision's v2 on tensors, which its documentation recommends."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    policy = {
        "plain": [],
        "RandAugment": [v2.RandAugment(2, 9)],
        "AutoAugment": [v2.AutoAugment()],
        "TrivialAugment": [v2.TrivialAugmentWide()],
        "ColorJitter": [v2.ColorJitter(0.4, 0.4, 0.4)],
        "RandomErasing": [v2.RandomErasing(0.25)],
    }.get(name)
    if policy is None:
        return None  # a recipe has timm's policy
    steps = v2.Compose([v2.RandomResizedCrop(299, antialias=True), v2.RandomHorizontalFlip(), *policy])
    return lambda data: steps(
        decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    )


def timms(name: str) -> Step | None:
    """timm's, on Pillow's images."""
    import io

    from PIL import Image
    from timm.data.transforms_factory import transforms_imagenet_train

    words = {"plain": {}, "ColorJitter": {"color_jitter": 0.4}}
    words |= {
        "timm's rand-m9-mstd0.5-inc1": {"auto_augment": "rand-m9-mstd0.5-inc1"},
        "RandomErasing": {"re_prob": 0.25, "re_mode": "pixel"},
        RECIPE.stem: {
            "auto_augment": "rand-m9-mstd0.5-inc1",
            "re_prob": 0.25,
            "re_mode": "pixel",
            "interpolation": "bicubic",
        },
    }
    if name not in words:
        return None
    settings = {"color_jitter": None, "use_prefetcher": True, "separate": False, **words[name]}
    if "re_prob" in settings:
        settings["use_prefetcher"] = False
    steps = transforms_imagenet_train(299, **settings)

    def step(data: bytes) -> Any:
        with contextlib.suppress(
            ValueError
        ):  # timm 1.0.31 may posterize to 0 bits, which Pillow 13 refuses: a shorter way for timm
            return steps(Image.open(io.BytesIO(data)).convert("RGB"))

    return step


def rates(
    sides: dict[str, Step], data: list[bytes], rounds: int, from_pack: Step | None = None
) -> dict[str, float]:
    """Images a second of each side, and of ``from_pack`` as "ours, packed"."""

    def all_images(step: Step, images: Sequence[Any]) -> Callable[[], None]:
        return lambda: exhaust(map(step, images))

    runs = {name: all_images(step, data) for name, step in sides.items()}
    if from_pack is not None:
        runs["ours, packed"] = all_images(from_pack, range(len(data)))
    return measure(runs, len(data), rounds)


def images(folder: Path | None) -> list[bytes]:
    if folder is not None:
        files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in (".jpeg", ".jpg"))
        return [f.read_bytes() for f in files]
    from sklearn.datasets import load_sample_images

    return [
        cv2.imencode(".jpg", image[:, :, ::-1])[1].tobytes() for image in load_sample_images().images
    ] * 16


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=64, help="most images a round")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    data = images(given.folder)[: given.count]
    peers = {"torchvision": torchvisions, "timm": timms}
    peers = {name: make for name, make in peers.items() if importlib.util.find_spec(name)}
    with tempfile.TemporaryDirectory() as folder:
        pack_folder = packed(data, Path(folder))
        recipe = load_config(RECIPE).DataLoader.Train.dataset.transform_ops
        for name, ops in [
            *((name, [*BASE, *policy]) for name, policy in POLICIES.items()),
            (RECIPE.stem, recipe),
        ]:
            made = {peer: make(name) for peer, make in peers.items()}
            sides = {"ours": ours(ops), **{k: v for k, v in made.items() if v}}
            found = rates(sides, data, given.rounds, ours_packed(ops, pack_folder))
            for peer in found.keys() & peers:
                compare(f"{name}, a core", peer, found["ours"], found[peer], "images/s")
                compare(f"{name}, packed, a core", peer, found["ours, packed"], found[peer], "images/s")
            if not found.keys() & peers:
                print(f"{name:46} {found['ours']:.0f} images/s")
    for file in sorted((ROOT / "configs").rglob("*.yaml")):
        config = load_config(file)
        if config.DataLoader and config.DataLoader.Train:
            steps = ours(config.DataLoader.Train.dataset.transform_ops)
            print(
                f"{file.relative_to(ROOT)!s:34}{rates({'ours': steps}, data, given.rounds)['ours']:9.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
