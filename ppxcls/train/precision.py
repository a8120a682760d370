"""How to compute: float32, or automatic mixed precision."""

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


def autocast(amp: AMPSection | None) -> Autocast:
    """The context of a forward pass that a config's section asks for; None and ``use_amp: False`` ask for none."""
    if amp is None or not amp.use_amp:
        return contextlib.nullcontext
    return partial(paddle.amp.auto_cast, enable=True, level=amp.level, dtype=amp.dtype, use_promote=amp.use_promote)


def evaluation_autocast(amp: AMPSection | None) -> Autocast:
    """The context of an evaluation: float32 under O1 unless ``use_fp16_test``; under O2 that of training, as its weights are."""
    return contextlib.nullcontext if amp and amp.level == "O1" and not amp.use_fp16_test else autocast(amp)


def set_evaluation_precision(amp: AMPSection | None, model: nn.Layer) -> nn.Layer:
    """The network with its weights in the type in which O2 trains them; any other as it is."""
    if amp is None or not amp.use_amp or amp.level != "O2":
        return model
    return paddle.amp.decorate(models=model, level="O2", dtype=amp.dtype, save_dtype="float32")


def set_precision(amp: AMPSection | None, model: nn.Layer, optimizer: Optimizer) -> tuple[nn.Layer, Optimizer, Precision]:
    """Network and optimizer as a config's section wants them, and how to compute with them."""
    if amp is None or not amp.use_amp:
        return model, optimizer, Precision()
    if amp.level == "O2":
        # Weights of half precision, float32 master copies in the optimizer, float32 in the files.
        model, optimizer = paddle.amp.decorate(
            models=model, optimizers=optimizer, level="O2", dtype=amp.dtype, master_weight=True, save_dtype="float32"
        )
    scaler = paddle.amp.GradScaler(init_loss_scaling=amp.scale_loss, use_dynamic_loss_scaling=amp.use_dynamic_loss_scaling)
    return model, optimizer, Precision(autocast(amp), scaler, amp.max_skipped_steps)
