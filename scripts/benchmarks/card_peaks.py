"""Peaks of accelerators, and the share of a peak that a training step reaches."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Peaks:
    """Dense peaks of a card in TFLOP/s.

    Attributes:
        float32: float32 without tensor cores.
        tf32: float32 on tensor cores, with 10 bits of mantissa; None for a card without it.
        half: float16 and bfloat16 on tensor cores, with sums in float32.
    """

    float32: float
    tf32: float | None
    half: float


# From the manufacturers' data sheets, without sparsity. The first name in the device's name counts.
CARDS = {
    "BI-V100": Peaks(37, None, 147),
    "V100": Peaks(15.7, None, 125),
    "T4": Peaks(8.1, None, 65),
    "A10": Peaks(31.2, 62.5, 125),
    "A30": Peaks(10.3, 82, 165),
    "A100": Peaks(19.5, 156, 312),
    "L4": Peaks(30.3, 60, 121),
    "L40S": Peaks(91.6, 183, 362),
    "H100 PCIe": Peaks(51, 378, 756),
    "H100 NVL": Peaks(60, 417, 835),
    "H100": Peaks(67, 494, 990),
    "H200": Peaks(67, 494, 990),
    "RTX 3090": Peaks(35.6, 35.6, 71),
    "RTX 4090": Peaks(82.6, 82.6, 165),
    "RTX 5090": Peaks(104.8, 104.8, 209.5),
}


def peaks(device_name: str) -> Peaks | None:
    """Returns the peaks of a card; None for an unknown card."""
    for name, values in CARDS.items():
        if re.search(rf"\b{re.escape(name)}\b", device_name):
            return values
    return None


def peak(device_name: str, precision: str) -> tuple[str, float] | None:
    """Returns the peak that a step is measured against, with its name; None for an unknown card.

    Paddle computes float32 convolutions in TF32 on cards that have it.

    Args:
        device_name: name of the card.
        precision: name of the precision. It begins with the data type.
    """
    values = peaks(device_name)
    if values is None:
        return None
    if not precision.startswith("float32"):
        return "half", values.half
    return ("float32", values.float32) if values.tf32 is None else ("TF32", values.tf32)


def step_operations(network: Any, size: int, batch: int) -> int:
    """Returns the floating-point operations of a training step.

    A step counts as three forward passes, because the backward pass needs the operations of two.

    Args:
        network: network on the CPU or another device.
        size: image side in pixels.
        batch: number of images.
    """
    return 6 * multiplications(network, size) * batch


def multiplications(network: Any, size: int) -> int:
    """Returns the multiply-adds of one image's forward pass, in convolutions and linear layers."""
    import paddle
    from paddle import nn

    total = 0

    def count(layer: Any, _: Any, output: Any) -> None:
        nonlocal total
        elements = 1
        for side in output.shape[1:]:
            elements *= side
        outputs = layer.weight.shape[1 if isinstance(layer, nn.Linear) else 0]
        total += elements * layer.weight.size // outputs

    hooks = [
        layer.register_forward_post_hook(count)
        for layer in network.sublayers()
        if isinstance(layer, nn.Conv2D | nn.Linear)
    ]
    network.eval()
    with paddle.no_grad():
        network(paddle.zeros([1, 3, size, size]))
    network.train()
    for hook in hooks:
        hook.remove()
    return total
