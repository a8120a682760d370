"""Optimizers and weight decay: Paddle's classes under Paddle's names, with settings for groups of parameters.

Paddle's signatures differ between versions. Therefore each optimizer is a function here, and its signature is
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
    ConfigPlace,
    Finite,
    NotNegative,
    Pattern,
    Positive,
    Requires,
    matching_keys,
)
from ppxcls.config.registry import Block, Component, Registry
from ppxcls.system.logs import logger
from ppxcls.train.clipping import ClipGradByGlobalNorm, ClipGradByValue
from ppxcls.train.optimizer_state import list_parameters_in_each_step


@dataclass
class ParameterGroup:
    """Settings of some parameters.

    Attributes:
        params: regular expression that is searched for in the state keys.
        lr_mult: factor of the learning rate.
        weight_decay: weight decay of these parameters; null for the same as other parameters.
    """

    params: Pattern
    lr_mult: NotNegative = 1.0
    weight_decay: NotNegative | None = None


@dataclass
class OptimizerKeys:
    """Common keys of the optimizers.

    Attributes:
        lr: the learning-rate schedule.
        regularizer: block ``L2`` or ``L1``, an alternative to ``weight_decay``.
        weight_decay: coefficient of weight decay, as L2 in the gradient. AdamW and Lamb decouple it from the
            gradient.
        no_weight_decay_name: words separated by spaces. Parameters are not decayed if their state key
            contains one of the words.
        one_dim_param_no_weight_decay: True for no weight decay of batch norms and biases.
        clip_norm: largest norm of each gradient.
        clip_norm_global: largest norm of all gradients together.
        clip_value: largest absolute value in the gradients.
        groups: settings for groups of parameters.
        layer_decay: factor of the learning rate per layer of distance from the classifier.
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
    """The inputs that the program passes to every optimizer.

    Attributes:
        learning_rate: scheduler of the learning rate.
        parameters: parameters to train.
        weight_decay: coefficient for an optimizer that decouples it, or a regularizer; None if there is none.
        grad_clip: Paddle's clipping of the gradients; None for no clipping.
        undecayed_names: Paddle's names of parameters without weight decay, for optimizers that decouple it.
    """

    learning_rate: LambdaDecay
    parameters: list[paddle.Tensor]
    weight_decay: Any
    grad_clip: Any
    undecayed_names: set[str]

    def arguments(self) -> dict[str, Any]:
        """Returns these inputs as arguments of Paddle's optimizers, without weight decay."""
        return {
            "learning_rate": self.learning_rate,
            "parameters": self.parameters,
            "grad_clip": self.grad_clip,
        }

    def coupled(self) -> dict[str, Any]:
        """Returns the same arguments with weight decay as part of the gradient."""
        return {**self.arguments(), "weight_decay": self.weight_decay}


# The same version of Paddle introduced NAdam, RAdam and Adam's amsgrad.
_MISSING_PADDLE_3 = (
    None if hasattr(optimizer, "NAdam") else f"Paddle 3.0 or newer; {paddle.__version__} is installed"
)

OPTIMIZERS: Registry[Optimizer] = Registry(
    "optimizer",
    program_parameters=("inputs", "given"),  # the second is the name that plugins written for 0.10 use
    common=OptimizerKeys,
    # The last one: the kernel updates half-precision weights by float32 gradients.
    facts={"is_decoupled": False, "state_copies": 2, "takes_float32_gradients": False},
)
REGULARIZERS: Registry[L1Decay | L2Decay] = Registry("regularizer")


def _or_on_accelerators(*, choice: bool | None) -> bool:
    """Returns the choice, or True on an accelerator if there is none: there an operator costs host time."""
    return paddle.get_device() != "cpu" if choice is None else choice


@OPTIMIZERS.register(state_copies=0)
def SGD(inputs: OptimizerInputs, *, multi_precision: bool = False) -> Optimizer:
    """Plain SGD, which subtracts the gradient times the learning rate."""
    return optimizer.SGD(**inputs.coupled(), multi_precision=multi_precision)


@OPTIMIZERS.register(state_copies=1, takes_float32_gradients=True)
def Momentum(
    inputs: OptimizerInputs,
    momentum: BelowOne = 0.9,
    *,
    use_nesterov: bool = False,
    multi_precision: bool = False,
    rescale_grad: Finite = 1.0,
    use_multi_tensor: bool | None = None,
) -> Optimizer:
    """SGD with momentum, Polyak's or Nesterov's.

    With ``use_multi_tensor``, one operator updates all parameters; null uses it on accelerators.
    """
    result = optimizer.Momentum(
        **inputs.coupled(),
        momentum=momentum,
        use_nesterov=use_nesterov,
        multi_precision=multi_precision,
        rescale_grad=rescale_grad,
        use_multi_tensor=_or_on_accelerators(choice=use_multi_tensor),
    )
    list_parameters_in_each_step(result)
    return result


@OPTIMIZERS.register(takes_float32_gradients=True)
def Adam(
    inputs: OptimizerInputs,
    beta1: BelowOne = 0.9,
    *,
    beta2: BelowOne = 0.999,
    epsilon: Positive = 1e-8,
    lazy_mode: bool = False,
    multi_precision: bool = False,
    use_multi_tensor: bool | None = None,
    amsgrad: Annotated[bool, Requires(_MISSING_PADDLE_3)] = False,
) -> Optimizer:
    """Adam (arXiv:1412.6980), with weight decay in the gradient.

    With ``use_multi_tensor``, one operator updates all parameters; null uses it on accelerators.
    """
    amsgrad_arguments = {"amsgrad": True} if amsgrad else {}  # some versions of Paddle do not have it
    result = optimizer.Adam(
        **inputs.coupled(),
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
        lazy_mode=lazy_mode,
        multi_precision=multi_precision,
        use_multi_tensor=_or_on_accelerators(choice=use_multi_tensor),
        **amsgrad_arguments,
    )
    list_parameters_in_each_step(result)
    return result


@OPTIMIZERS.register
def Adamax(
    inputs: OptimizerInputs, beta1: BelowOne = 0.9, beta2: BelowOne = 0.999, epsilon: Positive = 1e-8
) -> Optimizer:
    """Adam with the largest gradient instead of the second moment (arXiv:1412.6980, section 7.1)."""
    return optimizer.Adamax(**inputs.coupled(), beta1=beta1, beta2=beta2, epsilon=epsilon)


@OPTIMIZERS.register(lacks=_MISSING_PADDLE_3)
def NAdam(
    inputs: OptimizerInputs,
    beta1: BelowOne = 0.9,
    *,
    beta2: BelowOne = 0.999,
    epsilon: Positive = 1e-8,
    momentum_decay: Finite = 0.004,
) -> Optimizer:
    """Adam with Nesterov's momentum (Dozat, ICLR 2016 workshop)."""
    return optimizer.NAdam(
        **inputs.coupled(), beta1=beta1, beta2=beta2, epsilon=epsilon, momentum_decay=momentum_decay
    )


@OPTIMIZERS.register(lacks=_MISSING_PADDLE_3)
def RAdam(
    inputs: OptimizerInputs, beta1: BelowOne = 0.9, beta2: BelowOne = 0.999, epsilon: Positive = 1e-8
) -> Optimizer:
    """Adam with a rectified variance in its first steps (arXiv:1908.03265)."""
    return optimizer.RAdam(**inputs.coupled(), beta1=beta1, beta2=beta2, epsilon=epsilon)


@OPTIMIZERS.register(state_copies=1)
def Adagrad(
    inputs: OptimizerInputs, epsilon: Positive = 1e-6, initial_accumulator_value: Finite = 0.0
) -> Optimizer:
    """Divides the rate by the root of the sum of squared gradients so far (Duchi et al., JMLR 12, 2011)."""
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
    *,
    epsilon: Positive = 1e-6,
    momentum: BelowOne = 0.0,
    centered: bool = False,
) -> Optimizer:
    """RMSProp with epsilon inside the root, as in TensorFlow.

    The paper's recipe and timm's RMSpropTF need that.
    """
    return optimizer.RMSProp(
        **inputs.coupled(), rho=rho, epsilon=epsilon, momentum=momentum, centered=centered
    )


@OPTIMIZERS.register(is_decoupled=True, takes_float32_gradients=True)
def AdamW(
    inputs: OptimizerInputs, beta1: BelowOne = 0.9, beta2: BelowOne = 0.999, epsilon: Positive = 1e-8
) -> Optimizer:
    """Adam with decoupled weight decay (arXiv:1711.05101); ``weight_decay`` defaults to 0.01."""
    return optimizer.AdamW(
        **inputs.arguments(),
        weight_decay=0.01 if inputs.weight_decay is None else inputs.weight_decay,
        apply_decay_param_fun=lambda name: name not in inputs.undecayed_names,
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
        exclude_from_weight_decay_fn=lambda parameter: parameter.name in inputs.undecayed_names,
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
    )


@REGULARIZERS.register
def L2(coeff: NotNegative) -> L2Decay:
    """Adds ``coeff * weight`` to the gradient of every parameter, including batch norms, as in PaddleClas."""
    return L2Decay(coeff)


@REGULARIZERS.register
def L1(coeff: NotNegative) -> L1Decay:
    """Adds ``coeff * sign(weight)`` to the gradient of every parameter."""
    return L1Decay(coeff)


def build_optimizer(
    spec: Mapping[str, Any],
    parameters: Mapping[str, paddle.Tensor],
    *,
    lr_at: Callable[[int], float],
    where: ConfigPlace = ConfigPlace(("Optimizer",)),
    blocks: Sequence[str] = (),
) -> tuple[Optimizer, LambdaDecay]:
    """Builds the optimizer of a config's block, and the scheduler that sets its learning rate.

    Call the scheduler's ``step()`` after each optimizer step.

    Args:
        spec: block of the optimizer: ``{"name": "Momentum", "momentum": 0.9, "lr": {...}}``.
        parameters: parameters by state key.
        lr_at: function from the optimizer step to the learning rate.
        where: place of the block, for error messages.
        blocks: names of the network's residual blocks. For ``layer_decay``, a block is one layer.

    Raises:
        ConfigError: an argument is unknown, missing or invalid, or a pattern matches no parameter.
    """
    block = OPTIMIZERS.block(spec, where)
    where, common_keys = block.where, OPTIMIZERS.common_keys(block)
    is_decoupled = OPTIMIZERS.fact(block.name, "is_decoupled")
    if common_keys.regularizer is not None and (common_keys.weight_decay is not None or is_decoupled):
        reason = (
            f"{block.name} decouples it from the gradient" if is_decoupled else "both add to the gradient"
        )
        raise (where / "regularizer").error(
            f"expected weight_decay alone, because {reason}; received a regularizer"
        )
    decay = (
        common_keys.weight_decay
        if is_decoupled or common_keys.weight_decay is None
        else L2Decay(common_keys.weight_decay)
    )
    if common_keys.regularizer is not None:
        decay = REGULARIZERS.build(common_keys.regularizer)
    exclusion_keys = [
        key for key in ("no_weight_decay_name", "one_dim_param_no_weight_decay") if getattr(common_keys, key)
    ]
    has_group_decay = any(group.weight_decay for group in common_keys.groups or [])
    if exclusion_keys and decay is None and not is_decoupled and not has_group_decay:
        logger.warning(f"Optimizer.{exclusion_keys[0]} has no effect, because there is no weight decay")
    scheduler = LambdaDecay(1.0, lr_at)
    undecayed_names = _set_by_parameter(
        common_keys, parameters, is_decoupled=is_decoupled, where=where, blocks=blocks
    )
    trained_parameters = [p for p in parameters.values() if not p.stop_gradient]
    inputs = OptimizerInputs(scheduler, trained_parameters, decay, _clip(common_keys, where), undecayed_names)
    return OPTIMIZERS.build(block, inputs=inputs, given=inputs), scheduler


def _clip(common_keys: OptimizerKeys, where: ConfigPlace) -> Any:
    clip_classes = {
        "clip_norm": nn.ClipGradByNorm,
        "clip_norm_global": ClipGradByGlobalNorm,
        "clip_value": ClipGradByValue,
    }
    limits = {key: getattr(common_keys, key) for key in clip_classes if getattr(common_keys, key) is not None}
    if len(limits) > 1:
        raise (where / sorted(limits)[0]).error(
            f"expected one way of clipping, received {' and '.join(sorted(limits))}"
        )
    return next((clip_classes[key](value) for key, value in limits.items()), None)


def _set_by_parameter(
    common_keys: OptimizerKeys,
    parameters: Mapping[str, paddle.Tensor],
    *,
    is_decoupled: bool,
    where: ConfigPlace,
    blocks: Sequence[str],
) -> set[str]:
    """Sets the factor of the learning rate and the weight decay of each parameter.

    Returns:
        Paddle's names of the parameters without weight decay.
    """
    trained_parameters = {key: p for key, p in parameters.items() if not p.stop_gradient}
    words = (common_keys.no_weight_decay_name or "").split()
    for word in words:
        if not any(word in key for key in parameters):
            raise (where / "no_weight_decay_name").error(f"no parameter's state key contains {word!r}")
    undecayed_keys = {
        key
        for key, p in trained_parameters.items()
        if any(word in key for word in words)
        or (common_keys.one_dim_param_no_weight_decay and len(p.shape) == 1)
    }
    factors = dict.fromkeys(trained_parameters, 1.0)
    decays: dict[str, float] = {}
    if common_keys.layer_decay is not None:
        depths = layer_depths({key: p.ndim for key, p in trained_parameters.items()}, blocks)
        max_depth = max(depths.values())
        if max_depth == 0:
            raise (where / "layer_decay").error(
                "expected null: only one layer is trained, so there is no other rate to set"
            )
        factors = {key: common_keys.layer_decay ** (max_depth - depths[key]) for key in trained_parameters}
    for index, group in enumerate(common_keys.groups or []):
        place = where / "groups" / index
        group_keys = matching_keys(group.params, parameters, place / "params") & trained_parameters.keys()
        if not group_keys:
            raise (place / "params").error(f"pattern {group.params!r} matches frozen parameters only")
        if group.weight_decay and is_decoupled:
            raise (place / "weight_decay").error(
                "expected 0 or null, because this optimizer has one weight decay for all parameters"
            )
        for key in group_keys:
            factors[key] *= group.lr_mult
            if group.weight_decay is not None:
                decays[key] = group.weight_decay
    decays |= dict.fromkeys(undecayed_keys, 0.0)
    for key, p in trained_parameters.items():
        p.optimize_attr["learning_rate"] = factors[key]
        p.regularizer = L2Decay(decays[key]) if key in decays and not is_decoupled else None
    return {trained_parameters[key].name for key, value in decays.items() if value == 0}


def layer_depths(dimensions: Mapping[str, int], blocks: Sequence[str]) -> dict[str, int]:
    """Returns the depth of each parameter, from 0 at the images.

    A residual block adds one to the depth, and so does each other layer. A batch norm has the depth of the
    layer before it in the same part. The layers in a part of the network without blocks, such as a separable
    convolution, have one depth.

    Args:
        dimensions: number of dimensions of each parameter by state key, in the order of the network.
        blocks: names of the residual blocks. Without any, the layers are those of the top two levels.
    """
    parts = {block.partition(".")[0] for block in blocks if "." in block}
    norms = {key.rpartition(".")[0] for key in dimensions}
    norms -= {key.rpartition(".")[0] for key, count in dimensions.items() if count > 1}
    depths: dict[str, int] = {}
    places: dict[str, int] = {}
    earlier_part = None
    for key in dimensions:
        layer = key.rpartition(".")[0]
        block = next((name for name in blocks if f"{layer}.".startswith(f"{name}.")), None)
        names = layer.split(".")
        place = block or ".".join(names[: 1 if blocks and names[0] not in parts else 2])
        part = place.rpartition(".")[0]
        is_norm = block is None and layer in norms and part == earlier_part
        depths[key] = len(places) - 1 if is_norm else places.setdefault(place, len(places))
        earlier_part = part
    return depths
