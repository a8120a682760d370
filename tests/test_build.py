"""Building objects from a config: checks, the choice of weights, and the common keys of a network."""

from __future__ import annotations

import collections
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import yaml
from paddle import nn

import ppxcls
from ppxcls.build.choices import weights_for
from ppxcls.build.disk_space import checkpoint_bytes
from ppxcls.build.network import build_network
from ppxcls.build.start import start_job
from ppxcls.config.registry import Registry
from ppxcls.data.transforms import prepared_images
from ppxcls.models.common_keys import MODELS, synchronize_batch_norms
from ppxcls.ops.batch_norm import NormReLU
from ppxcls.system.devices import DeviceError
from tests.conftest import ROOT


def test_each_block_is_checked_once(small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    file = small(
        **{
            "Global.epochs": 2,
            "DataLoader.Train.dataset.batch_transform_ops": [{"MixupOperator": {"alpha": 0.2}}],
        }
    )
    checks: collections.Counter[str] = collections.Counter()
    check = Registry.check

    def counted(
        self: Registry[Any], name: str, arguments: Any, where: Any, name_where: Any
    ) -> dict[str, Any]:
        checks[str(where)] += 1
        return check(self, name, arguments, where, name_where)

    monkeypatch.setattr(Registry, "check", counted)
    config = ppxcls.load_config(file)
    assert (
        checks["Optimizer.lr"]
        == checks["DataLoader.Eval.dataset.transform_ops.1.ResizeImage"]
        == checks["Arch"]
        == 1
    )
    assert set(checks.values()) == {1}
    assert len(checks) >= 17
    checks.clear()
    ppxcls.build_trainer(config).fit()
    ppxcls.evaluate(config)
    ppxcls.check_data(config, progress_bar=False)
    assert not checks, "nothing is checked again"
    ppxcls.build_lr_schedule(config.Optimizer.lr, 2, steps_per_epoch=3)
    ppxcls.build_transforms(config.DataLoader.Eval.dataset.transform_ops)
    assert not checks
    # A notebook passes a plain dict.
    ppxcls.build_lr_schedule({"name": "ConstLR", "learning_rate": 0.1}, 2, steps_per_epoch=3)
    assert list(checks.values()) == [1]


def test_a_config_can_be_a_dict_and_blocks_read_as_they_were_written(small: Callable[..., Path]) -> None:
    tree = yaml.safe_load(small().read_text())
    config = ppxcls.load_config(tree, ["Optimizer.momentum=0.5"])
    assert config.Optimizer.momentum == config.Optimizer["momentum"] == 0.5
    assert tree["Optimizer"]["momentum"] == 0.9, "the dict stays as it is"
    assert dict(config.Optimizer.lr) == {"name": "Cosine", "learning_rate": 0.02}
    assert list(config.Loss.Train[0]) == ["CELoss"]
    assert config.Loss.Train[0].CELoss.epsilon == 0.1
    config.Optimizer.lr.learning_rate = 0.3
    assert "learning_rate: 0.3" in config.to_yaml()
    assert ppxcls.load_config(yaml.safe_load(config.to_yaml())).to_yaml() == config.to_yaml()
    with pytest.raises(AttributeError, match=r"Optimizer.lr has no key 'gamma'"):
        _ = config.Optimizer.lr.gamma
    with pytest.raises(
        ppxcls.ConfigError, match=r"^Global.epochs: expected an integer at least 1, received 0"
    ):
        ppxcls.load_config({**tree, "Global": {"epochs": 0}})


def test_a_block_that_is_changed_in_a_notebook_is_checked(small: Callable[..., Path]) -> None:
    config = ppxcls.load_config(small())
    for name, value, message in (
        ("clas_num", 7, r"unknown argument of model SmallNetwork 'clas_num' \(did you mean 'class_num'\?\)"),
        ("class_num", "7", "Arch.class_num: expected an integer, received '7'"),
    ):
        with pytest.raises(ppxcls.ConfigError, match=message):
            setattr(config.Arch, name, value)
    config.Arch["class_num"] = 5
    assert config.Arch.class_num == 5
    config.Optimizer.groups = [{"params": "^fc", "lr_mult": 2}]
    config.Optimizer.weight_decay = 0.1
    config.Optimizer.regularizer = None
    network = ppxcls.build_model("SmallNetwork")
    from ppxcls.train.optimizers import build_optimizer

    build_optimizer(config.Optimizer, dict(network.named_parameters()), lr_at=lambda step: 0.1)
    assert dict(network.named_parameters())["fc.weight"].optimize_attr["learning_rate"] == 2
    with pytest.raises(AttributeError, match=r"Optimizer.name can't be set"):
        config.Optimizer.name = "SGD"
    with pytest.raises(ppxcls.ConfigError, match="expected a lr schedule, received the model SmallNetwork"):
        ppxcls.build_lr_schedule(config.Arch, 2, steps_per_epoch=3)


def weights(model: nn.Layer) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in model.state_dict().items()}


def test_weights_for_each_purpose(small: Callable[..., Path], tmp_path: Path) -> None:
    """Order: the command line, the run's best_model, its latest, then the YAML. Either key works."""
    ppxcls.load_config(small())  # imports the network's module
    start, other = tmp_path / "start.pdparams", tmp_path / "other.pdparams"
    for target in (start, other):
        paddle.save(ppxcls.build_model("SmallNetwork").state_dict(), str(target))
    keys = {"Arch": {"name": "SmallNetwork", "pretrained": str(start)}}
    folder = tmp_path / "output/SmallNetwork"
    purposes = ("train", "evaluate", "infer", "export")

    def meant(file: Path, *overrides: str) -> list[str | None]:
        config = ppxcls.load_config(file, list(overrides))
        return [
            weights and weights.path for weights in (weights_for(config, purpose) for purpose in purposes)
        ]

    plain = small()
    assert weights_for(ppxcls.load_config(plain), "train") is None
    for purpose in purposes[1:]:
        message = (
            f"expected the weights to {purpose}, received null, and there is no {folder}/best_model.pdparams"
        )
        with pytest.raises(ppxcls.ConfigError, match=message):
            weights_for(ppxcls.load_config(plain), purpose)
    file = small(**keys)
    assert meant(file) == [str(start)] * 4
    for key in ("Global.pretrained_model", "Arch.pretrained"):
        assert meant(file, f"{key}={other}") == [str(other)] * 4

    trainer = ppxcls.build_trainer(ppxcls.load_config(file))
    trainer.fit()
    best = str(folder / "best_model")
    assert meant(file) == [str(start), best, best, best], "what a run started from is not its result"
    for key in ("Global.pretrained_model", "Arch.pretrained"):
        assert meant(file, f"{key}={other}") == [str(other)] * 4
    result = weights_for(ppxcls.load_config(file), "evaluate")
    assert result is not None
    assert result.is_own
    assert result.note == f"epoch 1, top1 {trainer.progress.best['value']:.4g}"
    manifest = json.loads((folder / "best_model.json").read_text())
    assert manifest["started_from"] == str(start)
    assert len(manifest["run"]) == 32
    trained = weights(build_network(ppxcls.load_config(file), "infer", result))
    assert not np.array_equal(trained["fc.weight"], paddle.load(str(start))["fc.weight"].numpy())

    for part in folder.glob("best_model.*"):
        part.unlink()
    assert meant(file)[1:] == [str(folder / "latest")] * 3
    shutil.rmtree(tmp_path / "output")
    results = ppxcls.evaluate(ppxcls.load_config(file))
    assert results == ppxcls.evaluate(ppxcls.load_config(plain, [f"Global.pretrained_model={start}"]))
    assert results != ppxcls.evaluate(ppxcls.load_config(file, [f"Arch.pretrained={other}"]))


def test_a_network_without_published_facts_loads_weights(small: Callable[..., Path], tmp_path: Path) -> None:
    assert MODELS.fact("SmallNetwork", "published") is None
    paddle.save(ppxcls.build_model("SmallNetwork").state_dict(), str(tmp_path / "w.pdparams"))
    trainer = ppxcls.build_trainer(ppxcls.load_config(small(), [f"Global.pretrained_model={tmp_path}/w"]))
    assert np.array_equal(
        weights(trainer.learner.network)["fc.weight"],
        paddle.load(str(tmp_path / "w.pdparams"))["fc.weight"].numpy(),
    )
    log = (tmp_path / "output/SmallNetwork/train.log").read_text()
    assert "Loaded " in log
    assert "the weights expect" not in log


def test_recompute_on_a_network_that_has_no_blocks_is_refused(small: Callable[..., Path]) -> None:
    config = ppxcls.load_config(small(**{"Arch.recompute": True}))
    with pytest.raises(
        ppxcls.ConfigError,
        match=r"config.yaml:\d+: Arch.recompute: expected false: this network names no blocks",
    ):
        ppxcls.build_trainer(config)
    with pytest.raises(ppxcls.ConfigError, match=r"^Arch.recompute: expected false"):
        ppxcls.build_model("SmallNetwork", recompute=True)


@pytest.mark.every_paddle
@pytest.mark.parametrize(("value", "backend"), [(True, None), ("CINN", "CINN")])
def test_the_compiler_is_used_only_if_it_is_asked_for(
    value: object, backend: str | None, small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paddle 3.1 and newer would compile with CINN by default, which CPU builds don't have."""
    backends = []

    def recorded(network: nn.Layer, **keys: Any) -> nn.Layer:
        backends.append(keys["backend"])
        return network

    config = ppxcls.load_config(small(**{"Global.to_static": value}))
    assert ppxcls.load_config(yaml.safe_load(config.to_yaml())).Global.to_static == value
    ppxcls.build_trainer(ppxcls.load_config(small())).fit()
    monkeypatch.setattr(paddle, "is_compiled_with_cinn", lambda: True)
    monkeypatch.setattr(paddle.jit, "to_static", recorded)
    ppxcls.evaluate(config)
    assert backends == [backend]


def test_channels_last_is_not_deterministic_on_a_gpu(small: Callable[..., Path]) -> None:
    keys = {"Global.deterministic": True, "Arch": {"name": "SmallNetwork", "data_format": "NHWC"}}
    message = r"config.yaml:\d+: Arch.data_format: expected 'NCHW' with Global.deterministic, received 'NHWC'"
    with pytest.raises(ppxcls.ConfigError, match=message):
        ppxcls.build_trainer(ppxcls.load_config(small(**keys, **{"Global.device": "gpu:0"})))
    ppxcls.build_trainer(ppxcls.load_config(small(**keys)))  # on the CPU


@pytest.mark.parametrize(
    ("device", "layout", "amp", "is_persistent", "is_warned"),
    [
        ("gpu:0", "NHWC", {"dtype": "float16"}, True, False),
        ("gpu:0", "NHWC", {"dtype": "bfloat16"}, False, True),
        ("gpu:0", "NHWC", {"dtype": "float16", "use_amp": False}, False, True),
        ("gpu:0", "NHWC", None, False, True),
        ("gpu:0", "NCHW", {"dtype": "float16"}, False, False),
        ("npu:0", "NHWC", None, False, False),
        ("cpu", "NHWC", None, False, False),
    ],
)
def test_what_a_layout_means_on_a_gpu(
    device: str,
    layout: str,
    amp: dict[str, Any] | None,
    is_persistent: bool,
    is_warned: bool,
    small: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = ppxcls.load_config(small(Arch={"name": "SmallNetwork", "data_format": layout}, AMP=amp))
    settings: dict[str, Any] = {}
    monkeypatch.setattr("ppxcls.system.distributed.start", lambda device, **keys: settings.update(keys))
    monkeypatch.setattr(paddle, "get_device", lambda: device)
    start_job(config)
    assert settings["float16_channels_last"] == is_persistent
    log = (config.run_folder / "train.log").read_text()
    assert ("Paddle transposes the input of each batch norm" in log) == is_warned


def test_a_wrong_device_is_reported_at_its_key(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ppxcls.ConfigError, match=r"Global.device: expected cpu, received 'cpu:3'"):
        ppxcls.build_trainer(ppxcls.load_config(small(**{"Global.device": "cpu:3"})))

    def fail(*_: Any, **__: Any) -> None:
        raise DeviceError("expected false", setting="deterministic")

    monkeypatch.setattr("ppxcls.system.distributed.start", fail)
    with pytest.raises(ppxcls.ConfigError, match=r"Global.deterministic: expected false"):
        ppxcls.build_trainer(ppxcls.load_config(small(**{"Global.deterministic": True})))


def test_a_build_without_the_compiler_is_reported(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paddle, "is_compiled_with_cinn", lambda: False)
    config = ppxcls.load_config(small(**{"Global.to_static": "CINN"}))
    message = r"config.yaml:\d+: Global.to_static: expected true or false, received 'CINN': .* has no CINN"
    with pytest.raises(ppxcls.ConfigError, match=message):
        ppxcls.build_trainer(config)
    with pytest.raises(ppxcls.ConfigError, match="Global.to_static: expected true or false or 'CINN'"):
        ppxcls.load_config(small(**{"Global.to_static": "cinn"}))


@pytest.mark.parametrize("name", sorted(set(ppxcls.list_models()) - {"SmallNetwork"}))
def test_every_network_of_the_package_names_its_blocks(name: str) -> None:
    model = ppxcls.build_model(name, class_num=2, recompute=True)
    plain = ppxcls.build_model(name, class_num=2)
    changed = [
        a
        for a, b in zip(model.sublayers(), plain.sublayers(), strict=True)
        if isinstance(a, nn.BatchNorm2D) and a._momentum != b._momentum
    ]
    assert len(changed) >= 24


def test_common_keys_of_build_model(tmp_path: Path) -> None:
    source = ppxcls.build_model("xception41p", class_num=2)
    paddle.save(source.state_dict(), str(tmp_path / "w.pdparams"))
    model = ppxcls.build_model(
        "xception41p",
        class_num=2,
        pretrained=str(tmp_path / "w"),
        freeze=["^stem", "^blocks.0"],
        data_format="NHWC",
    )
    expected = weights(source)
    assert all(np.array_equal(value, expected[key]) for key, value in weights(model).items())
    frozen = {
        key.split(".")[0] + key.split(".")[1]
        for key, p in model.named_parameters()
        if p.stop_gradient and "_mean" not in key and "_variance" not in key
    }
    assert frozen == {"stem0", "stem1", "blocks0"}
    for one in (source, model):
        one.eval()
    images = paddle.to_tensor(np.random.default_rng(0).normal(size=(2, 3, 71, 80)).astype(np.float32))
    with paddle.no_grad():
        assert np.allclose(source(images).numpy(), model(images).numpy(), atol=1e-4)
    with pytest.raises(ppxcls.ConfigError, match=r"^Arch.freeze.1: pattern 'nothing' matches no parameter"):
        ppxcls.build_model("xception41p", freeze=["^stem", "nothing"])
    with pytest.raises(
        ppxcls.ConfigError,
        match=r"unknown argument of model xception41p 'freese' \(did you mean 'freeze'\?\)",
    ):
        ppxcls.build_model("xception41p", freese=[])


def test_synchronised_batch_norms_keep_relu_and_what_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the structure is checked, because Paddle's synchronised batch norm has no CPU kernel."""
    model = ppxcls.build_model("xception41p", class_num=2, freeze=["^stem"])
    keys = list(model.state_dict())
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    synchronize_batch_norms(model)
    assert not any(isinstance(layer, nn.SyncBatchNorm) for layer in model.sublayers()), "one process"
    monkeypatch.setattr(paddle.distributed, "get_world_size", lambda: 2)
    synchronize_batch_norms(model)
    assert list(model.state_dict()) == keys
    plain = {key for key, layer in model.named_sublayers() if isinstance(layer, nn.BatchNorm2D)}
    assert plain
    assert all(key.startswith("stem") for key in plain)
    synchronised = {
        key: layer for key, layer in model.named_sublayers() if isinstance(layer, nn.SyncBatchNorm)
    }
    assert len(synchronised) > 30
    for layer in synchronised.values():
        (hook,) = layer._forward_post_hooks.values()
        assert hook(layer, None, paddle.to_tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]
    deeplab = ppxcls.build_model("Xception41_deeplab", class_num=2)
    synchronize_batch_norms(deeplab)
    norms = [layer for layer in deeplab.sublayers() if isinstance(layer, nn.SyncBatchNorm)]
    assert norms
    assert not any(layer._forward_post_hooks for layer in norms), "no ReLU there"
    assert {layer._epsilon for layer in norms} == {1e-3}


@pytest.mark.parametrize(
    ("device", "places", "has_kernel"),
    [
        ("cpu", [], False),
        ("gpu:3", [], True),
        ("npu:0", ["(GPU, Undefined(AnyLayout), float32)"], False),
        ("npu:0", ["(npu, Undefined(AnyLayout), float32)"], True),
        ("xpu:1", ["(XPU, Undefined(AnyLayout), float32)"], True),
    ],
)
def test_synchronised_batch_norms_of_a_device_without_paddles_kernel(
    device: str, places: list[str], has_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = {"sync_batch_norm": places} if places else {}
    monkeypatch.setattr(paddle.base.core, "_get_registered_phi_kernels", lambda: registry)
    monkeypatch.setattr(paddle, "get_device", lambda: device)
    monkeypatch.setattr(paddle.distributed, "get_world_size", lambda: 2)
    norms = [NormReLU(3), nn.BatchNorm2D(3)]
    model = nn.Sequential(*norms)
    synchronize_batch_norms(model)
    layers = model.sublayers()
    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in layers) == has_kernel
    assert all("forward" in vars(norm) for norm in norms) != has_kernel, "our own operator"


def test_from_the_folder_that_contains_a_checkout_named_ppxcls(tmp_path: Path) -> None:
    """An installed package wins over the checkout's folder, which has no ``__init__.py``."""
    (tmp_path / "ppxcls").symlink_to(ROOT)
    command = [sys.executable, "-c", "import ppxcls; print(ppxcls.build_model)"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("<function build_model")


def test_a_network_must_say_how_many_classes_it_has(
    tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    (tmp_path / "no_classes.py").write_text(
        "import paddle\nimport ppxcls\n\n\n@ppxcls.MODELS.register\ndef "
        "NoClasses(width: int = 2) -> paddle.nn.Layer:\n"
        '    """A network."""\n    return paddle.nn.Linear(width, 2)\n'
    )
    config = ppxcls.load_config(
        write_config(**{"Arch": {"name": "NoClasses"}, "Global.plugins": ["no_classes"]}), trust=True
    )
    with pytest.raises(
        ppxcls.ConfigError, match=r"Arch.name: the network NoClasses needs a parameter class_num"
    ):
        ppxcls.build_trainer(config)


NO_NUMBA = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numba" else find_spec(name, *rest)
sys.modules["numba"] = None
"""


def test_numba_is_imported_when_a_kernel_runs() -> None:
    """Looking for the components imports their modules, but not the kernels: numba takes half a second."""
    code = "import sys, ppxcls; ppxcls.load_config('configs/Xception41.yaml'); print('numba' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert result.stdout.split() == ["False"]


def test_all_runs_without_numba(small: Callable[..., Path], images: Path, tmp_path: Path) -> None:
    """As on a GPU if the package is installed without its extras."""
    augmented = [
        {"DecodeImage": {}},
        {"RandCropImage": {"size": 71}},
        {"RandAugment": {}},
        {"NormalizeImage": {"order": ""}},
    ]
    file = small(**{"DataLoader.Train.dataset.transform_ops": augmented})
    ppxcls.pack(images / "train_list.txt", None, output=tmp_path / "parts")
    code = f"""{NO_NUMBA}
import ppxcls
trainer = ppxcls.build_trainer(ppxcls.load_config({str(file)!r}))
trainer.fit()
facts = ppxcls.pack({str(images / "train_list.txt")!r}, None, output={str(tmp_path / "packed")!r})
from ppxcls.packed.dataset import PackedDataset
one, two = (
    PackedDataset(pack, [{{"DecodeImage": {{}}}}, {{"CropImage": {{"size": 9}}}}])
    for pack in ({str(tmp_path / "packed")!r}, {str(tmp_path / "parts")!r})
)
print(facts.samples, [(one.load(i) == two.load(i)).all() for i in range(12)].count(True))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-2:] == ["12", "12"]
    assert (
        "images are decoded whole, because the package numba is not installed"
        in result.stdout + result.stderr
    )


def test_an_optimizer_declares_its_state_and_its_weight_decay(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    """The same for a user's own optimizer: no other module knows optimizers by name."""
    (tmp_path / "mine.py").write_text(
        "import paddle, ppxcls\n"
        "@ppxcls.OPTIMIZERS.register(is_decoupled=True, state_copies=3)\n"
        "def Mine(inputs):\n"
        "    return paddle.optimizer.AdamW(**inputs.arguments(), weight_decay=inputs.weight_decay or 0.0)\n"
        "@ppxcls.OPTIMIZERS.register\n"
        "def Older(given):\n"
        "    return paddle.optimizer.SGD(**given.coupled())\n"
    )
    plugins = [str(ROOT / "tests/fixtures/small_network.py"), str(tmp_path / "mine.py")]
    lr = {"name": "ConstLR", "learning_rate": 0.1}
    mine = small(**{"Global.plugins": plugins, "Optimizer": {"name": "Mine", "weight_decay": 0.1, "lr": lr}})
    config = ppxcls.load_config(mine, trust=True)
    network = ppxcls.build_model("SmallNetwork")
    _, state = checkpoint_bytes(config, network)
    trained = sum(
        4 * int(parameter.size) for parameter in network.parameters() if not parameter.stop_gradient
    )
    assert state == 3 * trained
    ppxcls.build_trainer(config)
    with pytest.raises(ppxcls.ConfigError, match="because Mine decouples it from the gradient"):
        ppxcls.build_trainer(ppxcls.load_config(mine, ["Optimizer.regularizer={name: L2, coeff: 0.1}"]))
    older = small(**{"Global.plugins": plugins, "Optimizer": {"name": "Older", "lr": lr}})
    ppxcls.build_trainer(ppxcls.load_config(older))
    with pytest.raises(TypeError, match="unknown fact 'decoupled'; allowed: is_decoupled, state_copies"):
        ppxcls.OPTIMIZERS.register(decoupled=True)(lambda inputs: None)


def test_a_transform_declares_what_it_does_to_the_size(tmp_path: Path) -> None:
    (tmp_path / "shrink.py").write_text(
        "from dataclasses import replace\n"
        "import ppxcls\n"
        "@ppxcls.TRANSFORMS.register\n"
        "class Shrink(ppxcls.Transform):\n"
        "    def __init__(self, side: int) -> None:\n"
        "        self.side = side\n"
        "    def __call__(self, image, rng):\n"
        "        return image[: self.side, : self.side]\n"
        "    def prepare(self, images):\n"
        "        return replace(images, size=self.side)\n"
    )
    config = ppxcls.load_config(
        {"Arch": {"name": "Xception41"}, "Global": {"plugins": [str(tmp_path / "shrink.py")]}}
    )
    assert config
    assert str(prepared_images([{"Shrink": {"side": 64}}])) == "64 px"
    ops = [{"ResizeImage": {"resize_short": 320, "backend": "pil"}}, {"CropImage": {"size": [299, 200]}}]
    assert str(prepared_images(ops)) == "299 x 200 px bicubic from 320"
    assert str(prepared_images([{"ResizeImage": {"resize_short": 320}}])) == "shorter side 320 px bilinear"
    assert str(prepared_images(["DecodeImage"])) == "images as they are"
