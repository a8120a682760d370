"""Optimizers and weight decay: Paddle's own classes under their own names, with settings by parameter.

Paddle's signatures differ from version to version, so each optimizer is a function here whose signature is
the schema of its block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import paddle
from paddle import nn, optimizer
from paddle.optimizer import Optimizer
from paddle.optimizer.lr import LambdaDecay
from paddle.regularizer import L1Decay, L2Decay

from ppxcls.config.checks import (
    BelowOne,
    Bound,
    Finite,
    Lacks,
    NotNegative,
    Pattern,
    Positive,
    Where,
    matching,
)
from ppxcls.config.registry import Block, Component, Registry
from ppxcls.system.logs import logger


@dataclass
class ParameterGroup:
    """Settings of some parameters.

    Attributes:
        params: regular expression, searched for in the state keys.
        lr_mult: factor of the learning rate.
        weight_decay: of these parameters; null for that of the others.
    """

    params: Pattern
    lr_mult: NotNegative = 1.0
    weight_decay: NotNegative | None = None


@dataclass
class OptimizerKeys:
    """Common keys of the optimizers.

    Attributes:
        lr: the learning-rate schedule.
        regularizer: the other way to give weight decay: a block ``L2`` or ``L1``.
        weight_decay: L2 in the gradient; AdamW and Lamb decouple it from the gradient.
        no_weight_decay_name: words; parameters whose state keys contain one are not decayed.
        one_dim_param_no_weight_decay: nor are batch norms and biases.
        clip_norm, clip_norm_global, clip_value: largest norm of each gradient, norm of all together, or
            value.
        groups: settings by parameter.
        layer_decay: factor of the learning rate for each layer further from the classifier.
    """

    lr: Annotated[Block, Component("lr schedule")]
    regularizer: Annotated[Block, Component("regularizer")] | None = None
    weight_decay: NotNegative | None = None
    no_weight_decay_name: str | None = None
    one_dim_param_no_weight_decay: bool = False
    clip_norm: Positive | None = None
    clip_norm_global: Positive | None = None
    clip_value: Positive | None = None
    groups: list[ParameterGroup] | None = None
    layer_decay: Annotated[float, Bound(gt=0, le=1)] | None = None


@dataclass
class OptimizerInputs:
    """What the program gives to every optimizer.

    Attributes:
        not_decayed: Paddle's names of parameters without weight decay, for optimizers that decouple it.
    """

    learning_rate: LambdaDecay
    parameters: list[paddle.Tensor]
    weight_decay: Any
    grad_clip: Any
    not_decayed: set[str]

    def arguments(self) -> dict[str, Any]:
        """Paddle's arguments of these, without weight decay."""
        return {
            "learning_rate": self.learning_rate,
            "parameters": self.parameters,
            "grad_clip": self.grad_clip,
        }

    def coupled(self) -> dict[str, Any]:
        """The same with weight decay as part of the gradient."""
        return {**self.arguments(), "weight_decay": self.weight_decay}


# NAdam, RAdam and Adam's amsgrad came together.
_PADDLE_3 = None if hasattr(optimizer, "NAdam") else f"Paddle 3.0 or newer; {paddle.__version__} is installed"

OPTIMIZERS: Registry[Optimizer] = Registry(
    "optimizer",
    provided=("inputs", "given"),  # the second is the name that plugins written for 0.10 use
    common=OptimizerKeys,
    facts={"is_decoupled": False, "state_copies": 2},
)
REGULARIZERS: Registry[L1Decay | L2Decay] = Registry("regularizer")


@OPTIMIZERS.register(state_copies=0)
def SGD(inputs: OptimizerInputs, multi_precision: bool = False) -> Optimizer:
    """The gradient times the rate."""
    return optimizer.SGD(**inputs.coupled(), multi_precision=multi_precision)


@OPTIMIZERS.register(state_copies=1)
def Momentum(
    inputs: OptimizerInputs,
    momentum: BelowOne = 0.9,
    use_nesterov: bool = False,
    multi_precision: bool = False,
    rescale_grad: Finite = 1.0,
    use_multi_tensor: bool = False,
) -> Optimizer:
    """SGD with momentum, Polyak's or Nesterov's."""
    return optimizer.Momentum(
        **inputs.coupled(),
        momentum=momentum,
        use_nesterov=use_nesterov,
        multi_precision=multi_precision,
        rescale_grad=rescale_grad,
        use_multi_tensor=use_multi_tensor,
    )


@OPTIMIZERS.register
def Adam(
    inputs: OptimizerInputs,
    beta1: BelowOne = 0.9,
    beta2: BelowOne = 0.999,
    epsilon: Positive = 1e-8,
    lazy_mode: bool = False,
    multi_precision: bool = False,
    use_multi_tensor: bool = False,
    amsgrad: Annotated[bool, Lacks(_PADDLE_3)] = False,
) -> Optimizer:
    """Adam (arXiv:1412.6980), with weight decay in the gradient."""
    more = {"amsgrad": True} if amsgrad else {}  # not in every Paddle
    return optimizer.Adam(
        **inputs.coupled(),
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
        lazy_mode=lazy_mode,
        multi_precision=multi_precision,
        use_multi_tensor=use_multi_tensor,
        **more,
    )


@OPTIMIZERS.register
def Adamax(
    inputs: OptimizerInputs, beta1: BelowOne = 0.9, beta2: BelowOne = 0.999, epsilon: Positive = 1e-8
) -> Optimizer:
    """Adam with the largest gradient in place of the second moment (arXiv:1412.6980, section 7.1)."""
    return optimizer.Adamax(**inputs.coupled(), beta1=beta1, beta2=beta2, epsilon=epsilon)


@OPTIMIZERS.register(lacks=_PADDLE_3)
def NAdam(
    inputs: OptimizerInputs,
    beta1: BelowOne = 0.9,
    beta2: BelowOne = 0.999,
    epsilon: Positive = 1e-8,
    momentum_decay: Finite = 0.004,
) -> Optimizer:
    """Adam with Nesterov's momentum (Dozat, ICLR 2016 workshop)."""
    return optimizer.NAdam(
        **inputs.coupled(), beta1=beta1, beta2=beta2, epsilon=epsilon, momentum_decay=momentum_decay
    )


@OPTIMIZERS.register(lacks=_PADDLE_3)
def RAdam(
    inputs: OptimizerInputs, beta1: BelowOne = 0.9, beta2: BelowOne = 0.999, epsilon: Positive = 1e-8
) -> Optimizer:
    """Adam with a rectified variance in its first steps (arXiv:1908.03265)."""
    return optimizer.RAdam(**inputs.coupled(), beta1=beta1, beta2=beta2, epsilon=epsilon)


@OPTIMIZERS.register(state_copies=1)
def Adagrad(
    inputs: OptimizerInputs, epsilon: Positive = 1e-6, initial_accumulator_value: Finite = 0.0
) -> Optimizer:
    """Rates divided by the root of all squared gradients so far (Duchi et al., JMLR 12, 2011)."""
    return optimizer.Adagrad(
        **inputs.coupled(), epsilon=epsilon, initial_accumulator_value=initial_accumulator_value
    )


@OPTIMIZERS.register
def Adadelta(inputs: OptimizerInputs, epsilon: Positive = 1e-6, rho: BelowOne = 0.95) -> Optimizer:
    """Adadelta (arXiv:1212.5701)."""
    return optimizer.Adadelta(**inputs.coupled(), epsilon=epsilon, rho=rho)


@OPTIMIZERS.register
def RMSProp(
    inputs: OptimizerInputs,
    rho: BelowOne = 0.95,
    epsilon: Positive = 1e-6,
    momentum: BelowOne = 0.0,
    centered: bool = False,
) -> Optimizer:
    """RMSProp with epsilon inside the root, as TensorFlow has it; the paper's recipe and timm's RMSpropTF need that."""
    return optimizer.RMSProp(
        **inputs.coupled(), rho=rho, epsilon=epsilon, momentum=momentum, centered=centered
    )


@OPTIMIZERS.register(is_decoupled=True)
def AdamW(
    inputs: OptimizerInputs, beta1: BelowOne = 0.9, beta2: BelowOne = 0.999, epsilon: Positive = 1e-8
) -> Optimizer:
    """Adam with decoupled weight decay (arXiv:1711.05101); ``weight_decay`` defaults to 0.01."""
    return optimizer.AdamW(
        **inputs.arguments(),
        weight_decay=0.01 if inputs.weight_decay is None else inputs.weight_decay,
        apply_decay_param_fun=lambda name: name not in inputs.not_decayed,
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
    )


@OPTIMIZERS.register(is_decoupled=True)
def Lamb(
    inputs: OptimizerInputs, beta1: BelowOne = 0.9, beta2: BelowOne = 0.999, epsilon: Positive = 1e-6
) -> Optimizer:
    """Layer-wise adaptive rates (arXiv:1904.00962); ``weight_decay`` defaults to 0.01."""
    return optimizer.Lamb(
        **inputs.arguments(),
        lamb_weight_decay=0.01 if inputs.weight_decay is None else inputs.weight_decay,
        exclude_from_weight_decay_fn=lambda parameter: parameter.name in inputs.not_decayed,
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
    )


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
) -> tuple[Optimizer, LambdaDecay]:
    """The optimizer of a config's block, and the scheduler that sets its rate: call ``step()`` after each
    optimizer step.

    Args:
        spec: block of the optimizer: ``{"name": "Momentum", "momentum": 0.9, "lr": {...}}``.
        parameters: by state key.
        lr_at: learning rate by optimizer step.
        where: place of the block, for error messages.

    Raises:
        ConfigError: an argument is unknown, missing or wrong, or a pattern matches no parameter.
    """
    block = OPTIMIZERS.block(spec, where)
    where, common = block.where, OPTIMIZERS.common_keys(block)
    decoupled = OPTIMIZERS.fact(block.name, "is_decoupled")
    if common.regularizer is not None and (common.weight_decay is not None or decoupled):
        reason = f"{block.name} decouples it from the gradient" if decoupled else "both add to the gradient"
        raise (where / "regularizer").error(
            f"expected weight_decay alone, because {reason}; received a regularizer"
        )
    decay = common.weight_decay if decoupled or common.weight_decay is None else L2Decay(common.weight_decay)
    if common.regularizer is not None:
        decay = REGULARIZERS.build(common.regularizer)
    excluded = [
        key for key in ("no_weight_decay_name", "one_dim_param_no_weight_decay") if getattr(common, key)
    ]
    if (
        excluded
        and decay is None
        and not decoupled
        and not any(group.weight_decay for group in common.groups or [])
    ):
        logger.warning(f"Optimizer.{excluded[0]} has no effect, because there is no weight decay")
    scheduler = LambdaDecay(1.0, lr_at)
    not_decayed = _set_by_parameter(common, parameters, decoupled, where)
    trained = [p for p in parameters.values() if not p.stop_gradient]
    inputs = OptimizerInputs(scheduler, trained, decay, _clip(common, where), not_decayed)
    return OPTIMIZERS.build(block, inputs=inputs, given=inputs), scheduler


def _clip(common: OptimizerKeys, where: Where) -> Any:
    ways = {
        "clip_norm": nn.ClipGradByNorm,
        "clip_norm_global": nn.ClipGradByGlobalNorm,
        "clip_value": nn.ClipGradByValue,
    }
    given = {key: getattr(common, key) for key in ways if getattr(common, key) is not None}
    if len(given) > 1:
        raise (where / sorted(given)[0]).error(
            f"expected one way of clipping, received {' and '.join(sorted(given))}"
        )
    return next((ways[key](value) for key, value in given.items()), None)


def _set_by_parameter(
    common: OptimizerKeys, parameters: Mapping[str, paddle.Tensor], decoupled: bool, where: Where
) -> set[str]:
    """Set each parameter's factor of the rate and its own decay; returns Paddle's names of those that are not decayed."""
    trained = {key: p for key, p in parameters.items() if not p.stop_gradient}
    words = (common.no_weight_decay_name or "").split()
    for word in words:
        if not any(word in key for key in parameters):
            raise (where / "no_weight_decay_name").error(f"{word!r} is in no state key of a parameter")
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
        if deepest == 0:
            raise (where / "layer_decay").error(
                "expected null: only one layer is trained, so there is no other rate to set"
            )
        factors = {key: common.layer_decay ** (deepest - depth[key]) for key in trained}
    for i, group in enumerate(common.groups or []):
        place = where / "groups" / i
        matched = matching(group.params, parameters, place / "params") & trained.keys()
        if not matched:
            raise (place / "params").error(f"pattern {group.params!r} matches frozen parameters only")
        if group.weight_decay and decoupled:
            raise (place / "weight_decay").error(
                "expected 0 or null, because this optimizer has one weight decay for all parameters"
            )
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
