"""Numerical precision of training and evaluation: float32, or automatic mixed precision."""

from __future__ import annotations

import contextlib
import functools
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import paddle
from paddle import nn
from paddle.amp.auto_cast import amp_global_state
from paddle.optimizer import Optimizer

from ppxcls.ops import onednn
from ppxcls.ops.convolution import to_bfloat16
from ppxcls.system.logs import logger

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


# Paddle has no public name for it. The second is Paddle 2.6's spelling. They are False if scaling is off.
_OVERFLOW_FLAGS = ("_cache_found_inf", "_cache_founf_inf")


@dataclass(frozen=True)
class MixedPrecision:
    """Settings of automatic mixed precision. The names are those of the config's ``AMP`` section.

    Attributes:
        dtype: ``float16`` or ``bfloat16``.
        level: ``O1`` casts the inputs of each operator; ``O2`` stores the weights in ``dtype``, with float32
            master copies.
        half_depthwise: True to compute depthwise convolutions in ``dtype`` under O1 too.
        use_promote: True to compute an operator in float32 under O2 if its inputs differ in type.
        use_fp16_test: True to evaluate in mixed precision as well.
        scale_loss: initial loss scale.
        use_dynamic_loss_scaling: True to adapt the loss scale to overflows.
        max_skipped_steps: largest number of optimizer steps in a row that may be skipped.
    """

    dtype: str = "float16"
    level: str = "O1"
    half_depthwise: bool = True
    use_promote: bool = True
    use_fp16_test: bool = False
    scale_loss: float = 1.0
    use_dynamic_loss_scaling: bool = False
    max_skipped_steps: int = 100


@dataclass
class Precision:
    """The context of forward passes, and the loss scaler. The defaults mean float32.

    Attributes:
        autocast: function that creates the context of a forward pass. The loss is computed outside, in
            float32.
        scaler: loss scaler.
        max_skipped_steps: largest number of optimizer steps in a row that the scaler may skip.
        has_float32_gradients: True if the gradients of half-precision weights are float32.
    """

    autocast: Autocast = contextlib.nullcontext
    scaler: paddle.amp.GradScaler = field(default_factory=lambda: paddle.amp.GradScaler(enable=False))
    max_skipped_steps: int = 100
    has_float32_gradients: bool = False

    def last_step_skipped(self) -> bool:
        """True if the last ``scaler.step`` skipped the optimizer step."""
        return any(bool(getattr(self.scaler, name, None)) for name in _OVERFLOW_FLAGS)


class LossScaler(paddle.amp.GradScaler):
    """Paddle's loss scaler, which also works if a gradient overflows.

    Paddle then prints the scale as ``float(tensor)`` of a tensor [1], which numpy 2.4 refuses.
    """

    def _update(self) -> None:
        is_skipped = any(getattr(self, name, None) for name in _OVERFLOW_FLAGS)
        if not is_skipped:
            super()._update()
            return
        self._scale: paddle.Tensor = self._scale.reshape([])
        super()._update()
        self._scale = self._scale.reshape([1])  # the shape that Paddle's ``load_state_dict`` expects


def has_effect(settings: MixedPrecision) -> bool:
    """True if Paddle computes in the settings' type on this device.

    Paddle allows bfloat16 by a list of devices. On other devices, and on a CPU, it warns in each step and
    computes in float32.
    """
    return _computes_in(settings.dtype, paddle.get_device())


@functools.cache
def _computes_in(dtype: str, device: str) -> bool:
    if device == "cpu":
        return False
    with warnings.catch_warnings(), paddle.no_grad():
        warnings.simplefilter("ignore")
        with paddle.amp.auto_cast(enable=True, level="O1", dtype=dtype):
            product = paddle.matmul(paddle.ones([2, 2]), paddle.ones([2, 2]))
    return product.dtype == getattr(paddle, dtype)


def autocast(settings: MixedPrecision | None) -> Autocast:
    """Returns a function that creates the context of a training step.

    Args:
        settings: settings of mixed precision; None for float32.
    """
    if settings is None or not has_effect(settings):
        return contextlib.nullcontext
    # Without this, depthwise convolutions get float32 weights and are computed in float32: they are not in
    # Paddle's list of operators for half precision.
    half_operators = {"depthwise_conv2d"} if settings.half_depthwise else None
    return partial(
        paddle.amp.auto_cast,
        enable=True,
        custom_white_list=half_operators,
        level=settings.level,
        dtype=settings.dtype,
        use_promote=settings.use_promote,
    )


def evaluation_autocast(settings: MixedPrecision | None) -> Autocast:
    """Returns a function that creates the context of an evaluation.

    The precision is that of training, except under O1 without ``use_fp16_test``: then it is float32.

    Args:
        settings: settings of mixed precision; None for float32.
    """
    if settings and settings.level == "O1" and not settings.use_fp16_test:
        return contextlib.nullcontext
    return autocast(settings)


def set_evaluation_precision(settings: MixedPrecision | None, model: nn.Layer) -> nn.Layer:
    """Casts a network to the type in which O2 trains it. Under other settings the network is unchanged."""
    if settings is None or settings.level != "O2" or not has_effect(settings):
        return model
    return paddle.amp.decorate(models=model, level="O2", dtype=settings.dtype)


def _enable_bfloat16_products(settings: MixedPrecision, model: nn.Layer) -> bool:
    """Makes oneDNN multiply in bfloat16 if the processor supports it.

    It replaces Paddle's AMP, which has no effect on a CPU.

    Returns:
        True if the products are computed in bfloat16.
    """
    if settings.dtype == "bfloat16" and settings.level == "O1" and onednn.has_bfloat16():
        count = to_bfloat16(model)
        logger.info(
            f"AMP: {count} dense convolutions are trained with bfloat16 products, the rest in float32"
        )
        return True
    return False


def _warn_about_float32(settings: MixedPrecision) -> None:
    device = paddle.get_device()
    if device != "cpu":
        other_dtype = "float16" if settings.dtype == "bfloat16" else "bfloat16"
        requirement = f"Paddle {paddle.__version__} does not allow {settings.dtype} on {device}"
        advice = f"{requirement}; AMP.dtype={other_dtype} may work"
    elif settings.dtype == "float16":
        advice = "on a CPU it needs AMP.dtype: bfloat16"
    elif settings.level == "O2":
        advice = "on a CPU it needs AMP.level: O1"
    else:
        advice = "on a CPU it needs a processor with AVX512-BF16 or AMX, and Paddle's oneDNN"
    logger.warning(f"AMP has no effect here, everything is computed in float32: {advice}")


def _forget_when_collected(model: nn.Layer) -> None:
    """Removes a network's parameters from Paddle's list of those with float32 gradients when it is collected.

    Otherwise the list keeps them for ever, and each later step goes through all of them.
    """
    identities = {id(parameter) for parameter in model.parameters()}

    def forget() -> None:
        state = amp_global_state()
        state.model_parameters = [p for p in state.model_parameters if id(p) not in identities]

    weakref.finalize(model, forget).atexit = False


def set_precision(
    settings: MixedPrecision | None,
    model: nn.Layer,
    optimizer: Optimizer,
    *,
    takes_float32_gradients: bool = True,
) -> tuple[nn.Layer, Optimizer, Precision]:
    """Sets up a network and its optimizer for training in a precision.

    Args:
        settings: settings of mixed precision; None for float32.
        model: network to train.
        optimizer: optimizer of the network's parameters.
        takes_float32_gradients: True if the optimizer's kernel updates half-precision weights by float32
            gradients.

    Returns:
        The network and the optimizer, both prepared for the precision, and the precision.
    """
    if settings is None:
        return model, optimizer, Precision()
    max_skipped_steps = settings.max_skipped_steps
    if not has_effect(settings):
        if paddle.get_device() != "cpu" or not _enable_bfloat16_products(settings, model):
            _warn_about_float32(settings)
        return model, optimizer, Precision(max_skipped_steps=max_skipped_steps)
    if settings.level == "O2":
        # The weights have half precision. The optimizer keeps float32 copies. If it can, gradients are summed
        # in float32.
        model, optimizer = paddle.amp.decorate(
            models=model,
            optimizers=optimizer,
            level="O2",
            dtype=settings.dtype,
            master_weight=True,
            master_grad=takes_float32_gradients,
        )
        _forget_when_collected(model)
    is_scaled = settings.dtype == "float16"  # bfloat16 has the range of float32
    if is_scaled and settings.scale_loss == 1.0 and not settings.use_dynamic_loss_scaling:
        logger.warning(
            "AMP: gradients below 6e-8 become zero in float16 with a loss scale of 1; "
            "set AMP.use_dynamic_loss_scaling: true, or AMP.scale_loss"
        )
    scaler = LossScaler(
        enable=is_scaled,
        init_loss_scaling=settings.scale_loss,
        use_dynamic_loss_scaling=is_scaled and settings.use_dynamic_loss_scaling,
    )
    has_float32_gradients = settings.level == "O2" and takes_float32_gradients
    precision = Precision(
        autocast(settings), scaler, max_skipped_steps, has_float32_gradients=has_float32_gradients
    )
    return model, optimizer, precision
