"""Forward passes over many inputs, compiled for the CPU in bfloat16 or float32."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import paddle
from paddle import nn

from ppxcls.ops import onednn
from ppxcls.system.arrays import Array
from ppxcls.system.environment import thread_count
from ppxcls.system.logs import logger
from ppxcls.system.temporary_folder import temporary_folder
from ppxcls.train.loss_watch import TrainingError
from ppxcls.train.paddle_inference import (
    InferenceProgram,
    is_compilable,
    program_file,
    traced,
    write_program,
)
from ppxcls.train.predictions import NOT_FINITE

ForwardKind = Literal["bfloat16", "float32", "not compiled"]

# Compiling takes 5 seconds of one core, and saves 0.09 (float32) to 0.13 (bfloat16) seconds of one core for
# each 7.3 billion multiplications. So it saves time above this number, for each thread.
_MIN_MULTIPLICATIONS_PER_THREAD = 500_000_000_000
_MAX_COMPARED_INPUTS = 8  # inputs that the layer itself computes, too
# Largest error: the norm of the differences, as a share of the norm of the layer's own outputs.
_TOLERANCES: dict[ForwardKind, float] = {"bfloat16": 0.05, "float32": 1e-4}


class FastForward:
    """A layer in evaluation mode, which is compiled on the CPU if that saves time.

    The first call decides. Some of its inputs go through the layer itself, which counts its multiplications.
    If there are many for ``count`` inputs, the layer is compiled for oneDNN: in bfloat16 if the processor
    multiplies it, otherwise in float32. If the outputs differ by more than 5 % of their norm (bfloat16) or
    0.01 % (float32), the next slower form is used. No time is measured, so equal calls give equal outputs.

    Attributes:
        kind: form of the computation after the first call: ``bfloat16``, ``float32`` or ``not compiled``.
        error: norm of the differences to the layer's own outputs, as a share of their norm.

    Args:
        layer: layer, which is put into evaluation mode. Its weights must not change meanwhile.
        shape: shape of one input, such as (3, 299, 299).
        count: number of inputs that it will get.
        at_once: number of inputs that a compiled layer computes at once. It takes as long for fewer, so calls
            should have a multiple of this number.
    """

    def __init__(self, layer: nn.Layer, shape: tuple[int, ...], *, count: int, at_once: int) -> None:
        self._layer = layer
        self._shape = shape
        self._count = count
        self._at_once = at_once
        self._program: InferenceProgram | None = None
        self._is_decided = False
        self.kind: ForwardKind = "not compiled"
        self.error = 0.0
        layer.eval()

    def __call__(self, inputs: Array) -> Array:
        """Maps [N, *shape] to [N, ...]. N may differ from call to call.

        Raises:
            ValueError: the inputs have another shape.
            TrainingError: an output is not finite.
        """
        if inputs.shape[1:] != self._shape or not len(inputs):
            sizes = ", ".join(map(str, self._shape))
            raise ValueError(f"expected inputs [N, {sizes}], received {list(inputs.shape)}")
        if not self._is_decided:
            self._is_decided = True
            self._decide(inputs[:_MAX_COMPARED_INPUTS])
        outputs = self._run(inputs)
        if not np.isfinite(outputs).all():
            raise TrainingError(NOT_FINITE)
        return outputs

    def _run(self, inputs: Array) -> Array:
        if paddle.get_device() != "cpu":
            return self._plain(inputs)
        size = self._at_once
        return np.concatenate([self._run_at_once(inputs[i : i + size]) for i in range(0, len(inputs), size)])

    def _run_at_once(self, inputs: Array) -> Array:
        """Computes up to ``at_once`` inputs.

        A program always gets ``at_once`` inputs, because oneDNN has another kernel for each number of inputs,
        and they round differently.
        """
        if self._program is None:
            return self._plain(inputs)
        padding = np.zeros((self._at_once - len(inputs), *self._shape), np.float32)
        return self._program(np.concatenate([inputs, padding]))[: len(inputs)]

    def _plain(self, inputs: Array) -> Array:
        with paddle.no_grad():
            outputs: Array = self._layer(paddle.to_tensor(inputs)).astype("float32").numpy()
        return outputs

    def _decide(self, inputs: Array) -> None:
        if not is_compilable(self._layer):
            return
        with _Multiplications(self._layer) as multiplications:
            expected = self._plain(inputs)
        total = multiplications.total / len(inputs) * self._count
        if total < _MIN_MULTIPLICATIONS_PER_THREAD * thread_count() or not np.isfinite(expected).all():
            return
        kinds: list[ForwardKind] = ["bfloat16", "float32"] if onednn.has_bfloat16() else ["float32"]
        try:
            self._compile(kinds, inputs, expected)
        except Exception as error:  # from tracing a user's network, the compiler, or a full disk
            self._program = None
            logger.debug(f"the forward pass is not compiled: {error}")

    def _compile(self, kinds: list[ForwardKind], inputs: Array, expected: Array) -> None:
        """Chooses the first program whose outputs are close to the expected ones."""
        with temporary_folder() as folder:
            weights = write_program(traced(self._layer, self._shape), folder)
            for kind in kinds:
                self._program = InferenceProgram(
                    program_file(folder),
                    weights,
                    threads=thread_count(),
                    in_bfloat16=kind == "bfloat16",
                    device="cpu",
                )
                self.error = _relative_error(self._run(inputs), expected)
                if self.error <= _TOLERANCES[kind]:
                    self.kind = kind
                    return
                logger.debug(f"the forward pass in {kind} has a relative error of {self.error:.2e}")
        self._program = None
        self.error = 0.0


class _Multiplications:
    """Counts the multiplications of a layer's convolutions and linear layers, for all inputs together."""

    def __init__(self, layer: nn.Layer) -> None:
        self._layer = layer
        self._hooks: list[Any] = []
        self.total = 0

    def __enter__(self) -> _Multiplications:
        for layer in self._layer.sublayers(include_self=True):
            if isinstance(layer, nn.Conv2D | nn.Linear):
                self._hooks.append(layer.register_forward_post_hook(self._count))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, layer: Any, _: Any, output: paddle.Tensor) -> None:
        outputs = layer.weight.shape[1 if isinstance(layer, nn.Linear) else 0]
        self.total += math.prod(output.shape) * math.prod(layer.weight.shape) // outputs


def _relative_error(received: Array, expected: Array) -> float:
    """Returns the norm of the differences, as a share of the norm of the expected values."""
    if not np.isfinite(received).all():
        return math.inf
    return float(np.linalg.norm(received - expected) / max(float(np.linalg.norm(expected)), 1e-12))
