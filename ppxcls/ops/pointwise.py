"""The 1x1 convolution layer. On the CPU, it can be one matrix product over the batch, also in bfloat16."""

from __future__ import annotations

from typing import Any, NamedTuple

import paddle
from paddle import nn
from paddle.autograd import PyLayer

from ppxcls.ops import cpu, onednn
from ppxcls.ops.onednn import BFLOAT16, FLOAT32, Operand, strides_of
from ppxcls.system import kernels

# Largest map for one product over the batch. Paddle multiplies image by image. For larger maps that is as
# fast, and needs no copy in another order.
_MAX_MAP_PIXELS = 400


class PointwiseConv2D(nn.Conv2D):
    """``paddle.nn.Conv2D`` with a 1x1 kernel and without bias, for ``[N, C, H, W]`` input.

    It has the parameters, state keys and initial values of Paddle's layer. It uses oneDNN for float32
    training on the CPU. Evaluation, other devices and types, static graphs and export use Paddle's operator.

    Attributes:
        in_bfloat16: True to train with factors rounded to bfloat16 and sums in float32; see
            ``onednn.has_bfloat16``.
    """

    in_bfloat16 = False

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 1, stride, bias_attr=False)

    @cpu.without_translation
    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Convolves [N, C, H, W] to [N, C', H', W'], with H' = (H - 1) // stride + 1."""
        if self.training and cpu.are_plain(x, self.weight) and self._uses_onednn(x):
            settings = _ProductSettings(
                stride=self._step,
                is_bfloat16=self.in_bfloat16,
                is_batched=self._uses_one_product(x),
                layouts=(False, False),
            )
            return _Product.apply(x, self.weight, settings)
        return nn.Conv2D.forward(self, x)  # Paddle 2.6 can't translate super() to a static graph

    def takes_channels_first(self) -> bool:
        """True if ``product`` may be called."""
        return (
            self.training
            and self._step == 1
            and self._is_plain()
            and cpu.are_plain(self.weight)
            and onednn.is_available()
        )

    def product(self, x: paddle.Tensor, layouts: tuple[bool, bool]) -> paddle.Tensor:
        """Convolves [N, C, H, W] to [N, C', H, W] with one matrix product.

        Args:
            x: input, float32 [N, C, H, W] or [C, N, H, W].
            layouts: memory layouts of ``x`` and of the output; True for [C, N, H, W], False for [N, C, H, W].
        """
        settings = _ProductSettings(stride=1, is_bfloat16=self.in_bfloat16, is_batched=True, layouts=layouts)
        return _Product.apply(x, self.weight, settings)

    @property
    def _step(self) -> int:
        return cpu.pair(self._stride)[0]

    def _uses_one_product(self, x: paddle.Tensor) -> bool:
        """True if one product over the batch is better than one for each image."""
        return self._step > 1 or bool(x.shape[2] * x.shape[3] <= _MAX_MAP_PIXELS)

    def _is_plain(self) -> bool:
        is_square = len(set(cpu.pair(self._stride))) == 1
        # Folding a batch norm adds a bias.
        return is_square and self._data_format == "NCHW" and self.bias is None

    def _uses_onednn(self, x: paddle.Tensor) -> bool:
        return self._is_plain() and (self.in_bfloat16 or self._uses_one_product(x)) and onednn.is_available()


class _ProductSettings(NamedTuple):
    """How a convolution is computed as a matrix product.

    Attributes:
        stride: stride of the convolution.
        is_bfloat16: True for factors in bfloat16.
        is_batched: True if a channel's pixels of all images are one row, [C, N H W]; False if each image has
            a matrix, [N, C, H W].
        layouts: memory layouts of input and output. True, for [C, N, H, W], requires ``is_batched``.
    """

    stride: int
    is_bfloat16: bool
    is_batched: bool
    layouts: tuple[bool, bool]


class _Product(PyLayer):
    """The differentiable operator. It has no second derivative."""

    @staticmethod
    def forward(
        ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, settings: _ProductSettings
    ) -> paddle.Tensor:
        stride, layouts = settings.stride, settings.layouts
        ctx.needs_gradient = not x.stop_gradient, not weight.stop_gradient
        cpu.check_channels(weight.shape[1], x.shape[0 if layouts[0] else 1])
        ctx.shape = x.shape
        ctx.stride = stride
        if stride > 1:
            x, layouts = _take_pixels(x, stride), (True, layouts[1])
        x, ctx.layouts = x.contiguous(), layouts
        shape = [x.shape[1], x.shape[0], *x.shape[2:]] if layouts[0] else x.shape
        kind = BFLOAT16 if settings.is_bfloat16 else FLOAT32
        ctx.layout = layout = _Layout(shape, weight.shape[0], is_batched=settings.is_batched, kind=kind)
        rows = layout.rows(x, layout.in_channels, are_rows=layouts[0])
        ctx.saved_input = cpu.SavedTensor(x) if rows is x else None  # otherwise the rows are a copy
        kernel = _to_bfloat16(weight) if settings.is_bfloat16 else weight.detach().contiguous()
        y = layout.multiply_matrices(
            layout.kernel(kernel),
            layout.matrix(rows, layout.in_channels),
            layout.out_channels,
            returns_rows=layouts[1],
        )
        ctx.save_for_backward(rows, kernel)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> tuple[paddle.Tensor | None, paddle.Tensor | None]:
        if ctx.saved_input is not None:
            ctx.saved_input.check()
        rows, kernel = ctx.saved_tensor()
        layout = ctx.layout
        upstream = layout.rows(gradient.contiguous(), layout.out_channels, are_rows=ctx.layouts[1])
        x_gradient = None
        if ctx.needs_gradient[0]:
            kernel_operand = layout.kernel(kernel, transposed=True)
            x_gradient = layout.multiply_matrices(
                kernel_operand,
                layout.matrix(upstream, layout.out_channels),
                layout.in_channels,
                returns_rows=ctx.layouts[0],
            )
        if x_gradient is not None and ctx.stride > 1:
            x_gradient = _spread_pixels(x_gradient, ctx.stride, ctx.shape)
        return x_gradient, layout.kernel_gradient(upstream, rows) if ctx.needs_gradient[1] else None


def _take_pixels(images: paddle.Tensor, stride: int) -> paddle.Tensor:
    """Returns every ``stride``-th row and column of [N, C, H, W], as [C, N, H', W']."""
    if not kernels.HAS_NUMBA:
        return images[:, :, ::stride, ::stride].transpose([1, 0, 2, 3])
    from ppxcls.ops.stride_kernels import take

    size = [cpu.output_size(side, 1, padding=0, stride=stride) for side in images.shape[2:]]
    rows = paddle.empty([images.shape[1], images.shape[0], *size], "float32")
    kernels.run(take, rows.shape[0], cpu.view(images), stride, cpu.view(rows))
    return rows


def _spread_pixels(rows: paddle.Tensor, stride: int, shape: list[int]) -> paddle.Tensor:
    """Returns zeros [N, C, H, W] with ``rows`` at every ``stride``-th row and column."""
    if not kernels.HAS_NUMBA:
        images = paddle.zeros(shape, "float32")
        images[:, :, ::stride, ::stride] = rows.transpose([1, 0, 2, 3])
        return images
    from ppxcls.ops.stride_kernels import spread

    images = paddle.empty(shape, "float32")
    kernels.run(spread, rows.shape[0], cpu.view(rows), stride, cpu.view(images))
    return images


class _Layout:
    """Sizes and memory layouts of a product's operands."""

    def __init__(self, shape: list[int], out_channels: int, *, is_batched: bool, kind: int) -> None:
        self.images, self.in_channels, *self.size = shape
        self.out_channels = out_channels
        self.is_batched = is_batched
        self.kind = kind
        self.pixels = self.size[0] * self.size[1]

    def matrices(self, channels: int) -> list[int]:
        """Sizes of the memory of the rows."""
        return (
            [channels, self.images * self.pixels] if self.is_batched else [self.images, channels, self.pixels]
        )

    def rows(self, images: paddle.Tensor, channels: int, *, are_rows: bool) -> paddle.Tensor:
        """Converts images, or float32 rows, to rows of the product's type."""
        if self.kind == FLOAT32 and (are_rows or not self.is_batched):
            return images
        rows = paddle.empty(self.matrices(channels), "int16" if self.kind == BFLOAT16 else "float32")
        source = self.rows_of(images, channels, FLOAT32) if are_rows else self.images_of(images, channels)
        onednn.copy(source, self.rows_of(rows, channels, self.kind))
        return rows

    def images_of(self, images: paddle.Tensor, channels: int) -> Operand:
        """Operand for the pixels of images: [C, N, H W]."""
        return Operand(
            images.data_ptr(), (channels, self.images, self.pixels), (self.pixels, channels * self.pixels, 1)
        )

    def rows_of(self, rows: paddle.Tensor, channels: int, kind: int) -> Operand:
        """Operand for the same pixels in rows: [C, N, H W]."""
        channel, image = (
            (self.images * self.pixels, self.pixels)
            if self.is_batched
            else (self.pixels, channels * self.pixels)
        )
        return Operand(rows.data_ptr(), (channels, self.images, self.pixels), (channel, image, 1), kind)

    def matrix(
        self, rows: paddle.Tensor, channels: int, kind: int | None = None, *, transposed: bool = False
    ) -> Operand:
        """Operand for rows, as a factor or a result."""
        dims = tuple(self.matrices(channels))
        strides = strides_of(dims)
        if transposed:
            dims, strides = (*dims[:-2], dims[-1], dims[-2]), (*strides[:-2], strides[-1], strides[-2])
        return Operand(rows.data_ptr(), dims, strides, self.kind if kind is None else kind)

    def kernel(self, kernel: paddle.Tensor, *, transposed: bool = False) -> Operand:
        """Operand for the kernel: [outputs, inputs], or transposed. All images share it."""
        dims: tuple[int, ...] = (self.out_channels, self.in_channels)
        strides: tuple[int, ...] = (self.in_channels, 1)
        if transposed:
            dims, strides = dims[::-1], strides[::-1]
        if not self.is_batched:
            dims, strides = (1, *dims), (self.out_channels * self.in_channels, *strides)
        return Operand(kernel.data_ptr(), dims, strides, self.kind)

    def multiply_matrices(
        self, kernel: Operand, matrix: Operand, channels: int, *, returns_rows: bool
    ) -> paddle.Tensor:
        """Returns the product, float32 [N, C, H, W], or [C, N, H, W] if ``returns_rows``."""
        if not self.is_batched or returns_rows:
            product = paddle.empty(
                [*([channels, self.images] if returns_rows else [self.images, channels]), *self.size],
                "float32",
            )
            onednn.multiply(kernel, matrix, self.matrix(product, channels, FLOAT32))
            return product
        sums = paddle.empty(self.matrices(channels), "float32")
        onednn.multiply(kernel, matrix, self.matrix(sums, channels, FLOAT32))
        images = paddle.empty([self.images, channels, *self.size], "float32")
        onednn.copy(self.rows_of(sums, channels, FLOAT32), self.images_of(images, channels))
        return images

    def kernel_gradient(self, upstream: paddle.Tensor, rows: paddle.Tensor) -> paddle.Tensor:
        """Returns the gradient of the kernel, float32 [C', C, 1, 1]."""
        shape = (
            [self.out_channels, self.in_channels]
            if self.is_batched
            else [self.images, self.out_channels, self.in_channels]
        )
        sums = paddle.empty(shape, "float32")
        result = Operand(sums.data_ptr(), tuple(shape), strides_of(shape))
        onednn.multiply(
            self.matrix(upstream, self.out_channels),
            self.matrix(rows, self.in_channels, transposed=True),
            result,
        )
        return (sums if self.is_batched else sums.sum(0)).reshape([self.out_channels, self.in_channels, 1, 1])


def _to_bfloat16(weight: paddle.Tensor) -> paddle.Tensor:
    """Converts a kernel to bfloat16."""
    kernel = weight.detach().contiguous()
    dims = kernel.shape[0], kernel.shape[1]
    bfloat16_kernel = paddle.empty(list(dims), "int16")
    onednn.copy(
        Operand(kernel.data_ptr(), dims, strides_of(dims)),
        Operand(bfloat16_kernel.data_ptr(), dims, strides_of(dims), BFLOAT16),
    )
    return bfloat16_kernel
