"""The losses of 1, 2 and 4 processes with the same samples a step, over one another: ``python scripts/processes.py``.

Trains Xception41 on the digits of ``scripts/make_digits.py`` on the CPU, with batch norms synchronized and not, and writes
``processes.png``. The runs see the same samples in the same order, so with synchronized batch norms only rounding differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ppxcls.reports.curves import pyplot

PROCESSES = (1, 2, 4)


def losses(processes: int, batch: int, epochs: int, synchronized: bool, folder: Path) -> list[float]:
    """The loss of each step."""
    output = folder / f"{processes}-{synchronized}"
    keys = {
        "DataLoader.Train.sampler.batch_size": batch // processes,
        "DataLoader.Train.sampler.drop_last": True,
        "Arch.use_sync_bn": synchronized,
        "Global.epochs": epochs,
        "Global.print_batch_step": 1,
        "Global.use_visualdl": False,
        "Global.eval_during_train": False,
        "Global.output_dir": output,
    }
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes), "--log_dir", str(folder / "log")]
    command = [sys.executable, *(launch if processes > 1 else []), "tools/train.py", "-c", "configs/quickstart.yaml"]
    # S603: this package's own tool, with numbers that argparse has parsed; no shell.
    words = [word for key, value in keys.items() for word in ("-o", f"{key}={value}")]
    subprocess.run([*command, *words], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)  # noqa: S603
    rows = map(json.loads, (output / "Xception41/metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "batch_cost" in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="images of all processes in a step (default: 32)")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("processes.png"))
    given = parser.parse_args()
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    with tempfile.TemporaryDirectory() as folder:
        for axis, synchronized in zip(axes, (True, False), strict=True):
            axis.set_title(f"batch norms {'synchronized' if synchronized else 'of each process'}")
            found = {n: losses(n, given.batch, given.epochs, synchronized, Path(folder)) for n in PROCESSES}
            for (n, values), width in zip(found.items(), (5, 3, 1), strict=True):
                axis.plot(values, linewidth=width, alpha=0.4 if width > 1 else 1, label=f"{n} process{'es' if n > 1 else ''}")
            apart = {n: max(abs(a - b) for a, b in zip(found[1], found[n], strict=True)) for n in PROCESSES[1:]}
            print(f"synchronized: {synchronized}; {len(found[1])} steps; largest distance from one process: {apart}", flush=True)
            axis.set_xlabel("step")
            axis.legend()
        axes[0].set_ylabel("training loss")
    figure.savefig(given.output, dpi=110)


if __name__ == "__main__":
    main()
