"""The one mechanism that builds things: a component's own signature is the schema of its block in the YAML."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union

from easydict import EasyDict

KeyPath = tuple[str, ...]
C = TypeVar("C", bound=Callable[..., Any])


class ConfigError(Exception):
    """What the user wrote can't be meant: says where, what was received and what is allowed."""


@dataclass(frozen=True)
class Where:
    """A place in a config: a key path, and the file and line (or override) its value came from.

    Attributes:
        keys: key path; list indices as decimal strings.
        sources: for each key path that was written somewhere, ``file:line`` or ``-o key=value``.
    """

    keys: KeyPath = ()
    sources: Mapping[KeyPath, str] = field(default_factory=dict)

    def __truediv__(self, key: str | int) -> Where:
        return Where((*self.keys, str(key)), self.sources)

    def __str__(self) -> str:
        return ".".join(self.keys)

    def error(self, message: str) -> ConfigError:
        """A ConfigError that begins with the source of this key, or of the nearest key above it, and the key path."""
        for length in range(len(self.keys), -1, -1):
            if self.keys[:length] in self.sources:
                return ConfigError(": ".join(p for p in (self.sources[self.keys[:length]], str(self), message) if p))
        return ConfigError(f"{self}: {message}" if self.keys else message)


@dataclass(frozen=True)
class Bound:
    """Range of a number, for ``Annotated``: above or from, below or to."""

    gt: float = -math.inf
    ge: float = -math.inf
    lt: float = math.inf
    le: float = math.inf

    def allows(self, value: float) -> bool:
        """Whether the value is in the range; NaN and infinity never are."""
        return math.isfinite(value) and self.ge <= value <= self.le and self.gt < value < self.lt

    def __str__(self) -> str:
        signs = (("above", self.gt), ("at least", self.ge), ("below", self.lt), ("at most", self.le))
        return " and ".join(f"{sign} {number:g}" for sign, number in signs if math.isfinite(number)) or "a finite number"


Finite = Annotated[float, Bound()]
Positive = Annotated[float, Bound(gt=0)]
NotNegative = Annotated[float, Bound(ge=0)]
Share = Annotated[float, Bound(ge=0, le=1)]
Count = Annotated[int, Bound(ge=1)]
CountOrZero = Annotated[int, Bound(ge=0)]


@dataclass(frozen=True)
class Component:
    """Marks a key whose value is one component, ``{name: Cosine, ...}``, of the registry of this kind."""

    kind: str


@dataclass(frozen=True)
class Components:
    """Marks a key whose value is a list of components, ``- CELoss: {...}``, of the registry of this kind."""

    kind: str


def _type_name(hint: Any) -> str:
    """How an error message says what is allowed."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin is Annotated:
        return f"{_type_name(args[0])} {args[1]}" if isinstance(args[1], Bound) else _type_name(args[0])
    if origin is Literal:
        return " or ".join("null" if a is None else str(a).lower() if isinstance(a, bool) else repr(a) for a in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(a) for a in args)
    if origin is list:
        return f"a list, each {_type_name(args[0])}"
    if origin is tuple:
        return f"a list of {len(args)}, each {_type_name(args[0])}"
    names = {
        int: "an integer",
        float: "a number",
        str: "a string",
        bool: "true or false",
        dict: "a mapping",
        list: "a list",
    }
    return "a mapping" if is_dataclass(hint) else names.get(hint, getattr(hint, "__name__", str(hint)))


def parse_number(text: str) -> float:
    """A number, or a fraction such as PaddleClas's ``1.0/255.0``, from a string; YAML 1.1 reads ``1e-3`` as one too.

    Raises:
        ValueError: it is neither.
    """
    numerator, slash, denominator = text.partition("/")
    if not slash:
        return float(text)
    if float(denominator) == 0:
        raise ValueError("division by zero")
    return float(numerator) / float(denominator)


def _check_scalar(value: Any, hint: type, where: Where) -> Any:
    if hint is float and isinstance(value, str):
        try:
            return parse_number(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, dict, list) and isinstance(value, hint):
        return value
    raise _mismatch(value, hint, where)


def _mismatch(value: Any, hint: Any, where: Where) -> ConfigError:
    shown = "null" if value is None else repr(value)
    return where.error(f"expected {_type_name(hint)}, received {shown if len(shown) < 120 else shown[:117] + '...'}")


def check_value(value: Any, hint: Any, where: Where) -> Any:
    """Check a value from a YAML against a type annotation.

    Returns:
        The value, with numbers converted to the annotated type and mappings to the annotated dataclass.

    Raises:
        ConfigError: wrong type, or out of range.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        return _check_annotated(value, args[0], args[1], where)
    if origin is Literal:
        if any(value == a and type(value) is type(a) for a in args):
            return value
        raise _mismatch(value, hint, where)
    if origin in (Union, types.UnionType):
        return _check_union(value, hint, args, where)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple) or (origin is tuple and len(value) != len(args)):
            raise _mismatch(value, hint, where)
        items = [check_value(v, args[0], where / i) for i, v in enumerate(value)]
        return items if origin is list else tuple(items)
    if is_dataclass(hint):
        return check_section(value, typing.cast(type, hint), where)
    return _check_scalar(value, hint, where)


def _check_union(value: Any, hint: Any, args: tuple[Any, ...], where: Where) -> Any:
    if value is None and type(None) in args:
        return None
    choices = [a for a in args if a is not type(None)]
    if len(choices) == 1:  # Optional: the inner message is the better one
        return check_value(value, choices[0], where)
    for choice in choices:
        try:
            return check_value(value, choice, where)
        except ConfigError:
            continue
    raise _mismatch(value, hint, where)


def _check_annotated(value: Any, hint: Any, mark: Any, where: Where) -> Any:
    if isinstance(mark, Component):
        value = check_value(value, dict, where)
        if "name" not in value:
            raise where.error(f"the key name is missing; allowed: {', '.join(registry(mark.kind).names())}")
        name, arguments = value["name"], {k: v for k, v in value.items() if k != "name"}
        return EasyDict(name=name, **registry(mark.kind).check(name, arguments, where, where / "name"))
    if isinstance(mark, Components):
        value = check_value(value, list, where)
        return [_check_item(item, registry(mark.kind), where / i) for i, item in enumerate(value)]
    try:
        number = check_value(value, hint, where)
    except ConfigError:
        raise _mismatch(value, Annotated[hint, mark], where) from None
    if not mark.allows(number):
        raise _mismatch(value, Annotated[hint, mark], where)
    return number


def _check_item(item: Any, components: Registry, where: Where) -> dict[str, dict[str, Any]]:
    """One entry of a list of components: ``{Name: {...}}``, ``{Name: null}`` or ``Name``."""
    if isinstance(item, str):
        item = {item: None}
    if not isinstance(item, dict) or len(item) != 1:
        raise where.error(f"expected one component, Name: {{...}}, received {item!r}")
    ((name, arguments),) = item.items()
    arguments = {} if arguments is None else check_value(arguments, dict, where / name)
    return EasyDict({name: components.check(name, arguments, where / name, where / name)})


def unknown(word: str, allowed: list[str], what: str) -> str:
    """The message for a word that is not among the allowed ones, with the nearest spelling."""
    near = difflib.get_close_matches(str(word).lower(), [a.lower() for a in allowed], n=1)
    hint = next((f" (did you mean {a!r}?)" for a in allowed if near and a.lower() == near[0]), "")
    return f"unknown {what} {word!r}{hint}; allowed: {', '.join(allowed) or 'none'}"


def check_section(value: Any, section: type, where: Where) -> Any:
    """Check a mapping against a dataclass, field by field, and make the instance.

    Raises:
        ConfigError: not a mapping, an unknown or missing key, or a field's value is wrong.
    """
    value = check_value(value, dict, where)
    hints = typing.get_type_hints(section, include_extras=True)
    hints = {f.name: hints[f.name] for f in fields(section) if f.init}
    for key in value:
        if key not in hints:
            raise (where / key).error(unknown(key, list(hints), "key"))
    for f in fields(section):
        if f.name in hints and f.name not in value and f.default is MISSING and f.default_factory is MISSING:
            raise where.error(f"the key {f.name} is missing: expected {_type_name(hints[f.name])}")
    return section(**{key: check_value(v, hints[key], where / key) for key, v in value.items()})


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
                raise where.error(f"{self.kind} {name} needs the argument {key}: {_type_name(allowed[key])}")
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
class WarmUp:
    """Common keys of the learning-rate schedules.

    Attributes:
        warmup_epoch: epochs of linear warm-up; fractions of an epoch are allowed.
        warmup_start_lr: rate of the first step; the warm-up ends at the schedule's own first rate.
        by_epoch: whether the rate changes once an epoch instead of every step.
    """

    warmup_epoch: NotNegative = 0.0
    warmup_start_lr: NotNegative = 0.0
    by_epoch: bool = False


@dataclass
class BatchTransforms:
    """Common key of the data sets."""

    batch_transform_ops: Annotated[list, Components("batch transform")] | None = None


@dataclass
class OptimizerKeys:
    """Common keys of the optimizers."""

    lr: Annotated[dict, Component("lr schedule")]
    regularizer: Annotated[dict, Component("regularizer")] | None = None


MODELS = Registry("model", ("ppxcls.models.xception", "ppxcls.models.xception_deeplab"))
LOSSES = Registry("loss", ("ppxcls.losses",), common=LossWeight)
METRICS = Registry("metric", ("ppxcls.metrics",))
OPTIMIZERS = Registry(
    "optimizer", ("ppxcls.optimizers",), ("learning_rate", "parameters", "weight_decay", "grad_clip"), OptimizerKeys
)
REGULARIZERS = Registry("regularizer", ("ppxcls.optimizers",))
LR_SCHEDULES = Registry("lr schedule", ("ppxcls.lr_schedules",), ("total", "per_epoch", "as_reported"), WarmUp)
TRANSFORMS = Registry("transform", ("ppxcls.data.transforms",))
BATCH_TRANSFORMS = Registry("batch transform", ("ppxcls.data.batch_transforms",), ("class_num",))
DATASETS = Registry("dataset", ("ppxcls.data.dataset",), ("class_num",), BatchTransforms)
SAMPLERS = Registry("sampler", ("ppxcls.data.sampler",), ("num_samples", "seed", "rank", "world_size"))

_REGISTRIES = {
    r.kind: r
    for r in (
        MODELS, LOSSES, METRICS, OPTIMIZERS, REGULARIZERS, LR_SCHEDULES, TRANSFORMS, BATCH_TRANSFORMS, DATASETS, SAMPLERS,
    )
}  # fmt: skip


def registry(kind: str) -> Registry:
    """The registry of this kind."""
    return _REGISTRIES[kind]
