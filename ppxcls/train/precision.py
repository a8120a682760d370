"""Numerical precision of training and evaluation: float32, or automatic mixed precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import paddle
from paddle import nn
from paddle.optimizer import Optimizer

from ppxcls.ops import onednn
from ppxcls.ops.convolution import to_bfloat16
from ppxcls.system.logs import logger

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass(frozen=True)
class MixedPrecision:
    """Settings of automatic mixed precision. The names are those of the config's ``AMP`` section.

    Attributes:
        dtype: ``float16`` or ``bfloat16``.
        level: ``O1`` casts the inputs of each operator; ``O2`` stores the weights in ``dtype``, with float32
            master copies.
        use_promote: True to compute an operator in float32 under O2 if its inputs differ in type.
        use_fp16_test: True to evaluate in mixed precision as well.
        scale_loss: initial loss scale.
        use_dynamic_loss_scaling: True to adapt the loss scale to overflows.
        max_skipped_steps: largest number of optimizer steps in a row that may be skipped.
    """

    dtype: str = "float16"
    level: str = "O1"
    use_promote: bool = False
    use_fp16_test: bool = False
    scale_loss: float = 1.0
    use_dynamic_loss_scaling: bool = False
    max_skipped_steps: int = 100


@dataclass
class Precision:
    """The context of forward passes, and the loss scaler. The defaults mean float32.

    Attributes:
        autocast: function that creates the context of a forward pass.
        scaler: loss scaler.
        max_skipped_steps: largest number of optimizer steps in a row that the scaler may skip.
    """

    autocast: Autocast = contextlib.nullcontext
    scaler: paddle.amp.GradScaler = field(default_factory=lambda: paddle.amp.GradScaler(enable=False))
    max_skipped_steps: int = 100

    def last_step_skipped(self) -> Any:
        """True if the last ``scaler.step`` skipped the optimizer step.

        The value may be a tensor that the device is still computing.
        """
        # Paddle has no public name for it. The value is False if scaling is off, as on the CPU.
        overflow_flag = getattr(self.scaler, "_cache_found_inf", None)
        return False if overflow_flag is None else overflow_flag


def autocast(settings: MixedPrecision | None) -> Autocast:
    """Returns a function that creates the context of a training step.

    Args:
        settings: settings of mixed precision; None for float32.
    """
    if settings is None:
        return contextlib.nullcontext
    return partial(
        paddle.amp.auto_cast,
        enable=True,
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
    if settings is None or settings.level != "O2":
        return model
    return paddle.amp.decorate(models=model, level="O2", dtype=settings.dtype, save_dtype="float32")


def _enable_bfloat16_products(settings: MixedPrecision, model: nn.Layer) -> bool:
    """Makes oneDNN multiply in bfloat16 if the processor supports it.

    It replaces Paddle's AMP, which has no effect on a CPU.

    Returns:
        True if the products are computed in bfloat16.
    """
    if settings.dtype == "bfloat16" and onednn.has_bfloat16():
        count = to_bfloat16(model)
        logger.info(
            f"AMP: {count} dense convolutions are trained with bfloat16 products, the rest in float32"
        )
        return True
    is_half = settings.dtype == "float16"
    requirement = (
        "AMP.dtype: bfloat16" if is_half else "a processor with AVX512-BF16 or AMX, and Paddle's oneDNN"
    )
    logger.warning(
        f"AMP has no effect here, everything is computed in float32: on a CPU it needs {requirement}"
    )
    return False


def set_precision(
    settings: MixedPrecision | None, model: nn.Layer, optimizer: Optimizer
) -> tuple[nn.Layer, Optimizer, Precision]:
    """Sets up a network and its optimizer for training in a precision.

    Args:
        settings: settings of mixed precision; None for float32.
        model: network to train.
        optimizer: optimizer of the network's parameters.

    Returns:
        The network and the optimizer, both prepared for the precision, and the precision.
    """
    if settings is None:
        return model, optimizer, Precision()
    max_skipped_steps = settings.max_skipped_steps
    if paddle.get_device() == "cpu" and settings.level == "O1" and _enable_bfloat16_products(settings, model):
        return model, optimizer, Precision(max_skipped_steps=max_skipped_steps)
    if settings.level == "O2":
        # The weights have half precision. The optimizer keeps float32 copies, and files contain float32.
        model, optimizer = paddle.amp.decorate(
            models=model,
            optimizers=optimizer,
            level="O2",
            dtype=settings.dtype,
            master_weight=True,
            save_dtype="float32",
        )
    scaler = paddle.amp.GradScaler(
        init_loss_scaling=settings.scale_loss, use_dynamic_loss_scaling=settings.use_dynamic_loss_scaling
    )
    return model, optimizer, Precision(autocast(settings), scaler, max_skipped_steps)
