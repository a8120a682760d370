"""Names and builds components: the signature of a component is the schema of its block in the YAML.

This module contains the mechanism only. Each registry is defined beside its components, such as ``LOSSES`` in
``train/losses.py``. The package's components register when all modules of four packages are imported. A
user's own components register when the modules in ``Global.plugins`` are imported.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Generic, Protocol, TypeVar

from easydict import EasyDict

from ppxcls.config.checks import (
    ConfigPlace,
    check_value,
    drop_unused_keys,
    shorten_value,
    type_name,
    unknown_word_message,
)

_PACKAGES = ("ppxcls.models", "ppxcls.data", "ppxcls.packed", "ppxcls.train")


class _Plain(Protocol):
    """A protocol without parameters."""


T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])


class Block(Mapping[str, Any]):
    """One component of a config. It was checked when the config was loaded, and is not checked again.

    It can be read like the YAML, by key and by attribute: ``config.Optimizer.lr.learning_rate``,
    ``config.Loss.Train[0].CELoss.epsilon``.

    Attributes:
        kind: kind of the registry.
        name: name of the component.
        arguments: checked and converted arguments, including the common ones of the kind.
        where: place in the config.
        is_list_item: True if it is an item of a list, ``{Name: {...}}``; False for a block,
            ``{name: Name, ...}``.
    """

    kind: str
    name: str
    arguments: EasyDict
    where: ConfigPlace
    is_list_item: bool

    def __init__(
        self, kind: str, name: str, *, arguments: Mapping[str, Any], where: ConfigPlace, is_list_item: bool
    ) -> None:
        attributes = {
            "kind": kind,
            "name": name,
            "arguments": EasyDict(arguments),
            "where": where,
            "is_list_item": is_list_item,
        }
        self.__dict__.update(attributes)

    def __getitem__(self, key: str) -> Any:
        if self.is_list_item and key == self.name:
            return self.arguments
        if not self.is_list_item and key == "name":
            return self.name
        if self.is_list_item:
            raise KeyError(key)
        return self.arguments[key]

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__") or "arguments" not in self.__dict__:  # during copying or unpickling
            raise AttributeError(key)
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"{self.where} has no key {key!r}") from None

    def __setattr__(self, key: str, value: Any) -> None:
        """Sets and checks an argument. A change of the component needs an override."""
        if key == "name" or self.is_list_item:
            raise AttributeError(f"{self.where}.{key} can't be set; load the config with an override")
        registry(self.kind).set_argument(self, key, value)

    __setitem__ = __setattr__

    def __iter__(self) -> Iterator[str]:
        return iter([self.name] if self.is_list_item else ["name", *self.arguments])

    def __len__(self) -> int:
        return 1 if self.is_list_item else 1 + len(self.arguments)

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass(frozen=True)
class Component:
    """Annotates a key that takes one component, ``{name: Cosine, ...}``.

    Attributes:
        kind: kind of the registry that checks the component.
    """

    kind: str

    def check(self, value: Any, where: ConfigPlace) -> Block:
        """Returns the checked block.

        Raises:
            ConfigError: the name is missing or unknown, or an argument is invalid.
        """
        return registry(self.kind).block(value, where)


@dataclass(frozen=True)
class Components:
    """Annotates a key that takes a list of components, ``- CELoss: {...}``.

    Attributes:
        kind: kind of the registry that checks the components.
    """

    kind: str

    def check(self, value: Any, where: ConfigPlace) -> list[Block]:
        """Returns the checked blocks.

        Raises:
            ConfigError: the value is no list, an item has another form, a name is unknown, or an argument is
                invalid.
        """
        return registry(self.kind).blocks(value, where)


class Registry(Generic[T]):
    """Components of one kind by name.

    Args:
        kind: the word for error messages, such as ``loss``.
        program_parameters: names of the parameters that the program provides. A config must not contain them.
        common: dataclass of the keys that every component of this kind takes beside its own, such as a loss's
            weight.
        base: class whose attributes and methods a registered class must have, because the program uses them.
        optional_members: members of ``base`` that a class without this base may lack. It receives those of
            ``base``.
        facts: names and defaults of the facts that a component may declare, such as ``published``.
        check_list: function that checks whether the components of a list fit each other, and returns a fact
            about the list; None for no check.
    """

    def __init__(
        self,
        kind: str,
        *,
        program_parameters: tuple[str, ...] = (),
        common: type | None = None,
        base: type | None = None,
        optional_members: tuple[str, ...] = (),
        facts: Mapping[str, Any] | None = None,
        check_list: Callable[[Sequence[Block]], Any] | None = None,
    ) -> None:
        if kind in _REGISTRIES:
            raise TypeError(f"there is a registry of kind {kind!r} already")
        self.kind = kind
        self.common = common
        self._program_parameters = program_parameters
        self._base = base
        self._base_name = base.__name__ if base is not None else ""
        self._optional_members = optional_members
        self._components: dict[str, Callable[..., Any]] = {}
        self._hints: dict[str, dict[str, Any]] = {}
        self._default_facts = dict(facts or {})
        self._check_list = check_list
        self._facts: dict[str, dict[str, Any]] = {}
        self._unmet_requirements: dict[str, str | None] = {}
        _REGISTRIES[kind] = self

    @typing.overload
    def register(self, component: C) -> C: ...

    @typing.overload
    def register(self, *, lacks: str | None = None, **facts: Any) -> Callable[[C], C]: ...

    def register(self, component: Any = None, *, lacks: str | None = None, **facts: Any) -> Any:
        """Registers a class or a function under its ``__name__``; a decorator, with or without arguments.

        Args:
            component: the annotations of its parameters are the schema.
            lacks: requirement that this installation does not meet, such as ``Paddle 3.0``; a config that
                names the component is refused.
            facts: facts about the component, under the names that the registry declares.

        Raises:
            TypeError: the name is taken, the signature can't be a schema (``*args``, ``**kwargs``, no
                annotation), or a class lacks what the program uses.
        """
        if component is None:
            return functools.partial(self._add, lacks=lacks, facts=facts)
        return self._add(component, lacks=lacks, facts=facts)

    def _add(self, component: C, *, lacks: str | None, facts: Mapping[str, Any]) -> C:
        name = component.__name__
        if unknown_facts := facts.keys() - self._default_facts.keys():
            allowed_facts = ", ".join(sorted(self._default_facts)) or "none"
            raise TypeError(
                f"{self.kind} {name}: unknown fact {min(unknown_facts)!r}; allowed: {allowed_facts}"
            )
        # A notebook may run a cell again.
        if (
            name in self._components
            and not component.__module__ == self._components[name].__module__ == "__main__"
        ):
            raise TypeError(f"{self.kind} {name!r} is registered twice")
        if inspect.isclass(component) and (missing_members := self._missing_members(component, component)):
            raise TypeError(
                f"{self.kind} {name}: no {', '.join(missing_members)}; "
                f"derive the class from {self._base_name}"
            )
        self._hints[name] = self._schema(component)
        self._components[name] = component
        self._facts[name] = {**self._default_facts, **facts}
        self._unmet_requirements[name] = lacks
        return component

    def _missing_members(self, candidate: Any, candidate_class: type) -> list[str]:
        """Returns the members of the base class that must be there and that the candidate lacks.

        If there are none, the candidate's class receives the optional ones that the candidate lacks.

        Args:
            candidate: a registered class, or an object that a registered function returned.
            candidate_class: the class itself, or the class of the object.
        """
        if self._base is None:
            return []
        keys = [key for key in dir(self._base) if not key.startswith("_") and not hasattr(candidate, key)]
        required_keys = [key for key in keys if key not in self._optional_members]
        if not required_keys:
            for key in keys:
                setattr(candidate_class, key, getattr(self._base, key))
        return required_keys

    def _schema(self, component: Callable[..., Any]) -> dict[str, Any]:
        if getattr(component, "__init__", None) in _EMPTY_INITS and inspect.isclass(component):
            return {}
        parameters = [
            p
            for p in inspect.signature(component).parameters.values()
            if p.name not in self._program_parameters
        ]
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            raise TypeError(f"{self.kind} {component.__name__}: *args and **kwargs can't be checked")
        function = component.__init__ if inspect.isclass(component) else component
        if (
            is_dataclass(component)
            and "__init__" in vars(component)
            and "__dataclass_fields__" in vars(component)
        ):
            function = component  # its __init__ is generated, so the class has the annotations
        hints = typing.get_type_hints(function, include_extras=True)
        missing_names = [p.name for p in parameters if p.name not in hints]
        if missing_names:
            raise TypeError(f"{self.kind} {component.__name__}: no annotation for {', '.join(missing_names)}")
        return {p.name: hints[p.name] for p in parameters}

    def names(self) -> list[str]:
        """Returns all registered names, sorted."""
        _import_components()
        return sorted(self._components)

    def get(self, name: Any, where: ConfigPlace) -> Callable[..., Any]:
        """Returns the component with this name.

        Raises:
            ConfigError: the name is unknown, or this installation does not meet a requirement of the
                component.
        """
        names = self.names()
        if name not in names:
            raise where.error(unknown_word_message(name, names, self.kind))
        if (requirement := self._unmet_requirements[name]) is not None:
            raise where.error(f"{self.kind} {name} needs {requirement}")
        return self._components[name]

    def fact(self, name: str, key: str) -> Any:
        """Returns a fact that a component declared when it was registered, or the default of the fact."""
        _import_components()
        return self._facts.get(name, self._default_facts)[key]

    def schema(self, name: str) -> dict[str, Any]:
        """Returns the type annotations of the component's own arguments, by name."""
        return dict(self._hints[name])

    def block(self, value: Any, where: ConfigPlace) -> Block:
        """Checks one component, ``{name: Cosine, ...}``, and returns its block.

        A value that is a block already is returned unchanged.

        Raises:
            ConfigError: the name is missing or unknown, or an argument is invalid.
        """
        if isinstance(value, Block):
            return self._check_kind(value)
        value = check_value(value, dict, where)
        if "name" not in value:
            raise where.error(f"the key name is missing; allowed: {', '.join(self.names())}")
        arguments = {key: v for key, v in value.items() if key != "name"}
        return Block(
            self.kind,
            value["name"],
            arguments=self.check(value["name"], arguments, where, where / "name"),
            where=where,
            is_list_item=False,
        )

    def blocks(self, value: Any, where: ConfigPlace) -> list[Block]:
        """Checks a list of components, and returns their blocks.

        An item is ``{Name: {...}}``, ``{Name: null}``, ``Name``, or a block that was checked before.

        Raises:
            ConfigError: the value is no list, an item has another form, a name is unknown, or an argument is
                invalid.
        """
        items = value if isinstance(value, list) else check_value(value, list, where)
        return [self._list_item_block(item, where / i) for i, item in enumerate(items)]

    def check_list(self, blocks: Sequence[Block]) -> Any:
        """Checks whether the components of a list fit each other.

        Returns:
            What the registry's function returns about the list.

        Raises:
            ConfigError: they do not fit.
        """
        return self._check_list(blocks) if self._check_list else None

    def _list_item_block(self, item: Any, where: ConfigPlace) -> Block:
        if isinstance(item, Block):
            return self._check_kind(item)
        if isinstance(item, str):
            item = {item: None}
        if not isinstance(item, dict) or len(item) != 1:
            raise where.error(f"expected one component, Name: {{...}}, received {shorten_value(item)}")
        ((name, arguments),) = item.items()
        place = where / name
        arguments = {} if arguments is None else check_value(arguments, dict, place)
        arguments = self.check(name, arguments, place, place)
        return Block(self.kind, name, arguments=arguments, where=place, is_list_item=True)

    def _check_kind(self, block: Block) -> Block:
        if block.kind != self.kind:
            raise block.where.error(f"expected a {self.kind}, received the {block.kind} {block.name}")
        return block

    def check(
        self, name: Any, arguments: Mapping[str, Any], where: ConfigPlace, name_where: ConfigPlace
    ) -> dict[str, Any]:
        """Checks arguments against the signature of the component and the common keys.

        Returns:
            The arguments, converted to the annotated types.

        Raises:
            ConfigError: the name is unknown, or an argument is unknown, missing or invalid.
        """
        component = self.get(name, name_where)
        own_hints, allowed_hints = self._hints[name], self._allowed_hints(name)
        arguments = drop_unused_keys(arguments, allowed_hints)
        for key in arguments:
            self._check_argument_name(key, allowed_hints, name, where)
        required_names = [
            p.name
            for p in inspect.signature(component).parameters.values()
            if p.default is p.empty and p.name in own_hints
        ]
        if self.common:
            required_names += [
                f.name for f in fields(self.common) if f.default is MISSING and f.default_factory is MISSING
            ]
        for key in required_names:
            if key not in arguments:
                raise where.error(
                    f"{self.kind} {name} needs the argument {key}: {type_name(allowed_hints[key])}"
                )
        return {key: check_value(value, allowed_hints[key], where / key) for key, value in arguments.items()}

    def set_argument(self, block: Block, key: str, value: Any) -> None:
        """Changes one argument of a block, in a notebook.

        Raises:
            ConfigError: the argument is unknown, or the value is invalid.
        """
        allowed_hints = self._allowed_hints(block.name)
        where = ConfigPlace(block.where.keys)  # without sources, because no file contains the value
        self._check_argument_name(key, allowed_hints, block.name, where)
        block.arguments[key] = check_value(value, allowed_hints[key], where / key)

    def _check_argument_name(
        self, key: Any, allowed_hints: Mapping[str, Any], name: str, where: ConfigPlace
    ) -> None:
        if key not in allowed_hints:
            raise (where / key).error(
                unknown_word_message(key, sorted(allowed_hints), f"argument of {self.kind} {name}")
            )

    def _allowed_hints(self, name: str) -> dict[str, Any]:
        """Returns the annotations of the arguments that a block may have."""
        common = typing.get_type_hints(self.common, include_extras=True) if self.common else {}
        return {**common, **self._hints[name]}

    def components(self) -> dict[str, Callable[..., Any]]:
        """Returns all components by name."""
        _import_components()
        return dict(self._components)

    def registered(self) -> set[str]:
        """Returns the names that are registered so far, without importing anything."""
        return set(self._components)

    def forget(self, names: set[str]) -> None:
        """Removes registrations after the import of their module has failed."""
        for name in names:
            del self._components[name], self._hints[name], self._facts[name], self._unmet_requirements[name]

    def build(self, block: Block, **program_arguments: Any) -> T:
        """Builds a component from its block.

        The component also receives those of ``program_arguments`` that it has parameters for.

        Raises:
            ConfigError: for a ValueError of the component, which reports what annotations can't express.
        """
        component = self._components[block.name]
        parameters = inspect.signature(component).parameters
        arguments = {
            key: value for key, value in dict.items(block.arguments) if key in self._hints[block.name]
        }
        arguments |= {key: value for key, value in program_arguments.items() if key in parameters}
        try:
            instance = component(**arguments)
        except ValueError as error:
            raise block.where.error(f"{self.kind} {block.name}: {error}") from error
        if missing_members := self._missing_members(instance, type(instance)):
            message = f"{self.kind} {block.name} returns an object without {', '.join(missing_members)}"
            raise block.where.error(f"{message}; derive its class from ppxcls's {self._base_name}")
        return typing.cast(T, instance)

    def common_keys(self, block: Block) -> Any:
        """Returns an instance of the ``common`` dataclass with the values of a block."""
        assert self.common is not None
        names = {f.name for f in fields(self.common)}
        return self.common(**{key: value for key, value in dict.items(block.arguments) if key in names})


# Inherited by a class without parameters, also from a Protocol.
_EMPTY_INITS = (
    object.__init__,
    _Plain.__init__,
)
_REGISTRIES: dict[str, Registry[Any]] = {}


def registry(kind: str) -> Registry[Any]:
    """Returns the registry of this kind."""
    _import_components()
    return _REGISTRIES[kind]


def registries() -> dict[str, Registry[Any]]:
    """Returns all registries by kind."""
    _import_components()
    return dict(_REGISTRIES)


@functools.cache
def _import_components() -> None:
    """Imports all modules of the packages that contain components. The import registers them."""
    for name in _PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("_kernels"):  # these modules import numba, which may be missing
                importlib.import_module(module.name)
