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
        ("base: nowhere.yaml\n", r"child.yaml:1: base: .*nowhere.yaml: no such config file$"),
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


BASE = """\
Arch: {name: Xception41}
Global: &global {epochs: 3, print_batch_step: 2}
Optimizer:
  name: Momentum
  lr: {name: Cosine, learning_rate: 0.1}
DataLoader:
  Eval:
    dataset:
      name: ImageNetDataset
      image_root: .
      cls_label_path: list.txt
      transform_ops:
        - DecodeImage
        - ResizeImage: {resize_short: 80}
        - CropImage:
            size: 75
        - NormalizeImage:
    sampler: {name: RASampler}
Metric:
  Eval:
    - TopkAcc: {topk: [1, 5]}
"""
MIDDLE = """\
base: base.yaml
Optimizer: {lr: {warmup_epoch: 2}}
DataLoader: {Eval: {sampler: {name: DistributedBatchSampler, batch_size: 4}}}
"""
OPS = "DataLoader.Eval.dataset.transform_ops"


def in_ops(*lines: str) -> str:
    return "base: middle.yaml\nDataLoader:\n Eval:\n  dataset:\n   transform_ops:\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (in_ops("    CropImage:", "     size: seventy"), f"child.yaml:7: {OPS}.2.CropImage.size"),
        (in_ops("    2:", "     CropImage:", "      size: seventy"), f"child.yaml:8: {OPS}.2.CropImage.size"),
        (in_ops("    CropImage:", "     sise: 70"), f"child.yaml:7: {OPS}.2.CropImage.sise"),
        (in_ops("    CropImage: seventy"), f"child.yaml:6: {OPS}.2.CropImage"),
        (in_ops("    CropImage: null"), f"child.yaml:6: {OPS}.2.CropImage"),
        (in_ops("    2:"), f"child.yaml:6: {OPS}.2"),
        (in_ops("    DecodeImage:", "     to_rgb: 3"), f"child.yaml:7: {OPS}.0.DecodeImage.to_rgb"),
        (in_ops("    1:", "     CropImage: {size: x}"), f"child.yaml:7: {OPS}.1.CropImage.size"),
        (
            in_ops("    - DecodeImage", "    - CropImage", "    - CropImage"),
            f"child.yaml:7: {OPS}.1.CropImage",
        ),
        (
            in_ops("    - DecodeImage", "    - ResizeImage: {size: x}"),
            f"child.yaml:7: {OPS}.1.ResizeImage.size",
        ),
        (
            "base: middle.yaml\nMetric: {Eval: {TopkAcc: {\n topk: {1: x}}}}\n",
            "child.yaml:3: Metric.Eval.0.TopkAcc.topk.1",
        ),
        (
            "base: middle.yaml\nMetric: {Eval: {0: {TopkAcc:\n {topk: [1,\n x]}}}}\n",
            "child.yaml:4: Metric.Eval.0.TopkAcc.topk.1",
        ),
        ("base: middle.yaml\nGlobal: {seed: 1,\n epochs: x}\n", "child.yaml:3: Global.epochs"),
        ("base: middle.yaml\nGlobal: {epochs: 4}\nOptimizer:\n lr: null\n", "child.yaml:4: Optimizer.lr"),
        ("base: middle.yaml\nOptimizer:\n name: SGD\n lr: {name: ConstLR}\n", "child.yaml:4: Optimizer.lr"),
        ("base: middle.yaml\nOptimizer:\n name: Nothing\n", "child.yaml:3: Optimizer.name"),
        ("base: middle.yaml\nGlobal:\n", "child.yaml:2: Global"),
        (
            "base: wrong.yaml\nOptimizer: {lr: {warmup_epoch: 3}}\n",
            "wrong.yaml:4: Optimizer.lr.learning_rate",
        ),
        ("base: wrong_item.yaml\nGlobal: {epochs: 3}\n", f"wrong_item.yaml:6: {OPS}.2.CropImage.size"),
        (
            in_ops("    1: {ResizeImage: {resize_short: 9}}").replace("middle", "wrong_item"),
            f"wrong_item.yaml:6: {OPS}.2.CropImage.size",
        ),
        (
            "base: middle.yaml\nGlobal: &g\n  output_dir: &word there\n  epochs: 3\n  seed: *word\n",
            "child.yaml:3: Global.seed",
        ),
        (
            "base: middle.yaml\nLoss:\n  Train: &losses\n    - CELoss:\n        epsilon: &much 0.9\n        weight: x\n"
            "  Eval: *losses\n",
            "child.yaml:6: Loss.Train.0.CELoss.weight",
        ),
        (
            "base: middle.yaml\nLoss:\n  Eval: &losses\n    - CELoss: &ce\n        epsilon: 0.1\n"
            "  Train:\n    - CELoss:\n        <<: *ce\n        weight: x\n",
            "child.yaml:9: Loss.Train.0.CELoss.weight",
        ),
        (
            "base: middle.yaml\nDataLoader: {Eval: {loader: &l\n {num_workers: 2,\n read_patience: 1.5}}}\n"
            "Optimizer: {<<: *l,\n clip_norm: 1}\n",
            "child.yaml:3: Optimizer.num_workers",
        ),
    ],
)
def test_the_place_of_an_error_is_where_its_value_is_written(text: str, place: str, tmp_path: Path) -> None:
    child(tmp_path, BASE, "base.yaml")
    child(tmp_path, MIDDLE, "middle.yaml")
    child(tmp_path, "base: middle.yaml\nOptimizer:\n lr:\n  learning_rate: x\n", "wrong.yaml")
    wrong_item = in_ops("    CropImage: {size: x}")
    child(tmp_path, wrong_item, "wrong_item.yaml")
    with pytest.raises(ppxcls.ConfigError) as caught:
        ppxcls.load_config(child(tmp_path, text))
    assert str(caught.value).startswith(f"{tmp_path}/{place}: "), caught.value


@pytest.mark.parametrize(
    ("override", "key"),
    [
        (f"{OPS}.CropImage.size=x", f"{OPS}.2.CropImage.size"),
        (f"{OPS}.2.CropImage.size=x", f"{OPS}.2.CropImage.size"),
        (f"{OPS}.2={{CropImage: {{size: x}}}}", f"{OPS}.2.CropImage.size"),
        (f"{OPS}.DecodeImage.to_rgb=3", f"{OPS}.0.DecodeImage.to_rgb"),
        (f"{OPS}.NormalizeImage.order=x", f"{OPS}.3.NormalizeImage.order"),
        ("Metric.Eval.TopkAcc.topk.0=x", "Metric.Eval.0.TopkAcc.topk.0"),
        ("Optimizer={name: SGD, lr: {name: Cosine, learning_rate: x}}", "Optimizer.lr.learning_rate"),
    ],
)
def test_an_override_is_the_place_of_its_value(override: str, key: str, tmp_path: Path) -> None:
    child(tmp_path, BASE, "base.yaml")
    child(tmp_path, MIDDLE, "middle.yaml")
    file = child(tmp_path, in_ops("    CropImage:", "     size: 70"))
    with pytest.raises(ppxcls.ConfigError) as caught:
        ppxcls.load_config(file, [override])
    assert str(caught.value).startswith(f"-o {override}: {key}: "), caught.value


def test_a_notebook_s_value_has_no_place_in_its_base() -> None:
    ops = {"RandCropImage": {"size": "seventy"}}
    settings = {"base": "photographs", "DataLoader": {"Train": {"dataset": {"transform_ops": ops}}}}
    with pytest.raises(
        ppxcls.ConfigError, match=r"^DataLoader.Train.dataset.transform_ops.1.RandCropImage.size"
    ):
        ppxcls.load_config(settings)
    with pytest.raises(ppxcls.ConfigError, match=r"^Global.epochs: expected"):
        ppxcls.load_config({"base": "photographs", "Global": {"epochs": "x"}})
    config = ppxcls.load_config({"base": "photographs"})
    with pytest.raises(ppxcls.ConfigError, match=r"^Optimizer.lr.learning_rate: expected"):
        config.Optimizer.lr.learning_rate = "fast"


def test_items_of_a_list_change_whatever_their_form_is(tmp_path: Path) -> None:
    """A component may be a word, and an item by index may become another component."""
    child(tmp_path, BASE, "base.yaml")
    child(tmp_path, MIDDLE, "middle.yaml")
    text = in_ops(
        "    DecodeImage: {to_rgb: false}",
        "    1: {ResizeImage: {size: 80}}",
        "    2: {RandCropImage: {size: 70}}",
    )
    config = ppxcls.load_config(child(tmp_path, text), [f"{OPS}.DecodeImage.to_rgb=true"])
    ops = config.DataLoader.Eval.dataset.transform_ops
    assert [next(iter(op)) for op in ops] == ["DecodeImage", "ResizeImage", "RandCropImage", "NormalizeImage"]
    assert ops[0]["DecodeImage"]["to_rgb"] is True
    assert ops[1]["ResizeImage"] == {"resize_short": 80, "size": 80}
    assert ops[2]["RandCropImage"] == {"size": 70}
