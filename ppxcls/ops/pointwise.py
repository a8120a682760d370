"""The 1x1 convolution layer. On the CPU, it can be one product over the batch, in bfloat16 if asked for."""

from __future__ import annotations

from typing import Any

import paddle
from paddle import nn
from paddle.autograd import PyLayer

from ppxcls.ops import cpu, onednn
from ppxcls.ops.onednn import BFLOAT16, FLOAT32, Operand, strides_of
from ppxcls.system import kernels

# Pixels of a map. Paddle multiplies image by image; for larger maps that is as fast, and needs no copy in
# another order.
_SMALL = 400


class PointwiseConv2D(nn.Conv2D):
    """``paddle.nn.Conv2D`` with a 1x1 kernel and without bias, for ``[N, C, H, W]`` input.

    It has the parameters, state keys and initial values of Paddle's layer. While it trains in float32 on the
    CPU, oneDNN multiplies. Evaluation, other devices and types, static graphs and export run Paddle's
    operator.

    Attributes:
        in_bfloat16: train with factors rounded to bfloat16 and sums in float32; see ``onednn.has_bfloat16``.
    """

    in_bfloat16 = False

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 1, stride, bias_attr=False)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[N, C, H, W] to [N, C', H', W'], H' = (H - 1) // stride + 1."""
        if self.training and cpu.are_plain(x, self.weight) and self._is_worth_it(x):
            return _Product.apply(
                x, self.weight, self._step, self.in_bfloat16, self._is_one(x), (False, False)
            )
        return nn.Conv2D.forward(self, x)  # to a static graph, Paddle 2.6 translates no super()

    def takes_channels_first(self) -> bool:
        """Whether ``product`` may be called."""
        return (
            self.training
            and self._step == 1
            and self._is_plain()
            and cpu.are_plain(self.weight)
            and onednn.is_available()
        )

    def product(self, x: paddle.Tensor, layouts: tuple[bool, bool]) -> paddle.Tensor:
        """[N, C, H, W] to [N, C', H, W], as one product.

        Args:
            x: float32, or [C, N, H, W].
            layouts: whether ``x`` and the output have the channels first.
        """
        return _Product.apply(x, self.weight, 1, self.in_bfloat16, True, layouts)

    @property
    def _step(self) -> int:
        return cpu.pair(self._stride)[0]

    def _is_one(self, x: paddle.Tensor) -> bool:
        """Whether one product over the batch is better than one for each image."""
        return self._step > 1 or bool(x.shape[2] * x.shape[3] <= _SMALL)

    def _is_plain(self) -> bool:
        is_square = len(set(cpu.pair(self._stride))) == 1
        return (
            is_square and self._data_format == "NCHW" and self.bias is None
        )  # folding a batch norm adds a bias

    def _is_worth_it(self, x: paddle.Tensor) -> bool:
        return self._is_plain() and (self.in_bfloat16 or self._is_one(x)) and onednn.is_available()


class _Product(PyLayer):
    """The differentiable operator. It has no second derivative.

    With ``in_one`` a channel's pixels of all images are one row, [C, N H W]. Otherwise each image has a
    matrix, [N, C, H W]. ``layouts`` says of input and output whether the channels are first, [C, N, H, W]; it
    requires ``in_one``.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, stride: int, is_short: bool, in_one: bool, layouts
    ) -> paddle.Tensor:
        ctx.needs = not x.stop_gradient, not weight.stop_gradient
        cpu.check_channels(weight.shape[1], x.shape[0 if layouts[0] else 1])
        ctx.shape, ctx.stride = x.shape, stride
        if stride > 1:
            x, layouts = _taken(x, stride), (True, layouts[1])
        x, ctx.layouts = x.contiguous(), layouts
        shape = [x.shape[1], x.shape[0], *x.shape[2:]] if layouts[0] else x.shape
        ctx.layout = layout = _Layout(shape, weight.shape[0], in_one, BFLOAT16 if is_short else FLOAT32)
        rows = layout.rows(x, layout.inputs, layouts[0])
        ctx.kept = cpu.Kept(x) if rows is x else None  # otherwise they are a copy
        kernel = _short(weight) if is_short else weight.detach().contiguous()
        y = layout.multiplied(
            layout.kernel(kernel), layout.matrix(rows, layout.inputs), layout.outputs, layouts[1]
        )
        ctx.save_for_backward(rows, kernel)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> tuple[paddle.Tensor | None, paddle.Tensor | None]:
        if ctx.kept is not None:
            ctx.kept.check()
        rows, kernel = ctx.saved_tensor()
        layout = ctx.layout
        upstream = layout.rows(gradient.contiguous(), layout.outputs, ctx.layouts[1])
        x_gradient = None
        if ctx.needs[0]:
            turned = layout.kernel(kernel, transposed=True)
            x_gradient = layout.multiplied(
                turned, layout.matrix(upstream, layout.outputs), layout.inputs, ctx.layouts[0]
            )
        if x_gradient is not None and ctx.stride > 1:
            x_gradient = _spread(x_gradient, ctx.stride, ctx.shape)
        return x_gradient, layout.kernel_gradient(upstream, rows) if ctx.needs[1] else None


def _taken(images: paddle.Tensor, stride: int) -> paddle.Tensor:
    """Every ``stride``-th row and column of [N, C, H, W], as [C, N, H', W']."""
    if not kernels.HAS_NUMBA:
        return images[:, :, ::stride, ::stride].transpose([1, 0, 2, 3])
    from ppxcls.ops.stride_kernels import take

    size = [cpu.output_size(side, 1, 0, stride) for side in images.shape[2:]]
    rows = paddle.empty([images.shape[1], images.shape[0], *size], "float32")
    kernels.run(take, rows.shape[0], cpu.view(images), stride, cpu.view(rows))
    return rows


def _spread(rows: paddle.Tensor, stride: int, shape: list[int]) -> paddle.Tensor:
    """[C, N, H', W'] at every ``stride``-th row and column of zeros [N, C, H, W]."""
    if not kernels.HAS_NUMBA:
        whole = paddle.zeros(shape, "float32")
        whole[:, :, ::stride, ::stride] = rows.transpose([1, 0, 2, 3])
        return whole
    from ppxcls.ops.stride_kernels import spread

    whole = paddle.empty(shape, "float32")
    kernels.run(spread, rows.shape[0], cpu.view(rows), stride, cpu.view(whole))
    return whole


class _Layout:
    """Where the numbers of a product lie."""

    def __init__(self, shape: list[int], outputs: int, in_one: bool, kind: int) -> None:
        self.images, self.inputs, *self.size = shape
        self.outputs, self.in_one, self.kind = outputs, in_one, kind
        self.pixels = self.size[0] * self.size[1]

    def matrices(self, channels: int) -> list[int]:
        """Sizes of the rows' memory."""
        return [channels, self.images * self.pixels] if self.in_one else [self.images, channels, self.pixels]

    def rows(self, images: paddle.Tensor, channels: int, are_rows: bool) -> paddle.Tensor:
        """Images, or rows of float32 already, as rows of the product's type."""
        if self.kind == FLOAT32 and (are_rows or not self.in_one):
            return images
        made = paddle.empty(self.matrices(channels), "int16" if self.kind == BFLOAT16 else "float32")
        source = self.rows_of(images, channels, FLOAT32) if are_rows else self.images_of(images, channels)
        onednn.copy(source, self.rows_of(made, channels, self.kind))
        return made

    def images_of(self, images: paddle.Tensor, channels: int) -> Operand:
        """Of the pixels of images: [C, N, H W]."""
        return Operand(
            images.data_ptr(), (channels, self.images, self.pixels), (self.pixels, channels * self.pixels, 1)
        )

    def rows_of(self, rows: paddle.Tensor, channels: int, kind: int) -> Operand:
        """Of the same pixels in rows: [C, N, H W]."""
        channel, image = (
            (self.images * self.pixels, self.pixels) if self.in_one else (self.pixels, channels * self.pixels)
        )
        return Operand(rows.data_ptr(), (channels, self.images, self.pixels), (channel, image, 1), kind)

    def matrix(
        self, rows: paddle.Tensor, channels: int, kind: int | None = None, transposed: bool = False
    ) -> Operand:
        """Of rows, as a factor or a result."""
        dims = tuple(self.matrices(channels))
        strides = strides_of(dims)
        if transposed:
            dims, strides = (*dims[:-2], dims[-1], dims[-2]), (*strides[:-2], strides[-1], strides[-2])
        return Operand(rows.data_ptr(), dims, strides, self.kind if kind is None else kind)

    def kernel(self, kernel: paddle.Tensor, transposed: bool = False) -> Operand:
        """[outputs, inputs], or transposed; the same for all images."""
        dims: tuple[int, ...] = (self.outputs, self.inputs)
        strides: tuple[int, ...] = (self.inputs, 1)
        if transposed:
            dims, strides = dims[::-1], strides[::-1]
        if not self.in_one:
            dims, strides = (1, *dims), (self.outputs * self.inputs, *strides)
        return Operand(kernel.data_ptr(), dims, strides, self.kind)

    def multiplied(self, kernel: Operand, matrix: Operand, channels: int, as_rows: bool) -> paddle.Tensor:
        """The product, float32 [N, C, H, W], or [C, N, H, W]."""
        if not self.in_one or as_rows:
            made = paddle.empty(
                [*([channels, self.images] if as_rows else [self.images, channels]), *self.size], "float32"
            )
            onednn.multiply(kernel, matrix, self.matrix(made, channels, FLOAT32))
            return made
        sums = paddle.empty(self.matrices(channels), "float32")
        onednn.multiply(kernel, matrix, self.matrix(sums, channels, FLOAT32))
        found = paddle.empty([self.images, channels, *self.size], "float32")
        onednn.copy(self.rows_of(sums, channels, FLOAT32), self.images_of(found, channels))
        return found

    def kernel_gradient(self, upstream: paddle.Tensor, rows: paddle.Tensor) -> paddle.Tensor:
        """float32 [C', C, 1, 1]."""
        shape = [self.outputs, self.inputs] if self.in_one else [self.images, self.outputs, self.inputs]
        sums = paddle.empty(shape, "float32")
        result = Operand(sums.data_ptr(), tuple(shape), strides_of(shape))
        onednn.multiply(
            self.matrix(upstream, self.outputs), self.matrix(rows, self.inputs, transposed=True), result
        )
        return (sums if self.in_one else sums.sum(0)).reshape([self.outputs, self.inputs, 1, 1])


def _short(weight: paddle.Tensor) -> paddle.Tensor:
    """A kernel in bfloat16."""
    kernel = weight.detach().contiguous()
    dims = kernel.shape[0], kernel.shape[1]
    made = paddle.empty(list(dims), "int16")
    onednn.copy(
        Operand(kernel.data_ptr(), dims, strides_of(dims)),
        Operand(made.data_ptr(), dims, strides_of(dims), BFLOAT16),
    )
    return made
