"""Decides which weights, transforms and class names a config means. All tools use it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ppxcls.checkpoints.files import AVERAGE, CheckpointError, parts_of
from ppxcls.config.checks import ConfigError, Where
from ppxcls.config.registry import Block
from ppxcls.config.sections import Config
from ppxcls.data.class_names import CLASS_NAMES, IMAGENET_NAMES, describe_classes, read_class_names
from ppxcls.data.transforms import prepared_images, starts_with_decoding
from ppxcls.models.common_keys import MODELS
from ppxcls.models.weights import manifest_of, weights_file
from ppxcls.packed.dataset import pack_folder
from ppxcls.system.logs import logger
from ppxcls.system.paths import url_problem

Purpose = Literal["train", "evaluate", "infer", "export"]

_RESULTS = ("best_model", "latest")  # of a run, the better first
_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Weights:
    """The weights that a config means for a purpose.

    Attributes:
        path: of the file; ``.pdparams`` may be left out.
        average: whether to take the average of the weights (EMA).
        is_own: whether they are the result of this config's run: ``best_model`` or ``latest``, averaged if
            there is an average.
        note: what the line of a tool says about them, such as ``epoch 7, top1 0.91, averaged weights``.
    """

    path: str
    average: bool
    is_own: bool
    note: str

    def __str__(self) -> str:
        return f"{self.path} ({self.note})" if self.note else self.path


def class_num(config: Config) -> int:
    """The number of classes of the config's network: from ``Arch``, or the network's own default."""
    declared = inspect.signature(MODELS.get(config.Arch.name, config.where("Arch"))).parameters.get(
        "class_num"
    )
    if declared is None:
        message = (
            f"the network {config.Arch.name} needs a parameter class_num, against which labels are checked"
        )
        raise config.where("Arch.name").error(message)
    return int(config.Arch.get("class_num", declared.default))


def weights_for(config: Config, purpose: Purpose) -> Weights | None:
    """The weights that a config means; nothing else decides it.

    To train, they are the weights to start from: ``Global.pretrained_model``, or else ``Arch.pretrained``;
    None for fresh weights. For any other purpose, they are the first of these that exists:

    1. what the command line names, in either key;
    2. ``best_model`` of this config's run;
    3. ``latest`` of this config's run, with a warning;
    4. what the YAML names, in either key, unless it is the ``config.yaml`` of a run, which names what the run
      started from.

    The average of the weights is taken if the checkpoint has one, unless ``EMA.use_ema`` is false or the
    command line says ``EMA=null``.

    Raises:
        ConfigError: there is nothing to evaluate, infer with or export.
    """
    named = {
        "Global.pretrained_model": config.Global.pretrained_model,
        "Arch.pretrained": MODELS.common_keys(config.Arch).pretrained,
    }
    given = [path for key, path in named.items() if path and (purpose == "train" or config.is_override(key))]
    if given:
        return _weights(config, given[0])
    if purpose == "train":
        return None
    folder = config.run_folder
    for name in _RESULTS:
        if weights_file(folder / name).exists() and _is_of_this_run(folder, name):
            if name == "latest":
                logger.warning(
                    f"{folder}: no best_model, because no evaluation has chosen one; latest is used"
                )
            return _weights(config, str(folder / name))
    if not config.own_folder:  # what a run started from is never its result
        for path in named.values():
            if path:
                return _weights(config, path)
    message = f"expected the weights to {purpose}, received null, and there is no {weights_file(folder / 'best_model')}"
    raise config.where("Global.pretrained_model").error(message)


def no_download(name: str, where: Where) -> ConfigError:
    """The error for ``pretrained: True`` of this network; it names the place of the published weights."""
    published = MODELS.fact(name, "published")
    place = (
        f"download {published.url} ({published.source})"
        if published and published.url
        else "nothing is downloaded"
    )
    return (where / "pretrained").error(f"expected a file, received True; {place}, and give its path")


def _weights(config: Config, path: str | bool) -> Weights:
    if isinstance(path, bool):
        raise no_download(config.Arch.name, config.where("Arch"))
    if (problem := url_problem(path)) is not None:
        key = "Global.pretrained_model" if config.Global.pretrained_model == path else "Arch.pretrained"
        raise config.where(key).error(problem)
    file = weights_file(path)
    manifest = _manifest(file)
    has_average = AVERAGE in parts_of(manifest)
    wants_average = config.EMA.use_ema if config.EMA else not config.is_override("EMA")
    notes = _progress_notes(manifest.get("progress", {}))
    if has_average:
        notes.append("averaged weights" if wants_average else "raw weights")
    is_default = wants_average or not has_average
    is_own = is_default and any(
        _is_same_file(file, weights_file(config.run_folder / name)) for name in _RESULTS
    )
    return Weights(path, has_average and wants_average, is_own, ", ".join(notes))


def _is_same_file(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()


def _progress_notes(progress: dict[str, Any]) -> list[str]:
    """Where a checkpoint stands, and its evaluation if it is the best one.

    A manifest may have been damaged.
    """
    try:
        is_whole = not progress["batches_done"]
        done = int(progress["epoch"]) - is_whole
        notes = [f"epoch {done}" if is_whole else f"in epoch {done}, step {progress['step']}"]
        best = progress.get("best")
        if best and best["epoch"] == done:
            notes.append(f"{best['metric']} {best['value']:.4g}")
    except (KeyError, TypeError, ValueError):
        return []  # loading the weights reports it, or there is none
    return notes


def _manifest(file: Path) -> dict[str, Any]:
    """The manifest beside a file of weights; empty if there is none."""
    try:
        return manifest_of(file) or {}
    except CheckpointError:
        return {}  # loading the weights reports it


def _is_of_this_run(folder: Path, name: str) -> bool:
    """Whether a checkpoint belongs to the run of ``latest``, by their ids. Older versions wrote none."""
    ids = [_manifest(weights_file(folder / part)).get("run") for part in (name, "latest")]
    if None in ids or ids[0] == ids[1]:
        return True
    logger.warning(f"{folder / name} belongs to another run than {folder / 'latest'} and is ignored")
    return False


def transforms_for(config: Config) -> list[Block]:
    """How images are prepared for prediction and export: as for the evaluation.

    ``Infer.transforms`` is used if the command line gives it, or if there is no evaluation. If the two
    differ, one line names the differences.

    Raises:
        ConfigError: there are neither.
    """
    own = config.Infer.transforms if config.Infer else []
    evaluation = config.evaluation_transforms
    if not own and not evaluation:
        raise config.where("Infer.transforms").error(
            "the key is missing, and there is no DataLoader.Eval either"
        )
    prefers_own = bool(own) and (not evaluation or config.is_override("Infer.transforms"))
    if own and evaluation and (found := prepared_images(evaluation).differences(prepared_images(own))):
        choice = (
            "Infer.transforms is used"
            if prefers_own
            else "the evaluation's is used; -o Infer.transforms=... overrides it"
        )
        logger.warning(
            f"DataLoader.Eval and Infer.transforms prepare images differently ({'; '.join(found)}): {choice}"
        )
    used = own if prefers_own else evaluation
    if not starts_with_decoding(used):
        raise config.where("Infer.transforms").error(
            "expected DecodeImage first, because files are read as bytes"
        )
    _compare_with_image_shape(config, used)
    return used


def _compare_with_image_shape(config: Config, transforms: Sequence[Block]) -> None:
    shape, size = config.Global.image_shape, prepared_images(transforms).size
    width, height = size if isinstance(size, tuple) else (size, size)
    if shape and size and shape[1:] != (height, width):
        logger.warning(
            f"Global.image_shape is {list(shape)}, but the images are prepared as {height} x {width}: they decide"
        )


def class_names_for(config: Config, purpose: Purpose) -> list[str]:
    """The names of the classes; empty if nothing gives them.

    In this order: a file that the command line names; ``class_names.txt`` of the run, but not to train by
    another YAML, because another run may have left it; that of the lists' folder; the file that the YAML
    names, unless it is ImageNet's and there are other classes; ImageNet's names for 1,000 classes.

    Raises:
        DataError: the file can't be used, or has not one name for each class.
    """
    count = class_num(config)
    if count == 0:
        return []
    process = config.Infer.PostProcess if config.Infer else None
    named = process.class_id_map_file if process else None
    if named and config.is_override("Infer.PostProcess.class_id_map_file"):
        return read_class_names(named, count)
    is_of_this_run = purpose != "train" or config.own_folder is not None
    for folder in [*([config.run_folder] if is_of_this_run else []), *_list_folders(config)]:
        if (folder / CLASS_NAMES).is_file():
            return read_class_names(folder / CLASS_NAMES, count)
    if named and (count == _IMAGENET_CLASSES or Path(named) != IMAGENET_NAMES):
        return read_class_names(named, count)
    return read_class_names(IMAGENET_NAMES, count) if count == _IMAGENET_CLASSES else []


def _list_folders(config: Config) -> list[Path]:
    sections = [config.DataLoader.Eval, config.DataLoader.Train] if config.DataLoader else []
    datasets = [section.dataset for section in sections if section]
    lists = [Path(dataset["cls_label_path"]).parent for dataset in datasets if dataset.get("cls_label_path")]
    packs = [
        pack_folder(dataset["pack"], dataset.get("cache_dir")) for dataset in datasets if dataset.get("pack")
    ]
    return lists + [folder for folder in packs if folder is not None]


def data_name(dataset: Mapping[str, Any]) -> str:
    """The data set of a config's block, in a few words: its list or folder, or else its kind."""
    return str(
        dataset.get("cls_label_path") or dataset.get("pack") or dataset.get("name", "the evaluation data")
    )


def describe(config: Config, weights: Weights, transforms: Sequence[Block], names: Sequence[str]) -> str:
    """One line about what a tool uses: weights, preparation of the images, classes."""
    classes = describe_classes(class_num(config), names)
    return f"{config.Arch.name} with {weights}, {prepared_images(transforms)}, {classes}"
