"""Precision of the computation: float32, or automatic mixed precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import paddle
from paddle import nn
from paddle.optimizer import Optimizer

from ppxcls.config.sections import AMPSection
from ppxcls.ops import onednn
from ppxcls.ops.convolution import to_bfloat16
from ppxcls.system.logs import logger

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass
class Precision:
    """The context of forward passes, and the loss scale. The defaults are those of float32.

    Attributes:
        autocast: makes the context.
        scaler: scales the loss.
        max_skipped_steps: largest number of steps in a row that the scaler may skip.
    """

    autocast: Autocast = contextlib.nullcontext
    scaler: paddle.amp.GradScaler = field(default_factory=lambda: paddle.amp.GradScaler(enable=False))
    max_skipped_steps: int = 100

    def last_step_skipped(self) -> Any:
        """Whether the last ``scaler.step`` skipped the optimizer step; it may be a tensor that is still being computed."""
        # Paddle has no public name for it. It is False if scaling is off, as on the CPU.
        found = getattr(self.scaler, "_cache_found_inf", None)
        return False if found is None else found


def autocast(amp: AMPSection | None) -> Autocast:
    """Makes the context of a training step, by a config's section."""
    if amp is None or not amp.use_amp:
        return contextlib.nullcontext
    return partial(paddle.amp.auto_cast, enable=True, level=amp.level, dtype=amp.dtype, use_promote=amp.use_promote)


def evaluation_autocast(amp: AMPSection | None) -> Autocast:
    """Makes the context of an evaluation: float32 under O1 without ``use_fp16_test``, otherwise that of training."""
    return contextlib.nullcontext if amp and amp.level == "O1" and not amp.use_fp16_test else autocast(amp)


def set_evaluation_precision(amp: AMPSection | None, model: nn.Layer) -> nn.Layer:
    """Cast a network to the type in which O2 trains it. With any other section it stays the same."""
    if amp is None or not amp.use_amp or amp.level != "O2":
        return model
    return paddle.amp.decorate(models=model, level="O2", dtype=amp.dtype, save_dtype="float32")


def _multiplies_bfloat16(amp: AMPSection, model: nn.Layer) -> bool:
    """Let oneDNN multiply bfloat16 where the processor does, because Paddle's AMP has no effect on a CPU; whether it will."""
    if amp.dtype == "bfloat16" and onednn.has_bfloat16():
        count = to_bfloat16(model)
        logger.info(f"AMP: {count} dense convolutions are trained with bfloat16 products, the rest in float32")
        return True
    needs = "AMP.dtype: bfloat16" if amp.dtype == "float16" else "a processor with AVX512-BF16 or AMX, and Paddle's oneDNN"
    logger.warning(f"AMP has no effect here, all is computed in float32: on a CPU it needs {needs}")
    return False


def set_precision(amp: AMPSection | None, model: nn.Layer, optimizer: Optimizer) -> tuple[nn.Layer, Optimizer, Precision]:
    """Set up network and optimizer for training, by a config's section."""
    if amp is None or not amp.use_amp:
        return model, optimizer, Precision()
    if paddle.get_device() == "cpu" and amp.level == "O1" and _multiplies_bfloat16(amp, model):
        return model, optimizer, Precision(max_skipped_steps=amp.max_skipped_steps)
    if amp.level == "O2":
        # The weights have half precision. The optimizer keeps float32 copies, and files hold float32.
        model, optimizer = paddle.amp.decorate(
            models=model, optimizers=optimizer, level="O2", dtype=amp.dtype, master_weight=True, save_dtype="float32"
        )
    scaler = paddle.amp.GradScaler(init_loss_scaling=amp.scale_loss, use_dynamic_loss_scaling=amp.use_dynamic_loss_scaling)
    return model, optimizer, Precision(autocast(amp), scaler, amp.max_skipped_steps)
