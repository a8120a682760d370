"""Measures images/s of training transforms on one core, against torchvision and timm.

    pip install torch torchvision timm             # the peers; without them, only our rates are printed
    python scripts/benchmarks/augment.py [FOLDER]  # images; without it, scikit-learn's two sample photos

All sides decode a JPEG, crop to 299 px, flip, and apply the policy. Ours reads from files and from packed
data. Prints ratios of medians over interleaved rounds. At the end it prints the rates of the transforms of
every YAML in ``configs/``.
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
from loader import exhaust, measure  # scripts/benchmarks/loader.py
from ratios import compare  # scripts/benchmarks/ratios.py

from ppxcls import build_transforms, load_config
from ppxcls.data.transforms import split_for_device
from ppxcls.packed.dataset import PackedDataset
from ppxcls.packed.write import pack

Step = Callable[[Any], Any]  # takes a file's bytes, a packed sample's data, or a packed sample's number
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
# Bicubic crop as in Pillow, timm's policy, normalisation, erasing.
RECIPE = ROOT / "configs/recipes/modern_xception41.yaml"


def our_step(ops: Sequence[Any]) -> Step:
    host, _ = split_for_device(build_transforms(ops))
    rng = np.random.default_rng(0)
    return lambda data: host(data, rng)


def our_packed_step(ops: Sequence[Any], folder: Path) -> Step:
    """Returns the same transforms for a sample of packed data."""
    dataset, step = PackedDataset(str(folder), ops), our_step(ops)
    return lambda i: step(dataset.read(i))


def write_pack(data: Sequence[bytes], folder: Path) -> Path:
    """Packs images and returns the folder of the packed data set."""
    for i, file in enumerate(data):
        (folder / f"{i}.jpg").write_bytes(file)
    (folder / "list.txt").write_text("".join(f"{i}.jpg 0\n" for i in range(len(data))))
    pack(folder / "list.txt", folder, output=str(folder / "packed"))
    return folder / "packed"


def torchvision_step(name: str) -> Step | None:
    """Returns torchvision's v2 transforms on tensors, as recommended in its documentation."""
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
        return None  # torchvision has no counterpart for this name
    steps = v2.Compose([v2.RandomResizedCrop(299, antialias=True), v2.RandomHorizontalFlip(), *policy])
    return lambda data: steps(
        decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    )


def timm_step(name: str) -> Step | None:
    """Returns timm's transforms, on Pillow images."""
    import io

    from PIL import Image
    from timm.data.transforms_factory import transforms_imagenet_train

    policy_settings = {"plain": {}, "ColorJitter": {"color_jitter": 0.4}}
    policy_settings |= {
        "timm's rand-m9-mstd0.5-inc1": {"auto_augment": "rand-m9-mstd0.5-inc1"},
        "RandomErasing": {"re_prob": 0.25, "re_mode": "pixel"},
        RECIPE.stem: {
            "auto_augment": "rand-m9-mstd0.5-inc1",
            "re_prob": 0.25,
            "re_mode": "pixel",
            "interpolation": "bicubic",
        },
    }
    if name not in policy_settings:
        return None
    settings = {"color_jitter": None, "use_prefetcher": True, "separate": False, **policy_settings[name]}
    if "re_prob" in settings:
        settings["use_prefetcher"] = False
    steps = transforms_imagenet_train(299, **settings)

    def step(data: bytes) -> Any:
        with contextlib.suppress(
            ValueError
        ):  # timm 1.0.31 may posterize to 0 bits, an error in Pillow 13; the early end favours timm
            return steps(Image.open(io.BytesIO(data)).convert("RGB"))

    return step


def rates(
    sides: dict[str, Step], data: list[bytes], rounds: int, from_pack: Step | None = None
) -> dict[str, float]:
    """Returns the images/s of each variant.

    If ``from_pack`` is given, its rate has the name "ours, packed".
    """

    def all_images(step: Step, images: Sequence[Any]) -> Callable[[], None]:
        return lambda: exhaust(map(step, images))

    runs = {name: all_images(step, data) for name, step in sides.items()}
    if from_pack is not None:
        runs["ours, packed"] = all_images(from_pack, range(len(data)))
    return measure(runs, len(data), rounds)


def read_images(folder: Path | None) -> list[bytes]:
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
    parser.add_argument("--count", type=int, default=64, help="maximum number of images per round")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    data = read_images(arguments.folder)[: arguments.count]
    peers = {"torchvision": torchvision_step, "timm": timm_step}
    peers = {name: make for name, make in peers.items() if importlib.util.find_spec(name)}
    with tempfile.TemporaryDirectory() as folder:
        pack_folder = write_pack(data, Path(folder))
        recipe = load_config(RECIPE).DataLoader.Train.dataset.transform_ops
        for name, ops in [
            *((name, [*BASE, *policy]) for name, policy in POLICIES.items()),
            (RECIPE.stem, recipe),
        ]:
            peer_steps = {peer: make(name) for peer, make in peers.items()}
            sides = {"ours": our_step(ops), **{peer: step for peer, step in peer_steps.items() if step}}
            side_rates = rates(sides, data, arguments.rounds, our_packed_step(ops, pack_folder))
            for peer in side_rates.keys() & peers:
                compare(f"{name}, a core", peer, side_rates["ours"], side_rates[peer], "images/s")
                compare(
                    f"{name}, packed, a core", peer, side_rates["ours, packed"], side_rates[peer], "images/s"
                )
            if not side_rates.keys() & peers:
                print(f"{name:46} {side_rates['ours']:.0f} images/s")
    for file in sorted((ROOT / "configs").rglob("*.yaml")):
        config = load_config(file)
        if config.DataLoader and config.DataLoader.Train:
            steps = our_step(config.DataLoader.Train.dataset.transform_ops)
            print(
                f"{file.relative_to(ROOT)!s:34}{rates({'ours': steps}, data, arguments.rounds)['ours']:9.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
