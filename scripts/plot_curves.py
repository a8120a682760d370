"""Draw a run's loss and accuracy from its metrics.jsonl: ``python scripts/plot_curves.py output/Xception41``."""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds metrics.jsonl; curves.png is written beside it")
    folder = parser.parse_args().folder
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    for axis, name, title in zip(axes, ("loss", "top1", "lr"), ("loss", "top-1", "learning rate"), strict=True):
        for kind, style in (("train", {"linewidth": 1.5}), ("eval", {"marker": "o"})):
            points = [(row["step"], row[name]) for row in rows if row["kind"] == kind and row.get(name) is not None]
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    label={"train": "training, epoch so far", "eval": "held out"}[kind],
                    **style,
                )
        axis.set(title=title, xlabel="optimizer step")
        axis.grid(alpha=0.3)
        if name != "lr":
            axis.legend()
    figure.savefig(folder / "curves.png", dpi=110)


if __name__ == "__main__":
    main()
