"""Optimizers and weight decay: Paddle's own classes under their own names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import paddle
from paddle import optimizer as paddle_optimizers
from paddle.optimizer.lr import LambdaDecay
from paddle.regularizer import L1Decay, L2Decay

from ppxcls.registry import OPTIMIZERS, REGULARIZERS, split_block
from ppxcls.schema import Bound, NotNegative, Positive, Where

_BelowOne = Annotated[float, Bound(ge=0, lt=1)]
_BETAS: dict[str, Any] = {"beta1": _BelowOne, "beta2": _BelowOne, "epsilon": Positive}

OPTIMIZERS.register(paddle_optimizers.SGD)
OPTIMIZERS.register(paddle_optimizers.Momentum, momentum=_BelowOne)
OPTIMIZERS.register(paddle_optimizers.Adam, **_BETAS)
OPTIMIZERS.register(paddle_optimizers.Adamax, **_BETAS)
OPTIMIZERS.register(paddle_optimizers.NAdam, **_BETAS)
OPTIMIZERS.register(paddle_optimizers.RAdam, **_BETAS)
OPTIMIZERS.register(paddle_optimizers.Adagrad, epsilon=Positive)
OPTIMIZERS.register(paddle_optimizers.Adadelta, epsilon=Positive, rho=_BelowOne)
OPTIMIZERS.register(paddle_optimizers.RMSProp, epsilon=Positive, rho=_BelowOne, momentum=_BelowOne)


@REGULARIZERS.register
def L2(coeff: NotNegative) -> L2Decay:
    """Adds ``coeff * weight`` to the gradient of every parameter, batch norm's included, as PaddleClas does."""
    return L2Decay(coeff)


@REGULARIZERS.register
def L1(coeff: NotNegative) -> L1Decay:
    """Adds ``coeff * sign(weight)`` to the gradient of every parameter."""
    return L1Decay(coeff)


def build_optimizer(
    spec: Mapping[str, Any],
    parameters: list[paddle.Tensor],
    lr_at: Callable[[int], float],
    where: Where = Where(("Optimizer",)),
) -> tuple[paddle.optimizer.Optimizer, LambdaDecay]:
    """The optimizer of a config's block, and the scheduler that sets its rate: call ``step()`` after each optimizer step.

    Args:
        spec: ``{"name": "Momentum", "momentum": 0.9, "lr": {...}, "regularizer": {"name": "L2", "coeff": 1e-4}}``.
        parameters: the parameters to train.
        lr_at: learning rate by optimizer step.

    Raises:
        ConfigError: an argument is unknown, missing or wrong.
    """
    # Named as in the config, since the log line says the class's name.
    scheduler: LambdaDecay = type(spec["lr"]["name"], (LambdaDecay,), {})(1.0, lr_at)
    name, arguments = split_block(spec)
    decay = arguments.get("regularizer")
    if decay is not None:
        decay = REGULARIZERS.build(*split_block(decay), where / "regularizer")
    optimizer = OPTIMIZERS.build(name, arguments, where, learning_rate=scheduler, parameters=parameters, weight_decay=decay)
    return optimizer, scheduler
