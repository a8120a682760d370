"""Optimizers and weight decay: Paddle's own classes under their own names, with settings by parameter."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import paddle
from paddle import nn
from paddle import optimizer as paddle_optimizers
from paddle.optimizer.lr import LambdaDecay
from paddle.regularizer import L1Decay, L2Decay

from ppxcls.config.checks import BelowOne, NotNegative, Positive, Where
from ppxcls.config.registry import OPTIMIZERS, REGULARIZERS, split_block

_BETAS: dict[str, Any] = {"beta1": BelowOne, "beta2": BelowOne, "epsilon": Positive}

OPTIMIZERS.register(paddle_optimizers.SGD)
OPTIMIZERS.register(paddle_optimizers.Momentum, momentum=BelowOne)
OPTIMIZERS.register(paddle_optimizers.Adam, **_BETAS)
OPTIMIZERS.register(paddle_optimizers.Adamax, **_BETAS)
OPTIMIZERS.register(paddle_optimizers.NAdam, **_BETAS)
OPTIMIZERS.register(paddle_optimizers.RAdam, **_BETAS)
OPTIMIZERS.register(paddle_optimizers.Adagrad, epsilon=Positive)
OPTIMIZERS.register(paddle_optimizers.Adadelta, epsilon=Positive, rho=BelowOne)
# Paddle's has epsilon inside the root, as TensorFlow's, which the paper's recipe and timm's RMSpropTF need.
OPTIMIZERS.register(paddle_optimizers.RMSProp, epsilon=Positive, rho=BelowOne, momentum=BelowOne)


@OPTIMIZERS.register
def AdamW(
    learning_rate: Any,
    parameters: Any,
    grad_clip: Any,
    weight_decay: Any,
    not_decayed: Any,
    beta1: BelowOne = 0.9,
    beta2: BelowOne = 0.999,
    epsilon: Positive = 1e-8,
) -> paddle.optimizer.Optimizer:
    """Adam with decoupled weight decay (arXiv:1711.05101); ``weight_decay`` is 0.01 where it is not given."""
    return paddle_optimizers.AdamW(
        learning_rate=learning_rate,
        parameters=parameters,
        grad_clip=grad_clip,
        weight_decay=0.01 if weight_decay is None else weight_decay,
        apply_decay_param_fun=lambda name: name not in not_decayed,
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
    )


@OPTIMIZERS.register
def Lamb(
    learning_rate: Any,
    parameters: Any,
    grad_clip: Any,
    weight_decay: Any,
    not_decayed: Any,
    beta1: BelowOne = 0.9,
    beta2: BelowOne = 0.999,
    epsilon: Positive = 1e-6,
) -> paddle.optimizer.Optimizer:
    """Layer-wise adaptive rates (arXiv:1904.00962); ``weight_decay`` is 0.01 where it is not given."""
    return paddle_optimizers.Lamb(
        learning_rate=learning_rate,
        parameters=parameters,
        grad_clip=grad_clip,
        lamb_weight_decay=0.01 if weight_decay is None else weight_decay,
        exclude_from_weight_decay_fn=lambda parameter: parameter.name in not_decayed,
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
    )


_DECOUPLED = {"AdamW", "Lamb"}  # their weight decay is no part of the gradient


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
    parameters: Mapping[str, paddle.Tensor],
    lr_at: Callable[[int], float],
    where: Where = Where(("Optimizer",)),
) -> tuple[paddle.optimizer.Optimizer, LambdaDecay]:
    """The optimizer of a config's block, and the scheduler that sets its rate: call ``step()`` after each optimizer step.

    Args:
        spec: ``{"name": "Momentum", "momentum": 0.9, "lr": {...}, "regularizer": {"name": "L2", "coeff": 1e-4}}``.
        parameters: by state key.
        lr_at: learning rate by optimizer step.

    Raises:
        ConfigError: an argument is unknown, missing or wrong, or a pattern means no parameter.
    """
    # Named as in the config, since the log line says the class's name.
    scheduler: LambdaDecay = type(spec["lr"]["name"], (LambdaDecay,), {})(1.0, lr_at)
    name, arguments = split_block(spec)
    OPTIMIZERS.check(name, arguments, where, where / "name")
    common = OPTIMIZERS.build_common(arguments, where)
    if common.regularizer is not None and (common.weight_decay is not None or name in _DECOUPLED):
        raise (where / "regularizer").error(f"expected weight_decay alone, received regularizer with {name} or beside it")
    not_decayed = _set_by_parameter(common, parameters, name in _DECOUPLED, where)
    decay = common.weight_decay if name in _DECOUPLED or common.weight_decay is None else L2Decay(common.weight_decay)
    if common.regularizer is not None:
        decay = REGULARIZERS.build(*split_block(common.regularizer), where / "regularizer")
    optimizer = OPTIMIZERS.build(
        name,
        arguments,
        where,
        learning_rate=scheduler,
        parameters=[p for p in parameters.values() if not p.stop_gradient],
        weight_decay=decay,
        grad_clip=_clip(common, where),
        not_decayed=not_decayed,
    )
    return optimizer, scheduler


def _clip(common: Any, where: Where) -> Any:
    ways = {
        "clip_norm": nn.ClipGradByNorm,
        "clip_norm_global": nn.ClipGradByGlobalNorm,
        "clip_value": nn.ClipGradByValue,
    }
    given = {key: getattr(common, key) for key in ways if getattr(common, key) is not None}
    if len(given) > 1:
        raise (where / sorted(given)[0]).error(f"expected one way of clipping, received {' and '.join(sorted(given))}")
    return next((ways[key](value) for key, value in given.items()), None)


def _set_by_parameter(common: Any, parameters: Mapping[str, paddle.Tensor], decoupled: bool, where: Where) -> set[str]:
    """Set each parameter's factor of the rate and its own decay; returns Paddle's names of those that are not decayed."""
    trained = {key: p for key, p in parameters.items() if not p.stop_gradient}
    words = (common.no_weight_decay_name or "").split()
    free = {
        key
        for key, p in trained.items()
        if any(word in key for word in words) or (common.one_dim_param_no_weight_decay and len(p.shape) == 1)
    }
    factors = dict.fromkeys(trained, 1.0)
    own_decay: dict[str, float] = {}
    if common.layer_decay is not None:
        depth = _depths(list(trained))
        deepest = max(depth.values())
        factors = {key: common.layer_decay ** (deepest - depth[key]) for key in trained}
    for i, group in enumerate(common.groups or []):
        place = where / "groups" / i
        matched = [key for key in trained if re.search(group.params, key)]
        if not matched:
            raise (place / "params").error(f"expected a pattern of state keys, received {group.params!r}, which means no parameter")
        if group.weight_decay and decoupled:
            raise (place / "weight_decay").error("expected 0 or null: this optimizer decays all that it decays alike")
        for key in matched:
            factors[key] *= group.lr_mult
            if group.weight_decay is not None:
                own_decay[key] = group.weight_decay
    own_decay |= dict.fromkeys(free, 0.0)
    for key, p in trained.items():
        p.optimize_attr["learning_rate"] = factors[key]
        p.regularizer = L2Decay(own_decay[key]) if key in own_decay and not decoupled else None
    return {trained[key].name for key, value in own_decay.items() if value == 0}


def _depths(keys: Sequence[str]) -> dict[str, int]:
    """How deep each parameter lies: in the order of the network, one step for each block or layer of its top two levels."""
    depths: dict[str, int] = {}
    places: dict[tuple[str, ...], int] = {}
    for key in keys:
        place = tuple(key.split(".")[:2])
        depths[key] = places.setdefault(place, len(places))
    return depths
