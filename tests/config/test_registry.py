"""The registry: which components may be registered, and how arguments are checked."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from ppxcls.config.checks import Bound, ConfigError, ConfigPlace, Share, check_value, parse_number
from ppxcls.config.registry import Registry, registries, registry

KINDS = sorted(registries())
_NUMBERS = itertools.count()


def make() -> Registry[Any]:
    return Registry(f"thing {next(_NUMBERS)}", program_parameters=("given",))


def test_the_kinds() -> None:
    # Fmt: skip.
    assert set(KINDS) == {
        "model",
        "loss",
        "metric",
        "optimizer",
        "regularizer",
        "lr schedule",
        "transform",
        "batch transform",
        "dataset",
        "sampler",
        "tracker",
    }


def test_builds_with_runtime_arguments() -> None:
    things = make()

    @things.register
    def Thing(given: int, share: Share = 0.5, mode: Literal["a", "b"] = "a") -> tuple[Any, ...]:
        return given, share, mode

    assert things.build(things.block({"name": "Thing", "share": "1/4"}, ConfigPlace()), given=7, other=8) == (
        7,
        0.25,
        "a",
    )
    with pytest.raises(ConfigError, match=r"unknown argument of thing \d+ Thing 'given'"):
        things.block({"name": "Thing", "given": 1}, ConfigPlace())


def test_refuses_what_can_not_be_a_schema() -> None:
    things = make()

    def Open(**kwargs: Any) -> None: ...

    def Bare(size=3) -> None: ...  # type: ignore[no-untyped-def]

    def Thing() -> None: ...

    with pytest.raises(TypeError, match="can't be checked"):
        things.register(Open)
    with pytest.raises(TypeError, match="no annotation for size"):
        things.register(Bare)
    things.register(Thing)
    with pytest.raises(TypeError, match="registered twice"):
        things.register(Thing)


def test_value_error_of_a_component_becomes_a_config_error() -> None:
    things = make()

    @things.register
    def Thing(size: int) -> None:
        raise ValueError("expected an even size")

    where = ConfigPlace(("A", "b"), {("A",): "file.yaml:3"})
    with pytest.raises(ConfigError, match=r"^file.yaml:3: A.b: thing \d+ Thing: expected an even size"):
        things.build(things.block({"name": "Thing", "size": 3}, where))


@pytest.mark.parametrize("kind", KINDS)
def test_every_component_has_a_checkable_signature_and_a_docstring(kind: str) -> None:
    names = registry(kind).names()
    assert names
    for name in names:
        component = registry(kind).get(name, ConfigPlace())
        assert component.__doc__, f"{kind} {name}"


@pytest.mark.parametrize(
    ("text", "value"), [("1.0/255.0", 1 / 255), ("1e-3", 1e-3), ("2", 2.0), (" 1 / 4 ", 0.25)]
)
def test_numbers_in_strings(text: str, value: float) -> None:
    assert parse_number(text) == value
    assert check_value(text, float, ConfigPlace()) == value


@pytest.mark.parametrize("text", ["", "1/0", "1/", "one", "1/2/3", "__import__('os')", "1+1"])
def test_no_numbers(text: str) -> None:
    with pytest.raises((ValueError, ConfigError)):
        check_value(text, float, ConfigPlace(("x",)))


def test_types() -> None:
    @dataclass
    class Section:
        a: int
        b: list[float] | None = None

    assert check_value({"a": 1, "b": [1, 2]}, Section, ConfigPlace()) == Section(1, [1.0, 2.0])
    assert check_value(None, int | None, ConfigPlace()) is None
    assert check_value("x", int | str, ConfigPlace()) == "x"
    with pytest.raises(ConfigError, match="the key a is missing: expected an integer"):
        check_value({}, Section, ConfigPlace())
    with pytest.raises(ConfigError, match=r"b.1: expected a number, received 'x'"):
        check_value({"a": 1, "b": [1, "x"]}, Section, ConfigPlace())
    with pytest.raises(ConfigError, match="expected an integer or a string, received 1.5"):
        check_value(1.5, int | str, ConfigPlace())
    assert str(Bound(ge=0, lt=1)) == "at least 0 and below 1"
