"""Folds batch norms into the convolutions before them."""

from __future__ import annotations

from typing import Any

import paddle
from paddle import nn

from ppxcls.ops.batch_norm import NormReLU


def fold_batch_norms(model: nn.Layer, images: paddle.Tensor) -> int:
    """Folds each batch norm into the convolution before it.

    One forward pass finds these pairs in any network.

    Args:
        model: network in evaluation mode; it is changed.
        images: batch float32 [N, C, H, W], of any size that the network accepts.

    Returns:
        Number of folded batch norms. Others, such as those after a sum, remain.
    """
    pairs = _find_pairs(model, images)
    owners = {
        id(layer): (parent, name)
        for parent in model.sublayers(include_self=True)
        for name, layer in parent.named_children()
    }
    for convolution, norm in pairs:
        scale = norm.weight / paddle.sqrt(norm._variance + norm._epsilon)
        with paddle.no_grad():
            bias = norm.bias - norm._mean * scale
            if convolution.bias is not None:
                bias = bias + convolution.bias * scale
            convolution.weight.set_value(convolution.weight * scale.reshape([-1, 1, 1, 1]))
            convolution.bias = paddle.create_parameter(
                bias.shape, "float32", default_initializer=nn.initializer.Assign(bias.numpy())
            )
        parent, name = owners[id(norm)]
        parent.add_sublayer(name, nn.ReLU() if isinstance(norm, NormReLU) else nn.Identity())
    return len(pairs)


def _find_pairs(model: nn.Layer, images: paddle.Tensor) -> list[tuple[nn.Conv2D, nn.BatchNorm2D]]:
    # Keeps the outputs alive, so that no id is reused.
    convolution_outputs: dict[int, tuple[nn.Conv2D, Any]] = {}
    pairs: list[tuple[nn.Conv2D, nn.BatchNorm2D]] = []

    def after(layer: nn.Layer, inputs: Any, output: paddle.Tensor) -> None:
        convolution_outputs[id(output)] = layer, output

    def before(layer: nn.Layer, inputs: Any) -> None:
        if id(inputs[0]) in convolution_outputs:
            pairs.append((convolution_outputs[id(inputs[0])][0], layer))

    hooks = []
    for layer in model.sublayers():
        if isinstance(layer, nn.Conv2D):
            hooks.append(layer.register_forward_post_hook(after))
        elif isinstance(layer, nn.BatchNorm2D):
            hooks.append(layer.register_forward_pre_hook(before))
    with paddle.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return pairs
