"""Held-out accuracy on the digits beside timm's, over seeds: ``python scripts/compare_frameworks.py --epochs 2 --seeds 3``.

    pip install torch timm

Both train xception41 on the same batches, of the loader of configs/quickstart.yaml, with the same loss, optimizer and schedule.
Each starts from its own initial weights. Prints top-1 after each epoch, and the seconds of training.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

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
    import numpy as np
    import timm
    import torch

    from ppxcls.build import build_loader
    from ppxcls.train.lr_schedules import build_lr_schedule

    torch.manual_seed(config.Global.seed)
    train, held_out = build_loader(config, "Train"), build_loader(config, "Eval")
    model = timm.create_model("xception41", num_classes=10).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    rate = build_lr_schedule(config.Optimizer.lr, config.Global.epochs, len(train))

    def images_of(batch: Any) -> Any:
        images = torch.from_numpy(np.ascontiguousarray(batch.images.transpose(0, 3, 1, 2))).float()
        return ((images / 255 - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)

    step, found, seconds = 0, [], 0.0
    for epoch in range(1, config.Global.epochs + 1):
        model.train()
        start = time.perf_counter()
        for batch in train.epoch(epoch):
            optimizer.param_groups[0]["lr"] = rate(step)
            loss = torch.nn.functional.cross_entropy(model(images_of(batch)), torch.from_numpy(batch.labels), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        seconds += time.perf_counter() - start
        model.eval()
        with torch.no_grad():
            right = [(model(images_of(b)).argmax(1).numpy() == b.labels).sum() for b in held_out.epoch(0)]
        found.append(float(sum(right)) / len(held_out.dataset))
    return found, seconds


SIDES: dict[str, Callable[[Any], Result]] = {"ours": ours, "timm": timms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    import ppxcls

    results: dict[str, list[Result]] = {name: [] for name in SIDES}
    for seed in range(given.seeds):
        for name, train in SIDES.items():
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                keys = [f"Global.epochs={given.epochs}", f"Global.seed={seed}", f"Global.output_dir={folder}"]
                keys += ["Global.use_visualdl=False", "Global.print_batch_step=1"]
                results[name].append(train(ppxcls.load_config(ROOT / "configs/quickstart.yaml", keys)))
            tops, seconds = results[name][-1]
            print(f"seed {seed}, {name}: top-1 {', '.join(f'{top:.4f}' for top in tops)} in {seconds:.0f} s", flush=True)
    for name, found in results.items():
        last = [tops[-1] for tops, _ in found]
        print(f"{name}: mean top-1 {mean(last):.4f} ({min(last):.4f} to {max(last):.4f}), {mean(s for _, s in found):.0f} s")


if __name__ == "__main__":
    main()
