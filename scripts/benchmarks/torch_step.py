"""Measures a training step of timm's network on torch. ``gpu.py`` runs it beside its own rows.

    python scripts/benchmarks/torch_step.py --network xception41 --precision bfloat16-nhwc --output torch.json

The step is the one that ``gpu.py`` measures: the same network, batch and image size, label smoothing, and SGD
with momentum and weight decay. torch searches for the fastest convolutions, and its optimizer is one kernel.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

WARM_UP_STEPS = 3
BLOCK_STEPS = 10  # steps between two synchronisations, because training does not wait after each step


def block_seconds(step: Callable[[], object], synchronize: Callable[[], object], steps: int) -> float:
    """Returns the median seconds of a step.

    Args:
        step: training step. The device may still be computing it when the call returns.
        synchronize: function that waits for the device.
        steps: number of steps to measure.
    """
    size = min(BLOCK_STEPS, steps)
    seconds = []
    for _ in range(max(1, steps // size)):
        synchronize()
        start = time.perf_counter()
        for _ in range(size):
            step()
        synchronize()
        seconds.append((time.perf_counter() - start) / size)
    return statistics.median(seconds)


def torch_step(network: str, precision: str, *, batch: int, size: int, device: str) -> Callable[[], object]:
    """Returns a training step on random images that are on the device.

    Args:
        network: name of timm's network.
        precision: ``float32`` or ``bfloat16``, with ``-nhwc`` for channels last.
        batch: number of images.
        size: image side in pixels.
        device: torch's device.
    """
    import timm
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True  # as Paddle's defaults
    layout = torch.channels_last if precision.endswith("-nhwc") else torch.contiguous_format
    model = timm.create_model(network, num_classes=1000).to(device, memory_format=layout).train()
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=layout)
    labels = torch.randint(0, 1000, (batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    has_autocast = precision.startswith("bfloat16")

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=has_autocast):
            logits = model(images)
        torch.nn.functional.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="xception41", help="name of timm's network")
    parser.add_argument("--precision", default="bfloat16-nhwc")
    parser.add_argument("--device", default="gpu", help="cpu, or any other name for torch's GPU")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=299)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    import torch

    has_gpu = torch.cuda.is_available() and arguments.device != "cpu"
    step = torch_step(
        arguments.network,
        arguments.precision,
        batch=arguments.batch,
        size=arguments.size,
        device="cuda" if has_gpu else "cpu",
    )
    for _ in range(WARM_UP_STEPS):
        step()
    seconds = block_seconds(step, torch.cuda.synchronize if has_gpu else lambda: None, arguments.steps)
    result = {
        "ips": arguments.batch / seconds,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if has_gpu else None,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if has_gpu else "cpu",
    }
    arguments.output.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
