"""Ranges of ``ppxcls tune``: what they accept, and the values that they give."""

from __future__ import annotations

import pytest

import ppxcls
from ppxcls.config.yaml_values import read_yaml
from ppxcls.tuning.search_range import parse_ranges


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Optimizer.lr", "expected KEY.KEY=RANGE"),
        ("A..b=uniform(0,1)", "expected KEY.KEY=RANGE"),
        ("A.b=normal(0,1)", r"expected loguniform\(a,b\), uniform\(a,b\), int\(a,b\) or choice"),
        ("A.b=uniform(0,1", "expected loguniform"),
        ("A.b=uniform(0)", "expected two numbers"),
        ("A.b=uniform(0,inf)", "expected two numbers"),
        ("A.b=uniform(0,one)", "expected two numbers"),
        ("A.b=uniform(1,1)", "received the empty range"),
        ("A.b=int(5,2)", "received the empty range"),
        ("A.b=loguniform(0,1)", "expected numbers above 0"),
        ("A.b=int(0,1.5)", "expected whole numbers"),
        ("A.b=choice()", "expected at least two different values"),
        ("A.b=choice(1)", "expected at least two different values"),
        ("A.b=choice(x,x)", "expected at least two different values"),
        ("A.b=choice({x)", "not valid YAML"),
    ],
)
def test_a_wrong_range_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ppxcls.ConfigError, match=message) as error:
        parse_ranges([text])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "texts", [[], ["A.b=int(1,2)", "A.b=int(1,3)"], ["A.b.c=int(1,2)", "A.b=choice(1,2)"]]
)
def test_keys_are_named_once(texts: list[str]) -> None:
    with pytest.raises(ppxcls.ConfigError, match="at least one --set|A.b is searched twice"):
        parse_ranges(texts)


@pytest.mark.parametrize(
    ("text", "parameter", "value"),
    [
        ("A.b=loguniform(1e-6,1e-4)", 1.23456e-5, 1.235e-5),
        ("A.b=uniform(0.123456,1)", 0.123457, 0.1235),
        ("A.b=uniform(0.123446,1)", 0.123447, 0.123446),  # rounded below the range
        ("A.b=int(-3,4)", 2.0, 2),
        ("A.b=choice(1e-3, true, null)", 0, 0.001),
        ("A.b=choice(x, 'null', 3)", 1, "null"),
        ("A.b=choice([1, 2], {c: 1.0e-5})", 1, {"c": 1e-5}),
        ("A.b=choice(1,1.0,true)", 2, True),
    ],
)
def test_the_override_has_the_value(text: str, parameter: float, value: object) -> None:
    (item,) = parse_ranges([text])
    assert repr(item.value(parameter)) == repr(value)
    key, _, written = item.override(parameter).partition("=")
    assert key == "A.b"
    assert repr(read_yaml(written, "-o")) == repr(value)
    (again,) = parse_ranges([f"{item.key}={item.text}"])
    assert again == item


def test_the_ends_and_the_middle_are_probed() -> None:
    log, linear, choice = parse_ranges(["A.a=loguniform(0.01,1)", "A.b=uniform(0,1)", "A.c=choice(a,b,c)"])
    assert log.probes == pytest.approx([0.01, 0.1, 1])
    assert linear.probes == [0, 0.5, 1]
    assert [choice.value(probe) for probe in choice.probes] == ["a", "b", "c"]
