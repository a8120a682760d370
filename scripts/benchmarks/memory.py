"""Measures memory, open files and threads of a long training run with many features on.

    python scripts/benchmarks/memory.py --steps 2000

Prints resident memory, open files and threads after every hundredth of the run. Also prints the increase of
the median memory from the second quarter to the last. Checkpoints inside the epoch, evaluations, curves, a
progress bar, skipped images and mixup are on.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import ppxcls
from ppxcls.train.loss_watch import LossWatch
from tests.conftest import small_config, write_images


def resident_bytes() -> int:
    """Returns the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    import yaml

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = write_images(Path(folder) / "data", 80)
        write_images(data, 8, seed=1, name="val")
        (data / "train/0003.png").write_bytes(b"")
        steps_per_epoch = 20
        keys = {
            "Global.epochs": -(-arguments.steps // steps_per_epoch),
            "Global.save_interval": 1000,
            "Global.save_interval_steps": 7,
            "Global.use_visualdl": True,
            "Global.on_bad_image": "skip",
            "Global.max_bad_share": 0.1,
            "Global.print_batch_step": 5,
            "Global.eval_interval": 5,
            "DataLoader.Train.dataset.batch_transform_ops": [{"MixupOperator": {"alpha": 0.2}}],
            "DataLoader.Train.loader": {"num_workers": 2},
        }
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(small_config(data, Path(folder) / "output", **keys)))
        trainer = ppxcls.build_trainer(ppxcls.load_config(file))
        rows: list[tuple[int, int, int, int]] = []
        interval_steps = max(1, arguments.steps // 100)
        original_add = LossWatch.add

        def add_and_record(self: LossWatch, step: object) -> None:
            original_add(self, step)  # type: ignore[arg-type]
            if trainer.progress.step % interval_steps == 0:
                rows.append(
                    (
                        trainer.progress.step,
                        resident_bytes(),
                        len(os.listdir("/proc/self/fd")),
                        threading.active_count(),
                    )
                )

        LossWatch.add = add_and_record  # type: ignore[assignment, method-assign]
        trainer.fit()
    for step, memory, files, threads in rows:
        print(f"step {step:5}  {memory / 2**20:8.1f} MiB  {files} files  {threads} threads")
    quarter = len(rows) // 4
    second_median, last_median = (
        median(row[1] for row in part) for part in (rows[quarter : 2 * quarter], rows[-quarter:])
    )
    print(
        f"medians in MiB: second quarter {second_median / 2**20:.1f}, last "
        f"quarter {last_median / 2**20:.1f}: {(last_median - second_median) / 2**20:+.1f}"
    )
    for name, column in (("files", 2), ("threads", 3)):
        print(f"{name}: {min(row[column] for row in rows)} to {max(row[column] for row in rows)}")


if __name__ == "__main__":
    main()
