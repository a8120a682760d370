"""The checks of exported programs: what passes, what is refused, and what a user's word allows."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

import ppxcls
from ppxcls.data.transforms import DeviceStage
from ppxcls.deploy import runners
from ppxcls.deploy.export import export_model
from ppxcls.deploy.metadata import ExportMetadata
from ppxcls.deploy.onnx_check import read_onnx_program
from ppxcls.deploy.onnx_external import check_external_data
from ppxcls.deploy.paddle2_check import read_paddle2_program
from ppxcls.deploy.pir_check import read_pir_program
from ppxcls.deploy.program_check import ProgramError
from ppxcls.deploy.program_files import reason_for_trust
from ppxcls.deploy.program_shapes import check_sizes
from ppxcls.deploy.wire_format import Field, FormatError, read_message
from ppxcls.models.tracing import to_static
from ppxcls.train.paddle_inference import program_file
from tests.conftest import ROOT, run_tool
from tests.deploy.test_onnx import FUNCTIONS, HAS_ONNX, LAYERS, Network

sys.path.insert(0, str(ROOT / "scripts"))
from hostility.builders import onnx, onnx_programs, paddle2, pir

METADATA = {
    "model": "tiny",
    "weights": "none",
    "transforms": [{"DecodeImage": {}}, {"ResizeImage": {"size": [4, 4]}}],
    "class_names": {},
    "class_num": 2,
    "output": "probabilities",
    "preprocessing in the graph": True,
}
IMAGE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def exported(folder: Path, program: bytes, name: str = "inference.pdmodel") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(program)
    (folder / "inference.pdiparams").write_bytes(paddle2.weights())
    (folder / "inference_config.json").write_text(json.dumps(METADATA))
    return folder


def networks() -> dict[str, Any]:
    return {name: lambda f=f: Network(f) for name, f in FUNCTIONS.items()} | {
        f"layer {name}": lambda make=make: nn.Sequential(*make()) for name, make in LAYERS.items()
    }


@pytest.mark.every_paddle
@pytest.mark.parametrize("name", networks())
def test_common_operators_need_no_trust(name: str, tmp_path: Path) -> None:
    """In the format that this Paddle writes."""
    network = networks()[name]()
    network.eval()
    program = to_static(network, paddle.static.InputSpec([None, 6, 9, 8], "float32", "images"))
    paddle.jit.save(program, f"{tmp_path}/inference")
    file = program_file(tmp_path)
    read = read_pir_program if file.suffix == ".json" else read_paddle2_program
    checked_program, weights = read(file.read_bytes())
    check_sizes(checked_program)
    assert checked_program.input_shape == (6, 9, 8)
    assert {tuple(weight.shape) for weight in weights.values()} <= {
        tuple(tensor.shape) for tensor in network.state_dict().values()
    }


@pytest.mark.every_paddle
def test_sizes_are_computed_as_paddle_computes_them(tmp_path: Path) -> None:
    """A program whose declared output differs from the computed one would be refused."""
    program, _ = read_paddle2_program(paddle2.program())
    check_sizes(program)
    wrong = onnx.graph(outputs=[onnx.described("probabilities", ["N", 3])])
    with pytest.raises(ProgramError, match=r"probabilities is declared as \[-1, 3\], but is \[1, 2\]"):
        check_sizes(read_onnx_program(onnx.model(wrong)).program)


@pytest.mark.every_paddle
def test_a_program_of_paddle_2_gives_the_softmax_of_a_product(tmp_path: Path) -> None:
    predictor = ppxcls.load(exported(tmp_path / "model", paddle2.program()))
    logits = IMAGE.reshape(1, 48).astype(np.float64) @ np.linspace(-1, 1, 96).reshape(48, 2)
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    (prediction,) = predictor.predict(IMAGE)
    assert prediction.scores == pytest.approx(sorted(expected[0], reverse=True), abs=1e-5)


def saving_program(target: Path) -> bytes:
    attributes = (("file_path", "str", str(target)), ("overwrite", "bool", True))
    return paddle2.with_operator(paddle2.operator("save", {"X": ["w"]}, {}, *attributes))


@pytest.mark.every_paddle
def test_a_program_that_writes_a_file_needs_the_word_of_the_user(tmp_path: Path) -> None:
    target = tmp_path / "target.pth"
    folder = exported(tmp_path / "model", saving_program(target))
    image = tmp_path / "a.png"
    image.write_bytes((folder / "inference.pdiparams").read_bytes()[:0])
    for call in (
        lambda: ppxcls.load(folder),
        lambda: ppxcls.infer(exported=folder, images=str(image)),
        lambda: ppxcls.serve(folder, port=0),
    ):
        with pytest.raises(
            ppxcls.CheckpointError, match=r"inference.pdmodel: it contains the operator save; .*--trust"
        ):
            call()
        assert not target.exists()


@pytest.mark.parametrize("verb", ["infer", "serve"])
def test_the_commands_have_the_word(verb: str) -> None:
    assert "--trust" in run_tool(verb, "--help").stdout


class Sums(nn.Layer):
    """A network with an operator that is not known to be harmless."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 7)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.layer(paddle.cumsum(images, axis=2).mean(axis=[2, 3]))


def test_a_network_with_other_operators_is_exported_and_loaded_with_trust(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = Sums()
    network.eval()
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    metadata = ExportMetadata("Sums", "fresh", [{"DecodeImage": {}}], [], 7)
    export_model(
        network,
        DeviceStage(normalize=None, chw=False),
        images=images,
        folder=tmp_path / "out",
        metadata=metadata,
        formats=["paddle"],
    )
    assert "it contains the operator cumsum" in caplog.text
    with pytest.raises(ppxcls.CheckpointError, match="it contains the operator cumsum"):
        ppxcls.load(tmp_path / "out")
    predictions = ppxcls.load(tmp_path / "out", trust=True).predict(images)
    assert [len(prediction.scores) for prediction in predictions] == [5, 5, 5]


def test_the_checked_bytes_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process replaces the program after its check."""
    folder, target = exported(tmp_path / "model", paddle2.program()), tmp_path / "target"
    loader = runners.InferenceProgram

    def swapping(*arguments: Any, **options: Any) -> Any:
        (folder / "inference.pdmodel").write_bytes(saving_program(target))
        (folder / "inference.pdiparams").write_bytes(b"")
        return loader(*arguments, **options)

    monkeypatch.setattr(runners, "InferenceProgram", swapping)
    predictor = ppxcls.load(folder)
    assert len(predictor.predict(IMAGE)[0].scores) == 2
    assert not target.exists()


@pytest.mark.parametrize("has_named_memory", [True, False])
def test_nothing_remains_of_the_copies(
    has_named_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppxcls.deploy.program_files._has_named_memory", lambda: has_named_memory)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    predictor = ppxcls.load(exported(tmp_path / "model", paddle2.program()))
    assert not list(temporary.iterdir())
    assert len(predictor.predict(IMAGE)[0].scores) == 2
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 1


@pytest.mark.skipif(not HAS_ONNX, reason="onnx or onnxruntime is not installed")
def test_data_outside_of_the_folder_is_refused_with_trust_too(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (tmp_path / "outside.bin", folder / "inside.bin"):
        path.write_bytes(onnx.WEIGHTS)
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")

    def model(location: str) -> Path:
        constant = onnx.tensor("w", [48, 2], None, more=onnx.external(location, offset="0", length="384"))
        data = onnx.model(onnx.graph(constants=[constant]), json.dumps(METADATA))
        (folder / "a.onnx").write_bytes(data)
        return folder / "a.onnx"

    with pytest.raises(ppxcls.CheckpointError, match="constant w lies in another file; .*--trust"):
        ppxcls.load(model("inside.bin"))
    assert len(ppxcls.load(model("inside.bin"), trust=True).predict(IMAGE)[0].scores) == 2
    for location in ("../outside.bin", str(tmp_path / "outside.bin"), "link.bin", "*/_ORT_MEM_ADDR_/*"):
        with pytest.raises(ppxcls.CheckpointError, match="expected a file in the folder of the ONNX file"):
            ppxcls.load(model(location), trust=True)


def test_data_within_an_operator_is_found(tmp_path: Path) -> None:
    tensor = onnx.tensor("v", [1], None, more=onnx.external("/etc/passwd"))
    body = onnx.graph(constants=[tensor])
    for node in (
        onnx.node("If", ["c"], ["y"], then_branch=body),
        onnx.node("Loop", ["c"], ["y"], body=onnx.graph([onnx.node("If", ["c"], ["y"], then_branch=body)])),
    ):
        with pytest.raises(ProgramError, match="/etc/passwd"):
            check_external_data(onnx.model(onnx.with_nodes(node)), tmp_path)


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = exported(tmp_path / "model", paddle2.program())
    run = runners.paddle_runner(folder)
    assert run(IMAGE[None]).shape == (1, 2)
    with pytest.raises(
        ppxcls.DataError, match=r"expected images uint8 \[4, 4, 3\], received uint8 \[5, 4, 3\]"
    ):
        run(np.zeros((1, 5, 4, 3), np.uint8))
    with pytest.raises(ppxcls.DataError, match="received float32"):
        run(np.zeros((1, 4, 4, 3), np.float32))


def test_outputs_of_other_classes_are_refused(tmp_path: Path) -> None:
    folder = exported(tmp_path / "model", paddle2.program())
    (folder / "inference_config.json").write_text(json.dumps({**METADATA, "class_num": 3}))
    with pytest.raises(
        ppxcls.DataError, match=r"expected numbers for 3 classes .* received float32 \[1, 2\]"
    ):
        ppxcls.load(folder).predict(IMAGE)


@pytest.mark.parametrize(
    ("operators", "message"),
    [
        ([("tile", [1, 1 << 40])], "more than 67,108,864 elements"),
        ([("expand", [1 << 20, 2])], "inputs of different shapes|expected \\[1, ...\\]"),
    ],
)
def test_growth_is_bounded(operators: list[tuple[str, list[int]]], message: str) -> None:
    ((kind, numbers),) = operators
    vector = pir.operator("1.full_int_array", [], {9: [2]}, value=pir.long_list(numbers))
    data = pir.with_operator(vector, pir.operator(f"1.{kind}", [5, 9], {10: [-1, 2]}))
    program, _ = read_pir_program(data)
    with pytest.raises(ProgramError, match=message):
        check_sizes(program)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two large tables that are folded", "more than 67,[0-9,]+ elements that do not depend on the image"),
        ("200 maxima of a large table", "more than 4,294,967,296 elements that its operators read"),
    ],
)
def test_work_that_no_single_tensor_shows(name: str, message: str) -> None:
    data = dict(onnx_programs.files("{}"))[name]
    with pytest.raises(ProgramError, match=message):
        check_sizes(read_onnx_program(data).program)


def test_a_size_that_grows_with_the_square_of_the_batch() -> None:
    """Within the limits for one image, and beyond them for sixteen."""
    pairs = onnx.with_nodes(
        onnx.node("Reshape", ["logits", "row"], ["rows"]),
        onnx.node("Reshape", ["logits", "column"], ["columns"]),
        onnx.node("Mul", ["rows", "columns"], ["table"]),
        onnx.node("Tile", ["table", "counts"], ["tables"]),
        constants=[
            onnx.integers("row", 1, -1),
            onnx.integers("column", -1, 1),
            onnx.integers("counts", 1 << 12, 1 << 12),
        ],
    )
    with pytest.raises(ProgramError, match=r"for 16 images, more than 1,073,741,824 elements"):
        check_sizes(read_onnx_program(onnx.model(pairs)).program)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1, "a": 2}', "a key is repeated"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": 1e999}', "a number is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "an integer is too large"),
        (b'{"a": 0.' + b"9" * 5000 + b"}", "too many digits"),
        (b"[" * 80 + b"]" * 80, "nested too deeply"),
        (b"[" * 200_000, "not JSON|nested too deeply"),
        (b'"\xff"', "not UTF-8"),
        (b"\xef\xbb\xbf" + json.dumps(pir.program()).encode(), "a mark of the byte order"),
    ],
)
def test_a_program_of_paddle_3_that_readers_may_understand_differently(data: bytes, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        read_pir_program(data)


def combined(count: int, number: int) -> dict[str, Any]:
    """An operator that collects the value 5, the logits, several times to a list."""
    kind = {"#": "0.t_vec", "D": [pir.tensor([-1, 2])]}
    return pir.operator("0.combine", [5] * count, {}) | {"O": [{"%": number, "TT": kind}]}


def test_a_list_that_many_operators_read() -> None:
    """The work grows with the product of both counts, so it is bounded by itself."""
    integer = {"#": "1.a_dtype", "D": "int32"}
    axis = pir.operator("1.full", [], {1000: [1]}, shape=pir.int_array([1]), value=0.0, dtype=integer)
    joins = [pir.operator("1.concat", [1001, 1000], {2000 + i: [-1, 2]}) for i in range(300)]
    data = pir.with_operator(axis, combined(4000, 1001), *joins)
    program, _ = read_pir_program(data)
    with pytest.raises(ProgramError, match="its operators read more than 1,048,576 inputs"):
        check_sizes(program)


def test_a_list_is_taken_apart_once() -> None:
    def parts(*numbers: int) -> dict[str, Any]:
        return pir.operator("0.split", [1001], {number: [-1, 1] for number in numbers})

    list_type = {"#": "0.t_vec", "D": [pir.tensor([-1, 1])] * 2}
    split = pir.operator("1.split_with_num", [5], {}, num=2) | {"O": [{"%": 1001, "TT": list_type}]}
    program, _ = read_pir_program(pir.with_operator(split, parts(1002, 1003)))
    assert ["%1002", "%1003"] in [node.outputs for node in program.nodes]
    for others in ([split, parts(1002), parts(1003)], [parts(1002)]):
        with pytest.raises(ProgramError, match="a list is taken apart|no earlier one writes"):
            read_pir_program(pir.with_operator(*others))


def test_operators_are_counted_while_a_program_is_read() -> None:
    layers = [pir.operator("1.relu", [5], {1000 + i: [-1, 2]}) for i in range(20_001)]
    with pytest.raises(ProgramError, match="more than 20,000 operators"):
        read_pir_program(pir.with_operator(*layers))


def test_a_tensor_with_more_axes_than_a_program_needs() -> None:
    nodes = [onnx.node("Gather", ["logits", "index"], ["a0"])]
    nodes += [onnx.node("Gather", [f"a{i}", "index"], [f"a{i + 1}"]) for i in range(3)]
    index = onnx.tensor("index", [1, 1, 1], bytes(8), onnx.INT64)
    with pytest.raises(ProgramError, match="gives a tensor with 10 axes, more than 8"):
        check_sizes(read_onnx_program(onnx.model(onnx.with_nodes(*nodes, constants=[index]))).program)
    variables = (*paddle2.VARIABLES, paddle2.variable("v", [1] * 9, is_weight=True))
    with pytest.raises(ProgramError, match="the variable v has 9 axes"):
        read_paddle2_program(paddle2.program(variables=variables))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x10\x01", "a field 2"),
        (b"\x08\x01\x08\x01", "a is there twice"),
        (b"\x08\x80\x00", "more bytes than it needs"),
        (b"\x08" + b"\xff" * 11, "more bytes than it needs"),
        (b"\x08", "cut off"),
        (b"\x0d\x00\x00\x00\x00", "another type"),
        (b"\x08\x80\x80\x80\x80\x10", "does not fit into 32 bits"),
    ],
)
def test_strict_protobuf(data: bytes, message: str) -> None:
    schema = {1: Field("a", "int32")}
    with pytest.raises(FormatError, match=message):
        read_message(memoryview(data), schema)
    assert read_message(memoryview(b"\x08\x96\x01"), schema) == {"a": 150}
    assert read_message(memoryview(b"\x08" + b"\xff" * 9 + b"\x01"), schema) == {"a": -1}


def test_a_folder_of_this_package_needs_no_trust(tmp_path: Path) -> None:
    assert reason_for_trust(exported(tmp_path / "model", paddle2.program())) is None
    folder = exported(tmp_path / "other", saving_program(tmp_path / "x"))
    assert "it contains the operator save" in str(reason_for_trust(folder))
