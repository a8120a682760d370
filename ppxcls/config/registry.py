"""The one mechanism that builds things: a component's own signature is the schema of its block in the YAML."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal, TypeVar

from easydict import EasyDict

from ppxcls.config.checks import Bound, Finite, NotNegative, Positive, Where, check_section, check_value, type_name, unknown

C = TypeVar("C", bound=Callable[..., Any])


@dataclass(frozen=True)
class Component:
    """Marks a key whose value is one component, ``{name: Cosine, ...}``, of the registry of this kind."""

    kind: str

    def check(self, value: Any, where: Where) -> EasyDict:
        """The block with its arguments checked.

        Raises:
            ConfigError: no name, or an unknown one, or a wrong argument.
        """
        block = check_value(value, dict, where)
        if "name" not in block:
            raise where.error(f"the key name is missing; allowed: {', '.join(registry(self.kind).names())}")
        name, arguments = split_block(block)
        return EasyDict(name=name, **registry(self.kind).check(name, arguments, where, where / "name"))


@dataclass(frozen=True)
class Components:
    """Marks a key whose value is a list of components, ``- CELoss: {...}``, of the registry of this kind."""

    kind: str

    def check(self, value: Any, where: Where) -> list[EasyDict]:
        """The list with every component's arguments checked.

        Raises:
            ConfigError: as ``Component.check``.
        """
        checked = []
        for i, item in enumerate(check_value(value, list, where)):
            name, arguments, place = split_component(item, where / i)
            checked.append(EasyDict({name: registry(self.kind).check(name, arguments, place, place)}))
        return checked


def split_component(item: Any, where: Where) -> tuple[str, dict[str, Any], Where]:
    """Name, arguments and place of one entry of a list of components: ``{Name: {...}}``, ``{Name: null}`` or ``Name``.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(item, str):
        item = {item: None}
    if not isinstance(item, dict) or len(item) != 1:
        raise where.error(f"expected one component, Name: {{...}}, received {item!r}")
    ((name, arguments),) = item.items()
    return name, {} if arguments is None else check_value(arguments, dict, where / name), where / name


def split_block(block: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Name and arguments of one component's block, ``{name: Cosine, ...}``; the name is None where there is none."""
    return block.get("name"), {key: value for key, value in block.items() if key != "name"}


class Registry:
    """Components of one kind by name; the arguments of each are checked against its signature.

    Args:
        kind: the word for error messages, such as ``loss``.
        home: module that registers the components, imported when a name is first looked up.
        runtime: parameters that the program gives when it builds, and a config may not.
        common: dataclass of the keys that every component of this kind takes beside its own, such as a loss's weight.
    """

    def __init__(self, kind: str, home: tuple[str, ...], runtime: tuple[str, ...] = (), common: type | None = None) -> None:
        self.kind = kind
        self.common = common
        self._home = home
        self._runtime = runtime
        self._components: dict[str, Callable[..., Any]] = {}
        self._hints: dict[str, dict[str, Any]] = {}

    def register(self, component: C, **ranges: Any) -> C:
        """Register a class or a function under its ``__name__``.

        Args:
            component: its annotations are the schema. Of a class of Paddle's, whose annotations name types that exist for type
                checkers only, a parameter with a plain default takes that default's type, and others can't be set from a config.
            ranges: narrower annotations by parameter name, for a component that is not ours to annotate.

        Raises:
            TypeError: the name is taken, or the signature can't be a schema (``*args``, ``**kwargs``, no annotation).
        """
        name = component.__name__
        if name in self._components:
            raise TypeError(f"{self.kind} {name!r} is registered twice")
        self._hints[name] = {**self._schema(component), **ranges}
        self._components[name] = component
        return component

    def _schema(self, component: Callable[..., Any]) -> dict[str, Any]:
        parameters = [p for p in inspect.signature(component).parameters.values() if p.name not in self._runtime]
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            raise TypeError(f"{self.kind} {component.__name__}: *args and **kwargs can't be checked")
        function = component.__init__ if inspect.isclass(component) else component
        try:
            hints = typing.get_type_hints(function, include_extras=True) if function is not object.__init__ else {}
        except NameError:
            return {p.name: type(p.default) for p in parameters if isinstance(p.default, bool | int | float | str)}
        missing = [p.name for p in parameters if p.name not in hints]
        if missing:
            raise TypeError(f"{self.kind} {component.__name__}: no annotation for {', '.join(missing)}")
        return {p.name: hints[p.name] for p in parameters}

    def names(self) -> list[str]:
        """All registered names, sorted."""
        for module in self._home:
            importlib.import_module(module)
        return sorted(self._components)

    def get(self, name: str, where: Where) -> Callable[..., Any]:
        """The component of this name.

        Raises:
            ConfigError: there is none.
        """
        names = self.names()
        if name not in names:
            raise where.error(unknown(name, names, self.kind))
        return self._components[name]

    def check(self, name: Any, arguments: Mapping[str, Any], where: Where, name_where: Where | None = None) -> dict[str, Any]:
        """Check arguments against the signature of the component and the common keys.

        Returns:
            The arguments, converted to the annotated types.

        Raises:
            ConfigError: unknown name, an unknown or missing argument, a wrong type or value.
        """
        component = self.get(name, name_where or where)
        own = self._hints[name]
        common = typing.get_type_hints(self.common, include_extras=True) if self.common else {}
        allowed = {**common, **own}
        for key in arguments:
            if key not in allowed:
                raise (where / key).error(unknown(key, sorted(allowed), f"argument of {self.kind} {name}"))
        required = [p.name for p in inspect.signature(component).parameters.values() if p.default is p.empty and p.name in own]
        if self.common:
            required += [f.name for f in fields(self.common) if f.default is MISSING and f.default_factory is MISSING]
        for key in required:
            if key not in arguments:
                raise where.error(f"{self.kind} {name} needs the argument {key}: {type_name(allowed[key])}")
        return {key: check_value(value, allowed[key], where / key) for key, value in arguments.items()}

    def build(self, name: str, arguments: Mapping[str, Any], where: Where, **runtime: Any) -> Any:
        """Check, then call the component with the arguments and whatever of ``runtime`` it has parameters for.

        Raises:
            ConfigError: from the check, or for a ValueError of the component itself.
        """
        checked = self.check(name, arguments, where)
        component = self._components[name]
        parameters = inspect.signature(component).parameters
        given = {key: value for key, value in runtime.items() if key in parameters}
        try:
            return component(**{key: value for key, value in checked.items() if key in self._hints[name]}, **given)
        except ValueError as error:
            raise where.error(f"{self.kind} {name}: {error}") from error

    def build_common(self, arguments: Mapping[str, Any], where: Where) -> Any:
        """The instance of the ``common`` dataclass that checked arguments hold."""
        assert self.common is not None
        names = {f.name for f in fields(self.common)}
        return check_section({k: v for k, v in arguments.items() if k in names}, self.common, where)


@dataclass
class LossWeight:
    """Common key of the losses."""

    weight: Finite = 1.0


@dataclass
class ModelKeys:
    """Common keys of the networks.

    Attributes:
        pretrained: file of weights to start from, as ``Global.pretrained_model``.
        freeze: regular expressions; parameters whose state keys they are found in are not trained, and batch norms among them keep
            their statistics.
        use_sync_bn: batch norm's statistics of all processes' batches together; on GPUs.
        data_format: in which the network computes; images and weights are the same.
        recompute: keep less in memory and compute the blocks again in the backward pass.
    """

    pretrained: str | None = None
    freeze: list[str] | None = None
    use_sync_bn: bool = False
    data_format: Literal["NCHW", "NHWC"] = "NCHW"
    recompute: bool = False


@dataclass
class WarmUp:
    """Common keys of the learning-rate schedules.

    Attributes:
        warmup_epoch: epochs of linear warm-up; fractions of an epoch are allowed.
        warmup_start_lr: rate of the first step; the warm-up ends at the schedule's own first rate.
        by_epoch: whether the rate changes once an epoch instead of every step.
        cooldown_epoch: epochs at the end of the run that keep the rate at which the schedule has ended.
    """

    warmup_epoch: NotNegative = 0.0
    warmup_start_lr: NotNegative = 0.0
    by_epoch: bool = False
    cooldown_epoch: NotNegative = 0.0


@dataclass
class BatchTransforms:
    """Common key of the data sets."""

    batch_transform_ops: Annotated[list, Components("batch transform")] | None = None


@dataclass
class ParameterGroup:
    """Settings of some parameters.

    Attributes:
        params: regular expression, searched for in the state keys.
        lr_mult: factor of the learning rate.
        weight_decay: of these parameters; null for what the others have.
    """

    params: str
    lr_mult: NotNegative = 1.0
    weight_decay: NotNegative | None = None


@dataclass
class OptimizerKeys:
    """Common keys of the optimizers.

    Attributes:
        weight_decay: L2 in the gradient; of AdamW and Lamb decoupled from it. ``regularizer`` is the other way to say L2.
        no_weight_decay_name: words; parameters whose state keys contain one are not decayed.
        one_dim_param_no_weight_decay: nor are batch norms and biases.
        clip_norm, clip_norm_global, clip_value: of each gradient's norm, of the norm of all together, of each value.
        groups: settings by parameter.
        layer_decay: factor of the learning rate for each layer further from the classifier.
    """

    lr: Annotated[dict, Component("lr schedule")]
    regularizer: Annotated[dict, Component("regularizer")] | None = None
    weight_decay: NotNegative | None = None
    no_weight_decay_name: str | None = None
    one_dim_param_no_weight_decay: bool = False
    clip_norm: Positive | None = None
    clip_norm_global: Positive | None = None
    clip_value: Positive | None = None
    groups: list[ParameterGroup] | None = None
    layer_decay: Annotated[float, Bound(gt=0, le=1)] | None = None


MODELS = Registry(
    "model",
    (
        "ppxcls.models.xception",
        "ppxcls.models.xception_deeplab",
        "ppxcls.models.legacy_xception",
        "ppxcls.models.xception_aligned",
    ),
    common=ModelKeys,
)
LOSSES = Registry("loss", ("ppxcls.train.losses",), common=LossWeight)
METRICS = Registry("metric", ("ppxcls.train.metrics",), ("class_num",))
OPTIMIZERS = Registry(
    "optimizer",
    ("ppxcls.train.optimizers",),
    ("learning_rate", "parameters", "weight_decay", "grad_clip", "not_decayed"),
    OptimizerKeys,
)
REGULARIZERS = Registry("regularizer", ("ppxcls.train.optimizers",))
LR_SCHEDULES = Registry("lr schedule", ("ppxcls.train.lr_schedules",), ("total", "per_epoch"), WarmUp)
TRANSFORMS = Registry("transform", ("ppxcls.data.transforms", "ppxcls.data.policies", "ppxcls.data.erasing"))
BATCH_TRANSFORMS = Registry("batch transform", ("ppxcls.train.mixing",), ("class_num",))
DATASETS = Registry("dataset", ("ppxcls.data.dataset",), ("class_num", "patience"), BatchTransforms)
SAMPLERS = Registry("sampler", ("ppxcls.data.sampler",), ("num_samples", "labels", "seed", "rank", "world_size"))

_REGISTRIES = {
    r.kind: r
    for r in (
        MODELS, LOSSES, METRICS, OPTIMIZERS, REGULARIZERS, LR_SCHEDULES, TRANSFORMS, BATCH_TRANSFORMS, DATASETS, SAMPLERS,
    )
}  # fmt: skip


def registry(kind: str) -> Registry:
    """The registry of this kind."""
    return _REGISTRIES[kind]
