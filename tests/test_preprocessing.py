"""The transforms of a run travel with its weights, and a config's other transforms are listed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import ppxcls
from ppxcls.data.transforms import prepared_images
from ppxcls.fitting.settings import choose, network_of
from ppxcls.models.common_keys import MODELS
from ppxcls.models.preprocessing import (
    RunPreprocessing,
    differences,
    differences_from_run,
    run_preprocessing,
)

HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "order": ""}
MEAN = "mean: (0.5, 0.5, 0.5), the weights expect (0.485, 0.456, 0.406) (their run)"
STD = "std: (0.5, 0.5, 0.5), the weights expect (0.229, 0.224, 0.225) (their run)"
Lines = Callable[[], list[str]]


@pytest.fixture
def lines(new_warnings: Lines) -> Lines:
    """Returns a function that gives the warnings about transforms since its last call."""
    return lambda: [text for text in new_warnings() if "the weights expect" in text]


@pytest.fixture
def run(small: Callable[..., Path], tmp_path: Path) -> Path:
    """The folder of a run with ImageNet's mean."""
    ppxcls.build_trainer(ppxcls.load_config(small())).fit()
    return tmp_path / "output/SmallNetwork"


@pytest.fixture
def other_yaml(run: Path, tmp_path: Path) -> Path:
    """A YAML with another mean, and with the folder of another run."""
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    for mode in ("Train", "Eval"):
        config["DataLoader"][mode]["dataset"]["transform_ops"][-1] = {"NormalizeImage": HALF}
    config["Global"]["output_dir"] = str(tmp_path / "second")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "other.yaml"


def copies(run: Path, tmp_path: Path) -> dict[str, Path]:
    """Names of the same weights: in the run, copied with the manifest, without it, and converted."""
    (tmp_path / "copied").mkdir()
    for file in run.glob("best_model.*"):
        shutil.copy(file, tmp_path / "copied")
    shutil.copy(run / "best_model.pdparams", run / "final.pdparams")
    safetensors = tmp_path / "converted.safetensors"
    ppxcls.convert_weights(str(run / "best_model"), "SmallNetwork", str(safetensors), 3)
    names = ("best_model", "best_model.pdparams", "latest", "epoch_1", "step_3", "final.pdparams")
    files = {name: run / name for name in names}
    return {**files, "copied": tmp_path / "copied/best_model", "converted": safetensors}


@pytest.mark.parametrize("name", ["latest.safetensors", "best_model.pdparams", "epoch_1.safetensors"])
def test_converted_weights_replace_no_checkpoint(run: Path, name: str) -> None:
    files = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    with pytest.raises(ppxcls.CheckpointError, match="is a checkpoint of a run"):
        ppxcls.convert_weights(str(run / "latest"), "SmallNetwork", str(run / name), 3)
    assert files == {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}


def test_converted_weights_are_converted_again(run: Path, tmp_path: Path) -> None:
    for _ in range(2):
        ppxcls.convert_weights(
            str(run / "latest"), "SmallNetwork", str(tmp_path / "converted.safetensors"), 3
        )


def test_the_run_of_the_weights_is_known_by_every_path(
    run: Path, other_yaml: Path, tmp_path: Path, images: Path, lines: Lines
) -> None:
    for path in copies(run, tmp_path).values():
        config = ppxcls.load_config(other_yaml, [f"Global.pretrained_model={path}"])
        lines()
        ppxcls.evaluate(config)
        assert lines() == [f"evaluation transforms against {path}: {text}" for text in (MEAN, STD)], path


def test_every_verb_lists_the_differences(
    run: Path, other_yaml: Path, tmp_path: Path, images: Path, lines: Lines
) -> None:
    weights = [f"Global.pretrained_model={run}/best_model"]
    config = ppxcls.load_config(other_yaml, [*weights, f"Global.save_inference_dir={tmp_path}/inference"])
    expected = [f"evaluation transforms against {run}/best_model: {text}" for text in (MEAN, STD)]
    lines()
    ppxcls.infer(config, str(images / "val"))
    assert lines() == expected
    ppxcls.load(config)
    assert lines() == expected
    ppxcls.export(config, ["paddle"])
    assert lines() == expected
    ppxcls.build_trainer(config)
    assert lines() == [*expected, *(line.replace("evaluation", "training") for line in expected)]
    transforms = json.dumps(config.DataLoader.Eval.dataset.transform_ops, default=dict)
    only_infer = [*weights, "DataLoader=null", f"Infer={{transforms: {transforms}}}"]
    ppxcls.infer(ppxcls.load_config(other_yaml, only_infer), str(images / "val"))
    assert lines() == [line.replace("evaluation transforms", "Infer.transforms") for line in expected]


def test_a_run_with_its_own_transforms_is_silent(run: Path, images: Path, lines: Lines) -> None:
    lines()
    ppxcls.evaluate(ppxcls.load_config(run))
    ppxcls.infer(ppxcls.load_config(run), str(images / "val"))
    assert lines() == []
    key = "DataLoader.Eval.dataset.transform_ops.NormalizeImage.mean"
    ppxcls.evaluate(ppxcls.load_config(run, [f"{key}=[0.5, 0.5, 0.5]"]))
    assert lines() == [f"evaluation transforms against {run}/best_model: {MEAN}"]


def test_a_checkpoint_without_a_readable_config(run: Path, other_yaml: Path, lines: Lines) -> None:
    """The config of the folder is used, and without it nothing is known."""
    manifest = json.loads((run / "best_model.json").read_text())
    (run / "best_model.json").write_text(json.dumps({**manifest, "config": "[", "class_names": None}))
    config = ppxcls.load_config(other_yaml, [f"Global.pretrained_model={run}/best_model"])
    ppxcls.evaluate(config)
    assert [line.split(": ", 1)[1] for line in lines()] == [MEAN, STD]
    (run / "config.yaml").unlink()
    assert ppxcls.evaluate(config)["num_samples"] == 7
    assert lines() == []


def ops(**keys: Any) -> list[dict[str, Any]]:
    return [
        {"DecodeImage": {"to_rgb": keys.pop("to_rgb", True)}},
        {"ResizeImage": {"resize_short": keys.pop("short", 79), "interpolation": keys.pop("by", "bilinear")}},
        {"CropImage": {"size": keys.pop("size", 71)}},
        *keys.pop("more", []),
        {"NormalizeImage": {"order": "", **keys}},
    ]


def of_run(transform_ops: list[dict[str, Any]]) -> RunPreprocessing:
    result = run_preprocessing({"DataLoader": {"Eval": {"dataset": {"transform_ops": transform_ops}}}})
    assert result
    return result


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ops(), []),
        ([*ops()[:1], {"ResizeImage": {"size": 71}}, ops()[-1]],
         ["share of the crop: None, the weights expect 0.8987"]),
        (ops(size=64), ["input size: 64, the weights expect 71", "share of the crop: 0.8101, the weights expect 0.8987"]),
        (ops(short=71), ["share of the crop: 1.0, the weights expect 0.8987"]),
        (ops(by="bicubic"), ["interpolation: bicubic, the weights expect bilinear"]),
        ([ops()[0], ops()[-1]], ["input size: that of each image, the weights expect 71"]),
        (ops(mean=[0.4850001, 0.456, 0.406]), []),
        (ops(to_rgb=False), ["channels: BGR, the weights expect RGB"]),
        (ops()[:-1], ["mean: None, the weights expect (0.485, 0.456, 0.406)", "std: None, the weights expect (0.229, 0.224, 0.225)"]),
        (ops(scale=1.0, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]), []),
        (ops(scale=1.0), ["mean: (0.001902, 0.001788, 0.001592), the weights expect (0.485, 0.456, 0.406)",
                          "std: (0.000898, 0.000878, 0.000882), the weights expect (0.229, 0.224, 0.225)"]),
        (ops(more=[{"RandFlipImage": {}}]), ["other transforms: RandFlipImage, the weights expect none"]),
    ],
)  # fmt: skip
def test_each_difference_has_a_line(config: list[dict[str, Any]], expected: list[str]) -> None:
    assert differences_from_run(of_run(ops()), config) == [f"{line} (their run)" for line in expected]


def test_what_a_run_knows() -> None:
    dataset = {"dataset": {"transform_ops": ops(mean=[0.1, 0.2, 0.3])}}
    by_training = run_preprocessing({"DataLoader": {"Train": dataset}})
    assert by_training
    assert differences_from_run(by_training, ops(size=64, by="bicubic", mean=[0.1, 0.2, 0.3])) == []
    assert len(differences_from_run(by_training, ops())) == 1, "the mean alone"
    by_infer = run_preprocessing({"Infer": {"transforms": ops(size=64)}, "DataLoader": {"Train": dataset}})
    assert by_infer
    assert by_infer.images.size == 64
    for damaged in ({}, {"DataLoader": "x"}, {"DataLoader": {"Eval": {"dataset": []}}}, {"Infer": []}):
        assert run_preprocessing(damaged) is None
    unknown = of_run([*ops()[:-1], {"TransformOfAPlugin": {"a": 1}}, ops()[-1]])
    assert differences_from_run(unknown, ops()) == [
        "other transforms: none, the weights expect TransformOfAPlugin (their run)"
    ]
    grey_to_rgb = of_run([{"DecodeImage": {"channels": 1}}, {"TransformOfAPlugin": {}}, *ops()[1:]])
    assert grey_to_rgb.images.mean == (0.485, 0.456, 0.406)
    assert grey_to_rgb.images.channel_count is None
    assert prepared_images(ops(to_rgb=False)).channels == "BGR"


def test_published_weights_without_normalisation() -> None:
    published = MODELS.fact("Xception41", "published")
    lines = differences(published, ops(size=299, short=320)[:-1])
    assert lines == [
        "mean: None, the weights expect (0.485, 0.456, 0.406) (PaddleClas)",
        "std: None, the weights expect (0.229, 0.224, 0.225) (PaddleClas)",
    ]


def test_fit_takes_the_network_and_the_normalisation_of_a_run(
    small: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    ops = "DataLoader.Eval.dataset.transform_ops.NormalizeImage.mean=[0.1, 0.2, 0.3]"
    ppxcls.build_trainer(ppxcls.load_config(small(), [ops])).fit()
    weights = str(tmp_path / "output/SmallNetwork/best_model")
    assert network_of(weights) == "SmallNetwork"
    settings = choose(
        images,
        images / "train_list.txt",
        class_num=3,
        network="SmallNetwork",
        weights=weights,
        minutes=1,
        device="cpu",
    )
    assert settings.mean == (0.1, 0.2, 0.3)
    assert settings.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("NormalizeImage.mean=[0.5, 0.5, 0.5]", "mean: (0.5, 0.5, 0.5), and (0.485, 0.456, 0.406)"),
        ("DecodeImage.to_rgb=False", "channels: BGR, and RGB"),
    ],
)
def test_training_and_evaluation_normalise_alike(
    small: Callable[..., Path], new_warnings: Lines, override: str, difference: str
) -> None:
    expected = f"training and evaluation normalise images differently: {difference}"
    for verb in (ppxcls.build_trainer, ppxcls.check_data):
        verb(ppxcls.load_config(small()))
        assert not any("normalise images differently" in text for text in new_warnings())
        verb(ppxcls.load_config(small(), [f"DataLoader.Train.dataset.transform_ops.{override}"]))
        assert any(expected in text for text in new_warnings())
