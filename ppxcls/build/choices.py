"""Decides which weights, transforms and class names a config selects. All tools use it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ppxcls.build.class_order import (
    classes_beside,
    list_classes,
    manifest_beside,
    run_classes,
    training_classes,
    weights_classes,
)
from ppxcls.build.judging import judged_note
from ppxcls.checkpoints.files import AVERAGE, CheckpointError, parts_of
from ppxcls.checkpoints.progress import checkpoint_prefix
from ppxcls.config.checks import ConfigPlace
from ppxcls.config.figures import class_num_of
from ppxcls.config.registry import Block
from ppxcls.config.sections import Config
from ppxcls.data.class_names import IMAGENET_NAMES_FILE, describe_classes, read_class_names
from ppxcls.data.errors import DataError
from ppxcls.data.label_mapping import ClassNames
from ppxcls.data.preparation import PreparedImages
from ppxcls.data.transforms import prepared_images, starts_with_decoding
from ppxcls.models.common_keys import MODELS
from ppxcls.models.weights import weights_file
from ppxcls.published.find import weights_path
from ppxcls.published.words import WordError
from ppxcls.system.logs import logger, warn_once

Purpose = Literal["train", "evaluate", "infer", "export"]

_RESULT_NAMES = ("best_model", "latest")  # checkpoints of a run, in order of preference
_IMAGENET_CLASSES = 1000
TRAINING_TRANSFORMS = "training transforms against"


@dataclass(frozen=True)
class Weights:
    """The weights that a config selects for a purpose.

    Attributes:
        path: path of the file; ``.pdparams`` may be omitted.
        average: True to use the average of the weights (EMA).
        is_own: True if they are the result of this config's run: ``best_model`` or ``latest``, averaged if
            there is an average.
        note: description for the tools' output, such as ``epoch 7, top1 0.91, averaged weights``.
    """

    path: str
    average: bool
    is_own: bool
    note: str

    def __str__(self) -> str:
        return f"{self.path} ({self.note})" if self.note else self.path


def class_num(config: Config) -> int:
    """Returns the number of classes of the config's network: from ``Arch``, or the network's default.

    Raises:
        ConfigError: the network has no parameter ``class_num``.
    """
    count = class_num_of(config)
    if count is None:
        message = (
            f"the network {config.Arch.name} needs a parameter "
            "class_num, because labels are checked against it"
        )
        raise config.where("Arch.name").error(message)
    return count


def weights_for(config: Config, purpose: Purpose) -> Weights | None:
    """Returns the weights that a config selects. This function alone makes the choice, for all tools.

    For training, the result is the weights to start from: ``Global.pretrained_model``, otherwise
    ``Arch.pretrained``; None for fresh weights. A word in these keys stands for published weights, which are
    fetched if they are not on this machine. For any other purpose, it is the first of these that exists:

    1. the file that the command line sets in one of these two keys;
    2. ``best_model`` of this config's run;
    3. ``latest`` of this config's run, with a warning;
    4. the file that the YAML sets in one of these two keys. This does not apply to the ``config.yaml`` of a
      run, because there the keys give the weights that the run started from.

    The average of the weights is used if the checkpoint has one, unless ``EMA.use_ema`` is false or the
    command line sets ``EMA=null``.

    Raises:
        ConfigError: there are no weights to evaluate, infer or export with, or their path is invalid.
        CheckpointError: the file is missing.
    """
    paths_by_key = {
        "Global.pretrained_model": config.Global.pretrained_model,
        "Arch.pretrained": MODELS.common_keys(config.Arch).pretrained,
    }
    requested_paths = [
        path for key, path in paths_by_key.items() if path and (purpose == "train" or config.is_override(key))
    ]
    if requested_paths:
        return _weights(config, requested_paths[0])
    if purpose == "train":
        return None
    folder = config.run_folder
    for name in _RESULT_NAMES:
        if weights_file(folder / name).exists() and _is_of_this_run(folder, name):
            if name == "latest":
                logger.warning(
                    f"{folder}: no best_model, because no evaluation has chosen one; latest is used"
                )
            return _weights(config, str(folder / name))
    if not config.own_folder:  # the weights that a run started from are never its result
        for path in paths_by_key.values():
            if path:
                return _weights(config, path)
    message = (
        f"expected the weights to {purpose}, received null, "
        f"and there is no {weights_file(folder / 'best_model')}"
    )
    raise config.where("Global.pretrained_model").error(message)


def path_of_weights(word: str | bool, network: str, where: ConfigPlace) -> str:  # noqa: FBT001
    """Returns the path of weights that a config names by a word or a path. They may be fetched.

    Args:
        word: value of the key, see ``weights_path``.
        network: name of the network.
        where: place of the key.

    Raises:
        ConfigError: the word means nothing, or the weights of another network.
        CheckpointError: the weights can't be fetched.
    """
    try:
        return str(weights_path(word, network))
    except WordError as error:
        raise where.error(str(error)) from None


def _weights(config: Config, word: str | bool) -> Weights:  # noqa: FBT001  PaddleClas's ``pretrained: True``
    key = "Global.pretrained_model" if config.Global.pretrained_model == word else "Arch.pretrained"
    path = path_of_weights(word, config.Arch.name, config.where(key))
    file = weights_file(path)
    if not os.path.isfile(file):  # before a training writes or measures anything
        raise CheckpointError(f"{file}: no such file of weights")
    manifest = manifest_beside(file)
    has_average = AVERAGE in parts_of(manifest)
    wants_average = config.EMA.use_ema if config.EMA else not config.is_override("EMA")
    notes = _progress_notes(manifest.get("progress", {}), judged_note(checkpoint_prefix(file)))
    if checkpoints := manifest.get("averaged_from"):
        notes.append(f"mean of {len(checkpoints):,} checkpoints")
    if has_average:
        notes.append("averaged weights" if wants_average else "raw weights")
    is_default = wants_average or not has_average
    result_files = [weights_file(config.run_folder / name) for name in _RESULT_NAMES]
    is_own = is_default and any(_is_same_file(file, result_file) for result_file in result_files)
    return Weights(path, average=has_average and wants_average, is_own=is_own, note=", ".join(notes))


def _is_same_file(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()


def _progress_notes(progress: dict[str, Any], judged: str | None) -> list[str]:
    """Returns the progress of a checkpoint as text, and its evaluation if it is the best one.

    The list is empty if the manifest is damaged or there is none.

    Args:
        progress: progress in the manifest.
        judged: accuracy on images that judge, which is shown instead of the best evaluation; None for none.
    """
    try:
        is_epoch_complete = not progress["batches_done"]
        epoch = int(progress["epoch"]) - is_epoch_complete
        notes = [f"epoch {epoch}" if is_epoch_complete else f"in epoch {epoch}, step {progress['step']}"]
        best = progress.get("best")
        if judged:
            notes.append(judged)
        elif best and best["epoch"] == epoch:
            notes.append(f"{best['metric']} {best['value']:.4g}")
    except (KeyError, TypeError, ValueError):
        return []  # no manifest, or a damaged one, which loading the weights reports
    return notes


def _is_of_this_run(folder: Path, name: str) -> bool:
    """True if a checkpoint has the run id of ``latest``, or one of them has no id, as in older versions."""
    ids = [manifest_beside(weights_file(folder / part)).get("run") for part in (name, "latest")]
    if None in ids or ids[0] == ids[1]:
        return True
    logger.warning(f"{folder / name} belongs to another run than {folder / 'latest'} and is ignored")
    return False


def transforms_for(config: Config) -> list[Block]:
    """Returns the transforms for prediction and export. They are the evaluation's transforms if possible.

    ``Infer.transforms`` is used if the command line sets it, or if the config has no evaluation transforms.
    If both exist and differ, a warning gives the differences.

    Raises:
        ConfigError: the config has neither of them, or the transforms do not start with ``DecodeImage``.
    """
    infer_transforms = config.Infer.transforms if config.Infer else []
    eval_transforms = config.evaluation_transforms
    if not infer_transforms and not eval_transforms:
        raise config.where("Infer.transforms").error(
            "the key is missing, and there is no DataLoader.Eval either"
        )
    uses_infer_transforms = _uses_infer_transforms(config)
    if (
        infer_transforms
        and eval_transforms
        and (differences := prepared_images(eval_transforms).differences(prepared_images(infer_transforms)))
    ):
        choice = (
            "Infer.transforms is used"
            if uses_infer_transforms
            else "DataLoader.Eval's are used; -o Infer.transforms=... overrides them"
        )
        logger.warning(
            "DataLoader.Eval and Infer.transforms prepare images "
            f"differently ({'; '.join(differences)}): {choice}"
        )
    transforms = infer_transforms if uses_infer_transforms else eval_transforms
    if not starts_with_decoding(transforms):
        raise config.where("Infer.transforms").error(
            "expected DecodeImage first, because files are read as bytes"
        )
    _compare_with_image_shape(config, transforms)
    return transforms


def compare_normalisation(config: Config) -> None:
    """Warns if training and evaluation normalise images differently, because then the evaluation is wrong."""
    if not (config.DataLoader and config.DataLoader.Train and config.evaluation_transforms):
        return
    training_ops = config.DataLoader.Train.dataset.get("transform_ops") or []
    training, evaluation = prepared_images(training_ops), prepared_images(config.evaluation_transforms)
    if training.mean is None or evaluation.mean is None:  # a user's own transform may normalise
        return
    names = ("mean", "std", "channels", "bits")
    differences = PreparedImages(**{name: getattr(training, name) for name in names}).differences(
        PreparedImages(**{name: getattr(evaluation, name) for name in names})
    )
    if differences:
        warn_once(f"training and evaluation normalise images differently: {'; '.join(differences)}")


def _uses_infer_transforms(config: Config) -> bool:
    is_infer_preferred = not config.evaluation_transforms or config.is_override("Infer.transforms")
    return is_infer_preferred and bool(config.Infer and config.Infer.transforms)


def compared_transforms(config: Config, purpose: Purpose) -> list[tuple[str, list[Block]]]:
    """Returns the transforms to compare with what weights expect, each list with the words for messages.

    For training, they are the training transforms too, unless the list would be empty.
    """
    if purpose in ("infer", "export") and _uses_infer_transforms(config):
        assert config.Infer
        return [("Infer.transforms against", config.Infer.transforms)]
    transforms = [("evaluation transforms against", config.evaluation_transforms)]
    if purpose == "train" and config.DataLoader and config.DataLoader.Train:
        train_transforms = list(config.DataLoader.Train.dataset.get("transform_ops") or [])
        transforms.append((TRAINING_TRANSFORMS, train_transforms))
    return [(name, blocks) for name, blocks in transforms if blocks]


def _compare_with_image_shape(config: Config, transforms: Sequence[Block]) -> None:
    shape, size = config.Global.image_shape, prepared_images(transforms).size
    width, height = size if isinstance(size, tuple) else (size, size)
    if shape and size and shape[1:] != (height, width):
        logger.warning(
            f"Global.image_shape is {list(shape)}, but the images are "
            f"prepared as {height} x {width}; the transforms take precedence"
        )


def network_classes(config: Config, purpose: Purpose, weights: Weights | None) -> ClassNames | None:
    """Returns the classes of the network, to which the labels of every list are mapped; None if unknown.

    Raises:
        DataError: a file of names can't be used, or the number of names is not the number of classes.
    """
    if purpose == "train":
        classes = training_classes(config)
    else:
        classes = (weights_classes(weights.path) if weights else None) or run_classes(config)
    return _counted(classes, class_num(config))


def _counted(classes: ClassNames | None, count: int) -> ClassNames | None:
    """Returns the classes. Raises DataError if their number is not the network's."""
    if classes is not None and count and len(classes.names) != count:
        raise DataError(
            f"{classes.source}: expected the names of {count:,} classes, received {len(classes.names):,}"
        )
    return classes


def class_names_for(config: Config, purpose: Purpose, weights: Weights | None = None) -> list[str]:
    """Returns the names of the classes; empty if there is no source for them.

    The first of these sources is used:

    1. the file ``Infer.PostProcess.class_id_map_file``, if the command line sets it;
    2. the names that are known of the network: for training those of the resumed checkpoint or of the
      training list, for any other purpose those of the weights, see ``network_classes``;
    3. ``class_names.txt`` in the run's folder, if the weights are not given and the purpose is not training;
    4. ``class_names.txt`` in the folder of the list or pack;
    5. the file that the YAML sets, unless it is the file of ImageNet's names and the number of classes is
      not 1,000;
    6. ImageNet's names, if there are 1,000 classes.

    Args:
        config: config of the network.
        purpose: purpose of the network.
        weights: weights of the network; None if they are fresh or not chosen.

    Raises:
        DataError: the file can't be used, or the number of names is not the number of classes.
    """
    count = class_num(config)
    if count == 0:
        return []
    post_process = config.Infer.PostProcess if config.Infer else None
    configured_file = post_process.class_id_map_file if post_process else None
    if configured_file and config.is_override("Infer.PostProcess.class_id_map_file"):
        return read_class_names(configured_file, count)
    classes = network_classes(config, purpose, weights)
    if classes is None and purpose != "train" and weights is None:
        classes = classes_beside(config.run_folder)
    if classes is None:
        classes = list_classes(config, "Eval") or list_classes(config, "Train")
    if _counted(classes, count) is not None:
        assert classes
        return list(classes.names)
    if configured_file and (count == _IMAGENET_CLASSES or Path(configured_file) != IMAGENET_NAMES_FILE):
        return read_class_names(configured_file, count)
    return read_class_names(IMAGENET_NAMES_FILE, count) if count == _IMAGENET_CLASSES else []


def data_name(dataset: Mapping[str, Any]) -> str:
    """Returns a short name of a config's data set: its list or its pack, otherwise its kind."""
    return str(
        dataset.get("cls_label_path") or dataset.get("pack") or dataset.get("name", "the evaluation data")
    )


def describe(config: Config, weights: Weights, transforms: Sequence[Block], names: Sequence[str]) -> str:
    """Returns one line that describes the weights, the preparation of images and the classes of a tool."""
    classes = describe_classes(class_num(config), names)
    return f"{config.Arch.name} with {weights}, {prepared_images(transforms)}, {classes}"
