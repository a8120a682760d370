"""``ppxcls fit``: lists, settings, YAML, training, evaluation and report for a folder of photographs."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ppxcls.build.evaluation import evaluate
from ppxcls.build.trainer import build_trainer
from ppxcls.config.load import load_config
from ppxcls.config.yaml_values import write_yaml
from ppxcls.data.class_names import CLASS_NAMES_FILE, read_class_names
from ppxcls.data.errors import DataError
from ppxcls.data.make_lists import make_lists
from ppxcls.fitting.settings import Settings, choose, network_of
from ppxcls.reports.page import report_after_training
from ppxcls.system.atomic_files import write_text
from ppxcls.system.devices import DeviceError
from ppxcls.system.logs import logger, set_up_logging
from ppxcls.system.paths import printable, short_path, url_problem
from ppxcls.tuning import build as tuning

TRAIN_YAML, HEAD_YAML = "train.yaml", "head.yaml"
# Keys that head.yaml sets itself. Overrides of these keys apply to train.yaml only.
_HEAD_KEYS = (
    "Global.output_dir",
    "Global.epochs",
    "Global.pretrained_model",
    "Optimizer.lr",
    "Optimizer.layer_decay",
    "Arch.freeze",
)
_NON_CLASSIFIER_PATTERN = r"^(?!(?:.*[._])?(?:fc|_out)\.(?:weight|bias)$)"
_HEAD_LEARNING_RATE = 0.002
_TRAIN_LIST = "lists/train_list.txt"
_MIN_STEPS_PER_EPOCH = 20  # optimizer steps in an epoch


def fit(
    photos: str | Path,
    weights: str | None = None,
    *,
    network: str | None = None,
    minutes: float = 10.0,
    output: str | Path | None = None,
    device: str | None = None,
    find_lr: bool = False,
    find_batch: bool = False,
    overrides: Sequence[str] = (),
) -> Path:
    """Trains a classifier on a folder of photographs; the folder is not changed.

    Args:
        photos: folder with one subfolder per class, or with ``train/`` and ``val/`` that contain such
            subfolders; see ``make_lists``.
        weights: weights to start from, such as published ones; None for fresh weights. With weights, the
            classifier alone is trained first. Then all layers are trained, the earlier ones at lower learning
            rates.
        network: name of the network; None for the network of the weights.
        minutes: approximate training time on this machine, in minutes.
        output: folder for the lists, the YAML and the run; None for ``output/<name of the folder>``.
        device: device to train on; None for the best one of this machine.
        find_lr: True to find the learning rate by a range test of all layers.
        find_batch: True to find the batch size by trying increasing sizes, up to a twentieth of the training
            images.
        overrides: config overrides ``A.b=value``, applied to the YAML.

    Returns:
        The run folder.

    Raises:
        ConfigError, DataError, CheckpointError, TrainingError, OSError: as in ``make_lists`` and
            ``build_trainer``.
    """
    set_up_logging()
    if problem := url_problem(photos):
        raise DataError(problem)
    photos = Path(photos)
    output = Path(output) if output else Path("output") / (photos.resolve().name or "photos")
    _check_arguments(photos, output, minutes)
    settings, train_count = _choose_settings(
        photos, output, weights=weights, network=network, minutes=minutes, device=device
    )
    _write_yaml_files(output, settings, photos)
    if find_batch:
        settings = _with_batch_size(settings, output, train_count, overrides)
        _write_yaml_files(output, settings, photos)
    if settings.head_epochs:
        build_trainer(
            load_config(output / HEAD_YAML, [o for o in overrides if not o.startswith(_HEAD_KEYS)])
        ).fit()
    if find_lr:
        rate_range = tuning.find_lr(output / TRAIN_YAML, overrides)
        if rate_range.suggestion is None:
            logger.warning(f"{rate_range}; {settings.learning_rate:g} is kept")
        settings = replace(
            settings,
            learning_rate=rate_range.suggestion or settings.learning_rate,
            reasons=[*settings.reasons, str(rate_range)],
        )
        _write_yaml_files(output, settings, photos)
    config = load_config(output / TRAIN_YAML, overrides)
    build_trainer(config).fit()
    run_folder = short_path(config.run_folder)
    evaluate(load_config(run_folder))
    report_after_training(run_folder)
    return run_folder


def _choose_settings(
    photos: Path,
    output: Path,
    *,
    weights: str | None,
    network: str | None,
    minutes: float,
    device: str | None,
) -> tuple[Settings, int]:
    """Makes the lists and chooses the settings; returns the settings and the number of training images.

    Raises:
        DataError: the folder, the weights' name or the device can't be used.
    """
    list_summary = make_lists(photos, output / "lists")
    for line in str(list_summary).splitlines():
        logger.info(line)
    if not list_summary.lists.get(str(output / "lists" / "val_list.txt")):
        raise DataError(f"{photos}: no images remain for evaluation; each class needs at least two")
    class_num = len(read_class_names(output / "lists" / CLASS_NAMES_FILE, None))
    if class_num < 2:
        raise DataError(f"{photos}: one class; a classifier needs at least two folders")
    try:
        network = network or network_of(weights)
    except ValueError as error:
        raise DataError(str(error)) from None
    try:
        settings = choose(
            photos,
            output / _TRAIN_LIST,
            class_num=class_num,
            network=network,
            weights=weights,
            minutes=minutes,
            device=device,
        )
    except DeviceError as error:
        raise DataError(str(error)) from None
    for line in settings.reasons:
        logger.info(line)
    return settings, list_summary.lists[str(output / _TRAIN_LIST)]


def _write_yaml_files(output: Path, settings: Settings, photos: Path) -> None:
    write_text(output / TRAIN_YAML, _train_yaml(settings, photos, output))
    if settings.head_epochs:
        write_text(output / HEAD_YAML, _head_yaml(settings, output))


def _with_batch_size(
    settings: Settings, output: Path, train_count: int, overrides: Sequence[str]
) -> Settings:
    """Returns the settings with the smallest batch size that is about as fast as the fastest.

    For a small data set it is smaller, so that an epoch has enough steps.
    """
    # The training of head.yaml has not yet written these weights.
    batch_sizes = tuning.find_batch(output / TRAIN_YAML, [*overrides, "Global.pretrained_model=null"])
    size = max(min(batch_sizes.smallest_fast, train_count // _MIN_STEPS_PER_EPOCH), 2)
    reason = f"batches of {size}, after trying; {batch_sizes.largest} would fit"
    return replace(settings, batch_size=size, reasons=[*settings.reasons, reason])


def _check_arguments(photos: Path, output: Path, minutes: float) -> None:
    """Raises DataError if the arguments can't work, or if files of an earlier call would be overwritten."""
    if not (0 < minutes < math.inf):
        raise DataError(f"expected minutes above 0, received {minutes:g}")
    if photos.resolve() in (output.resolve(), *output.resolve().parents):
        raise DataError(
            f"{output} is inside the folder of photographs, which must not change: give another --output"
        )
    if (output / TRAIN_YAML).exists():
        yaml_files = [output / file for file in (HEAD_YAML, TRAIN_YAML) if (output / file).exists()]
        commands = " and then ".join(
            f"'ppxcls train -c {file} -o Global.checkpoints=auto'" for file in yaml_files
        )
        raise DataError(
            f"{output / TRAIN_YAML} already exists: resume with {commands}, or give another --output"
        )


def next_commands(folder: Path) -> list[str]:
    """Returns the commands that a user may need after ``fit``."""
    return [
        f"  ppxcls infer -c {folder} NEW_IMAGES",
        f"  ppxcls export -c {folder}",
        f"  ppxcls train -c {folder.parent / TRAIN_YAML}    # again, after editing that file",
    ]


def _train_yaml(settings: Settings, photos: Path, output: Path) -> str:
    """Returns the YAML of the training: its differences from the base."""
    start = _absolute(output / "head" / settings.network / "latest") if settings.head_epochs else None
    optimizer = {"layer_decay": 0.9} if settings.weights else {}
    content = {
        "base": "photographs",
        "Global": {
            "device": settings.device,
            "output_dir": _absolute(output),
            "epochs": settings.epochs,
            **({"pretrained_model": start} if start else {}),
        },
        "Arch": {"name": settings.network, "class_num": settings.class_num},
        "Optimizer": {
            **optimizer,
            "lr": {"learning_rate": settings.learning_rate, "warmup_epoch": min(1, settings.epochs // 3)},
        },
        "DataLoader": {
            "Train": _data_section(
                "train",
                settings,
                photos=photos,
                output=output,
                sizes={"RandCropImage": {"size": settings.size}},
            ),
            "Eval": _data_section(
                "val",
                settings,
                photos=photos,
                output=output,
                sizes={
                    "ResizeImage": {"resize_short": round(settings.size / 0.9)},
                    "CropImage": {"size": settings.size},
                },
            ),
        },
    }
    comments = "".join(f"# {printable(line)}\n" for line in settings.reasons)
    title = f"# A classifier of the photographs in {printable(str(photos))}. Edit this file and train again:"
    command = f"#   ppxcls train -c {printable(str(output / TRAIN_YAML))}"
    return f"{title}\n#\n{command}\n#\n{comments}\n{write_yaml(content)}"


def _absolute(path: str | Path) -> str:
    """Returns a path for a YAML that works from any folder."""
    return os.path.abspath(path)


def _data_section(
    part: str, settings: Settings, *, photos: Path, output: Path, sizes: dict[str, dict[str, int]]
) -> dict[str, object]:
    normalize = {"NormalizeImage": {"mean": list(settings.mean), "std": list(settings.std)}}
    dataset = {
        "image_root": _absolute(photos),
        "cls_label_path": _absolute(output / "lists" / f"{part}_list.txt"),
        "transform_ops": {**sizes, **normalize},
    }
    return {"dataset": dataset, "sampler": {"batch_size": settings.batch_size}}


def _head_yaml(settings: Settings, output: Path) -> str:
    """Returns the YAML that trains the classifier only; its base is ``train.yaml``."""
    content = {
        "base": TRAIN_YAML,
        "Global": {
            "output_dir": _absolute(output / "head"),
            "epochs": settings.head_epochs,
            "pretrained_model": settings.weights and _absolute(settings.weights),
        },
        "Arch": {"freeze": [_NON_CLASSIFIER_PATTERN]},
        "Optimizer": {"layer_decay": None, "lr": {"learning_rate": _HEAD_LEARNING_RATE, "warmup_epoch": 0}},
    }
    return f"# The classifier alone, before all layers are trained by {TRAIN_YAML}.\n\n{write_yaml(content)}"
