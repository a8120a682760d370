"""Configs: valid and invalid ones, and the error messages."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import ppxcls
from ppxcls.build.choices import weights_for
from tests.conftest import ROOT, SHARED, SMALL_NETWORK, needs_shared, run_tool

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
PADDLECLAS = sorted((SHARED / "paddleclas-configs").glob("*.yaml")) if SHARED.is_dir() else []
XCEPTION = ROOT / "configs/Xception41.yaml"


def test_the_lists_are_not_empty() -> None:
    names = {file.stem for file in CONFIGS}
    assert names >= {
        "Xception41",
        "Xception65",
        "Xception71",
        "Xception41_deeplab",
        "Xception65_deeplab",
        "quickstart",
    }


@needs_shared
def test_all_of_paddleclas_are_there() -> None:
    assert len(PADDLECLAS) == 5


@pytest.mark.parametrize("file", CONFIGS + PADDLECLAS, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_loads_and_round_trips(file: Path, tmp_path: Path) -> None:
    config = ppxcls.load_config(file)
    assert config.Arch.name in ppxcls.list_models()
    again = tmp_path / "config.yaml"
    again.write_text(config.to_yaml())
    assert ppxcls.load_config(again) == config or ppxcls.load_config(again).to_yaml() == config.to_yaml()


@needs_shared
@pytest.mark.parametrize("file", PADDLECLAS, ids=lambda f: f.stem)
def test_our_hyperparameters_are_paddleclas(file: Path) -> None:
    theirs, ours = ppxcls.load_config(file), ppxcls.load_config(ROOT / "configs" / file.name)
    for section in ("Arch", "AMP", "Loss", "Optimizer", "Metric", "DataLoader"):
        assert getattr(ours, section) == getattr(theirs, section), section
    assert (ours.Global.epochs, ours.Global.image_shape) == (theirs.Global.epochs, theirs.Global.image_shape)


def test_values_read_as_users_write_them() -> None:
    config = ppxcls.load_config(XCEPTION)
    assert config.Optimizer.lr.learning_rate == 0.045
    assert config.DataLoader.Train.sampler.batch_size == 64
    assert config.DataLoader.Train.dataset.transform_ops[1].RandCropImage.size == 299
    assert config.DataLoader.Eval.dataset.transform_ops[3].NormalizeImage.scale == 1 / 255


def test_class_names_ship_with_the_package() -> None:
    names = Path(ppxcls.load_config(XCEPTION).Infer.PostProcess.class_id_map_file)
    lines = names.read_text().splitlines()
    assert len(lines) == 1000
    assert [lines[0], lines[999].split()[0]] == ["0 tench, Tinca tinca", "999"]


def test_overrides() -> None:
    config = ppxcls.load_config(
        XCEPTION,
        [
            "Arch.class_num=37",
            "Optimizer.lr.learning_rate=1e-3",
            "DataLoader.Train.dataset.transform_ops.1.RandCropImage.size=96",
            "DataLoader.Eval.dataset.transform_ops.ResizeImage.resize_short=128",
            "Loss.Train.0.CELoss.epsilon=0",
            "Optimizer.lr={name: Step, learning_rate: 0.1, step_size: 30}",
            "Optimizer.lr.step_size=20",
            "Global.pretrained_model=a/b=c",
            "AMP=null",
        ],
    )
    assert config.Arch.class_num == 37
    assert config.DataLoader.Train.dataset.transform_ops[1].RandCropImage.size == 96
    assert config.DataLoader.Eval.dataset.transform_ops[1].ResizeImage.resize_short == 128
    assert config.Loss.Train[0].CELoss.epsilon == 0
    assert dict(config.Optimizer.lr) == {"name": "Step", "learning_rate": 0.1, "step_size": 20}
    assert config.Global.pretrained_model == "a/b=c"
    assert config.AMP is None


def test_section_that_is_not_there_can_be_made_by_overrides(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("Arch: {name: Xception41}\n")
    assert ppxcls.load_config(file, ["Global.epochs=3"]).Global.epochs == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "Global.epoch=3",
            r"-o Global.epoch=3: Global.epoch: unknown key 'epoch' \(did you mean 'epochs'\?\); allowed: ",
        ),
        (
            "Global.use_amp=true",
            r"-o Global.use_amp=true: Global.use_amp: unknown key 'use_amp'; write AMP.use_amp$",
        ),
        ("AMP.epochs=3", r"AMP.epochs: unknown key 'epochs'; write Global.epochs$"),
        ("Global.batch_size=3", r"Global.batch_size: unknown key 'batch_size' \(did you mean"),
        ("Globl.epochs=3", r"Globl: unknown key 'Globl' \(did you mean 'Global'\?\)"),
        ("Global.epochs=many", r"Global.epochs: expected an integer at least 1, received 'many'"),
        ("Global.epochs=0", r"Global.epochs: expected an integer at least 1, received 0"),
        ("Global.epochs=true", r"Global.epochs: expected an integer at least 1, received True"),
        ("Global.epochs=null", r"Global.epochs: expected an integer at least 1, received null"),
        ("Global.eval_during_train=yep", r"expected true or false, received 'yep'"),
        (
            "Global.use_dali=true",
            r"'use_dali' of PaddleClas is not supported here; instead: threads decode the images",
        ),
        (
            "DataLoader.Train.dataset.name=MultiLabelDataset",
            r"'MultiLabelDataset' of PaddleClas is not supported here; instead: ",
        ),
        (
            "DataLoader.Train.dataset.transform_ops.1={RandCropImageV2: {size: 9}}",
            r"'RandCropImageV2' of PaddleClas is not supported here; instead: RandCropImage",
        ),
        (
            "AMP.use_pure_fp16=true",
            r"'use_pure_fp16' of PaddleClas is not supported here; instead: AMP.level: O2",
        ),
        ("Global.epochs=010", r"expected an integer at least 1, received '010'; write 10, or 0o10 for octal"),
        ("Global.epochs=None", r"expected an integer at least 1, received null"),
        ("DataLoader.Train.sampler.batch_size=1:30", r"expected an integer at least 1, received '1:30'"),
        (
            "Optimizer.lr.learning_rate=010",
            r"expected a number at least 0, received '010'; write 10, or 0o10 for octal",
        ),
        ("Optimizer.lr.learning_rate=٣", r"expected a number at least 0, received '٣'"),
        ('Global.output_dir="a\\0b"', r"expected text without NUL and lone surrogates, received 'a\\x00b'"),
        ("Optimizer.lr={name: Cosine, learning_rate: 0.1, eta_min: 0.2}", None),
        ("Optimizer.lr.learning_rate=1:30.5", r"expected a number at least 0, received '1:30.5'"),
        pytest.param(
            "Global.epochs=" + "9" * 300,
            r"expected an integer at least 1, received 9{117}\.\.\.$",
            id="300-digits",
        ),
        pytest.param(
            "Global.epochs=0x" + "f" * 5000,
            r"received a number of more than 4,300 digits$",
            id="5000-hex-digits",
        ),
        pytest.param(
            "Optimizer.lr.learning_rate=" + "9" * 400,
            r"expected a number at least 0, received 9",
            id="400-digits",
        ),
        pytest.param("Global.seed=" + "9" * 5000, r"Exceeds the limit", id="5000-digits"),
        (
            "Global.seed=9223372036854775808",
            r"expected an integer at least 0 or null|expected an integer at least 0",
        ),
        pytest.param("Global.plugins=" + "[" * 5000, r"nested too deeply|not valid YAML", id="5000-lists"),
        (
            "Optimizer.lr={name: ConstLR, name: Cosine, learning_rate: 1}",
            r"name: written twice in the same mapping",
        ),
        ("Global.pretrained_model=[1", r"not valid YAML"),
        ("Arch.freeze=['(']", r"Arch.freeze.0: expected a regular expression, received '\('"),
        ("Optimizer.groups=[{params: '*'}]", r"Optimizer.groups.0.params: expected a regular expression"),
        ("Global.image_shape=[3, 299]", r"Global.image_shape: expected a list of 3"),
        (
            "Arch.name=Xcepton41",
            r"Arch.name: unknown model 'Xcepton41' \(did you mean 'Xception41'\?\); allowed: .*Xception41",
        ),
        ("Arch.class_num=-1", r"Arch.class_num: expected an integer at least 0"),
        ("Arch.depth=3", r"Arch.depth: unknown argument of model Xception41 'depth'; allowed: class_num"),
        ("AMP.level=O3", r"AMP.level: expected 'O1' or 'O2', received 'O3'"),
        (
            "Optimizer.momentum=1.5",
            r"Optimizer.momentum: expected a number at least 0 and below 1, received 1.5",
        ),
        ("Optimizer.name=Momentun", r"did you mean 'Momentum'"),
        ("Optimizer.regularizer.coeff=-1", r"Optimizer.regularizer.coeff: expected a number at least 0"),
        ("Optimizer.parameters=[]", r"unknown argument of optimizer Momentum 'parameters'"),
        (
            "Optimizer.lr={learning_rate: 1}",
            r"Optimizer.lr: the key name is missing; allowed: ConstLR, Cosine",
        ),
        ("Optimizer.lr=0.1", r"Optimizer.lr: expected a mapping, received 0.1"),
        ("Loss.Train=[]", None),
        (
            "Loss.Train.0.CELoss.epsilon=2",
            r"Loss.Train.0.CELoss.epsilon: expected a number at least 0 and below 1",
        ),
        ("Loss.Train.7.CELoss.epsilon=0", r"unknown list index '7'"),
        ("Metric.Eval.0.TopkAcc.topk=[0]", r"topk.*expected"),
        ("DataLoader.Train.sampler.batch_size=0", r"batch_size: expected an integer at least 1"),
        ("DataLoader.Train.loader.num_workers=-1", r"num_workers: expected an integer at least 0"),
        (
            "DataLoader.Train.dataset.transform_ops.RandCropImage.scale=[0, 2]",
            r"scale.1: expected a number at least 0 and",
        ),
        (
            "DataLoader.Train.dataset.transform_ops.RandCropImag.size=3",
            r"unknown list index 'RandCropImag' \(did you mean",
        ),
        (
            "DataLoader.Train.dataset.transform_ops=[Decode]",
            r"unknown transform 'Decode' \(did you mean 'DecodeImage'\?\)",
        ),
        ("DataLoader.Train.dataset.transform_ops=[{A: 1, B: 2}]", r"expected one component, Name: \{...\}"),
        ("DataLoader.Train.dataset.name=CocoDataset", r"unknown dataset 'CocoDataset'"),
        ("DataLoader.Train.dataset.class_num=5", r"unknown argument of dataset ImageNetDataset 'class_num'"),
        (
            "Infer.PostProcess.class_id_map_file=no.txt",
            r"class_id_map_file: .*'no.txt', which does not exist",
        ),
        ("Global.epochs", r"expected KEY.KEY=value"),
        ("Global.epochs.x=1", r"Global.epochs is 120: it has no keys"),
        ("Global..epochs=1", r"expected KEY.KEY=value"),
        ("Global.epochs=[1", r"not valid YAML"),
    ],
)
def test_refused_override(override: str, message: str | None) -> None:
    if message is None:  # loading succeeds, and building raises
        ppxcls.load_config(XCEPTION, [override])
        return
    with pytest.raises(ppxcls.ConfigError, match=message) as caught:
        ppxcls.load_config(XCEPTION, [override])
    assert str(caught.value).startswith(f"-o {override}"[:80])  # a long value is left out in the middle


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Arch: {name: Xception41}\nGlobal:\n "
            " epochs: 3\n  epoks: 4\n", r"bad.yaml:4: Global.epoks: unknown key"),
        ("Arch: {name: Xception41}\nGlobal:\n "
            " epochs: 3\n  epochs: 4\n", r"bad.yaml:4: Global.epochs: written twice"),
        ("Arch:\n  nam: Xception41\n", r"bad.yaml:1: Arch: the key name is missing"),
        ("Global: {epochs: 3}\n", r"bad.yaml: the key Arch is missing"),
        ("Arch: [1]\n", r"bad.yaml:1: Arch: expected a mapping, received \[1\]"),
        ("- 1\n", r"bad.yaml: expected a mapping of sections"),
        ("", r"bad.yaml: expected a mapping of sections"),
        ("Arch: {name: Xception41\nGlobal: 3\n", r"bad.yaml:\d: not valid YAML"),
        ("Arch: !!python/object/apply:os.system ['true']\n", r"bad.yaml:1: "),
        ("Arch: &a\n  name: Xception41\n  again: *a\n", r"bad.yaml"),
        ("Arch:\n  <<: 3\n", r"bad.yaml:2: Arch.<<: expected a mapping to merge"),
        ("Arch: &a\n  <<: *a\n", r"anchors"),
        ("Arch:\n  ? [a, b]\n  : 3\n", r"bad.yaml:2: Arch: expected a word as key"),
        ("Arch: {name: Xception41}\nGlobal:\n  epochs: 012\n", r"bad.yaml:3: Global.epochs: "
            r".*received '012'; write 12"),
        ("a: &a [1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
         "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e "
             "[*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e]\n", r"anchors"),
    ],
)  # fmt: skip
def test_refused_file(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ppxcls.ConfigError, match=message):
        ppxcls.load_config(file)


def test_missing_and_binary_file(tmp_path: Path) -> None:
    with pytest.raises(ppxcls.ConfigError, match=r"none.yaml: no such config file"):
        ppxcls.load_config(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ppxcls.ConfigError, match=r"a.yaml: can't be read"):
        ppxcls.load_config(tmp_path / "a.yaml")


def test_configs_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "large.yaml").write_bytes(b"# " + b"x" * (1 << 20))
    reasons = {
        "pipe": "it is not a regular file",
        "zero": "it is not a regular file",
        "large": "1,048,578 bytes; the limit is 1,048,576",
    }
    for name, reason in reasons.items():
        with pytest.raises(ppxcls.ConfigError, match=f"{name}.yaml: can't be read: {reason}"):
            ppxcls.load_config(tmp_path / f"{name}.yaml")


def test_a_digit_that_is_no_index() -> None:
    with pytest.raises(ppxcls.ConfigError, match="unknown list index '²'"):
        ppxcls.load_config(XCEPTION, ["DataLoader.Train.dataset.transform_ops.².RandCropImage.size=9"])


def test_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(
        b"\xef\xbb\xbfArch:\n  name: Xception41\nOptimizer:\n  "
        b"name: SGD\n  lr: {name: ConstLR, learning_rate: 1e-2}\n"
    )
    assert ppxcls.load_config(file).Optimizer.lr.learning_rate == 0.01


def test_merge_keys(tmp_path: Path) -> None:
    """A mapping's own keys take precedence over the merged ones.

    Of several merged mappings, the first takes precedence.
    """
    file = tmp_path / "a.yaml"
    file.write_text(
        "Arch: {name: Xception41}\n"
        "Infer: {PostProcess: &base {topk: 3, class_id_map_file: null}}\n"
        "Optimizer: &o\n  name: SGD\n  lr: &rate {name: Cosine, learning_rate: 0.5, eta_min: 0.1}\n"
        "AMP: {<<: [{scale_loss: 2.0}, {scale_loss: 3.0, level: O2}], use_amp: false}\n"
    )
    config = ppxcls.load_config(file)
    assert (config.AMP.scale_loss, config.AMP.level) == (2.0, "O2")
    file.write_text(file.read_text() + "EMA: {<<: {decay: 0.5}, decay: 0.25}\n")
    assert ppxcls.load_config(file).EMA.decay == 0.25
    file.write_text(
        "Arch: {name: Xception41}\nOptimizer:\n  name: SGD\n  lr: "
        "{<<: {name: Cosine, learning_rate: 1}, learning_rate: 2}\n"
    )
    assert ppxcls.load_config(file).Optimizer.lr.learning_rate == 2


def test_strings_that_yaml_1_1_reads_as_something_else(tmp_path: Path) -> None:
    """Dates, clock times and numbers with a leading zero are strings, and PaddleClas's None is null.

    All of them round-trip.
    """
    file = tmp_path / "a.yaml"
    file.write_text(
        "Arch: {name: Xception41, pretrained: None}\nGlobal:\n  output_dir: 2026-11-25\n  checkpoints: None\n"
    )
    overrides = [
        "Global.pretrained_model=012",
        "Global.device='None'",
        "Infer.infer_imgs=1:30",
        "Global.epochs=1_000",
    ]
    config = ppxcls.load_config(file, overrides)
    assert config.Global.output_dir == "2026-11-25"
    assert config.Global.checkpoints is None
    assert config.Arch.pretrained is None
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml())
    for loaded in (config, ppxcls.load_config(again)):
        assert (loaded.Global.pretrained_model, loaded.Global.device, loaded.Infer.infer_imgs) == (
            "012",
            "None",
            "1:30",
        )
        assert loaded.Global.epochs == 1000


def test_keys_of_paddleclas_that_change_nothing_are_accepted() -> None:
    steps = (
        "[{DecodeImage: {to_np: true, channel_first: false, backend: pil}}, "
        "{ResizeImage: {resize_short: 320, return_numpy: false, "
        "interpolation: bilinear, backend: cv2}}, {CropImage: {size: 299}}, "
        "{NormalizeImage: {scale: null, mean: null, order: '', output_fp16: true, channel_num: 4}}]"
    )
    keys = [
        "Global.image_channel=4",
        "Global.image_shape=[4, 299, 299]",
        f"DataLoader.Eval.dataset.transform_ops={steps}",
    ]
    loader = (
        "{num_workers: 4, use_shared_memory: true, collate_fn: "
        "None, prefetch_factor: 2, persistent_workers: true}"
    )
    off = ["Global.use_dali=False", "AMP.use_pure_fp16=False", "DataLoader.Train.dataset.relabel=None"]
    config = ppxcls.load_config(
        XCEPTION, [*keys, f"DataLoader.Train.loader={loader}", "Arch.pretrained=False", *off]
    )
    plain = ppxcls.load_config(XCEPTION)
    image = np.random.default_rng(0).integers(0, 256, (400, 330, 3), np.uint8)
    data = cv2.imencode(".png", image)[1].tobytes()
    arrays = [ppxcls.build_transforms(c.DataLoader.Eval.dataset.transform_ops)(data) for c in (config, plain)]
    assert np.array_equal(*arrays)


@pytest.mark.parametrize(
    ("key", "limit"),
    [
        ("DataLoader.Eval.loader.num_workers", 1024),
        ("DataLoader.Train.loader.num_processes", 1024),
        ("DataLoader.Eval.loader.read_patience", 2592000),
        ("Global.hang_timeout", 2592000),
        ("Global.save_interval_minutes", 43200),
    ],
)
def test_no_number_asks_for_a_machine_or_a_month(key: str, limit: int) -> None:
    assert ppxcls.load_config(XCEPTION, [f"{key}={limit}"])
    for number in (limit + 1, 10**30):
        message = f"{re.escape(key)}: expected a.* and at most {limit}.*, received {number}$"
        with pytest.raises(ppxcls.ConfigError, match=message):
            ppxcls.load_config(XCEPTION, [f"{key}={number}"])


@pytest.mark.parametrize("key", ["Global.pretrained_model", "Arch.pretrained", "Global.checkpoints"])
def test_a_url_is_not_a_file(key: str, write_config: Callable[..., Path]) -> None:
    url = "s3://example.org/a//Xception41_pretrained.pdparams"
    with pytest.raises((ppxcls.ConfigError, ppxcls.CheckpointError), match=f"download it first: {url}$"):
        ppxcls.build_trainer(ppxcls.load_config(write_config(), [f"{key}={url}"]))
    for call in (
        ppxcls.load_config,
        ppxcls.load,
        lambda u: ppxcls.load_weights(ppxcls.build_model("Xception41"), u),
    ):
        with pytest.raises(
            (ppxcls.ConfigError, ppxcls.CheckpointError, ppxcls.DataError), match=f"download it first: {url}$"
        ):
            call(url)


@pytest.mark.parametrize("name", [*ppxcls.list_models(), "SmallNetwork"])
@pytest.mark.parametrize("key", ["Arch", "Global"])
def test_pretrained_true_is_the_published_weights(
    name: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default ones of the network. Nothing is fetched here, because the tests are offline."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PPXCLS_CACHE", str(tmp_path))
    plugins = [SMALL_NETWORK] if name == "SmallNetwork" else []
    settings = {"Arch": {"name": name}, "Global": {"plugins": plugins}}
    settings[key] = {**settings[key], "pretrained" if key == "Arch" else "pretrained_model": True}
    config = ppxcls.load_config(settings)
    error, message = ppxcls.CheckpointError, r": not on this machine, and PPXCLS_OFFLINE forbids to fetch it"
    if name == "SmallNetwork":
        where = "Arch.pretrained" if key == "Arch" else "Global.pretrained_model"
        error, message = ppxcls.ConfigError, rf"{where}: no published weights of SmallNetwork are known here"
    for purpose in ("train", "evaluate"):
        with pytest.raises(error, match=message):
            weights_for(config, purpose)


def test_tool_prints_one_line_and_exits_with_2(write_config: Callable[..., Path]) -> None:
    result = run_tool("tools/train.py", "-c", write_config(), "-o", "Global.epoch=1")
    assert result.returncode == 2
    assert (
        "config error: -o Global.epoch=1: Global.epoch: unknown key 'epoch' (did you mean 'epochs'?)"
        in result.stderr
    )
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_device_that_is_not_there_names_the_override(write_config: Callable[..., Path]) -> None:
    result = run_tool("tools/train.py", "-c", write_config(), "-o", "Global.device=npu")
    assert result.returncode == 2
    assert "Global.device: expected one of cpu" in result.stderr
    assert "-o Global.device=cpu" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
