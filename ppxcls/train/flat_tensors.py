"""Computes on many tensors with a few operators.

An operator costs host time on an accelerator, whatever the size of its tensors. A network has hundreds of
parameters, so an operator for each of them can take longer on the host than the computation on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import paddle
import paddle.distributed as dist
from paddle.base import core


class FlatTensors:
    """The elements of many tensors as one vector.

    Args:
        tensors: tensors of any shapes and types. They may change later.
    """

    def __init__(self, tensors: Sequence[paddle.Tensor]) -> None:
        self.tensors = list(tensors)
        self.sizes = [int(tensor.size) for tensor in self.tensors]
        self._filled_tensors = [tensor for tensor in self.tensors if tensor.size]
        self._views: list[paddle.Tensor] = []
        self._addresses: list[int] = []

    def concatenated(self) -> paddle.Tensor:
        """Returns a copy of all elements in order, float32 [total]."""
        # A tensor that was set from outside may have other memory than before.
        addresses = [tensor.data_ptr() for tensor in self._filled_tensors]
        if addresses != self._addresses:
            self._views = [_flat_view(tensor) for tensor in self._filled_tensors]
            # Views of strided tensors are copies, which are needed again in each call.
            has_strides = any(not tensor.is_contiguous() for tensor in self._filled_tensors)
            self._addresses = [] if has_strides else addresses
        return paddle.concat([as_float32(view) for view in self._views])

    def split(self, vector: paddle.Tensor) -> list[paddle.Tensor]:
        """Returns views of a vector with the shapes of the tensors.

        Args:
            vector: elements in the order of ``concatenated``, [total].
        """
        views = []
        position = 0
        for tensor, size in zip(self.tensors, self.sizes, strict=True):
            if size:
                view = vector._slice(position, position + size)
                view.get_tensor()._set_dims(list(tensor.shape))
            else:
                view = paddle.empty(tensor.shape, vector.dtype)
            views.append(view)
            position += size
        return views


def average_gradients(parameters: Sequence[paddle.Tensor]) -> None:
    """Replaces each parameter's gradient by its mean over all processes. All processes must call it.

    Args:
        parameters: parameters with float32 gradients. Those without a gradient are left out.
    """
    if dist.get_world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat_gradients = FlatTensors(gradients)
    with paddle.no_grad():
        vector = flat_gradients.concatenated()
        dist.all_reduce(vector)
        vector.scale_(1 / dist.get_world_size())
        for gradient, mean in zip(gradients, flat_gradients.split(vector), strict=True):
            if gradient.is_contiguous():
                mean._share_buffer_to(gradient)
            else:
                paddle.assign(mean, gradient)


def as_float32(tensor: paddle.Tensor) -> paddle.Tensor:
    """Returns a tensor as float32, without an operator if it is float32 already."""
    return tensor if tensor.dtype == paddle.float32 else tensor.astype("float32")


def _flat_view(tensor: paddle.Tensor) -> paddle.Tensor:
    contiguous_tensor = tensor if tensor.is_contiguous() else tensor.contiguous()
    view = core.eager.Tensor(contiguous_tensor.get_tensor())  # no operator, unlike ``reshape``
    view.get_tensor()._set_dims([int(tensor.size)])
    return view
