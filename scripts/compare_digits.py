"""Compares training recipes on the digits, over several seeds.

    python scripts/compare_digits.py --epochs 1 --seeds 3

Trains configs/quickstart.yaml unchanged and with one change at a time, and prints a table of held-out top-1.
The digits are 80 px images and are not representative of photographs. The table is a measurement, not a
prediction for your data.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

import yaml

ROOT = Path(__file__).resolve().parents[1]
TRAIN_DATASET = "DataLoader.Train.dataset"


def variants() -> dict[str, list[str]]:
    """Returns overrides by name. Each changes one thing of the baseline: cross entropy without smoothing."""
    config = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())
    ops = config["DataLoader"]["Train"]["dataset"]["transform_ops"]
    normalize_index = next(i for i, op in enumerate(ops) if "NormalizeImage" in op)
    augmented_ops = [
        *ops[:normalize_index],
        {"RandAugment": {"num_layers": 2, "magnitude": 5}},
        *ops[normalize_index:],
    ]
    plain_loss = "Loss.Train=[{CELoss: {epsilon: 0.0}}]"
    return {
        "baseline": [plain_loss],
        "label smoothing 0.1": ["Loss.Train=[{CELoss: {epsilon: 0.1}}]"],
        "mixup 0.2": [plain_loss, f"{TRAIN_DATASET}.batch_transform_ops=[{{MixupOperator: {{alpha: 0.2}}}}]"],
        "EMA 0.97": [plain_loss, "EMA={decay: 0.97, warmup: True}"],
        "RandAugment 2, 5": [plain_loss, f"{TRAIN_DATASET}.transform_ops={json.dumps(augmented_ops)}"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", default="output/compare")
    arguments = parser.parse_args()
    print(
        f"| {arguments.epochs} epochs | "
        f"{' | '.join(f'seed {seed}' for seed in range(arguments.seeds))} | mean |"
    )
    print("|---" * (arguments.seeds + 2) + "|")
    for name, overrides in variants().items():
        accuracies = []
        for seed in range(arguments.seeds):
            folder = Path(arguments.output) / name.replace(" ", "_").replace(",", "") / str(seed)
            settings = [
                *overrides,
                f"Global.seed={seed}",
                f"Global.epochs={arguments.epochs}",
                f"Global.output_dir={folder}",
            ]
            settings += ["Global.use_visualdl=False", "Global.save_interval=1000"]
            command = [sys.executable, "tools/train.py", "-c", "configs/quickstart.yaml"]
            command += [part for setting in settings for part in ("-o", setting)]
            # S603: runs this repository's tool with the overrides above, without a shell.
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)  # noqa: S603
            lines = (ROOT / folder / "Xception41/metrics.jsonl").read_text().splitlines()
            accuracies.append(json.loads(lines[-1])["top1"])
        print(
            f"| {name} | {' | '.join(f'{v:.4f}' for v in accuracies)} | {mean(accuracies):.4f} |", flush=True
        )


if __name__ == "__main__":
    main()
