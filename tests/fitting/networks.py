"""A small network with parts, for the stages of ``fit``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import paddle
from paddle import nn

import ppxcls
from ppxcls.models.parts import Flow, NetworkParts
from ppxcls.models.preprocessing import HALF, Preprocessing

SIZE = 32  # pixels
NAME = "NetworkOfParts"


class Parts(nn.Layer):
    """A convolution as trunk, another one with batch norm as exit flow, and a classifier."""

    def __init__(self, class_num: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2D(3, 8, 3, stride=4)
        self.conv2 = nn.Conv2D(8, 6, 3)
        self.norm = nn.BatchNorm2D(6)
        self.pool = nn.AdaptiveAvgPool2D(1)
        self.fc = nn.Linear(6, class_num)

    def network_parts(self) -> NetworkParts:
        """Returns trunk, exit flow and classifier."""
        relu = nn.functional.relu
        exit_flow = Flow([self.conv2, self.norm, relu, self.pool, nn.Flatten(1)])
        return NetworkParts(Flow([self.conv1, relu]), exit_flow, self.fc)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Returns logits [N, class_num] of images [N, 3, H, W]."""
        parts = self.network_parts()
        return parts.classifier(parts.exit_flow(parts.trunk(images)))


_PREPROCESSING = Preprocessing(
    source="nobody", input_size=SIZE, crop_share=None, interpolation="bilinear", mean=HALF, std=HALF
)


def NetworkOfParts(class_num: int = 3) -> Parts:
    """A network of three parts."""
    return Parts(class_num)


@contextlib.contextmanager
def registered_network() -> Iterator[None]:
    """Registers the network in a block. Other tests go through all registered networks."""
    ppxcls.MODELS.register(published=_PREPROCESSING)(NetworkOfParts)
    try:
        yield
    finally:
        ppxcls.MODELS.forget({NAME})
