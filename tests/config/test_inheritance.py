"""``base:`` in a YAML: what is merged and what is replaced.

Errors name the file that contains the key.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import ppxcls
from tests.conftest import small_config


@pytest.fixture
def base(tmp_path: Path, images: Path) -> Path:
    file = tmp_path / "base.yaml"
    file.write_text(yaml.safe_dump(small_config(images, tmp_path / "output"), sort_keys=False))
    return file


def child(folder: Path, text: str, name: str = "child.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_keys_are_changed_and_lists_replaced(base: Path, tmp_path: Path) -> None:
    text = """
base: base.yaml
Global: {epochs: 7}
Optimizer: {lr: {learning_rate: 0.5}}
Metric: {Eval: [TopkAcc: {topk: [1]}]}
DataLoader: {Train: {dataset: {transform_ops: {RandCropImage: {size: 96}, 3: {NormalizeImage: {order: hwc}}}}}}
"""
    config = ppxcls.load_config(child(tmp_path, text), ["Global.seed=3"])
    assert (config.Global.epochs, config.Global.seed, config.Global.device) == (7, 3, "cpu")
    assert (config.Optimizer.name, config.Optimizer.lr.name, config.Optimizer.lr.learning_rate) == (
        "Momentum",
        "Cosine",
        0.5,
    )
    assert config.Metric.Eval == [{"TopkAcc": {"topk": [1]}}]
    ops = config.DataLoader.Train.dataset.transform_ops
    assert [next(iter(op)) for op in ops] == [
        "DecodeImage",
        "RandCropImage",
        "RandFlipImage",
        "NormalizeImage",
    ]
    assert ops[1]["RandCropImage"]["size"] == 96
    assert ops[3]["NormalizeImage"]["order"] == "hwc"
    assert ops[3]["NormalizeImage"]["scale"] == pytest.approx(1 / 255)


def test_a_component_of_another_name_replaces_the_base_s(base: Path, tmp_path: Path) -> None:
    text = "base: base.yaml\nOptimizer: {name: SGD, lr: {name: ConstLR, learning_rate: 0.1}}\n"
    config = ppxcls.load_config(child(tmp_path, text))
    assert "momentum" not in config.Optimizer
    assert "base:" not in config.to_yaml().splitlines()


def test_a_base_of_a_base_in_another_folder(base: Path, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    child(tmp_path / "below", "base: ../base.yaml\nGlobal: {epochs: 3, keep_last: 4}\n", "middle.yaml")
    config = ppxcls.load_config(child(tmp_path, "base: below/middle.yaml\nGlobal: {epochs: 9}\n"))
    assert (config.Global.epochs, config.Global.keep_last) == (9, 4)


def test_the_packaged_base_is_whole() -> None:
    config = ppxcls.load_config({"base": "photographs", "Global": {"epochs": 2}})
    assert config.Arch.name == "Xception41"
    assert config.DataLoader.Eval.sampler.batch_size == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: base.yaml\nGlobal: {epochz: 7}\n", r"child.yaml:2: Global.epochz: unknown key"),
        (
            "base: base.yaml\nOptimizer:\n  lr:\n    learning_rate: fast\n",
            r"child.yaml:4: Optimizer.lr.learning_rate: expected a",
        ),
        ("base: broken.yaml\n", r"broken.yaml:2: Global.epochs: expected an integer at least 1"),
        ("base: nowhere.yaml\n", r"nowhere.yaml: no such config file"),
        (
            "base: photograph\n",
            r"child.yaml:1: base: unknown base 'photograph' \(did you mean 'photographs'\?\)",
        ),
        ("base: child.yaml\n", r"child.yaml:1: base: .*child.yaml is a base of itself"),
        ("base: loop.yaml\n", r"base: .*is a base of itself"),
        ("base: 3\n", r"child.yaml:1: base: expected a YAML, received 3"),
        ("base: [base.yaml]\n", r"child.yaml:1: base: expected a YAML"),
        (
            "base: base.yaml\nMetric: {Eval: {TopkAc: {topk: 1}}}\n",
            r"child.yaml:2: Metric.Eval.TopkAc: unknown list item 'TopkAc'",
        ),
        ("base: base.yaml\nDataLoader: 3\n", r"child.yaml:2: DataLoader: expected"),
    ],
)
def test_errors_name_the_file_that_has_the_key(text: str, message: str, base: Path, tmp_path: Path) -> None:
    child(tmp_path, "Arch: {name: Xception41}\nGlobal: {epochs: 0}\n", "broken.yaml")
    child(tmp_path, "base: child.yaml\n", "loop.yaml")
    with pytest.raises(ppxcls.ConfigError, match=message) as caught:
        ppxcls.load_config(child(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_list_item_has_one_address(tmp_path: Path) -> None:
    """An item's number takes precedence over a name that looks like a number.

    This holds for a YAML with a base and for ``-o``.
    """
    base = "Arch: {name: Xception41}\nMetric: {Eval: [{TopkAcc: {topk: [2, 1, 5]}}]}\n"
    (tmp_path / "base.yaml").write_text(base)
    (tmp_path / "child.yaml").write_text("base: base.yaml\nMetric: {Eval: {TopkAcc: {topk: {'1': 3}}}}\n")
    by_base = ppxcls.load_config(tmp_path / "child.yaml")
    by_override = ppxcls.load_config(tmp_path / "base.yaml", ["Metric.Eval.TopkAcc.topk.1=3"])
    for config in (by_base, by_override):
        assert config.Metric.Eval[0].TopkAcc.topk == [2, 3, 5]
