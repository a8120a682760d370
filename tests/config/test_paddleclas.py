"""Words of PaddleClas: each of its keys and names does what it did there, or is an error that names ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import ppxcls
from ppxcls.config.checks import unknown_word_message
from ppxcls.config.paddleclas import ALTERNATIVES, HARMLESS_VALUES, is_harmless
from ppxcls.config.registry import registries
from tests.conftest import ROOT

CONFIG = ROOT / "configs/Xception41.yaml"
# Names and keys of PaddleClas that its users have in their YAMLs, by kind.
WORDS = {
    "transform": "CropImageAtRatio RandAugmentV2 RandAugmentV3 RandAugmentV4 RandomApply Pad_paddle_vision "
    "AugMix PCALighting RandomRot90",
    "loss": "AFDLoss DistillationDISTLoss DistillationDistanceLoss DistillationMultiLabelLoss "
    "DistillationPairLoss DistillationRKDLoss DistillationSKDLoss DistillationWSLLoss "
    "MultiLabelAsymmetricLoss ContrastiveLoss ContrastiveLoss_XBM TripletAngularMarginLoss "
    "TripletAngularMarginLoss_XBM PairwiseCosface DSHSDLoss LCDSHLoss DCHLoss CELossForMetaBIN "
    "TripletLossForMetaBIN InterDomainShuffleLoss IntraDomainScatterLoss CCSSLCELoss SoftSupConLoss",
    "metric": "MultilabelMeanAccuracy Precisionk",
    "dataset": "CommonDataset",
    "sampler": "DomainShuffleBatchSampler NaiveIdentityBatchSampler",
    "model": "DistillationModel RecModel",
    "key": "log_ranks class_num iter_per_epoch uniform_output_enabled export_for_fd export_with_pir infer_list "
    "save_dir threshold delimiter use_ssld use_ml_decoder reduction UnLabelLoss last_epoch",
}


@pytest.mark.parametrize("kind", WORDS)
def test_every_word_is_answered_with_words(kind: str) -> None:
    for word in WORDS[kind].split():
        message = unknown_word_message(word, ["other"], kind)
        assert message.startswith(f"{word!r} of PaddleClas is not supported here; instead: "), word


def test_the_alternatives_exist() -> None:
    """A name in the advice is a component, a key or a verb of this package."""
    names = {name for registry in registries().values() for name in registry.names()}
    for word, advice in ALTERNATIVES.items():
        for name in re.findall(r"\b[A-Z][a-z]*[A-Z]\w+\b", advice):
            is_key = re.search(rf"\b(?:Global|Infer|Arch|AMP)\.{name}|{name}\.", advice)
            assert name in names or is_key or name in ("ImageNet", "AMP", "ONNX", "RUN", "IMAGES", "FILE"), (
                word,
                name,
            )
    assert HARMLESS_VALUES.keys() <= ALTERNATIVES.keys()


@pytest.mark.parametrize(
    ("overrides", "device"),
    [
        (["Global.use_gpu=False"], "cpu"),
        (["Global.use_gpu=True"], "gpu"),
        (["Global.device=cpu", "Global.use_gpu=True"], "gpu"),
        (["Global.use_gpu=True", "Global.device=cpu"], "cpu"),
        (["Global.device=gpu:1", "Global.use_gpu=True"], "gpu:1"),
        (["Global.device=gpu:1", "Global.use_gpu=False"], "cpu"),
        (["Global.use_xpu=True"], "xpu"),
        (["Global.use_npu=True"], "npu"),
        (["Global.use_mlu=True"], "mlu"),
        (["Global.device=xpu", "Global.use_xpu=False"], "cpu"),
        (["Global.device=xpu", "Global.use_mlu=False"], "xpu"),
        (["Global={use_gpu: False, use_xpu: True}"], "xpu"),
        (["Global={use_gpu: False, device: cpu}"], "cpu"),
    ],
)
def test_switches_of_devices(overrides: list[str], device: str) -> None:
    assert ppxcls.load_config(CONFIG, overrides).Global.device == device


def test_switches_in_a_yaml_and_its_base(tmp_path: Path) -> None:
    base, child = tmp_path / "base.yaml", tmp_path / "child.yaml"
    base.write_text("Arch: {name: Xception41}\nGlobal:\n  use_gpu: True\n")
    child.write_text("base: base.yaml\nGlobal: {use_gpu: False}\n")
    assert ppxcls.load_config(base).Global.device == "gpu"
    assert ppxcls.load_config(child).Global.device == "cpu"
    assert ppxcls.load_config({"base": str(child), "Global": {"device": "gpu:2"}}).Global.device == "gpu:2"
    assert "use_gpu" not in ppxcls.load_config(child).to_yaml()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("Global.use_gpu=maybe", r"^-o .*: Global.use_gpu: expected true or false, received 'maybe'"),
        ("Global.use_gpu=null", r"^-o .*: Global.use_gpu: expected true or false, received null"),
        ("Global={use_gpu: True, use_npu: True}", r"Global.use_npu: contradicts Global.use_gpu; choose one"),
        ("Global={use_gpu: False, device: gpu}", r"Global.use_gpu: false contradicts Global.device, 'gpu'"),
        ("Global={use_gpu: True, device: cpu}", r"Global.use_gpu: true contradicts Global.device, 'cpu'"),
        ("Arch.use_gpu=False", r"Arch.use_gpu: 'use_gpu' of PaddleClas is not supported here; instead: Gl"),
    ],
)
def test_switches_that_contradict(override: str, message: str) -> None:
    with pytest.raises(ppxcls.ConfigError, match=message):
        ppxcls.load_config(CONFIG, [override])


@pytest.mark.parametrize("key", sorted(ALTERNATIVES))
def test_a_refused_key_is_an_error_unless_it_changes_nothing(key: str) -> None:
    values: list[Any] = [False, None, "", [], {}, 0, True, "x"]
    for value in values:
        settings = {"Arch": {"name": "Xception41", "class_num": 3}, "AMP": {key: value}}
        if is_harmless(key, value):
            assert ppxcls.load_config(settings) == ppxcls.load_config({**settings, "AMP": {}})
            continue
        message = rf"^AMP.{key}: '{key}' of PaddleClas is not supported here"
        with pytest.raises(ppxcls.ConfigError, match=message):
            ppxcls.load_config(settings)


def test_false_is_an_error_if_it_asks_for_something_else() -> None:
    """Without softmax, other than the mean, or in another position: what a user asks for is never ignored."""
    for key, value in (
        ("infer_add_softmax", False),
        ("use_fp16", False),
        ("reduction", "sum"),
        ("last_epoch", 3),
        ("log_ranks", "0,1"),
        ("input_image_channel", 4),
    ):
        assert not is_harmless(key, value)
    for key, value in (("infer_add_softmax", True), ("reduction", "mean"), ("last_epoch", -1)):
        assert is_harmless(key, value)
