"""A network with the layers of the Xceptions, and few weights."""

from __future__ import annotations

from paddle import nn

import ppxcls


@ppxcls.MODELS.register
def SeparableNetwork(class_num: int = 3) -> nn.Layer:
    """A depthwise separable convolution between a stem and a classifier."""
    stem = nn.Conv2D(3, 8, 3, stride=2, bias_attr=False), nn.BatchNorm2D(8), nn.ReLU()
    separable = nn.Conv2D(8, 8, 3, padding=1, groups=8, bias_attr=False), nn.BatchNorm2D(8)
    pointwise = nn.Conv2D(8, 16, 1, bias_attr=False), nn.BatchNorm2D(16), nn.ReLU()
    head = nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(16, class_num)
    return nn.Sequential(*stem, *separable, *pointwise, *head)
