"""Calls layers one after another, on the CPU with as few operators as possible.

In training, all layers between two 1x1 convolutions are one operator (``channelwise``). The convolutions read
and write images as [C, N, H, W], so that each is one matrix product without a copy. Layers that do not match
are called as usual.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import paddle
from paddle import nn

from ppxcls.ops import cpu
from ppxcls.ops.batch_norm import BatchNorm2D, NormReLU, ReLU, relu
from ppxcls.ops.channelwise import Chain
from ppxcls.ops.depthwise import DepthwiseConv2D
from ppxcls.ops.pointwise import PointwiseConv2D

LayerFunction = Callable[[paddle.Tensor], paddle.Tensor]

# One letter per layer: n batch norm, r ReLU, b both, d depthwise convolution, p 1x1 convolution, o any other.
_OPERATOR_PATTERN = re.compile("(?P<first>b|n?r?)d(?P<last>b|n?r?)|(?P<alone>b|nr?|r)|p|o")


class Stack(nn.Sequential):
    """``paddle.nn.Sequential`` that calls its layers with ``in_order``."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Returns the last layer's output. ``x`` is the first layer's input."""
        return in_order(list(self), x)


_SEQUENTIAL_FORWARDS = nn.Sequential.forward, Stack.forward


def in_order(layers: Sequence[LayerFunction], x: paddle.Tensor) -> paddle.Tensor:
    """Calls layers one after another.

    Args:
        layers: layers, and functions of a tensor such as ``relu``. A ``paddle.nn.Sequential`` is replaced by
            its layers.
        x: input of the first layer.
    """
    if _fits(x) and any(isinstance(layer, nn.Layer) and layer.training for layer in layers):
        return _run_fused(list(_leaves(layers)), x)
    for layer in layers:
        x = layer(x)
    return x


def _fits(x: paddle.Tensor) -> bool:
    return cpu.applies_to(x) and len(x.shape) == 4


def _leaves(layers: Iterable[LayerFunction]) -> Iterator[LayerFunction]:
    for layer in layers:
        if (
            isinstance(layer, nn.Sequential)
            and type(layer).forward in _SEQUENTIAL_FORWARDS
            and not _is_watched(layer)
        ):
            yield from _leaves(list(layer))  # not children(), which omits repeated layers
        else:
            yield layer


def _is_watched(layer: nn.Layer) -> bool:
    """True if the layer has hooks or a replaced ``forward``, so that it must be called itself."""
    return bool(layer._forward_pre_hooks or layer._forward_post_hooks or "forward" in vars(layer))


def _letter(layer: LayerFunction) -> str:
    kind = type(layer)
    if layer is relu:
        return "r"
    if not isinstance(layer, nn.Layer) or _is_watched(layer):
        return "o"
    if kind is ReLU:
        return "r"
    if kind is BatchNorm2D or kind is NormReLU:
        if not layer.trains_in_kernels(layer.weight):
            return "o"
        return "n" if kind is BatchNorm2D else "b"
    if kind is DepthwiseConv2D:
        return "d" if layer.bias is None and layer.fits_kernels() and cpu.applies_to(layer.weight) else "o"
    return "p" if kind is PointwiseConv2D and layer.takes_channels_first() else "o"


def _run_fused(layers: Sequence[LayerFunction], x: paddle.Tensor) -> paddle.Tensor:
    counts = Counter(map(id, layers))
    # A batch norm that occurs twice must update its statistics twice, one after the other.
    letters = [
        "o" if counts[id(layer)] > 1 and isinstance(layer, BatchNorm2D) else _letter(layer)
        for layer in layers
    ]
    matches = list(_OPERATOR_PATTERN.finditer("".join(letters)))
    is_channel_major = False
    for i, match in enumerate(matches):
        layer, next_operator = layers[match.start()], matches[i + 1].group() if i + 1 < len(matches) else "o"
        if match.group() == "o":
            x = layer(x)
            if not _fits(x):
                return in_order(layers[match.end() :], x)
            continue
        if match.group() == "p":
            layouts = is_channel_major, next_operator != "o"
            x = layer.product(x, layouts) if isinstance(layer, PointwiseConv2D) and any(layouts) else layer(x)
        else:
            layouts = is_channel_major, next_operator == "p"
            x = _chain(match, layers, layouts)(x)
        is_channel_major = layouts[1]
    return x


def _chain(match: re.Match[str], layers: Sequence[LayerFunction], layouts: tuple[bool, bool]) -> Chain:
    first, last = match["first"] or match["alone"] or "", match["last"] or ""
    group = layers[match.start() : match.end()]
    norm = group[0] if first[:1] in ("n", "b") else None
    depthwise = group[len(first)] if match["alone"] is None else None
    last_norm = group[len(first) + 1] if last[:1] in ("n", "b") else None
    return Chain(
        norm=norm,
        is_rectified=first.endswith(("r", "b")),
        depthwise=depthwise,
        last_norm=last_norm,
        is_last_rectified=last.endswith(("r", "b")),
        layouts=layouts,
    )
