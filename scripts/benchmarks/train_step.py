"""Measures seconds and memory of a training step of Xception41 on the CPU.

    python scripts/benchmarks/train_step.py [--size 299 --batch 4 --rounds 7]

Compares this package, plain Paddle, and timm on torch if that is installed. Each variant runs in its own
process, and they alternate step by step. Prints medians over the rounds, and their ratios. The last line
shows the cost of the training loop around the step: batches, log lines and everything else, with a step
that does nothing.
"""

import argparse
import importlib.util
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ratios import compare, untuned  # scripts/benchmarks/ratios.py

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def paddle_step(size: int, batch: int) -> Callable[[], Any]:
    """Returns a step: forward and backward pass, and Momentum with L2, as in configs/Xception41.yaml."""
    import numpy as np
    import paddle

    import ppxcls
    from ppxcls.train.losses import build_loss
    from ppxcls.train.optimizers import build_optimizer

    model = ppxcls.build_model("Xception41")
    spec = {
        "name": "Momentum",
        "momentum": 0.9,
        "lr": {"name": "ConstLR", "learning_rate": 0.01},
        "regularizer": {"name": "L2", "coeff": 1e-4},
    }
    optimizer, _ = build_optimizer(spec, dict(model.named_parameters()), lr_at=lambda _: 0.01)
    loss_fn = build_loss([{"CELoss": {"epsilon": 0.1}}])
    rng = np.random.default_rng(0)
    images = paddle.to_tensor(rng.normal(0, 1, (batch, 3, size, size)).astype(np.float32))
    labels = paddle.to_tensor(rng.integers(0, 1000, batch))

    def step() -> None:
        loss_fn(model(images), labels)["loss"].backward()
        optimizer.step()
        optimizer.clear_grad()

    return step


def our_step(size: int, batch: int) -> Callable[[], Any]:
    import ppxcls

    assert ppxcls.build_model  # imports Paddle with ppxcls's settings
    return paddle_step(size, batch)


def our_step_with_paddle_products(size: int, batch: int) -> Callable[[], Any]:
    """Returns our step with Paddle's matrix products, image by image, instead of oneDNN's."""
    import ppxcls

    assert ppxcls.build_model
    from ppxcls.ops import onednn

    onednn.is_available = lambda: False
    return paddle_step(size, batch)


def plain_paddle_step(size: int, batch: int) -> Callable[[], Any]:
    """Returns a step of the same network with Paddle's operators and without ppxcls's settings."""
    import paddle  # noqa: F401

    from ppxcls.ops import cpu

    cpu.are_plain = lambda *_: False  # turns this package's operators off
    return paddle_step(size, batch)


def our_bfloat16_step(size: int, batch: int) -> Callable[[], Any]:
    """Returns our step as trained with ``AMP: {dtype: bfloat16}`` on a CPU that supports it."""
    import ppxcls
    from ppxcls.ops.convolution import to_bfloat16

    build_model = ppxcls.build_model

    def build_in_bfloat16(name: str) -> Any:
        model = build_model(name)
        to_bfloat16(model)
        return model

    ppxcls.build_model = build_in_bfloat16
    return paddle_step(size, batch)


def timm_step(size: int, batch: int, *, tuned: bool = False, bfloat16: bool = False) -> Callable[[], Any]:
    """Returns a step of timm's network on torch.

    Args:
        size: image side in pixels.
        batch: number of images.
        tuned: True for channels last, freed memory kept by the C library, and SGD in one kernel.
        bfloat16: True for autocast to bfloat16.
    """
    if tuned:
        import ctypes

        for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            ctypes.CDLL("libc.so.6").mallopt(option, 1 << 30)
    import timm
    import torch

    model = timm.create_model("xception41").train()
    images, labels = torch.randn(batch, 3, size, size), torch.randint(0, 1000, (batch,))
    if tuned:
        model, images = (
            model.to(memory_format=torch.channels_last),
            images.to(memory_format=torch.channels_last),
        )
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=tuned or None
    )

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(images)
        torch.nn.functional.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


WARM_UP_STEPS = 4  # steps that compile kernels, or in which the allocator requests new pages

VARIANTS = {
    "ours": our_step,
    "ours, bfloat16": our_bfloat16_step,
    "ours, Paddle's products": our_step_with_paddle_products,
    "paddle": plain_paddle_step,
    "timm": timm_step,
    "timm, tuned": partial(timm_step, tuned=True),
    "timm, tuned, bfloat16": partial(timm_step, tuned=True, bfloat16=True),
}


def run_worker(name: str, size: int, batch: int) -> None:
    """Runs a worker: each input line starts a step, and the output line contains its seconds.

    At the end it prints the process's largest resident memory.
    """
    step = VARIANTS[name](size, batch)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(f"seconds {time.perf_counter() - start}", flush=True)
    print(f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}", flush=True)


class Worker:
    def __init__(self, name: str, size: int, batch: int) -> None:
        command = [sys.executable, __file__, "--worker", name, "--size", str(size), "--batch", str(batch)]
        self.process = subprocess.Popen(  # noqa: S603  this file itself, with numbers that argparse has parsed
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=untuned()
        )

    def step(self) -> float:
        """Runs one step and returns its seconds."""
        assert self.process.stdin
        print(file=self.process.stdin, flush=True)
        return self._number("seconds ")

    def end(self) -> float:
        """Ends the process and returns its largest resident memory in GB."""
        assert self.process.stdin
        self.process.stdin.close()
        return self._number("memory ")

    def _number(self, name: str) -> float:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(name):
                return float(line.split()[1])
        raise RuntimeError("a worker process ended unexpectedly")


def measure_steps(
    size: int, batch: int, rounds: int, selection: list[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the median seconds and the memory in GB of each variant that can run here."""
    has_peer = all(importlib.util.find_spec(module) for module in ("timm", "torch"))
    names = [name for name in VARIANTS if has_peer or not name.startswith("timm")]
    names = [name for name in names if not selection or name in selection]
    workers = {name: Worker(name, size, batch) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(rounds + WARM_UP_STEPS):
        for name, worker in workers.items():
            elapsed = worker.step()
            if round_number >= WARM_UP_STEPS:
                seconds[name].append(elapsed)
    memory = {name: worker.end() for name, worker in workers.items()}
    return {name: statistics.median(values) for name, values in seconds.items()}, memory


def loop_seconds(size: int, batch: int) -> float:
    """Returns the seconds per iteration of the training loop without the step.

    The loop reads real images and logs every ten iterations. The step does nothing.
    """
    import cv2
    import numpy as np

    import ppxcls

    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for i in range(32):
            pixels = cv2.resize(rng.integers(0, 255, (12, 16, 3)).astype(np.uint8), (500, 375))
            cv2.imwrite(f"{folder}/{i}.jpg", pixels)
        Path(f"{folder}/list.txt").write_text(
            "".join(f"{i % 32}.jpg {i % 1000}\n" for i in range(batch * 200))
        )
        section = "DataLoader.Train"
        config = ppxcls.load_config(
            ROOT / "configs/Xception41.yaml",
            [
                *(
                    "Global.device=cpu",
                    f"Global.output_dir={folder}/output",
                    "Global.eval_during_train=False",
                ),
                *(
                    f"{section}.dataset.image_root={folder}",
                    f"{section}.dataset.cls_label_path={folder}/list.txt",
                ),
                *(
                    f"{section}.sampler.batch_size={batch}",
                    f"{section}.dataset.transform_ops.RandCropImage.size={size}",
                ),
                f"{section}.loader.num_workers=2",
            ],
        )
        trainer = ppxcls.build_trainer(config)
        from ppxcls.system.logs import logger

        logger.handlers.clear()
        import paddle

        sums = paddle.ones([len(trainer.learner.scorer.names)])
        trainer.learner.step = lambda *_, **__: sums  # type: ignore[method-assign]
        trainer.train_one_epoch()
        start = time.perf_counter()
        trainer.progress.batches_done = 0
        trainer.train_one_epoch()
        return (time.perf_counter() - start) / len(trainer.loader)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=299, help="image side in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=VARIANTS,
        help="variant to run, repeatable (default: all); ours always runs",
    )
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        run_worker(arguments.worker, arguments.size, arguments.batch)
        return
    selection = ["ours", *arguments.only] if arguments.only else []
    medians, memory = measure_steps(arguments.size, arguments.batch, arguments.rounds, selection)
    for name, seconds in medians.items():
        if name != "ours":
            title = f"a step at {arguments.size} px, batch {arguments.batch}"
            compare(title, name, medians["ours"], seconds, "s")
            compare(f"{title}: memory", name, memory["ours"], memory[name], "GB")
    iteration_seconds = loop_seconds(arguments.size, arguments.batch)
    print(
        f"loop                     {iteration_seconds * 1000:7.2f} ms an iteration, "
        f"decoding and all: {iteration_seconds / medians['ours']:.2%} of our step"
    )


if __name__ == "__main__":
    main()
