"""The YAML files that ``fit`` writes: the training of the classifier alone, and of all layers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ppxcls.config.yaml_values import write_yaml
from ppxcls.fitting.early_layers import LAYER_DECAY
from ppxcls.fitting.photographs import TEST_LIST, TRAIN_LIST, VAL_LIST
from ppxcls.fitting.settings import Settings
from ppxcls.system.paths import printable

TRAIN_YAML, HEAD_YAML = "train.yaml", "head.yaml"
LISTS = "lists"  # folder of the lists, in the output folder
FEATURES_LIST = "features_list.txt"  # list of the photographs that train and of those that choose
FOLDS_FOLDER = "folds"  # folder of the folds of a cross-validation, in the output folder
STAGES_FOLDER = "stages"  # folder of intermediate results, in the output folder
# Weights with a linear classifier: that of the photographs that train, and that of those that choose too.
HELD_OUT_WEIGHTS = f"{STAGES_FOLDER}/held_out.pdparams"
WHOLE_WEIGHTS = f"{STAGES_FOLDER}/whole.pdparams"
# Keys that head.yaml sets itself. Overrides of these keys apply to train.yaml only.
HEAD_KEYS = (
    "Global.output_dir",
    "Global.epochs",
    "Global.pretrained_model",
    "Optimizer.lr",
    "Optimizer.layer_decay",
    "Arch.freeze",
)
# Overrides of a config without weights to start from.
WITHOUT_WEIGHTS = ("Global.pretrained_model=null", "Arch.pretrained=null", "Arch.freeze_norm=false")
NON_CLASSIFIER_PATTERN = r"^(?!(?:.*[._])?(?:fc|_out)\.(?:weight|bias)$)"
_HEAD_LEARNING_RATE = 0.002
_CROP_SCALE = (0.08, 1.0)  # areas of random crops that train all layers, as shares of the photograph
_COLOR_CHANGE = 0.4  # extent of random changes of brightness, contrast and saturation


def train_yaml(settings: Settings, photos: Path, output: Path) -> str:
    """Returns the YAML of the training: its differences from the base."""
    crop: dict[str, Any] = {"size": settings.size}
    start = _absolute(output / "head" / settings.network / "latest") if settings.head_epochs else None
    if settings.feature_size:
        crop["scale"] = list(_CROP_SCALE)
        start = _absolute(output / HELD_OUT_WEIGHTS)
    optimizer = {"layer_decay": 0.9} if settings.weights else {}
    warmup_epochs: float = min(1, settings.epochs // 3)
    if settings.feature_size:
        optimizer = {"layer_decay": LAYER_DECAY, "weight_decay": 0.01, "clip_norm_global": 1.0}
        warmup_epochs = round(min(1.0, 0.1 * settings.epochs), 2)
    # Statistics of a small batch of photographs are worse than those of the published weights.
    norms: dict[str, Any] = {"freeze_norm": True} if settings.freezes_norms else {}
    if settings.norm_momentum is not None:
        norms["norm_momentum"] = settings.norm_momentum
    frozen_layers = {"freeze": list(settings.freeze)} if settings.freeze else {}
    content: dict[str, Any] = {
        "base": "photographs",
        "Global": {
            "device": settings.device,
            "output_dir": _absolute(output),
            "epochs": settings.epochs,
            **({"pretrained_model": start} if start else {}),
        },
        "Arch": {"name": settings.network, "class_num": settings.class_num, **frozen_layers, **norms},
        "Optimizer": {
            **optimizer,
            "lr": {"learning_rate": settings.learning_rate, "warmup_epoch": warmup_epochs},
        },
        "DataLoader": {
            "Train": _data_section(
                TRAIN_LIST,
                settings,
                photos=photos,
                output=output,
                sizes={"RandCropImage": crop},
            ),
            "Eval": _data_section(
                VAL_LIST, settings, photos=photos, output=output, sizes=_evaluation_sizes(settings)
            ),
        },
    }
    if settings.in_bfloat16:
        content["AMP"] = {"dtype": "bfloat16"}
    loaders: Any = content["DataLoader"]
    if settings.feature_size:
        dataset = loaders["Train"]["dataset"]
        dataset["transform_ops"] = _training_transforms(
            dataset["transform_ops"], has_flips=settings.flips, has_colors=settings.has_colors
        )
    loaders |= _judging_section(output)
    comments = "".join(f"# {printable(line)}\n" for line in settings.reasons)
    title = f"# A classifier of the photographs in {printable(str(photos))}. Edit this file and train again:"
    command = f"#   ppxcls train -c {printable(str(output / TRAIN_YAML))}"
    return f"{title}\n#\n{command}\n#\n{comments}\n{write_yaml(content)}"


def _training_transforms(
    values: dict[str, dict[str, Any]], *, has_flips: bool, has_colors: bool
) -> list[dict[str, Any]]:
    """Returns the transforms that train all layers.

    Args:
        values: arguments of ``RandCropImage`` and ``NormalizeImage``.
        has_flips: True with mirror images.
        has_colors: True with changed colours.
    """
    transforms: list[dict[str, Any]] = [{"DecodeImage": {}}, {"RandCropImage": values["RandCropImage"]}]
    if has_flips:
        transforms.append({"RandFlipImage": {"flip_code": 1}})
    if has_colors:
        extents = dict.fromkeys(("brightness", "contrast", "saturation"), _COLOR_CHANGE)
        transforms.append({"ColorJitter": extents})
    return [*transforms, {"NormalizeImage": {"order": "", **values["NormalizeImage"]}}]


def _judging_section(output: Path) -> dict[str, object]:
    """Returns the section of the photographs that judge; empty if there are none."""
    file = output / LISTS / TEST_LIST
    return {"Test": {"cls_label_path": _absolute(file)}} if file.is_file() else {}


def _absolute(path: str | Path) -> str:
    """Returns a path for a YAML that works from any folder."""
    return os.path.abspath(path)


def _data_section(
    list_name: str, settings: Settings, *, photos: Path, output: Path, sizes: dict[str, dict[str, Any]]
) -> dict[str, object]:
    normalize = {"NormalizeImage": {"mean": list(settings.mean), "std": list(settings.std)}}
    dataset = {
        "image_root": _absolute(photos),
        "cls_label_path": _absolute(output / LISTS / list_name),
        "transform_ops": {**sizes, **normalize},
    }
    return {"dataset": dataset, "sampler": {"batch_size": settings.batch_size}}


def _evaluation_sizes(settings: Settings) -> dict[str, dict[str, Any]]:
    """Returns the transforms that resize and crop the photographs of an evaluation."""
    size = settings.feature_size or settings.size
    if settings.crop_share:
        resize: dict[str, Any] = {"resize_short": round(size / settings.crop_share)}
    else:
        resize = {"size": size, "resize_short": None}
    if settings.interpolation:
        resize["interpolation"] = settings.interpolation
    return {"ResizeImage": resize, "CropImage": {"size": size}}


def head_yaml(settings: Settings, output: Path) -> str:
    """Returns the YAML that trains the classifier only; its base is ``train.yaml``."""
    content = {
        "base": TRAIN_YAML,
        "Global": {
            "output_dir": _absolute(output / "head"),
            "epochs": settings.head_epochs,
            "pretrained_model": settings.weights and _absolute(settings.weights),
        },
        "Arch": {"freeze": [NON_CLASSIFIER_PATTERN]},
        "Optimizer": {"layer_decay": None, "lr": {"learning_rate": _HEAD_LEARNING_RATE, "warmup_epoch": 0}},
    }
    return f"# The classifier alone, before all layers are trained by {TRAIN_YAML}.\n\n{write_yaml(content)}"
