"""What saving costs training: ``python scripts/benchmarks/checkpoint.py``.

Rounds of steps of Xception41 in turn: without saving, with one of our checkpoints begun in the background at
the first step, and with ``paddle.save`` of the same state in its place. Prints how long the loop stood still,
and what a round took, as medians.
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
from ratios import compare  # of this folder

import ppxcls
from ppxcls.train.trainer import Trainer
from tests.conftest import small_config, write_images


def make(folder: Path, size: int, batch: int) -> Trainer:
    """A trainer of Xception41 with 1,000 classes."""
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
    parser.add_argument("--steps", type=int, default=5, help="of a round")
    parser.add_argument("--size", type=int, default=299)
    parser.add_argument("--batch", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trainer = make(folder, arguments.size, arguments.batch)
        import paddle

        images = paddle.randn([arguments.batch, 3, arguments.size, arguments.size])
        labels = paddle.arange(arguments.batch)

        def theirs() -> None:
            paddle.save(trainer.learner.network.state_dict(), str(folder / "theirs.pdparams"))
            paddle.save(trainer.learner.optimizer.state_dict(), str(folder / "theirs.pdopt"))

        ways: dict[str, Callable[[], object]] = {
            "without": lambda: None,
            "in the background": lambda: trainer.save(["latest"]),
            "paddle.save": theirs,
        }
        stood: dict[str, list[float]] = {way: [] for way in ways}
        took: dict[str, list[float]] = {way: [] for way in ways}
        trainer.learner.model.train()
        trainer.learner.step(images, labels, 1.0, is_update_step=True)
        for _ in range(arguments.rounds):
            for way, save in ways.items():
                start = time.perf_counter()
                save()
                stood[way].append(time.perf_counter() - start)
                for _ in range(arguments.steps):
                    float(trainer.learner.step(images, labels, 1.0, is_update_step=True)[-1])
                took[way].append(time.perf_counter() - start)
                trainer.run.folder.wait()
    base = median(took["without"])
    for way in ways:
        cost = median(took[way]) - base
        print(
            f"{way:18} the loop stood still {median(stood[way]):6.3f} s; "
            f"{arguments.steps} steps took {median(took[way]):6.2f} s, "
            f"{cost:+.2f} s: a save costs {cost / (base / arguments.steps):.2f} steps"
        )
    compare(
        "the loop stands still for a save",
        "paddle.save",
        median(stood["in the background"]),
        median(stood["paddle.save"]),
        "s",
    )


if __name__ == "__main__":
    main()
