"""``ppxcls fit``: lists, settings, YAML, training, evaluation and report of a folder of photographs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ppxcls.build.evaluation import evaluate
from ppxcls.build.trainer import build_trainer
from ppxcls.config.load import load_config
from ppxcls.config.yaml_values import write_yaml
from ppxcls.data.class_names import CLASS_NAMES, read_class_names
from ppxcls.data.errors import DataError
from ppxcls.data.make_lists import make_lists
from ppxcls.fitting.settings import Settings, choose, network_of
from ppxcls.reports.page import report_after_training
from ppxcls.system.distributed import DeviceError
from ppxcls.system.logs import logger, set_up_logging
from ppxcls.system.paths import printable, url_problem
from ppxcls.system.whole_files import write_text
from ppxcls.tuning import build as tuning

TRAIN, HEAD = "train.yaml", "head.yaml"
# Keys that the YAML of the head sets, whatever the command line says about the other one.
_OF_THE_HEAD = (
    "Global.output_dir",
    "Global.epochs",
    "Global.pretrained_model",
    "Optimizer.lr",
    "Optimizer.layer_decay",
    "Arch.freeze",
)
_ALL_BUT_THE_CLASSIFIER = r"^(?!(?:.*[._])?(?:fc|_out)\.(?:weight|bias)$)"
_HEAD_LEARNING_RATE = 0.002
_TRAIN_LIST = "lists/train_list.txt"
_LEAST_STEPS = 20  # in an epoch


def fit(
    photos: str | Path,
    weights: str | None = None,
    network: str | None = None,
    minutes: float = 10.0,
    output: str | Path | None = None,
    device: str | None = None,
    find_lr: bool = False,
    find_batch: bool = False,
    overrides: Sequence[str] = (),
) -> Path:
    """Train a classifier on a folder of photographs; the folder stays as it is.

    Args:
        photos: its folders are the classes, or ``train/`` and ``val/`` with such folders; see ``make_lists``.
        weights: to start from, such as published ones. First the classifier alone is trained, then all
            layers, the earlier ones at lower rates.
        network: its name; None for that of the weights.
        minutes: that the training may take on this machine, about.
        output: folder of lists, YAML and run; None for ``output/<name of the folder>``.
        device: to train on; None for the best one here.
        find_lr: find the learning rate by a range test of all layers.
        find_batch: find the batch size by trying larger and larger ones, up to a twentieth of the training
            images.
        overrides: ``A.b=value``, applied to the YAML.

    Returns:
        The folder of the run.

    Raises:
        ConfigError, DataError, CheckpointError, TrainingError, OSError: as ``make_lists`` and
            ``build_trainer``.
    """
    set_up_logging()
    if problem := url_problem(photos):
        raise DataError(problem)
    photos = Path(photos)
    output = Path(output) if output else Path("output") / (photos.resolve().name or "photos")
    _check(photos, output, minutes)
    settings, count = _chosen(photos, output, weights, network, minutes, device)
    _write(output, settings, photos)
    if find_batch:
        settings = _with_batch_size(settings, output, count, overrides)
        _write(output, settings, photos)
    if settings.head_epochs:
        build_trainer(
            load_config(output / HEAD, [o for o in overrides if not o.startswith(_OF_THE_HEAD)])
        ).fit()
    if find_lr:
        found = tuning.find_lr(output / TRAIN, overrides)
        if found.suggestion is None:
            logger.warning(f"{found}; {settings.learning_rate:g} is kept")
        settings = replace(
            settings,
            learning_rate=found.suggestion or settings.learning_rate,
            why=[*settings.why, str(found)],
        )
        _write(output, settings, photos)
    config = load_config(output / TRAIN, overrides)
    build_trainer(config).fit()
    evaluate(load_config(config.run_folder))
    report_after_training(config.run_folder)
    return config.run_folder


def _chosen(
    photos: Path, output: Path, weights: str | None, network: str | None, minutes: float, device: str | None
) -> tuple[Settings, int]:
    """Make the lists and choose the settings; returns them and the number of training images.

    Raises DataError.
    """
    made = make_lists(photos, output / "lists")
    for line in str(made).splitlines():
        logger.info(line)
    if not made.lists.get(str(output / "lists" / "val_list.txt")):
        raise DataError(f"{photos}: no images are left to evaluate on; each class needs at least two")
    class_num = len(read_class_names(output / "lists" / CLASS_NAMES, None))
    if class_num < 2:
        raise DataError(f"{photos}: one class; a classifier needs at least two folders")
    try:
        network = network or network_of(weights)
    except ValueError as error:
        raise DataError(str(error)) from None
    try:
        settings = choose(photos, output / _TRAIN_LIST, class_num, network, weights, minutes, device)
    except DeviceError as error:
        raise DataError(str(error)) from None
    for line in settings.why:
        logger.info(line)
    return settings, made.lists[str(output / _TRAIN_LIST)]


def _write(output: Path, settings: Settings, photos: Path) -> None:
    write_text(output / TRAIN, _yaml(settings, photos, output))
    if settings.head_epochs:
        write_text(output / HEAD, _head_yaml(settings, output))


def _with_batch_size(settings: Settings, output: Path, count: int, overrides: Sequence[str]) -> Settings:
    """With the smallest batch that is about as fast as the fastest; a small set keeps enough steps in an epoch."""
    found = tuning.find_batch(
        output / TRAIN, [*overrides, "Global.pretrained_model=null"]
    )  # the head is still to be trained
    size = max(min(found.smallest_fast, count // _LEAST_STEPS), 2)
    why = f"batches of {size}, after trying; {found.largest} would fit"
    return replace(settings, batch_size=size, why=[*settings.why, why])


def _check(photos: Path, output: Path, minutes: float) -> None:
    """Refuse what would end badly; raises DataError."""
    if not (0 < minutes < math.inf):
        raise DataError(f"expected minutes above 0, received {minutes:g}")
    if photos.resolve() in (output.resolve(), *output.resolve().parents):
        raise DataError(
            f"{output} lies in the folder of photographs, which stays as it is: give another --output"
        )
    if (output / TRAIN).exists():
        steps = [output / file for file in (HEAD, TRAIN) if (output / file).exists()]
        commands = " and then ".join(f"'ppxcls train -c {file} -o Global.checkpoints=auto'" for file in steps)
        raise DataError(
            f"{output / TRAIN} is there already: go on by it with {commands}, or give another --output"
        )


def next_commands(folder: Path) -> list[str]:
    """The commands that a user may want after ``fit``."""
    return [
        f"  ppxcls infer -c {folder} NEW_IMAGES",
        f"  ppxcls export -c {folder}",
        f"  ppxcls train -c {folder.parent / TRAIN}    # again, after editing that file",
    ]


def _yaml(settings: Settings, photos: Path, output: Path) -> str:
    """The YAML of the training: what differs from its base."""
    start = str(output / "head" / settings.network / "latest") if settings.head_epochs else None
    optimizer = {"layer_decay": 0.9} if settings.weights else {}
    content = {
        "base": "photographs",
        "Global": {
            "device": settings.device,
            "output_dir": str(output),
            "epochs": settings.epochs,
            **({"pretrained_model": start} if start else {}),
        },
        "Arch": {"name": settings.network, "class_num": settings.class_num},
        "Optimizer": {
            **optimizer,
            "lr": {"learning_rate": settings.learning_rate, "warmup_epoch": min(1, settings.epochs // 3)},
        },
        "DataLoader": {
            "Train": _section("train", settings, photos, output, {"RandCropImage": {"size": settings.size}}),
            "Eval": _section(
                "val",
                settings,
                photos,
                output,
                {
                    "ResizeImage": {"resize_short": round(settings.size / 0.9)},
                    "CropImage": {"size": settings.size},
                },
            ),
        },
    }
    why = "".join(f"# {printable(line)}\n" for line in settings.why)
    title = f"# A classifier of the photographs in {printable(str(photos))}. Edit this file and train again:"
    command = f"#   ppxcls train -c {printable(str(output / TRAIN))}"
    return f"{title}\n#\n{command}\n#\n{why}\n{write_yaml(content)}"


def _section(
    part: str, settings: Settings, photos: Path, output: Path, sizes: dict[str, dict[str, int]]
) -> dict[str, object]:
    normalize = {"NormalizeImage": {"mean": list(settings.mean), "std": list(settings.std)}}
    dataset = {
        "image_root": str(photos),
        "cls_label_path": str(output / "lists" / f"{part}_list.txt"),
        "transform_ops": {**sizes, **normalize},
    }
    return {"dataset": dataset, "sampler": {"batch_size": settings.batch_size}}


def _head_yaml(settings: Settings, output: Path) -> str:
    """The YAML of the classifier's own training, which is over the other one."""
    content = {
        "base": TRAIN,
        "Global": {
            "output_dir": str(output / "head"),
            "epochs": settings.head_epochs,
            "pretrained_model": settings.weights,
        },
        "Arch": {"freeze": [_ALL_BUT_THE_CLASSIFIER]},
        "Optimizer": {"layer_decay": None, "lr": {"learning_rate": _HEAD_LEARNING_RATE, "warmup_epoch": 0}},
    }
    return f"# The classifier alone, before all layers are trained by {TRAIN}.\n\n{write_yaml(content)}"
