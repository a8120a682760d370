"""Writes programs of Paddle 3 as nested dicts, which are JSON."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

_KINDS = {str: "0.a_str", bool: "0.a_bool", int: "0.a_i32", float: "0.a_f32"}


def value(item: Any) -> dict[str, Any]:
    """Returns the value of an attribute with its type."""
    if isinstance(item, dict):
        return item
    if isinstance(item, list):
        return {"#": "0.a_array", "D": [value(part) for part in item]}
    return {"#": _KINDS[type(item)], "D": item}


def tensor(shape: Sequence[int], kind: str = "0.t_f32") -> dict[str, Any]:
    """Returns the type of a tensor."""
    return {"#": "0.t_dtensor", "D": [{"#": kind}, list(shape), "NCHW", [], 0]}


def operator(
    kind: str, inputs: Sequence[int], outputs: dict[int, Sequence[int]], **attributes: Any
) -> dict[str, Any]:
    """Returns an operator; ``outputs`` are the shapes of its values by their numbers."""
    return {
        "#": kind,
        "A": [{"AT": value(item), "N": name} for name, item in attributes.items()],
        "I": [{"%": number} for number in inputs],
        "O": [{"%": number, "TT": tensor(shape)} for number, shape in outputs.items()],
        "OA": [{"AT": value([False] * len(outputs)), "N": "stop_gradient"}],
    }


DTYPE = {"#": "1.a_dtype", "D": "float32"}
PLACE = {"#": "1.a_place", "D": [0, 0, ""]}


def int_array(numbers: Sequence[int]) -> dict[str, Any]:
    """Returns a list of integers as a shape is written."""
    return {"#": "1.a_intarray", "D": list(numbers)}


def long_list(numbers: Sequence[int]) -> dict[str, Any]:
    """Returns a list of integers of 64 bits."""
    return {"#": "0.a_array", "D": [{"#": "0.a_i64", "D": number} for number in numbers]}


def program() -> dict[str, Any]:
    """Returns a program that gives two scores for an image uint8 [4, 4, 3]."""
    image = operator(
        "1.data",
        [],
        {2: [-1, 4, 4, 3]},
        name="images",
        shape=int_array([-1, 4, 4, 3]),
        dtype={"#": "1.a_dtype", "D": "uint8"},
        place=PLACE,
    )
    image["O"][0]["TT"]["D"][0] = {"#": "0.t_ui8"}
    operators = [
        {
            "#": "p",
            "A": [0, 1, 1, "w"],
            "DA": [],
            "O": {"%": 1, "TT": tensor([48, 2])},
            "OA": [1, 1, 0],
            "QA": [],
        },
        image,
        operator("1.cast", [2], {3: [-1, 4, 4, 3]}, dtype=DTYPE),
        operator("1.flatten", [3], {4: [-1, 48]}, start_axis=1, stop_axis=3),
        operator("1.matmul", [4, 1], {5: [-1, 2]}, transpose_x=False, transpose_y=False),
        operator("1.softmax", [5], {6: [-1, 2]}, axis=-1),
        operator("1.fetch", [6], {7: [-1, 2]}, name="fetch_name_0", col=0),
    ]
    operators[-1]["OA"].insert(0, {"AT": value([True]), "N": "persistable"})
    block = {"#": "block_0", "args": [], "ops": operators}
    return {
        "base_code": {"magic": "pir", "trainable": True, "version": 1},
        "program": {"regions": [{"#": "region_0", "blocks": [block]}]},
    }


def changed(change: Callable[[list[dict[str, Any]], dict[str, Any]], object]) -> bytes:
    """Returns the usual program after a function of its operators and of the whole has changed it."""
    content = copy.deepcopy(program())
    change(content["program"]["regions"][0]["blocks"][0]["ops"], content)
    return json.dumps(content).encode()


def with_operator(*operators: dict[str, Any]) -> bytes:
    """Returns the usual program with more operators before its softmax."""
    return changed(lambda ops, _: ops.__setitem__(slice(5, 5), operators))
