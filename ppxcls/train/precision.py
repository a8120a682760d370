"""How to compute: float32, or automatic mixed precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import paddle
from paddle import nn

from ppxcls.config.load import AMP

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass
class Precision:
    """The context of forward passes and the scaling of the loss; float32 as it stands.

    Attributes:
        max_skipped_steps: steps in a row that the scaling may leave out.
    """

    autocast: Autocast = contextlib.nullcontext
    scaler: paddle.amp.GradScaler = field(default_factory=lambda: paddle.amp.GradScaler(enable=False))
    max_skipped_steps: int = 100

    def last_step_skipped(self) -> Any:
        """Whether the last ``scaler.step`` left the optimizer step out; may be a tensor, which nobody has waited for yet."""
        # Paddle has no public word for it. False where scaling is off, as it is on the CPU.
        found = getattr(self.scaler, "_cache_found_inf", None)
        return False if found is None else found


def autocast(amp: AMP | None) -> Autocast:
    """The context that a config's section asks for."""
    if amp is None:
        return contextlib.nullcontext
    return partial(paddle.amp.auto_cast, enable=True, level=amp.level, dtype=amp.dtype, use_promote=amp.use_promote)


def set_precision(
    amp: AMP | None, model: nn.Layer, optimizer: paddle.optimizer.Optimizer
) -> tuple[nn.Layer, paddle.optimizer.Optimizer, Precision]:
    """Model and optimizer as the config's section wants them, and how to compute with them."""
    if amp is None or not amp.use_amp:
        return model, optimizer, Precision()
    if amp.level == "O2":
        # Float16 weights, float32 master copies in the optimizer, float32 in the files.
        model, optimizer = paddle.amp.decorate(
            models=model, optimizers=optimizer, level="O2", dtype=amp.dtype, master_weight=True, save_dtype="float32"
        )
    scaler = paddle.amp.GradScaler(init_loss_scaling=amp.scale_loss, use_dynamic_loss_scaling=amp.use_dynamic_loss_scaling)
    return model, optimizer, Precision(autocast(amp), scaler, amp.max_skipped_steps)
