"""Measures how much time saving checkpoints costs training.

    python scripts/benchmarks/checkpoint.py

Alternates rounds of steps of Xception41: without saving, with one of our checkpoints that starts in the
background at the first step, and with ``paddle.save`` of the same state instead. Prints medians of the time
the training loop was blocked, and of the time of a round.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import yaml
from ratios import compare  # scripts/benchmarks/ratios.py

import ppxcls
from ppxcls.train.trainer import Trainer
from tests.conftest import small_config, write_images


def make_trainer(folder: Path, size: int, batch: int) -> Trainer:
    """Returns a trainer of Xception41 with 1,000 classes."""
    data = write_images(folder / "data", batch)
    keys = {
        "Arch.class_num": 1000,
        "Optimizer.lr": {"name": "ConstLR", "learning_rate": 0.01},
        "Global.eval_during_train": False,
        "DataLoader.Train.sampler.batch_size": batch,
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(small_config(data, folder / "output", **keys)))
    crop = f"DataLoader.Train.dataset.transform_ops.RandCropImage.size={size}"
    return ppxcls.build_trainer(ppxcls.load_config(file, [crop]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="training steps per round")
    parser.add_argument("--size", type=int, default=299)
    parser.add_argument("--batch", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trainer = make_trainer(folder, arguments.size, arguments.batch)
        import paddle

        images = paddle.randn([arguments.batch, 3, arguments.size, arguments.size])
        labels = paddle.arange(arguments.batch)

        def save_with_paddle() -> None:
            paddle.save(trainer.learner.network.state_dict(), str(folder / "theirs.pdparams"))
            paddle.save(trainer.learner.optimizer.state_dict(), str(folder / "theirs.pdopt"))

        methods: dict[str, Callable[[], object]] = {
            "without": lambda: None,
            "in the background": lambda: trainer.save(["latest"]),
            "paddle.save": save_with_paddle,
        }
        blocked_seconds: dict[str, list[float]] = {method: [] for method in methods}
        round_seconds: dict[str, list[float]] = {method: [] for method in methods}
        trainer.learner.model.train()
        trainer.learner.step(images, labels, 1.0, is_update_step=True)
        for _ in range(arguments.rounds):
            for method, save in methods.items():
                start = time.perf_counter()
                save()
                blocked_seconds[method].append(time.perf_counter() - start)
                for _ in range(arguments.steps):
                    float(trainer.learner.step(images, labels, 1.0, is_update_step=True)[-1])
                round_seconds[method].append(time.perf_counter() - start)
                trainer.run.folder.wait()
    base_seconds = median(round_seconds["without"])
    for method in methods:
        save_seconds = median(round_seconds[method]) - base_seconds
        print(
            f"{method:18} the loop stood still {median(blocked_seconds[method]):6.3f} s; "
            f"{arguments.steps} steps took {median(round_seconds[method]):6.2f} s, "
            f"{save_seconds:+.2f} s: a save costs {save_seconds / (base_seconds / arguments.steps):.2f} steps"
        )
    compare(
        "the loop stands still for a save",
        "paddle.save",
        median(blocked_seconds["in the background"]),
        median(blocked_seconds["paddle.save"]),
        "s",
    )


if __name__ == "__main__":
    main()
