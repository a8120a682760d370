"""The ONNX writer: each operator, each network, and what it does not know."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

import ppxcls
from ppxcls.data.transforms import DeviceStage, NormalizeImage
from ppxcls.deploy import int8
from ppxcls.deploy.export import export_model
from ppxcls.deploy.metadata import ExportMetadata
from ppxcls.deploy.onnx_operators import ONNX_OPERATORS
from ppxcls.deploy.program import read_program
from ppxcls.deploy.program_files import reason_for_trust
from ppxcls.deploy.runners import onnx_runner
from ppxcls.models.tracing import to_static

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
pytestmark = pytest.mark.skipif(not HAS_ONNX, reason="onnx or onnxruntime is not installed")


class Network(nn.Layer):
    """A network that is one function of the images, and the layers that the function uses."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Layer) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.LayerList(layers)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.function(images, *self.layers)


def randomise_statistics(network: nn.Layer) -> None:
    for layer in network.sublayers():
        if isinstance(layer, nn.BatchNorm2D | nn.BatchNorm1D):
            layer._mean.set_value(paddle.randn(layer._mean.shape) * 0.1)
            layer._variance.set_value(paddle.rand(layer._variance.shape) + 0.5)
            layer.weight.set_value(paddle.rand(layer.weight.shape) + 0.5)
            layer.bias.set_value(paddle.randn(layer.bias.shape) * 0.1)


def model_of(network: nn.Layer, shape: tuple[int | None, ...]) -> Any:
    from ppxcls.deploy.onnx_graph import onnx_model

    network.eval()
    traced_network = to_static(network, paddle.static.InputSpec(list(shape), "float32", "images"))
    tensors = dict([*network.named_parameters(), *network.named_buffers()])
    program = read_program(traced_network, tensors)
    return onnx_model(program, input_name="images", output_name="logits")


def check(network: nn.Layer, folder: Path, shape: tuple[int, ...] = (6, 9, 8)) -> Any:
    """Compares the written file with the network for batches of 1 and 3, and returns the model."""
    for parameter in network.parameters():
        parameter.set_value(paddle.randn(parameter.shape))
    randomise_statistics(network)
    model = model_of(network, (None, *shape))
    (folder / "a.onnx").write_bytes(model.SerializeToString())
    run = onnx_runner(folder / "a.onnx", on_cpu=True)
    for count in (1, 3):
        images = np.random.default_rng(count).standard_normal((count, *shape)).astype(np.float32)
        expected = network(paddle.to_tensor(images)).numpy()
        received = run(images)
        assert received.shape == expected.shape
        assert received.dtype == expected.dtype
        np.testing.assert_allclose(received, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))
    return model


FUNCTIONS: dict[str, Callable[[paddle.Tensor], paddle.Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "sigmoid": F.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.8),
    "swish": F.swish,
    "silu": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate=True),
    "softplus": F.softplus,
    "softplus_2": lambda x: F.softplus(x, beta=2),
    "softsign": F.softsign,
    "tanh": paddle.tanh,
    "exp": paddle.exp,
    "log": lambda x: paddle.log(x.abs() + 1),
    "sqrt": lambda x: paddle.sqrt(paddle.square(x)),
    "rsqrt": lambda x: paddle.rsqrt(x.abs() + 1),
    "reciprocal": lambda x: paddle.reciprocal(x.abs() + 1),
    "floor": lambda x: paddle.floor(x) + paddle.ceil(x * 2),
    "waves": lambda x: paddle.sin(x) + paddle.cos(x) + paddle.erf(x) + paddle.sign(x),
    "pow": lambda x: x**3,
    "scale": lambda x: 2 * x + 1,
    "scale_first": lambda x: paddle.scale(x, 3.0, 1.0, bias_after_scale=False),
    "arithmetic": lambda x: (x - 1) * (x + 2) / (x.abs() + 3) - x * x,
    "extremes": lambda x: paddle.maximum(x, x * 2) + paddle.minimum(x, -x),
    "clip": lambda x: paddle.clip(x, -0.3, 0.4),
    "where": lambda x: paddle.where(x > 0, x, x * 0.1),
    "logic": lambda x: paddle.where(paddle.logical_and(x >= 0, x < 1), x, -x),
    "cast": lambda x: (x > 0).astype("float32") + x.astype("int32").astype("float32"),
    "softmax": lambda x: F.softmax(x, axis=1),
    "log_softmax": lambda x: F.log_softmax(x, axis=-1),
    "mean": lambda x: x.mean(axis=[2, 3], keepdim=True),
    "mean_of_all": lambda x: x.mean() + x,
    "sum": lambda x: x.sum(axis=1),
    "max": lambda x: x.max(axis=-1) + x.min(axis=-1),
    "prod": lambda x: paddle.prod(x, axis=-1),
    "norm": lambda x: F.normalize(x, axis=1),
    "argmax": lambda x: paddle.argmax(x, axis=1),
    "transpose": lambda x: x.transpose([0, 2, 3, 1]),
    "reshape": lambda x: paddle.reshape(x, [-1, 6, 72]),
    "reshape_by_batch": lambda x: paddle.reshape(x, [paddle.shape(x)[0], 3, -1]),
    "flatten": lambda x: paddle.flatten(x, 1),
    "flatten_some": lambda x: paddle.flatten(x, 1, 2),
    "flatten_last": lambda x: paddle.flatten(x, 2),
    "squeeze": lambda x: paddle.squeeze(x[:, :1], 1),
    "unsqueeze": lambda x: paddle.unsqueeze(x, [2, 4]),
    "concat": lambda x: paddle.concat([x, x * 2, x - 1], axis=1),
    "stack": lambda x: paddle.stack([x, x + 1], axis=1),
    "split": lambda x: paddle.multiply(*paddle.split(x, 2, axis=1)),
    "split_sizes": lambda x: paddle.split(x, [2, -1], axis=1)[1],
    "chunk": lambda x: paddle.chunk(x, 3, axis=1)[1],
    "unbind": lambda x: paddle.unbind(x, axis=1)[2],
    "slice": lambda x: x[:, 1:5, ::2, -3:],
    "index": lambda x: x[:, 2, :, 1],
    "expand": lambda x: x.mean(axis=1, keepdim=True).expand([-1, 6, -1, -1]),
    "tile": lambda x: paddle.tile(x, [1, 2, 1, 1]),
    "pad": lambda x: F.pad(x, [1, 2, 0, 3], value=0.5),
    "pad_infinity": lambda x: F.max_pool2d(F.pad(x, [1, 1, 0, 1], value=-float("inf")), 3, 2),
    "pad_all_axes": lambda x: F.pad(x, [0, 0, 1, 2, 0, 0, 3, 4]),
    "pad_reflect": lambda x: F.pad(x, [1, 2, 2, 1], mode="reflect"),
    "pad_replicate": lambda x: F.pad(x, [1, 2, 2, 1], mode="replicate"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "nearest_size": lambda x: F.interpolate(x, size=[5, 13], mode="nearest"),
    "bilinear": lambda x: F.interpolate(x, size=[18, 5], mode="bilinear"),
    "bilinear_aligned": lambda x: F.interpolate(x, size=[17, 5], mode="bilinear", align_corners=True),
    "bilinear_asymmetric": lambda x: F.interpolate(x, size=[18, 4], mode="bilinear", align_mode=1),
    "bicubic": lambda x: F.interpolate(x, size=[18, 16], mode="bicubic"),
    "upsample_of_a_pool": lambda x: F.interpolate(F.adaptive_avg_pool2d(x, 1), size=[9, 8], mode="bilinear"),
    "pixel_shuffle": lambda x: F.pixel_shuffle(paddle.concat([x, x + 1], 1), 2),
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool_ceil": lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
    "max_pool_sides": lambda x: F.max_pool2d(x, 3, 2, [1, 0, 0, 1]),
    "max_pool_same": lambda x: F.max_pool2d(x, 3, 2, "SAME"),
    "avg_pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "avg_pool_with_zeros": lambda x: F.avg_pool2d(x, 3, 2, 1, exclusive=False),
    "avg_pool_valid": lambda x: F.avg_pool2d(x, 3, 2, "VALID"),
    "global_pool": lambda x: F.adaptive_avg_pool2d(x, 1) + F.adaptive_max_pool2d(x, 1),
    "adaptive_pool": lambda x: F.adaptive_avg_pool2d(x, [3, 4]),
    "matmul": lambda x: paddle.matmul(x, x, transpose_y=True),
    "bmm": lambda x: paddle.bmm(x[:, 0], x[:, 1].transpose([0, 2, 1])),
    "instance_norm": F.instance_norm,
    "zeros_like": lambda x: x + paddle.ones_like(x),
    "arithmetic_with_constants": lambda x: x * paddle.to_tensor([1.0, 2, 3, 4, 5, 6]).reshape([6, 1, 1]),
    "identity": lambda x: x,
}


@pytest.mark.every_paddle
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function(name: str, tmp_path: Path) -> None:
    check(Network(FUNCTIONS[name]), tmp_path)


LAYERS: dict[str, Callable[[], list[nn.Layer]]] = {
    "conv": lambda: [nn.Conv2D(6, 4, 3)],
    "conv_without_bias": lambda: [nn.Conv2D(6, 4, 3, stride=2, padding=1, bias_attr=False)],
    "conv_of_sides": lambda: [nn.Conv2D(6, 4, (1, 3), padding=[1, 0, 2, 3], dilation=2)],
    "conv_same": lambda: [nn.Conv2D(6, 4, 3, stride=2, padding="SAME")],
    "conv_valid": lambda: [nn.Conv2D(6, 4, 3, padding="VALID")],
    "groups": lambda: [nn.Conv2D(6, 4, 3, groups=2)],
    "depthwise": lambda: [nn.Conv2D(6, 6, 3, padding=2, dilation=2, groups=6)],
    "transposed": lambda: [nn.Conv2DTranspose(6, 4, 3, stride=2, padding=1, output_padding=1)],
    "batch_norm": lambda: [nn.BatchNorm2D(6), nn.ReLU()],
    "conv_and_batch_norm": lambda: [nn.Conv2D(6, 4, 1), nn.BatchNorm2D(4, epsilon=1e-3)],
    "layer_norm": lambda: [nn.LayerNorm([9, 8])],
    "layer_norm_without_parameters": lambda: [nn.LayerNorm(8, weight_attr=False, bias_attr=False)],
    "group_norm": lambda: [nn.GroupNorm(3, 6)],
    "instance_norm": lambda: [nn.InstanceNorm2D(6)],
    "prelu": lambda: [nn.PReLU(6)],
    "prelu_of_one_slope": lambda: [nn.PReLU()],
    "linear": lambda: [nn.Flatten(), nn.Linear(432, 5)],
    "linear_without_bias": lambda: [nn.Linear(8, 5, bias_attr=False)],
    "linear_of_rows": lambda: [nn.Linear(8, 5)],
    "batch_norm_of_vectors": lambda: [nn.Flatten(), nn.Linear(432, 5), nn.BatchNorm1D(5), nn.Tanh()],
    "dropout": lambda: [nn.Dropout(0.4), nn.Conv2D(6, 4, 3)],
    "dropout_that_scales": lambda: [nn.Dropout(0.4, mode="downscale_in_infer")],
    "squeeze_and_excitation": lambda: [SqueezeAndExcitation()],
    "attention": lambda: [nn.Flatten(2), nn.MultiHeadAttention(72, 4)],
}


class SqueezeAndExcitation(nn.Layer):
    """Channels weighted by what the whole image shows (arXiv:1709.01507)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2D(6, 2, 1), nn.ReLU(), nn.Conv2D(2, 6, 1), nn.Sigmoid())

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return images * self.gate(F.adaptive_avg_pool2d(images, 1))


@pytest.mark.every_paddle
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, tmp_path: Path) -> None:
    paddle.seed(0)
    check(nn.Sequential(*LAYERS[name]()), tmp_path)


NETWORKS = ppxcls.list_models()


def build(name: str) -> nn.Layer:
    """Returns a network with random statistics, and logits near 1."""
    paddle.seed(0)
    network = ppxcls.build_model(name, class_num=7)
    randomise_statistics(network)
    network.eval()
    last_layer = [layer for layer in network.sublayers() if isinstance(layer, nn.Linear)][-1]
    with paddle.no_grad():
        logits = network(paddle.rand([2, 3, 75, 80]))
        last_layer.weight.set_value(last_layer.weight / logits.abs().max())
    return network


def export(
    network: nn.Layer, folder: Path, size: tuple[int, int] = (75, 75), **options: Any
) -> dict[str, float]:
    images = np.random.default_rng(0).integers(0, 256, (3, *size, 3)).astype(np.uint8)
    stage = DeviceStage(normalize=NormalizeImage(order=""), chw=False)
    metadata = ExportMetadata("network", "fresh weights", [{"DecodeImage": {}}], [], 7)
    return export_model(network, stage, images=images, folder=folder, metadata=metadata, **options)


def model_in(folder: Path) -> Any:
    import onnx

    return onnx.load(str(folder / "inference.onnx"))


def exports() -> list[Any]:
    """All networks at two sizes. Those that only repeat the blocks of another one have one quick test."""
    rows = []
    for name in NETWORKS:
        for size, formats, fold in (((72, 80), ["paddle", "onnx"], True), ((75, 75), ["onnx"], False)):
            is_slow = not fold and ("65" in name or "71" in name)
            marks = [pytest.mark.slow] * is_slow + [pytest.mark.every_paddle] * (name == "Xception")
            rows.append(pytest.param(name, size, formats, fold, marks=marks, id=f"{name}-{size[0]}"))
    return rows


@pytest.mark.parametrize(("name", "size", "formats", "fold"), exports())
def test_every_network_in_every_format(
    name: str, size: tuple[int, int], formats: list[str], fold: bool, tmp_path: Path
) -> None:
    """With random statistics, at an odd and an even size, and folded. Each is compared with the network."""
    network = build(name)
    differences = export(network, tmp_path, size, formats=formats, fold=fold)
    assert differences.keys() == set(formats)
    assert all(difference < 1e-5 for difference in differences.values())
    files = [tmp_path / "inference.onnx", *([tmp_path] if "paddle" in formats else [])]
    assert [reason_for_trust(file) for file in files] == [None] * len(files)
    model = model_in(tmp_path)
    read_names = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read_names
    kinds = [node.op_type for node in model.graph.node]
    assert "Pad" not in kinds  # of infinities: 8-bit files could not hold them
    assert kinds[-2:] == ["Gemm", "Softmax"]
    norm_count = sum(isinstance(layer, nn.BatchNorm2D) for layer in network.sublayers())
    assert kinds.count("BatchNormalization") == norm_count


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "Xception" else pytest.mark.slow) for n in NETWORKS]
)
def test_every_network_in_eight_bits(name: str, tmp_path: Path) -> None:
    network = build(name)
    export(network, tmp_path, (72, 80), formats=["onnx"])
    images = np.random.default_rng(1).integers(0, 256, (8, 72, 80, 3)).astype(np.uint8)
    target = tmp_path / int8.INT8_FILE
    int8.quantise_file(tmp_path / "inference.onnx", target, [(images, np.zeros(8))], tmp_path)
    expected, received = (onnx_runner(file)(images) for file in (tmp_path / "inference.onnx", target))
    assert target.stat().st_size < 0.35 * (tmp_path / "inference.onnx").stat().st_size
    assert np.abs(received - expected).max() < 0.1


@pytest.mark.every_paddle
def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    """Names are those of the network, and the batch may have any size."""
    network = build("Xception41")
    export(network, tmp_path, formats=["onnx"])
    model = model_in(tmp_path)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    (image,), (output,) = model.graph.input, model.graph.output
    shapes = [
        [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (image, output)
    ]
    assert (image.name, output.name, shapes) == ("images", "probabilities", [["N", 75, 75, 3], ["N", 7]])
    nodes = {node.name: node for node in model.graph.node}
    assert len(nodes) == len(model.graph.node)
    first = nodes["_entry_flow._conv1._conv"]
    assert (first.op_type, first.input[1]) == ("Conv", "_entry_flow._conv1._conv.weight")
    state = network.state_dict()
    for tensor in model.graph.initializer:
        if not tensor.name.startswith(("constant", "preprocessing.")):
            assert tensor.raw_data == state[tensor.name].numpy().tobytes()


class Grids(nn.Layer):
    """A network with an operator that the writer does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 7)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        x = paddle.flip(images, axis=[3])
        return self.fc(x.mean(axis=[2, 3]))


def test_an_unknown_operator_is_named_and_the_other_format_is_kept(
    tmp_path: Path,
) -> None:
    with pytest.raises(ppxcls.CheckpointError, match=r"^ONNX: the operator flip.* is not supported$"):
        export(Grids(), tmp_path / "new/inference", formats=["onnx"])
    assert not (tmp_path / "new").exists()
    with pytest.raises(ppxcls.CheckpointError, match="the operator flip"):
        export(Grids(), tmp_path / "inference", formats=["paddle", "onnx"])
    names = {file.name for file in (tmp_path / "inference").iterdir()}
    assert "inference.pdiparams" in names
    assert "inference_config.json" in names
    assert "inference.onnx" not in names
    assert not any(name.startswith(".") for name in names)
    assert export(Grids(), tmp_path / "inference", formats=["paddle"])["paddle"] < 1e-5


def test_a_file_that_differs_is_an_error_and_the_other_format_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ppxcls.deploy import onnx_graph, onnx_layers  # noqa: F401  registers the translations

    def wrong(graph: Any, operator: Any) -> None:
        graph.set_tensor(operator.outputs[0], graph.node("Sigmoid", [graph.tensor(operator.first)]))

    monkeypatch.setitem(onnx_graph.TRANSLATIONS, "softmax", wrong)
    network = Network(lambda x, fc: fc(x.mean(axis=[2, 3])), nn.Linear(3, 7))
    with pytest.raises(ppxcls.CheckpointError, match="ONNX Runtime differs from the network by"):
        export(network, tmp_path / "inference", formats=["onnx", "paddle"])
    names = {file.name for file in (tmp_path / "inference").iterdir()}
    assert "inference.pdiparams" in names
    assert "inference.onnx" not in names


@pytest.mark.parametrize("name", ["dropout", "cast", "assign"])
def test_a_bias_is_not_added_to_a_convolution_that_others_read(tmp_path: Path, name: str) -> None:
    """Both values are the same tensor of the graph, and only one of them has the bias."""
    same = {"dropout": F.dropout, "cast": lambda y: y.cast("float32"), "assign": paddle.assign}[name]
    holder = nn.Layer()
    holder.bias = holder.create_parameter([1, 4, 1, 1])

    def function(x: paddle.Tensor, layer: nn.Layer, holder: nn.Layer) -> paddle.Tensor:
        y = layer(x)
        z = same(y, training=False) if name == "dropout" else same(y)
        return F.relu(z + holder.bias) * F.sigmoid(y)

    check(Network(function, nn.Conv2D(6, 4, 3, bias_attr=False), holder), tmp_path)


@pytest.mark.parametrize("format_name", ["onnx", "paddle"])
def test_a_confident_network_is_compared_by_its_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_name: str
) -> None:
    """The probabilities of such a network differ by nothing that float32 shows beside 1."""
    from ppxcls.deploy import export as module

    network = Network(lambda x, fc: fc(x.mean(axis=[2, 3])), nn.Linear(3, 4))
    network.layers[0].bias.set_value(paddle.to_tensor([0.0, 30.0, 60.0, 5.0]))
    name = f"{format_name}_runner"
    runner = getattr(module, name)

    def changed_runner(*arguments: Any, **keywords: Any) -> Any:
        run = runner(*arguments, **keywords)
        return lambda images: run(images) * np.float32([1, 1, 1, 1.1])

    assert export(network, tmp_path / "right", formats=[format_name])[format_name] < 1e-6
    monkeypatch.setattr(module, name, changed_runner)
    with pytest.raises(
        ppxcls.CheckpointError, match=r"differs from the network by .*\(its logits by 9\.53e-02\)"
    ):
        export(network, tmp_path / "wrong", formats=[format_name])


def test_layers_with_the_channels_last_are_refused(tmp_path: Path) -> None:
    network = nn.Conv2D(6, 4, 3, data_format="NHWC")
    with pytest.raises(ppxcls.CheckpointError, match="conv2d with data_format NHWC"):
        check(network, tmp_path, (9, 8, 6))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_packages_the_error_names_the_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == package else find_spec(name, *rest)
    )
    network = Network(lambda x, fc: fc(x.mean(axis=[2, 3])), nn.Linear(3, 7))
    message = rf"^writing ONNX needs {package}: pip install 'ppxcls\[export\]'$"
    with pytest.raises(ppxcls.CheckpointError, match=message):
        export(network, tmp_path / "onnx", formats=["onnx"])
    assert not (tmp_path / "onnx").exists()
    with pytest.raises(ppxcls.CheckpointError, match=message):
        export(network, tmp_path / "both", formats=["onnx", "paddle"])
    assert (tmp_path / "both/inference.pdiparams").is_file()


def test_if_eight_bits_fail_the_other_files_are_kept(tmp_path: Path) -> None:
    def failing(folder: Path) -> None:
        raise ppxcls.CheckpointError("INT8 loses too much")

    network = Network(lambda x, fc: fc(x.mean(axis=[2, 3])), nn.Linear(3, 7))
    with pytest.raises(ppxcls.CheckpointError, match="INT8 loses too much"):
        export(network, tmp_path, formats=["onnx", "paddle"], quantise=failing)
    names = {file.name for file in tmp_path.iterdir()}
    assert {"inference.onnx", "inference.pdiparams", "inference_config.json"} <= names


def test_eight_bits_of_a_network_with_an_operator_that_the_check_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process has written the file, so nobody's word is needed."""
    monkeypatch.delitem(ONNX_OPERATORS, "Softmax")
    lines: list[str] = []
    monkeypatch.setattr("ppxcls.deploy.export.logger.warning", lines.append)
    images = np.random.default_rng(1).integers(0, 256, (8, 72, 80, 3)).astype(np.uint8)

    def quantised(folder: Path) -> None:
        target = folder / int8.INT8_FILE
        int8.quantise_file(folder / "inference.onnx", target, [(images, np.zeros(8))], tmp_path)
        result = int8._compare_files(folder / "inference.onnx", target, [(images, np.zeros(8))])
        assert result.images == 8

    export(build("Xception41"), tmp_path / "out", (72, 80), formats=["onnx"], quantise=quantised)
    assert (tmp_path / "out" / int8.INT8_FILE).is_file()
    assert lines == [
        f"{tmp_path}/out/inference.onnx: it contains the operator Softmax; so whoever loads this export needs "
        "--trust (trust=True)"
    ]
