"""Compares the losses of 1, 2 and 4 processes with the same samples per step.

    python scripts/processes.py

Trains Xception41 on scikit-learn's digits on the CPU, with and without synchronised batch norms. Draws the
loss curves on top of each other in ``processes.png``. The runs see the same samples in the same order, so
with synchronised batch norms only rounding differs. Prints the largest difference from one process's losses.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import make_digits  # scripts/make_digits.py

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ppxcls.reports.curves import pyplot

PROCESS_COUNTS = (1, 2, 4)


def losses(data: Path, processes: int, batch: int, *, is_synchronised: bool) -> list[float]:
    """Trains one epoch and returns the loss of each step."""
    output = data / f"{processes}-{is_synchronised}"
    keys = {
        "DataLoader.Train.dataset.image_root": data,
        "DataLoader.Train.dataset.cls_label_path": data / "steps_list.txt",
        "DataLoader.Train.sampler.batch_size": batch // processes,
        "DataLoader.Train.sampler.drop_last": True,
        "Arch.use_sync_bn": is_synchronised,
        "Optimizer.lr.learning_rate": 0.02,
        "Global.epochs": 1,
        "Global.print_batch_step": 1,
        "Global.use_visualdl": False,
        "Global.eval_during_train": False,
        "Global.output_dir": output,
    }
    words = [word for key, value in keys.items() for word in ("-o", f"{key}={value}")]
    launch = [
        "-m",
        "paddle.distributed.launch",
        "--nproc_per_node",
        str(processes),
        "--log_dir",
        str(data / "log"),
    ]
    command = [
        sys.executable,
        *(launch if processes > 1 else []),
        "tools/train.py",
        "-c",
        "configs/quickstart.yaml",
        *words,
    ]
    # S603: runs this repository's tool with numbers that argparse has parsed, without a shell.
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)  # noqa: S603
    rows = map(json.loads, (output / "Xception41/metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if row["kind"] == "train"]


def make_data(folder: Path, samples: int) -> None:
    """Writes the digits, and a list of the first ``samples`` training samples."""
    make_digits.make(folder)
    lines = (folder / "train_list.txt").read_text().splitlines(keepends=True)
    (folder / "steps_list.txt").write_text("".join(lines[:samples]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--batch", type=int, default=32, help="images per step in all processes together (default: 32)"
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path("processes.png"))
    arguments = parser.parse_args()
    figure, axes = pyplot().subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), arguments.batch * arguments.steps)
        for axis, is_synchronised in zip(axes, (True, False), strict=True):
            axis.set_title(f"batch norms {'synchronised' if is_synchronised else 'of each process'}")
            losses_by_count = {
                count: losses(Path(folder), count, arguments.batch, is_synchronised=is_synchronised)
                for count in PROCESS_COUNTS
            }
            for (count, values), width in zip(losses_by_count.items(), (6, 3, 1), strict=True):
                axis.plot(
                    values,
                    linewidth=width,
                    alpha=0.4 if width > 1 else 1,
                    label=f"{count} process{'es' if count > 1 else ''}",
                )
            differences = {
                count: max(
                    abs(a - b) for a, b in zip(losses_by_count[1], losses_by_count[count], strict=True)
                )
                for count in PROCESS_COUNTS[1:]
            }
            print(
                f"batch norms synchronised: {is_synchronised}; "
                f"{arguments.steps} steps; largest distance: {differences}",
                flush=True,
            )
            axis.set_xlabel("step")
            axis.legend()
        axes[0].set_ylabel("training loss")
    figure.savefig(arguments.output, dpi=110)


if __name__ == "__main__":
    main()
