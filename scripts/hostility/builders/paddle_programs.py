"""Hostile programs in Paddle's two formats, by what is hostile about them.

Each is the bytes of a program. ``CANARY`` in a program is replaced by the path of the canary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hostility.builders import paddle2, pir
from hostility.builders.protobuf import field, varint

CANARY = "C" * 64  # a path of this length replaces it, so that all lengths in a program stay right

_W = {"X": ["w"]}
_OUT = {"Out": ["extra"]}
# Operators of Paddle 2 that do more than arithmetic: inputs, outputs and attributes.
_FORBIDDEN_2: dict[str, tuple[dict[str, list[str]], dict[str, list[str]], tuple[Any, ...]]] = {
    "save": (_W, {}, (("file_path", "str", CANARY), ("overwrite", "bool", True))),
    "save_combine": (_W, {"Y": ["y"]}, (("file_path", "str", CANARY),)),
    "load": ({}, _OUT, (("file_path", "str", CANARY),)),
    "load_combine": ({}, _OUT, (("file_path", "str", CANARY),)),
    "read_file": ({}, _OUT, (("filename", "str", CANARY),)),
    "py_func": (_W, _OUT, (("forward_callable_id", "int", 0),)),
    "py_layer": (_W, _OUT, (("sub_block", "block", 1),)),
    "print": ({"In": ["w"]}, _OUT, (("message", "str", CANARY),)),
    "assert": ({"Cond": ["w"]}, {}, (("summarize", "long", 1),)),
    "while": (_W, _OUT, (("sub_block", "block", 0),)),
    "conditional_block": (_W, _OUT, (("sub_block", "block", 0),)),
    "run_program": (_W, _OUT, (("global_block", "block", 0),)),
    "recurrent": (_W, _OUT, (("sub_block", "block", 0),)),
    "listen_and_serv": (_W, {}, (("endpoint", "str", "127.0.0.1:1"),)),
    "send_v2": (_W, {}, (("peer", "int", 0),)),
    "c_broadcast": (_W, _OUT, (("ring_id", "int", 0),)),
    "distributed_lookup_table": (_W, _OUT, (("table_id", "int", 0),)),
    "checkpoint_notify": ({}, {}, (("dirname", "str", CANARY),)),
    "create_custom_reader": (_W, _OUT, (("sub_block", "block", 0),)),
    "enqueue": (_W, {}, (("queue_name", "str", "q"),)),
    "tensorrt_engine": (_W, _OUT, (("shape_range_info_path", "str", CANARY),)),
    "lite_engine": (_W, _OUT, (("engine_key", "str", CANARY),)),
    "cinn_launch": (_W, _OUT, (("compilation_key", "long", 1),)),
    "custom_op": (_W, _OUT, ()),
    "gaussian_random": ({}, _OUT, (("shape", "longs", [1 << 40]),)),
    "uniform_random": ({}, _OUT, (("shape", "longs", [1 << 40]),)),
    "randint": ({}, _OUT, (("shape", "longs", [1 << 40]),)),
    "range": ({"Start": ["w"], "End": ["w"], "Step": ["w"]}, _OUT, ()),
    "eye": ({}, _OUT, (("num_rows", "long", 1 << 20),)),
    "delete_var": (_W, {}, ()),
    "write_to_array": ({"X": ["w"], "I": ["w"]}, _OUT, ()),
    "elementwise_floordiv": ({"X": ["w"], "Y": ["w"]}, _OUT, ()),
    "decode_jpeg": (_W, _OUT, ()),
    "set_value": ({"Input": ["w"]}, _OUT, ()),
    "feed": ({"X": ["feed"]}, {"Out": ["w"]}, (("col", "int", 0),)),
    "fetch": ({"X": ["w"]}, {"Out": ["fetch"]}, (("col", "int", 1),)),
}


_KINDS_IN_MESSAGES = (
    "save",
    "save_combine",
    "load",
    "py_func",
    "print",
    "while",
    "run_program",
)  # in their messages


def forbidden_operators() -> Iterator[tuple[str, str, bytes, str]]:
    """Yields a description, the file's name, its bytes, and a word of the message."""
    for kind, (inputs, outputs, attributes) in _FORBIDDEN_2.items():
        data = paddle2.with_operator(paddle2.operator(kind, inputs, outputs, *attributes))
        yield f"operator {kind}", "inference.pdmodel", data, kind if kind in _KINDS_IN_MESSAGES else ""
    names = {"file_path": CANARY}
    for kind, attributes_3 in (
        ("1.save", names),
        ("1.save_combine", names),
        ("1.load", names),
        ("1.load_combine", names),
        ("1.read_file", {"filename": CANARY}),
        ("1.print", {"message": CANARY}),
        ("1.py_func", {"forward_callable_id": 0}),
        ("1.assert", {"summarize": 1}),
        ("1.while", {}),
        ("1.if", {}),
        ("2.if", {}),
        ("2.while", {}),
        ("2.tuple_push", {}),
        ("2.stack_create", {}),
        ("1.run_program", {}),
        ("1.gaussian", {"shape": pir.int_array([1 << 40])}),
        ("1.uniform", {"shape": pir.int_array([1 << 40])}),
        ("1.arange", {}),
        ("1.decode_jpeg", {}),
        ("1.floor_divide", {}),
        ("1.set_value_", {}),
        ("1.send_v2", {"peer": 0}),
        ("1.memcpy_d2h", {"dst_place_type": 0}),
        ("4.custom", {}),
        ("0.set_parameter", {"parameter_name": "w"}),
        ("0.shadow_output", {"output_name": "w"}),
        ("0.shadow_feed", {}),
        ("pd_op.save", names),
        ("1.", {}),
        ("", {}),
    ):
        data = pir.with_operator(pir.operator(kind, [1], {9: [1]}, **attributes_3))
        yield f"operator {kind or 'without a name'}", "inference.json", data, ""


def large_sizes() -> Iterator[tuple[str, str, bytes, str]]:
    """Yields programs of allowed operators that need too much memory or time, or do not fit together."""
    huge = 1 << 15
    full = ("1.full", [], {"value": 1.0, "dtype": pir.DTYPE, "place": pir.PLACE})
    for name, kind, inputs, attributes in (
        ("a constant of 10^18 elements", full[0], full[1], {"shape": pir.int_array([10**9] * 2), **full[2]}),
        ("a constant of 10^9 elements", full[0], full[1], {"shape": pir.int_array([huge] * 2), **full[2]}),
        ("a constant with a negative side", full[0], full[1], {"shape": pir.int_array([-5]), **full[2]}),
        (
            "a constant of NaN as a word",
            full[0],
            full[1],
            {**full[2], "value": {"#": "0.a_f64", "VD": "NAN"}},
        ),
        ("an unknown attribute", "1.relu", [5], {"callback": 1}),
        ("an attribute of another type", "1.softmax", [5], {"axis": "x"}),
        ("an axis that does not exist", "1.softmax", [5], {"axis": 7}),
        ("a product of unfitting shapes", "1.matmul", [5, 5], {"transpose_x": False, "transpose_y": False}),
        ("a text as large as a book", "1.relu", [5], {"struct_name": "x" * 1_000_000}),
    ):
        yield (
            name,
            "inference.json",
            pir.with_operator(pir.operator(kind, inputs, {9: [1]}, **attributes)),
            "",
        )
    repeat = pir.operator("1.full_int_array", [], {9: [2]}, value=pir.long_list([1, 1 << 40]))
    for name in ("tile", "expand", "reshape"):
        operator = pir.operator(f"1.{name}", [5, 9], {10: [-1, 2]})
        yield f"a huge {name}", "inference.json", pir.with_operator(repeat, operator), ""
    fills = [
        pir.operator(full[0], [], {9 + i: [1 << 13] * 2}, shape=pir.int_array([1 << 13] * 2), **full[2])
        for i in range(2)
    ]
    word = "do not depend on the image"
    yield "two large constants", "inference.json", pir.with_operator(*fills), word
    large_fill = (("shape", "longs", [1 << 13] * 2), ("value", "float", 1.0), ("dtype", "int", 5))
    fills = [paddle2.operator("fill_constant", {}, {"Out": [f"f{i}"]}, *large_fill) for i in range(2)]
    yield "two large fills", "inference.pdmodel", paddle2.with_operator(*fills), word
    joins = [paddle2.operator("concat", {"X": ["logits"] * 2}, {"Out": ["x0"]}, ("axis", "int", 1))]
    for i in range(60):
        joins.append(
            paddle2.operator("concat", {"X": [f"x{i}"] * 2}, {"Out": [f"x{i + 1}"]}, ("axis", "int", 1))
        )
    yield "60 joins of a tensor with itself", "inference.pdmodel", paddle2.with_operator(*joins), ""
    for name, operator in {
        "a fill of 10^12": paddle2.operator(
            "fill_constant", {}, _OUT, ("shape", "longs", [10**6, 10**6]), ("value", "float", 1.0)
        ),
        "a fill of a shape from the image": paddle2.operator(
            "fill_constant", {"ShapeTensor": ["flat"]}, _OUT, ("value", "float", 1.0)
        ),
        "a pad of 10^9": paddle2.operator(
            "pad", {"X": ["logits"]}, _OUT, ("paddings", "ints", [0, 0, 0, 10**9])
        ),
        "a pad3d of 2^31": paddle2.operator(
            "pad3d", {"X": ["real"]}, _OUT, ("paddings", "ints", [2**31 - 1] * 6), ("mode", "str", "constant")
        ),
        "a pool of no size": paddle2.operator(
            "pool2d", {"X": ["real"]}, _OUT, ("ksize", "ints", [0, 0]), ("strides", "ints", [0, 0])
        ),
        "a resize to 10^9": paddle2.operator(
            "bilinear_interp_v2", {"X": ["real"]}, _OUT, ("out_h", "int", 10**9), ("out_w", "int", 10**9)
        ),
        "a convolution in 0 groups": paddle2.operator(
            "conv2d", {"Input": ["real"], "Filter": ["w"]}, {"Output": ["extra"]}, ("groups", "int", 0)
        ),
        "a number that others cut to 32 bits": paddle2.operator(
            "reshape2", {"X": ["logits"]}, _OUT, ("shape", "ints", [0, (1 << 32) + 2])
        ),
        "an output over a weight": paddle2.operator("relu", {"X": ["w"]}, {"Out": ["w"]}),
        "an input that does not exist": paddle2.operator("relu", {"X": ["nothing"]}, _OUT),
        "an unknown slot": paddle2.operator("relu", {"X": ["w"], "Custom": ["w"]}, _OUT),
        "a block as an attribute": paddle2.operator("relu", {"X": ["w"]}, _OUT, ("sub_block", "block", 0)),
    }.items():
        yield name, "inference.pdmodel", paddle2.with_operator(operator), ""
    copies = [paddle2.operator("relu", {"X": ["logits"]}, {"Out": [f"r{i}"]}) for i in range(20_001)]
    yield "20,001 operators", "inference.pdmodel", paddle2.with_operator(*copies), ""
    for name, shape in {
        "an image of 2^40 pixels": [-1, 1 << 20, 1 << 20, 3],
        "an image of a fixed batch": [1 << 30, 4, 4, 3],
        "an image of any size": [-1, -1, -1, 3],
        "an image without axes": [],
    }.items():
        variables = [*paddle2.VARIABLES[:2], paddle2.variable("images", shape, paddle2.UINT8)]
        data = paddle2.program(variables=[*variables, *paddle2.VARIABLES[3:]])
        yield name, "inference.pdmodel", data, ""


def damaged_paddle2() -> Iterator[tuple[str, str, bytes, str]]:
    """Yields programs of Paddle 2 that other readers of protobuf may read in another way."""
    good, name = paddle2.program(), "inference.pdmodel"
    blocks = field(1, paddle2.block((), (), 1, 0))
    for description, data in {
        "nothing": b"",
        "an unknown field": good + field(99, 1),
        "a second version": good + field(4, b""),
        "two blocks": good + blocks,
        "a block within another": field(1, paddle2.block((paddle2.FEED,), paddle2.VARIABLES, 1, 0)),
        "a number of 11 bytes": good + varint(5 << 3) + b"\xff" * 10 + b"\x01",
        "a number of more bytes than needed": good + b"\xa2\x80\x00\x00",
        "a length beyond the end": good + varint(4 << 3 | 2) + varint(1 << 60),
        "a group": good + varint(4 << 3 | 3),
        "a name that is not UTF-8": paddle2.with_operator(field(3, b"\xff\xfe")),
        "a million empty blocks": field(1, *[b""] * 1_000_000),
        "an operator without a name": paddle2.with_operator(field(1, b"")),
        "an attribute twice": paddle2.with_operator(
            paddle2.operator("softmax", {"X": ["logits"]}, _OUT, ("axis", "int", -1), ("axis", "int", -1))
        ),
        "an attribute with two values": paddle2.with_operator(
            field(3, "relu") + field(4, field(1, "a") + field(2, 0) + field(3, 1) + field(5, "x"))
        ),
        "no input": paddle2.program(paddle2.NETWORK),
        "two outputs": paddle2.program((paddle2.FEED, *paddle2.NETWORK, paddle2.FETCH, paddle2.FETCH)),
        "a variable twice": paddle2.program(variables=(*paddle2.VARIABLES, paddle2.VARIABLES[-1])),
        "a variable that is a reader": paddle2.program(
            variables=(*paddle2.VARIABLES, field(1, "r") + field(2, field(1, 15)) + field(3, 1))
        ),
        "a text": b"import os\n" * 100,
        "zeros": bytes(1 << 20),
    }.items():
        yield description, name, data, ""
    for part in range(1, 8):
        yield f"the first {part}/8", name, good[: len(good) * part // 8], ""


def damaged_pir() -> Iterator[tuple[str, str, bytes, str]]:
    """Yields files that are no JSON, or no program of Paddle 3."""
    good, name = json.dumps(pir.program()).encode(), "inference.json"
    for description, data in {
        "nothing": b"",
        "null": b"null",
        "a list": b"[]",
        "a text": b'"x"',
        "NaN": good.replace(b"-1", b"NaN", 1),
        "Infinity": good.replace(b"-1", b"-Infinity", 1),
        "1e999": good.replace(b"-1", b"1e999", 1),
        "a number of 100,000 digits": good.replace(b"-1", b"9" * 100_000, 1),
        "a number above 64 bits": good.replace(b"-1", b"18446744073709551616", 1),
        "a key twice": good.replace(b'"magic"', b'"magic": "x", "magic"', 1),
        "100,000 nested lists": b"[" * 100_000,
        "100,000 nested objects": b'{"a":' * 100_000,
        "bytes that are not UTF-8": good.replace(b"images", b"\xff\xfe\xfd\xfc\xfb\xfa", 1),
        "a mark of the byte order": b"\xef\xbb\xbf" + good,
        "UTF-16": good.decode().encode("utf-16"),
        "more after the end": good + b"{}",
        "zeros": bytes(1000),
        "a million quotes": b'"\\' * 500_000,
    }.items():
        yield description, name, data, ""
    for part in range(1, 8):
        yield f"the first {part}/8", name, good[: len(good) * part // 8], ""
    region: dict[str, Any] = {"#": "region_1", "blocks": []}
    for description, data in {
        "another magic": pir.changed(lambda _, c: c["base_code"].update(magic="pickle")),
        "another version": pir.changed(lambda _, c: c["base_code"].update(version=10**6)),
        "an unknown key": pir.changed(lambda _, c: c.update(plugins=["x"])),
        "two regions": pir.changed(lambda _, c: c["program"]["regions"].append(region)),
        "arguments of the block": pir.changed(
            lambda _, c: c["program"]["regions"][0]["blocks"][0].update(args=[{"%": 1}])
        ),
        "a region in an operator": pir.changed(lambda ops, _: ops[3].update(regions=[region])),
        "no operators": pir.changed(lambda ops, _: ops.clear()),
        "operators that are words": pir.changed(lambda ops, _: ops.append("x")),  # type: ignore[arg-type]
        "an operator that is null": pir.changed(lambda ops, _: ops.append(None)),  # type: ignore[arg-type]
        "two outputs": pir.changed(lambda ops, _: ops.append(ops[-1] | {"O": []})),
        "no input": pir.changed(lambda ops, _: ops.__delitem__(1)),
        "a value that nobody writes": pir.changed(lambda ops, _: ops[3].update(I=[{"%": 77}])),
        "a value that two write": pir.changed(lambda ops, _: ops[3]["O"][0].update({"%": 2})),
        "a negative value": pir.changed(lambda ops, _: ops[3].update(I=[{"%": -1}])),
        "a value that is a text": pir.changed(lambda ops, _: ops[3].update(I=[{"%": "1"}])),
        "a value that is true": pir.changed(lambda ops, _: ops[3].update(I=[{"%": True}])),
        "a weight with a path": pir.changed(lambda ops, _: ops[0].update(A=[0, 1, 1, 5])),
        "a weight of no size": pir.changed(lambda ops, _: ops[0]["O"].update(TT=pir.tensor([0, 2]))),
        "a weight of 2^60": pir.changed(lambda ops, _: ops[0]["O"].update(TT=pir.tensor([1 << 60]))),
        "a weight of texts": pir.changed(lambda ops, _: ops[0]["O"].update(TT=pir.tensor([2], "0.t_str"))),
        "a sparse tensor": pir.changed(lambda ops, _: ops[2]["O"][0]["TT"].update({"#": "1.t_sparse"})),
        "a number that others cut to 32 bits": pir.changed(
            lambda ops, _: ops[3]["A"][0]["AT"].update(D=(1 << 32) + 1)
        ),
        "a fraction as an axis": pir.changed(lambda ops, _: ops[3]["A"][0]["AT"].update(D=1.5)),
        "an attribute twice": pir.changed(lambda ops, _: ops[3]["A"].append(ops[3]["A"][0])),
        "a device with a path": pir.changed(lambda ops, _: ops[1]["A"][3]["AT"].update(D=[0, 0, "/x"])),
        "an input of another type": pir.changed(lambda ops, _: ops[1]["A"][2]["AT"].update(D="pstring")),
    }.items():
        yield description, name, data, ""
