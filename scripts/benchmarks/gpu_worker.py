"""Measures one row of ``gpu.py`` in this process, which may be one of several ranks."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from card_peaks import peak, step_operations  # scripts/benchmarks/card_peaks.py
from operators import count_operators, parts_wrapped, total  # scripts/benchmarks/operators.py
from precisions import PRECISIONS  # scripts/benchmarks/precisions.py
from torch_step import WARM_UP_STEPS, block_seconds  # scripts/benchmarks/torch_step.py

UNTIMED_BATCHES = 3  # the first ones wait for the loader to start


def build_trainer(arguments: argparse.Namespace) -> Any:
    """Returns a trainer of the network on the sample images."""
    import ppxcls

    data = "DataLoader.Train"
    overrides = [
        *(f"Arch.name={arguments.network}", f"Global.device={arguments.device}", "Global.epochs=1"),
        *("Global.eval_during_train=False", f"Global.output_dir={arguments.data}/output"),
        "Global.save_interval=9",
        *(f"{data}.dataset.image_root={arguments.data}", f"{data}.sampler.batch_size={arguments.batch}"),
        f"{data}.dataset.cls_label_path={arguments.data}/list.txt",
        f"{data}.dataset.transform_ops.RandCropImage.size={arguments.size}",
        f"{data}.loader.num_workers={arguments.workers}",
        *PRECISIONS[arguments.precision],
    ]
    if arguments.processes is not None:
        overrides.append(f"{data}.loader.num_processes={arguments.processes}")
    return ppxcls.build_trainer(ppxcls.load_config(ROOT / "configs/Xception41.yaml", overrides))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of one row."""
    trainer = build_trainer(arguments)
    import numpy as np
    import paddle
    import paddle.distributed as dist

    import ppxcls

    learner, world_size = trainer.learner, dist.get_world_size()
    rng = np.random.default_rng(0)
    shape = arguments.batch, 3, arguments.size, arguments.size
    images = paddle.to_tensor(rng.normal(0, 1, shape).astype(np.float32))
    labels = paddle.to_tensor(rng.integers(0, 1000, arguments.batch))

    def step() -> None:
        learner.step(images, labels, 1.0, is_update_step=True)

    with profile_block(arguments.profile):
        for _ in range(WARM_UP_STEPS):
            step()
    seconds = block_seconds(step, synchronize, arguments.steps)
    memory_gib = peak_memory()
    loader_ips, batch = loader_rate(trainer, arguments.loader_batches, world_size)

    def local_step() -> None:
        learner.step(images, labels, 1.0, is_update_step=False)
        learner.optimizer.clear_grad()

    part_names = part_seconds(lambda: trainer.train_on(batch), learner.network, arguments.steps)
    local_parts = part_names
    if world_size > 1:
        local_parts = part_seconds(local_step, learner.network, arguments.steps)
    name = arguments.card or device_name(arguments.device)
    row_peak = peak(name, arguments.precision)
    share = None
    if row_peak is not None:
        network = ppxcls.build_model(
            arguments.network
        )  # the trained one may be compiled, or in half precision
        operations = step_operations(network, arguments.size, arguments.batch)
        share = operations / seconds / (1e12 * row_peak[1])
    counts = count_operators(lambda: trainer.train_on(batch), learner.network)
    trainer.run.folder.release()
    return {
        "ips": arguments.batch * world_size / seconds,
        "ips_loader": loader_ips,
        "parts": {
            **part_names,
            "backward": local_parts["backward"],
            "all-reduce": max(0.0, part_names["backward"] - local_parts["backward"]),
        },
        "share_of_peak": share,
        "peak": row_peak and row_peak[0],
        "operators": {part: sum(names.values()) for part, names in counts.items()},
        "operators_in_all": None if "static" in arguments.precision else total(counts),
        "memory_gib": memory_gib,
        "paddle": paddle.__version__,
        "device": name,
        **{key: getattr(arguments, key) for key in ("batch", "size", "steps", "workers", "loader_batches")},
    }


def synchronize() -> None:
    """Waits for the device. On a CPU there is nothing to wait for."""
    import paddle

    if paddle.get_device() != "cpu":
        paddle.device.synchronize()


def peak_memory() -> float | None:
    """Returns the largest memory of the tensors so far in GiB; None if Paddle has no figure."""
    import paddle

    if not paddle.get_device().startswith("gpu"):
        return None
    return paddle.device.cuda.max_memory_allocated() / 2**30


@contextlib.contextmanager
def profile_block(folder: str | None) -> Iterator[None]:
    """Writes a trace of the block if a folder is given."""
    if not folder:
        yield
        return
    from paddle import profiler

    with profiler.Profiler(on_trace_ready=profiler.export_chrome_tracing(folder)):
        yield


def loader_rate(trainer: Any, batches: int, world_size: int) -> tuple[float, Any]:
    """Returns the images/s of training steps with the loader, and the last batch.

    Args:
        trainer: trainer whose epoch has more than ``batches`` batches, so that the loader never starts anew.
        batches: number of batches to measure.
        world_size: number of processes.
    """
    images, start = 0, 0.0
    iterator = trainer.loader.epoch(1)
    batch = None
    for number, batch in zip(range(-UNTIMED_BATCHES, batches), iterator, strict=False):
        if number == 0:
            synchronize()
            start = time.perf_counter()
        trainer.train_on(batch)
        images += len(batch.labels) if number >= 0 else 0
    synchronize()
    seconds = time.perf_counter() - start
    iterator.close()
    assert images == batches * trainer.loader.sampler.batch_size
    return images * world_size / seconds, batch


def part_seconds(step: Callable[[], object], network: Any, steps: int) -> dict[str, float]:
    """Returns the median seconds of the parts of a step.

    The device is synchronised before and after each part, so the sum is larger than the time of a whole step.
    A part inside another one, such as the clipping inside the optimizer's step, does not count for the outer.

    Args:
        step: training step.
        network: network that the step trains.
        steps: number of steps to measure.
    """
    current: dict[str, float] = {}
    inner_seconds = list[float]()

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            synchronize()
            start = time.perf_counter()
            inner_seconds.append(0.0)
            result = function(*arguments, **keywords)
            synchronize()
            elapsed = time.perf_counter() - start
            current[part] = current.get(part, 0.0) + elapsed - inner_seconds.pop()
            if inner_seconds:
                inner_seconds[-1] += elapsed
            return result

        return call

    seconds = defaultdict[str, list[float]](list)
    with parts_wrapped(network, timed):
        for _ in range(steps):
            current.clear()
            step()
            for part, value in current.items():
                seconds[part].append(value)
    return {part: statistics.median(values) for part, values in seconds.items()}


def device_name(device: str) -> str:
    import paddle

    if device.startswith("gpu"):
        return str(paddle.device.cuda.get_device_name())
    return f"{device}, {os.cpu_count()} cores" if device == "cpu" else device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("network", "precision", "device", "data", "output"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("batch", "size", "steps", "workers", "loader-batches"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--card")
    parser.add_argument("--profile")
    arguments = parser.parse_args()
    result = measure(arguments)
    import paddle.distributed as dist

    if dist.get_rank() == 0:
        Path(arguments.output).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
