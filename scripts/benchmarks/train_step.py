"""Seconds and memory of a training step of Xception41 on the CPU: ours, Paddle as it comes, timm on torch
where
that is installed.

    python scripts/benchmarks/train_step.py [--size 299 --batch 4 --rounds 7]

Each variant runs in a process of its own, and they take turns, a step each: medians over the rounds, and
their ratios. The last lines say what the loop around the step costs: batches, log lines and all, with a step
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

from ratios import compare, untuned  # of this folder

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def paddle_step(size: int, batch: int) -> Callable[[], Any]:
    """Forward, backward and Momentum with L2, as configs/Xception41.yaml trains."""
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
    optimizer, _ = build_optimizer(spec, dict(model.named_parameters()), lambda _: 0.01)
    loss_fn = build_loss([{"CELoss": {"epsilon": 0.1}}])
    rng = np.random.default_rng(0)
    images = paddle.to_tensor(rng.normal(0, 1, (batch, 3, size, size)).astype(np.float32))
    labels = paddle.to_tensor(rng.integers(0, 1000, batch))

    def step() -> None:
        loss_fn(model(images), labels)["loss"].backward()
        optimizer.step()
        optimizer.clear_grad()

    return step


def ours(size: int, batch: int) -> Callable[[], Any]:
    import ppxcls

    assert ppxcls.build_model  # imports Paddle as ppxcls sets it up
    return paddle_step(size, batch)


def ours_by_paddle(size: int, batch: int) -> Callable[[], Any]:
    """Ours with Paddle's own products, image by image, in place of oneDNN's."""
    import ppxcls

    assert ppxcls.build_model
    from ppxcls.ops import onednn

    onednn.is_available = lambda: False
    return paddle_step(size, batch)


def paddle_as_it_comes(size: int, batch: int) -> Callable[[], Any]:
    """The same network on Paddle's own operators, with nothing set before its import."""
    import paddle  # noqa: F401

    from ppxcls.ops import cpu

    cpu.are_plain = lambda *_: False  # then no operator of ours applies
    return paddle_step(size, batch)


def ours_in_bfloat16(size: int, batch: int) -> Callable[[], Any]:
    """As ``AMP: {dtype: bfloat16}`` trains on a CPU that has it."""
    import ppxcls
    from ppxcls.ops.convolution import to_bfloat16

    build = ppxcls.build_model

    def in_bfloat16(name: str) -> Any:
        model = build(name)
        to_bfloat16(model)
        return model

    ppxcls.build_model = in_bfloat16
    return paddle_step(size, batch)


def timm_on_torch(size: int, batch: int, *, tuned: bool = False, bfloat16: bool = False) -> Callable[[], Any]:
    """timm's network on torch, as it comes; or tuned: channels last, freed memory kept by the C library, SGD
    in one kernel."""
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
        model.parameters(), multi_precision=0.01, momentum=0.9, weight_decay=1e-4, fused=tuned or None
    )

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(images)
        torch.nn.functional.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


WARM_UP = 4  # steps that compile, and in which the allocator still asks the kernel for pages

VARIANTS = {
    "ours": ours,
    "ours, bfloat16": ours_in_bfloat16,
    "ours, Paddle's products": ours_by_paddle,
    "paddle": paddle_as_it_comes,
    "timm": timm_on_torch,
    "timm, tuned": partial(timm_on_torch, tuned=True),
    "timm, tuned, bfloat16": partial(timm_on_torch, tuned=True, bfloat16=True),
}


def work(name: str, size: int, batch: int) -> None:
    """A worker: a line in is a step, a line out its seconds.

    At the end it gives its largest resident memory.
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
        """Seconds."""
        assert self.process.stdin
        print(file=self.process.stdin, flush=True)
        return self._number("seconds ")

    def end(self) -> float:
        """The largest memory of the process, in GB."""
        assert self.process.stdin
        self.process.stdin.close()
        return self._number("memory ")

    def _number(self, name: str) -> float:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(name):
                return float(line.split()[1])
        raise RuntimeError("a worker died")


def steps(size: int, batch: int, rounds: int, only: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds, and GB of memory, of each variant that can run here."""
    has_peer = all(importlib.util.find_spec(module) for module in ("timm", "torch"))
    names = [name for name in VARIANTS if has_peer or not name.startswith("timm")]
    names = [name for name in names if not only or name in only]
    workers = {name: Worker(name, size, batch) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + WARM_UP):
        for name, worker in workers.items():
            elapsed = worker.step()
            if number >= WARM_UP:
                seconds[name].append(elapsed)
    memory = {name: worker.end() for name, worker in workers.items()}
    return {name: statistics.median(values) for name, values in seconds.items()}, memory


def loop_seconds(size: int, batch: int) -> float:
    """Seconds an iteration of the whole loop takes beside the step: real images, log lines every ten, a step
    that does nothing."""
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
        train = "DataLoader.Train"
        config = ppxcls.load_config(
            ROOT / "configs/Xception41.yaml",
            [
                *(
                    "Global.device=cpu",
                    f"Global.output_dir={folder}/output",
                    "Global.eval_during_train=False",
                ),
                *(
                    f"{train}.dataset.image_root={folder}",
                    f"{train}.dataset.cls_label_path={folder}/list.txt",
                ),
                *(
                    f"{train}.sampler.batch_size={batch}",
                    f"{train}.dataset.transform_ops.RandCropImage.size={size}",
                ),
                f"{train}.loader.num_workers=2",
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
    parser.add_argument("--size", type=int, default=299, help="pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--only", action="append", default=[], choices=VARIANTS, help="repeatable; default: all; ours always"
    )
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.size, arguments.batch)
        return
    only = ["ours", *arguments.only] if arguments.only else []
    medians, memory = steps(arguments.size, arguments.batch, arguments.rounds, only)
    for name, seconds in medians.items():
        if name != "ours":
            what = f"a step at {arguments.size} px, batch {arguments.batch}"
            compare(what, name, medians["ours"], seconds, "s")
            compare(f"{what}: memory", name, memory["ours"], memory[name], "GB")
    loop = loop_seconds(arguments.size, arguments.batch)
    print(
        f"loop                     {loop * 1000:7.2f} ms an iteration, "
        f"decoding and all: {loop / medians['ours']:.2%} of our step"
    )


if __name__ == "__main__":
    main()
